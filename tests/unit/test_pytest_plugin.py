"""The pytest plugin, with machines that are none."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

MACHINES = """
import pytest
import pykvm.pytest
from pykvm.agent import GuestEndedError

booted = []

class Machine:
    def __init__(self, name):
        self.name, self.forks, self.console, self.closed = name, 0, f"console of {name}", False
        self.resets, self.asked, self.is_as_forked, self.is_usable = 0, 0, True, True
        self.faults, self.ending, self.end_was_told = [], "", False

    def fork(self):
        self.forks += 1
        return Machine(f"{self.name}/{self.forks}")

    def reset(self):
        assert not self.closed
        self.resets += 1

    def rest(self):
        if self.ending:
            self.end_was_told = True
            raise GuestEndedError(self.ending, self.console)

    def last_exits(self):
        return ["out 0x3f8 serial"]

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

@pytest.fixture(autouse=True, scope="session")
def no_boot():
    def boot(cache, required, **options):
        booted.append(Machine(f"{options}"))
        return booted[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pykvm.pytest, "boot", boot)
        yield booted
    assert all(machine.closed for machine in booted)
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(MACHINES)
    return pytester


def test_every_test_has_a_fork_of_one_machine(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest

        names = set()

        @pytest.mark.parametrize("case", range(3))
        def test_one(vm, machine, case):
            names.add(vm.name)
            vm.is_usable = case != 0
            assert vm.name == f"{machine.name}/{min(case, 1) + 1}"
            assert vm.resets == (case == 2)  # what can be used on is, and is no other to the test

        def test_there_was_one_boot(no_boot):
            assert len(no_boot) == 1 and len(names) == 2
    """)
    session.runpytest().assert_outcomes(passed=4)


def test_markers_describe_the_machine_and_equal_ones_share_it(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest

        pytestmark = pytest.mark.pykvm(memory="64M", kernel="other")

        @pytest.mark.pykvm(cpus=2)
        def test_more(vm):
            assert "'cpus': 2" in vm.name and "'memory': '64M'" in vm.name

        @pytest.mark.pykvm(cpus=2)
        def test_the_same(vm):
            assert "'kernel': 'other'" in vm.name and vm.resets == 1

        @pytest.mark.pykvm(memory="32M")
        def test_the_nearest_counts(vm, no_boot):
            assert "'memory': '32M'" in vm.name
            assert len(no_boot) == 2
    """)
    session.runpytest("--pykvm-kernel", "6.1", "--strict-markers").assert_outcomes(passed=3)


def test_machine_that_was_asked_for_something_has_new_forks(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest

        @pytest.mark.parametrize("case", range(3))
        def test_it(vm, machine, case):
            assert vm.name.endswith(f"/{case + 1}")
            machine.asked += 1
    """)
    session.runpytest().assert_outcomes(passed=3)


def test_command_line_names_the_kernel(session: pytest.Pytester) -> None:
    session.makepyfile("""
        def test_kernel(vm):
            assert "'kernel': '6.1'" in vm.name
    """)
    session.runpytest("--pykvm-kernel", "6.1").assert_outcomes(passed=1)


@pytest.mark.parametrize("wrong", ["cpu=2", "'6.1'"])
def test_marker_with_something_else_is_refused(session: pytest.Pytester, wrong: str) -> None:
    session.makepyfile(f"""
        import pytest

        @pytest.mark.pykvm({wrong})
        def test_it(vm):
            pass
    """)
    result = session.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*unknown; write NAME=VALUE with one of kernel, cpus,*"])


def test_failure_comes_with_console_and_last_exits(session: pytest.Pytester) -> None:
    session.makepyfile("""
        def test_good(vm):
            pass

        def test_bad(vm):
            assert False
    """)
    result = session.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*console of the pykvm machine*", "console of {*}/1"])
    result.stdout.fnmatch_lines(["*last exits of the pykvm machine*", "out 0x3f8 serial"])
    assert result.stdout.str().count("console of {") == 1


def test_fault_of_the_kernel_fails_the_test_that_caused_it(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest

        def test_bad(vm):
            vm.faults += ["WARNING: CPU: 0 PID: 7 at fs/x.c:1 f+0x1/0x2", "Oops: 0002"]

        @pytest.mark.pykvm(allow=["^WARNING: .*f\\\\+", "^Oops"])
        def test_told_of(vm):
            vm.faults += ["WARNING: CPU: 0 PID: 7 at fs/x.c:1 f+0x1/0x2", "Oops: 0002"]

        @pytest.mark.pykvm(allow="^WARNING: .*f\\\\+")
        def test_another_than_told_of(vm):
            vm.faults += ["WARNING: CPU: 0 PID: 7 at fs/x.c:1 g+0x1/0x2"]

        @pytest.fixture
        def untidy(vm):
            yield
            vm.faults.append("BUG: KASAN: use-after-free")

        def test_fixture(vm, untidy):
            vm.faults.append("BUG: told once")
            assert False

        def test_good(vm):
            pass
    """)
    result = session.runpytest()
    result.assert_outcomes(passed=2, failed=3, errors=1)
    result.stdout.fnmatch_lines(
        ["*the guest's kernel is at fault (2 times*", "  WARNING: CPU: 0 PID*", "  Oops: 0002"]
    )
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_fixture*", "*at fault (1 times*"])
    result.stdout.no_fnmatch_line("  BUG: told once")


def test_machine_that_ended_unseen_fails_the_test(session: pytest.Pytester) -> None:
    session.makepyfile("""
        def test_unseen(vm):
            vm.ending = "the guest ended: kernel panic"

        def test_seen(vm):
            vm.ending, vm.end_was_told, vm.faults = "kernel panic", True, ["Kernel panic"]
    """)
    result = session.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["the guest ended: kernel panic", "console of {*"])


@pytest.mark.parametrize("how", ["KeyboardInterrupt", "pytest.exit('enough')"])
def test_ctrl_c_is_no_fault_of_the_machine(session: pytest.Pytester, how: str) -> None:
    session.makepyfile(f"""
        import pytest

        def test_it(vm):
            vm.ending = "a command was broken off"
            {"raise " if how == "KeyboardInterrupt" else ""}{how}
    """)
    result = session.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.no_fnmatch_line("*broken off*")
    result.stderr.no_fnmatch_line("*Traceback*")


def test_wrong_pattern_is_refused_before_a_boot(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest

        @pytest.mark.pykvm(allow="(")
        def test_it(vm):
            pass

        def test_no_boot(no_boot):
            assert not no_boot
    """)
    result = session.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*allow='(': missing ), unterminated subpattern*"])


def test_boot_that_failed_is_not_tried_again(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import pytest
        import pykvm.pytest
        from pykvm.errors import ConfigError

        @pytest.fixture(scope="module", autouse=True)
        def broken(no_boot):
            def boot(**options):
                no_boot.append(options)
                raise ConfigError("no such kernel: 7.0")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pykvm.pytest, "boot", boot)
                yield
            assert len(no_boot) == 1
            no_boot.clear()

        @pytest.mark.parametrize("case", range(3))
        def test_it(vm, case):
            pass
    """)
    result = session.runpytest("-rN")  # no summary: in CI it would say it again
    result.assert_outcomes(errors=3)
    assert result.stdout.str().count("no such kernel: 7.0") == 3


NOT_HERE = """
import pytest
from pykvm.agent import described

@pytest.fixture(autouse=True, scope="session")
def nowhere():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(described, "why_not", lambda: "no /dev/kvm; load kvm_amd")
        yield
"""


@pytest.mark.parametrize(("option", "outcome"), [([], "skipped"), (["--pykvm-required"], "errors")])
def test_without_kvm_tests_are_skipped_unless_it_is_required(
    pytester: pytest.Pytester, option: list[str], outcome: str
) -> None:
    pytester.makeconftest(NOT_HERE)
    pytester.makepyfile("def test_it(vm): pass")
    result = pytester.runpytest("-rs", *option)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["*pykvm: no /dev/kvm; load kvm_amd*"])


def test_tests_without_a_machine_boot_none(session: pytest.Pytester) -> None:
    session.makepyfile("""
        def test_nothing(no_boot):
            assert not no_boot
    """)
    session.runpytest().assert_outcomes(passed=1)

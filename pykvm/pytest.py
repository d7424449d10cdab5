"""The pytest plugin: a Linux guest of its own for every test.

Reached from pytest, by the entry point ``pykvm`` (pyproject.toml). A guest is booted once in a run,
and each test has a fork of it. ::

    @pytest.mark.pykvm(memory="128M", cpus=2)
    def test_a_sysctl(vm):
        assert vm.run("sysctl -n kernel.pid_max").code == 0

Read `agent` for what `vm` is, docs/pytest.md for all that a marker may say.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from itertools import filterfalse
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pykvm.agent import GuestMachine

    Machines = Callable[..., GuestMachine]

OPTIONS: Final = ("kernel", "cpus", "memory", "append", "add", "modules", "disks", "net", "setup")
ALLOW: Final = "allow"
MARKER: Final = (
    "pykvm(kernel=None, cpus=1, memory='256M', append=…, add=(), modules=(), disks=(), net=(), "
    "setup=(), allow=()): the machine that the test's `vm` is a fork of: options of 'pykvm boot', "
    "kernel modules to load, commands to run once; and which faults of its kernel it may cause"
)
FAULTS: Final = 5  # told of a test
VM: Final = pytest.StashKey["GuestMachine"]()  # of a test
SEEN: Final = pytest.StashKey[int]()  # of its kernel's faults, so many were told or are allowed
CONSOLE_SHOWN: Final = 8000  # characters


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the command line may say."""
    group = parser.getgroup("pykvm")
    group.addoption(
        "--pykvm-kernel",
        metavar="KERNEL",
        help="the kernel of the guests, a path or as 'pykvm boot' takes it (default: its default)",
    )
    group.addoption(
        "--pykvm-no-cache",
        action="store_true",
        help="boot the guests, though they were booted before and kept, and keep none",
    )
    group.addoption(
        "--pykvm-required",
        action="store_true",
        help="where there can be no guests, fail the tests that want one, and do not skip them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


class Stock:
    """The machines of a run, and for each a fork of it that a test has left behind."""

    def __init__(self, **how: bool) -> None:
        self._how = how  # to boot
        self._booted: dict[str, GuestMachine] = {}
        self._failures: dict[str, str] = {}  # of those that could not be booted
        self._left: dict[tuple[GuestMachine, int], GuestMachine] = {}

    def machine(self, **options: Any) -> GuestMachine:
        """The machine with these options, booted when first asked for. It is tried once: a boot
        that fails takes minutes, and fails again."""
        from pykvm.errors import PykvmError

        key = repr(sorted(options.items()))
        if key not in self._booted and key not in self._failures:
            try:
                self._booted[key] = boot(**self._how, **options)
            except PykvmError as error:
                self._failures[key] = f"pykvm: {error}"
        if key in self._failures:
            pytest.fail(self._failures[key], pytrace=False)
        return self._booted[key]

    @contextlib.contextmanager
    def fork(self, machine: GuestMachine) -> Iterator[GuestMachine]:
        """A fork of `machine`. To take one back to its beginning is cheaper than to make one."""
        now = (machine, machine.asked)  # it may be asked for something, and is another then
        with contextlib.ExitStack() as stack:
            vm = self._left.pop(now, None)
            if vm is not None:
                stack.push(vm)
                vm.reset()
            else:
                vm = stack.enter_context(machine.fork())
            yield vm
            if vm.is_as_forked and vm.is_usable:
                stack.pop_all()
                self._left[now] = vm

    def close(self) -> None:
        for machine in (*self._left.values(), *self._booted.values()):
            machine.close()


@pytest.fixture(scope="session")
def pykvm_stock(pytestconfig: pytest.Config) -> Iterator[Stock]:
    """What the other fixtures take from."""
    stock = Stock(
        cache=not pytestconfig.getoption("--pykvm-no-cache"),
        required=pytestconfig.getoption("--pykvm-required"),
    )
    yield stock
    stock.close()


@pytest.fixture(scope="session")
def pykvm_machines(pytestconfig: pytest.Config, pykvm_stock: Stock) -> Machines:
    """``pykvm_machines(cpus=2)``: the machine with these options, at rest: fork it."""
    kernel = pytestconfig.getoption("--pykvm-kernel")
    return lambda **options: pykvm_stock.machine(**{"kernel": kernel, **options})


@pytest.fixture(scope="session")
def machine(pykvm_machines: Machines) -> GuestMachine:
    """The machine without any options of a marker's, at rest: fork it."""
    return pykvm_machines()


@pytest.fixture
def vm(
    request: pytest.FixtureRequest, pykvm_machines: Machines, pykvm_stock: Stock
) -> Iterator[GuestMachine]:
    """A fork of the machine that the test's marker describes."""
    item: pytest.Item = request.node
    _allowed(item)  # before it costs a boot
    options = {name: value for name, value in _options(item).items() if name != ALLOW}
    with pykvm_stock.fork(pykvm_machines(**options)) as fork:
        item.stash[VM], item.stash[SEEN] = fork, 0  # the test may be run again, by a plugin
        yield fork
        _expect_no_faults(item)  # what other fixtures did in the end


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test fails whose machine ended without its knowledge, or whose kernel is at fault."""
    try:
        result = yield
        _expect_no_faults(item)
        return result
    except (KeyboardInterrupt, pytest.exit.Exception):
        if VM in item.stash:  # its command was broken off: that is no fault of the guest's
            del item.stash[VM]
        raise
    finally:
        if VM in item.stash:
            item.stash[SEEN] = len(item.stash[VM].faults)


def _expect_no_faults(item: pytest.Item) -> None:
    from pykvm.agent import GuestEndedError

    if VM not in item.stash:
        return
    vm, problem = item.stash[VM], ""
    if vm.end_was_told:
        return
    try:
        vm.rest()
    except GuestEndedError as error:
        problem = str(error)
    wrong = list(filterfalse(_allowed(item), vm.faults[item.stash[SEEN] :]))
    if wrong and not problem:
        lines = "".join(f"\n  {line}" for line in wrong[:FAULTS])
        problem = (
            f"the guest's kernel is at fault ({len(wrong)} times; allow= of the marker allows what "
            f"is expected):{lines}"
        )
    if problem:
        pytest.fail(problem, pytrace=False)


def _allowed(item: pytest.Item) -> Callable[[str], bool]:
    from pykvm.agent.described import listed

    try:
        patterns = [re.compile(text) for text in listed(_options(item).get(ALLOW, ()))]
    except re.error as error:
        raise pytest.UsageError(f"@pytest.mark.pykvm: allow={error.pattern!r}: {error}") from None
    return lambda fault: any(pattern.search(fault) for pattern in patterns)


def _options(item: pytest.Item) -> dict[str, Any]:
    """What its markers say, the nearest first."""
    options: dict[str, Any] = {}
    for mark in item.iter_markers("pykvm"):
        wrong = [*map(repr, mark.args), *sorted({*mark.kwargs} - {*OPTIONS, ALLOW})]
        if wrong:
            raise pytest.UsageError(
                f"@pytest.mark.pykvm: {', '.join(wrong)}: unknown; write NAME=VALUE with one of "
                f"{', '.join((*OPTIONS, ALLOW))}"
            )
        options = {**mark.kwargs, **options}
    return options


def boot(cache: bool, required: bool, **options: Any) -> GuestMachine:
    """The machine that a marker describes. Where there can be none, skips, or fails."""
    from pykvm.agent import described

    problem = described.why_not()
    if problem is not None and required:
        pytest.fail(f"pykvm: {problem}", pytrace=False)
    if problem is not None:
        pytest.skip(f"pykvm: {problem}")
    return described.boot(cache, _warn, **options)


def _warn(message: str) -> None:
    import warnings

    warnings.warn(pytest.PytestWarning(f"pykvm: {message}"), stacklevel=2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to what is told of a failure: the console of the test's machine, its last exits."""
    report: pytest.TestReport = yield
    vm = item.stash.get(VM, None)
    if report.failed and vm is not None:
        exits = "\n".join(vm.last_exits())
        report.sections.append(("console of the pykvm machine", vm.console[-CONSOLE_SHOWN:]))
        report.sections.append(("last exits of the pykvm machine", exits))
    return report

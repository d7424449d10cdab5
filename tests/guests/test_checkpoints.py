"""Checkpoints: moments of a running machine, and the one after which it was wrong."""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import open_files

from pykvm import guest_programs
from pykvm.checkpoints import Checkpoint
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, HostError, PykvmError
from pykvm.machine import Machine
from pykvm.memory import GuestMemory
from pykvm.outcome import Reason
from pykvm.virtio.config.disk import DiskConfig

MEMORY = 16 << 20
TIMEOUT_S = 60.0
WORD, SOUND = 0x7FF000, 0x600D  # guests/snapshot/main.c
NOTHING = 0x60_0000  # gpa where nothing of the guest's is
DOCS = Path(__file__).parents[2] / "docs" / "snapshots.md"

Boot = Callable[..., Machine]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """``boot("rounds=5", cpus=2)``: a machine with the guest that knows what it is."""
    machines = []

    def make(cmdline: str, **options: object) -> Machine:
        options = {"memory": MEMORY, **options}
        kernel = guest_programs.path("snapshot")
        machines.append(Machine(MachineConfig(kernel=kernel, cmdline=cmdline, **options)))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def word(vm: Machine, gpa: int = WORD) -> int:
    return int.from_bytes(vm.memory.read(gpa, 4), "little")


def rounds(console: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"round (\d+) of", console)]


def put(vm: Machine, value: int) -> None:
    vm.memory.write(NOTHING, value.to_bytes(4, "little"))


def checksum(memory: GuestMemory) -> int:
    """To be compared: pytest would tell of all the bytes that differ."""
    return zlib.crc32(memory.read(0, memory.size))


def memory_at(point: Checkpoint) -> bytes:
    with point.machine() as vm:
        return vm.memory.read(0, MEMORY)


def test_example_of_the_documentation_runs() -> None:
    section = DOCS.read_text().partition("## Checkpoints\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    exec(compile(code[1], str(DOCS), "exec"), {})


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_interval_is_found_in_which_a_word_was_spoilt(boot: Boot, cpus: int) -> None:
    vm = boot(f"rounds=60 ticks=10 touch=4 spoil=37 cpus={int(cpus > 1)}", cpus=cpus)
    points = vm.checkpoints(every=0.02)
    outcome = vm.run(timeout=TIMEOUT_S)
    assert outcome.code == 0
    assert points.error is None
    assert len(points) > 4
    found = vm.bisect(lambda vm: word(vm) not in (0, SOUND))
    assert found.after.number == found.before.number + 1
    with found.after.machine() as after:
        assert word(after) == 37
    with found.machine as before:
        assert word(before) == SOUND
        assert rounds(before.console_log)[-1] <= 37
        assert outcome.console.startswith(before.console_log)
        again = before.run(timeout=TIMEOUT_S)
        assert again.code == 0
        assert b"FAILED" not in again.console
        assert word(before) == 37
        assert rounds(again.console) == list(range(1, 61))
        before.reset()
        assert word(before) == SOUND


def test_a_line_of_the_console_is_a_moment_too(boot: Boot) -> None:
    vm = boot("rounds=30 ticks=20")  # a checkpoint may come some lines late
    vm.checkpoints(every="console:^round (10|20) of")
    vm.run(timeout=TIMEOUT_S)
    found = vm.bisect(lambda vm: b"round 20 of" in vm.console_log)
    with found.machine as before:
        assert 10 <= rounds(before.console_log)[-1] < 20
    with found.after.machine() as after:
        assert 20 <= rounds(after.console_log)[-1] < 30


def test_registers_can_be_asked_for(boot: Boot) -> None:
    vm = boot("rounds=5")
    vm.checkpoints()
    start = vm.vcpus[0].regs.rip
    vm.run(timeout=TIMEOUT_S)
    with vm.bisect(lambda vm: vm.vcpus[0].regs.rip != start).machine as before:
        assert before.vcpus[0].regs.rip == start
        assert rounds(before.run(timeout=TIMEOUT_S).console) == [1, 2, 3, 4, 5]


def test_each_has_the_memory_of_its_moment(boot: Boot) -> None:
    vm = boot("rounds=1000000 ticks=1 touch=3")
    points = vm.checkpoints()
    moments = [vm.memory.read(0, MEMORY)]
    for step in range(1, 12):
        vm.run(timeout=0.02)
        put(vm, step)
        vm.memory.write(NOTHING + (1 + step % 3) * 4096, bytes([step]) * 9000)
        vm.memory.write(NOTHING + (40 << 12), bytes(step % 2 * 70_000))  # zeros, too
        points.take()
        moments.append(vm.memory.read(0, MEMORY))
    ids = 0xEF000  # of the generation: each copy has its own
    for point, moment in zip(points, moments, strict=True):
        found = memory_at(point)
        assert found[:ids] == moment[:ids]
        assert found[ids + 16 :] == moment[ids + 16 :]
        assert point.size < 64 * 4096 or point.number == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 63), st.integers(1, 20)),
        st.tuples(st.sampled_from(["take", "fork", "make", "snapshot"])),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_whatever_happens_each_has_the_memory_of_its_moment(steps: list[tuple[Any, ...]]) -> None:
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        kernel = guest_programs.path("snapshot")
        vm = opened.enter_context(Machine(MachineConfig(kernel=kernel, memory=4 << 20)))
        points = vm.checkpoints(count=6)
        moments = {0: checksum(vm.memory)}
        made: list[tuple[Machine, int]] = []
        for number, step in enumerate(steps):
            match step:
                case ("write", page, count):
                    data = bytes([number % 3]) * (count << 12)  # zeros, and what was there before
                    vm.memory.write((3 << 20) + (page << 12), data)
                case ("take",):
                    moments[points.take().number] = checksum(vm.memory)
                case ("fork",):
                    vm.fork().close()
                case ("make",):
                    machine = opened.enter_context(points[0].machine())
                    made.append((machine, checksum(machine.memory)))
                case ("snapshot",):
                    vm.snapshot(scratch / "snap")
        for point in points:
            with points.template_at(point).memory() as memory:
                assert checksum(memory) == moments[point.number]
        for machine, moment in made:
            assert checksum(machine.memory) == moment


def test_what_a_disk_reads_into_memory_is_undone(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"hello from the disk".ljust(64 * 512, b"\0"))
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=MEMORY,
        cmdline="count=20",
        transport="mmio",
        disks=(DiskConfig(str(disk), read_only=True),),
        rng=True,
    )
    with Machine(config) as vm:
        vm.checkpoints()
        vm.run(timeout=TIMEOUT_S)
        found = vm.bisect(lambda vm: b"hello from the disk" in vm.memory.read(0, MEMORY))
        with found.machine as before:
            assert b'begins with "hello' in before.run(timeout=TIMEOUT_S).console


def test_the_oldest_are_forgotten_by_count_and_by_size(boot: Boot) -> None:
    vm = boot("rounds=1")
    points = vm.checkpoints(count=3)
    for step in range(8):
        put(vm, step)
        points.take()
    assert [point.number for point in points] == [6, 7, 8]
    with points[0].machine() as old:
        assert word(old, NOTHING) == 5
    points = vm.checkpoints(size=10 * 4096)
    for step in range(8):
        vm.memory.write(NOTHING, bytes([step + 1]) * 4 * 4096)
        points.take()
    assert len(points) == 3
    assert points.size == 2 * 4 * 4096


def test_one_that_was_forgotten_is_refused(boot: Boot) -> None:
    vm = boot("rounds=1")
    points = vm.checkpoints(count=2)
    first = points[0]
    for _ in range(3):
        points.take()
    with pytest.raises(PykvmError, match="not kept any more"):
        first.machine()
    vm.checkpoints()
    with pytest.raises(PykvmError, match="are over"):
        points.take()


def test_machine_from_a_checkpoint_is_not_touched_by_later_ones(boot: Boot) -> None:
    vm = boot("rounds=6 ticks=3")
    points = vm.checkpoints()
    put(vm, 1)
    with points.take().machine() as made:
        for step in (2, 3):
            put(vm, step)
            points.take()
        vm.run(timeout=TIMEOUT_S)
        points.take()
        assert word(made, NOTHING) == 1
        assert rounds(made.run(timeout=TIMEOUT_S).console) == [1, 2, 3, 4, 5, 6]
    with points[1].machine() as again:
        assert word(again, NOTHING) == 1


def test_forks_snapshots_and_resets_beside_them(boot: Boot, tmp_path: Path) -> None:
    vm = boot("rounds=6 ticks=3 ask=2")
    vm.on_snapshot_request = vm.stop
    vm.snapshot(tmp_path / "full")
    points = vm.checkpoints()
    vm.run(timeout=TIMEOUT_S)
    put(vm, 1)
    vm.snapshot(tmp_path / "one", base=tmp_path / "full")
    with vm.fork() as fork:
        put(vm, 2)
        points.take()
        assert word(fork, NOTHING) == 1
        assert rounds(fork.run(timeout=TIMEOUT_S).console) == [3, 4, 5, 6]
    with pytest.raises(PykvmError, match="nothing to go back to"):
        vm.reset()
    put(vm, 3)
    vm.snapshot(tmp_path / "two", base=tmp_path / "one")
    vm.fork().close()
    put(vm, 4)
    points.take()
    for name, value in (("one", 1), ("two", 3)):
        with Machine.restore(tmp_path / name) as restored:
            assert word(restored, NOTHING) == value
            assert rounds(restored.run(timeout=TIMEOUT_S).console) == [3, 4, 5, 6]
    with points[1].machine() as back:
        assert word(back, NOTHING) == 2
    with points[2].machine() as back:
        assert word(back, NOTHING) == 4


def test_differential_snapshot_has_what_changed_before_a_checkpoint(
    boot: Boot, tmp_path: Path
) -> None:
    vm = boot("rounds=1")
    points = vm.checkpoints()
    vm.snapshot(tmp_path / "one")
    put(vm, 2)
    points.take()
    vm.snapshot(tmp_path / "two", base=tmp_path / "one")
    with Machine.restore(tmp_path / "two") as restored:
        assert word(restored, NOTHING) == 2


def test_checkpoints_of_a_running_machine_are_bisected_from_another_thread(boot: Boot) -> None:
    vm = boot("rounds=1000000 ticks=1 spoil=40")
    points = vm.checkpoints(every=0.005, count=1000)
    thread = threading.Thread(target=vm.run, kwargs={"timeout": TIMEOUT_S})
    thread.start()
    try:
        while word(vm) != 40 or points.error:
            threading.Event().wait(0.01)
        found = vm.bisect(lambda vm: word(vm) == 40)
        with found.machine as before:
            assert word(before) in (0, SOUND)
            assert before.run(timeout=0.2).reason is Reason.TIMEOUT
    finally:
        vm.stop()
        thread.join()


@pytest.mark.parametrize(
    ("predicate", "complaint"),
    [
        (lambda vm: False, "does not hold now"),
        (lambda vm: True, "holds at <checkpoint 0, .*> already"),
    ],
)
def test_predicate_that_never_begins_is_told(
    boot: Boot, predicate: Callable[[Machine], object], complaint: str
) -> None:
    vm = boot("rounds=1")
    vm.checkpoints()
    with pytest.raises(PykvmError, match=complaint):
        vm.bisect(predicate)


def test_error_in_a_predicate_comes_through(boot: Boot) -> None:
    vm = boot("rounds=1")
    vm.checkpoints()
    with pytest.raises(ZeroDivisionError):
        vm.bisect(lambda vm: 1 / 0)


def test_bisecting_without_checkpoints_is_refused(boot: Boot) -> None:
    with pytest.raises(PykvmError, match=r"vm\.checkpoints"):
        boot("rounds=1").bisect(lambda vm: True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"every": 0}, "every"),
        ({"every": "moon:full"}, "every"),
        ({"every": "console:("}, "every"),
        ({"count": 1}, "count"),
    ],
)
def test_bad_values_are_refused(boot: Boot, options: dict[str, object], complaint: str) -> None:
    vm = boot("rounds=1")
    before = open_files()
    with pytest.raises(ConfigError, match=complaint):
        vm.checkpoints(**options)
    assert open_files() == before


def test_what_cannot_be_saved_ends_them_and_not_the_run(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("snapshot: not this")

    vm = boot("rounds=10")
    points = vm.checkpoints(every="console:^round 5 of")
    with monkeypatch.context() as patch:
        patch.setattr("pykvm.snapshot.diskhistory.capture.capture", refuse)
        assert vm.run(timeout=TIMEOUT_S).code == 0
    assert str(points.error) == "snapshot: not this"


def test_machine_of_a_checkpoint_outlives_the_checkpoints(boot: Boot) -> None:
    vm = boot("rounds=30")
    vm.checkpoints(every="console:^round 10 of")
    vm.run(timeout=TIMEOUT_S)
    put(vm, 1)
    vm.checkpointing.take()
    with vm.checkpointing[1].machine() as before:
        vm.close()
        for _ in range(2):
            assert b"FAILED" not in before.run(timeout=TIMEOUT_S).console
            before.reset()
            assert before.memory.read(0, 4096) is not None
            assert word(before, NOTHING) == 0


def test_file_that_cannot_be_written_loses_all_and_says_so(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = boot("rounds=3")
    points = vm.checkpoints()
    put(vm, 1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pykvm.snapshot.pages.os.pwrite", full)
        with pytest.raises(HostError, match="No space left on device"):
            points.take()
    assert len(points) == 0
    put(vm, 2)
    points.take()
    assert vm.run(timeout=TIMEOUT_S).code == 0
    with vm.bisect(lambda vm: len(vm.console_log) > 0).machine as before:
        assert word(before, NOTHING) == 2


def test_nothing_is_left_open(boot: Boot) -> None:
    vm = boot("rounds=1")

    def use() -> int:
        points = vm.checkpoints(count=3)
        for step in range(6):
            put(vm, step)
            points.take()
        vm.fork().close()
        vm.bisect(lambda vm: word(vm, NOTHING) == 5).machine.close()
        return len(open_files())

    use()
    before = use()
    assert [use() for _ in range(4)] == [before] * 4
    vm.close()
    assert len(open_files()) < before

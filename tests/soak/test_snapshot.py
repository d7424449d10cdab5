"""A thousand restores, ten thousand resets: no descriptor, thread or page is lost."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.machine import Machine

MEMORY = 16 << 20
TIMEOUT_S = 60.0
RESTORES = 1_000
RESETS = 10_000
CHECKPOINTS = 3_000
CHAIN = 10  # snapshots, each on the one before
SLACK_KIB = 2048  # of an allocator that keeps what it had


def used() -> tuple[int, int]:
    """Descriptors, KiB of memory that is no file's."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(fields["RssAnon"].split()[0])
    return len(os.listdir("/proc/self/fd")), memory


def check_growth(before: tuple[int, int]) -> None:
    after = used()
    assert after[0] == before[0]
    assert after[1] - before[1] < SLACK_KIB


def captured() -> Machine:
    """A machine that waits after its first round."""
    kernel = guest_programs.path("snapshot")
    cmdline = "rounds=2 ask=1 ticks=1 touch=16"
    vm = Machine(MachineConfig(kernel=kernel, memory=MEMORY, cmdline=cmdline))
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    return vm


def test_restores_leave_nothing_behind(tmp_path: Path, threads: Callable[..., int]) -> None:
    with captured() as vm:
        vm.snapshot(tmp_path / "snap")

    def go_on() -> None:
        with Machine.restore(tmp_path / "snap") as restored:
            assert restored.run(timeout=TIMEOUT_S).code == 0

    for _ in range(20):
        go_on()
    before, alive = used(), threads()
    for _ in range(RESTORES):
        go_on()
    check_growth(before)
    assert threads(alive) <= alive


def test_resets_leave_nothing_behind(threads: Callable[..., int]) -> None:
    with captured() as vm, vm.fork() as fork:
        for number in range(RESETS + 200):
            if number == 200:
                before, alive = used(), threads()
            assert fork.run(timeout=TIMEOUT_S).code == 0
            fork.reset()
        check_growth(before)
        assert threads(alive) <= alive


def test_checkpoints_leave_nothing_behind() -> None:
    with captured() as vm:
        points = vm.checkpoints(count=8)

        def take() -> None:
            vm.memory.write(0x60_0000, os.urandom(64 << 10))
            points.take()
            if points[-1].number % 100 == 0:
                points[0].machine().close()

        for _ in range(200):
            take()
        before = used()
        for _ in range(CHECKPOINTS):
            take()
        check_growth(before)


def test_chains_of_snapshots_leave_nothing_behind(tmp_path: Path) -> None:
    with captured() as vm:
        vm.snapshot(tmp_path / "0")

    def go_on_from_a_chain() -> None:
        for number in range(CHAIN):
            with Machine.restore(tmp_path / f"{number}") as vm:
                vm.memory.write(0x60_0000, os.urandom(64 << 10))
                vm.snapshot(tmp_path / f"{number + 1}", base=tmp_path / f"{number}")
                assert vm.run(timeout=TIMEOUT_S).code == 0
                vm.reset()

    go_on_from_a_chain()
    before = used()
    for _ in range(20):
        go_on_from_a_chain()
    check_growth(before)

"""Checkpoints of a machine that writes to its disk: the disk goes back with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from snapshots import open_files

from pykvm import guest_programs
from pykvm.checkpoints import Checkpoints
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, KvmError
from pykvm.machine import Machine
from pykvm.snapshot.disks import served_disks
from pykvm.virtio.config.disk import DiskConfig
from pykvm.virtio.overlay import Overlay

SECTORS, SECTOR = 64, 512
BASE = bytes([0xEE]) * (SECTORS * SECTOR)
LAST = 150  # writes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A disk that nobody writes to, and no file more at the end than before."""
    path = tmp_path / "disk"
    path.write_bytes(BASE)
    before = open_files()
    yield str(path)
    assert open_files() == before
    assert path.read_bytes() == BASE


def journal(disk: DiskConfig) -> Machine:
    """The guest writes n over sector n modulo 64, from 1 to LAST, and tells of each tenth."""
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=16 << 20,
        cmdline=f"journal=1 writes={LAST} batch=10",
        transport="mmio",
        disks=(disk,),
    )
    return Machine(config)


def _contents() -> Iterator[bytes]:
    content = bytearray(BASE)
    yield bytes(content)
    for n in range(1, LAST + 1):
        at = n % SECTORS * SECTOR
        content[at : at + SECTOR] = n.to_bytes(4, "little") * (SECTOR // 4)
        yield bytes(content)


CONTENTS = list(_contents())  # of the disk, after so many writes


def writes(vm: Machine) -> int:
    """How many its disk has, which has nothing else; it does not run. One more may come, which the
    guest has asked for."""
    fd = os.memfd_create("content")
    try:
        vm.at_rest(lambda: served_disks(vm)[0].copy_to(fd))
        return CONTENTS.index(os.pread(fd, len(BASE), 0))
    finally:
        os.close(fd)


def run_to_the_end(vm: Machine) -> None:
    while b"written" not in vm.run(timeout=0.05).console:
        pass


def told(vm: Machine) -> int:
    """The last write that it has told of."""
    return max(map(int, re.findall(rb"flushed (\d+)", vm.console_log)), default=0)


def check_each(points: Checkpoints) -> None:
    for point in points:
        with point.machine() as vm:
            there = writes(vm)
            assert told(vm) <= there <= told(vm) + 10
            run_to_the_end(vm)
            assert writes(vm) == LAST
            vm.reset()
            assert abs(writes(vm) - there) <= 1


@pytest.mark.parametrize("where", ["on", "{}/kept"])
def test_disk_goes_back_with_the_machine(disk: str, tmp_path: Path, where: str) -> None:
    overlay = where.format(tmp_path)
    with journal(DiskConfig(disk, overlay=overlay)) as vm:
        points = vm.checkpoints(every="console:^flushed")
        run_to_the_end(vm)
        assert points.error is None
        assert len(points) > 3
        kept = Path(overlay).read_bytes() if overlay != "on" else b""
        check_each(points)
        found = vm.bisect(lambda vm: told(vm) >= 70)
        with found.machine as before:
            assert told(before) < 70
        assert writes(vm) == LAST
        assert overlay == "on" or Path(overlay).read_bytes() == kept


def test_those_that_are_left_are_right_when_the_oldest_are_forgotten(disk: str) -> None:
    with journal(DiskConfig(disk, overlay="on")) as vm:
        points = vm.checkpoints(every="console:^flushed", count=3)
        run_to_the_end(vm)
        assert len(points) == 3
        assert points[0].number > 0
        check_each(points)


def test_what_is_written_counts_for_the_size(disk: str) -> None:
    with journal(DiskConfig(disk, overlay="on")) as vm:
        points = vm.checkpoints(every="console:^flushed", size=1)
        run_to_the_end(vm)
        assert len(points) == 2
        assert points.size > points[0].size > 0
        check_each(points)


def test_new_checkpoints_begin_with_all_that_was_written(disk: str) -> None:
    with journal(DiskConfig(disk, overlay="on")) as vm:
        vm.checkpoints(every="console:^flushed 30")
        while told(vm) < 50:
            vm.run(timeout=0.01)
        points = vm.checkpoints(every="console:^flushed")
        run_to_the_end(vm)
        check_each(points)


def test_reset_between_two_is_seen(disk: str) -> None:
    with journal(DiskConfig(disk, overlay="on")) as vm:
        while told(vm) < 20:
            vm.run(timeout=0.01)
        points = vm.checkpoints()
        vm.fork().close()  # so that there is something to go back to
        moments = [writes(vm)]
        run_to_the_end(vm)
        vm.reset()
        points.take()
        moments.append(writes(vm))
        assert moments[1] < LAST
        for point, moment in zip(points, moments, strict=True):
            with point.machine() as there:
                assert abs(writes(there) - moment) <= 1


def test_disk_that_would_not_go_back_is_refused_at_once(disk: str) -> None:
    with journal(DiskConfig(disk)) as vm:
        before = open_files()
        with pytest.raises(ConfigError, match=r"checkpoints:.*disk.*overlay=on to the disk .vda"):
            vm.checkpoints(every=1)
        assert open_files() == before


@pytest.mark.parametrize(("fails", "left"), [("take", 1), ("add", 0)])
def test_full_disk_loses_no_more_than_it_must_and_the_next_are_right(
    disk: str, monkeypatch: pytest.MonkeyPatch, fails: str, left: int
) -> None:
    with journal(DiskConfig(disk, overlay="on")) as vm:
        points = vm.checkpoints(count=2)
        while told(vm) < 20:
            vm.run(timeout=0.01)
        if fails == "add":  # the oldest of three is forgotten
            points.take()

        def full(*_: object, **__: object) -> None:
            raise KvmError("an overlay's file", 28)

        with monkeypatch.context() as patch:
            patch.setattr(Overlay, fails, full)
            with pytest.raises(KvmError, match="an overlay's file: No space left on device"):
                points.take()
        assert len(points) == left
        points.take()
        run_to_the_end(vm)
        points.take()
        check_each(points)

"""Disks across a snapshot: copies in its folder, other places, other sizes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, HostError
from pykvm.machine import Machine
from pykvm.outcome import Reason
from pykvm.snapshot.compact import compact
from pykvm.snapshot.load import load
from pykvm.virtio.config.disk import DROPPED, DiskConfig, parse_disk

SIZE = 3 << 20
TEXT = b"hello from the disk"
TIMEOUT_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(TEXT.ljust(1 << 16, b"\0"))
    os.truncate(path, SIZE)
    return path


def machine(*disks: str, **options: object) -> Machine:
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=4 << 20,
        transport="mmio",
        disks=tuple(map(parse_disk, disks)),
        cmdline="count=3",
        **options,
    )
    return Machine(config)


@pytest.fixture(params=["", ",overlay=on", ",overlay={}/overlay", ",cache=none"])
def written(request: pytest.FixtureRequest, tmp_path: Path, disk: Path) -> Iterator[Machine]:
    """A machine whose guest has turned the bits of sector 1's first bytes on its disk."""
    try:
        vm = machine(f"{disk}{request.param.format(tmp_path)}")
    except ConfigError as error:
        pytest.skip(str(error))
    with vm:
        assert vm.run(timeout=TIMEOUT_S).reason is Reason.EXIT
        yield vm


def test_a_snapshot_has_the_disk_as_the_guest_found_it(
    written: Machine, tmp_path: Path, disk: Path
) -> None:
    written.snapshot(tmp_path / "snap", disks=True)
    copy = (tmp_path / "snap" / "disk0").read_bytes()
    assert copy[:512].startswith(TEXT)
    assert copy[512 : 512 + len(TEXT)] == bytes(byte ^ 0xFF for byte in TEXT)
    assert copy[1024:] == bytes(SIZE - 1024)
    assert os.stat(tmp_path / "snap" / "disk0").st_blocks * 512 < SIZE  # holes stay holes
    disk.write_bytes(b"another life")  # what it was is in the snapshot
    with Machine.restore(tmp_path / "snap") as first, Machine.restore(tmp_path / "snap") as second:
        for copy_of in (first, second):
            assert copy_of.config.disks[0].overlay == DROPPED
            assert copy_of.config.disks[0].path == str(tmp_path / "snap" / "disk0")


def test_a_copy_of_a_copy_has_what_was_written_between(disk: Path, tmp_path: Path) -> None:
    with machine(str(disk)) as vm:
        vm.snapshot(tmp_path / "one", disks=True)
    with Machine.restore(tmp_path / "one") as vm:
        assert vm.run(timeout=TIMEOUT_S).reason is Reason.EXIT
        with pytest.raises(ConfigError, match="--snapshot-disks"):
            vm.snapshot(tmp_path / "without")
        vm.snapshot(tmp_path / "two", disks=True)
        with pytest.raises(ConfigError, match="--snapshot-disks"):
            vm.snapshot(tmp_path / "without")  # the copies were of that moment
    assert (tmp_path / "one" / "disk0").read_bytes() == disk.read_bytes()
    assert (tmp_path / "two" / "disk0").read_bytes()[512] == TEXT[0] ^ 0xFF
    load(tmp_path / "one", verify=True).close()


def test_a_disk_that_is_only_read_is_not_copied(disk: Path, tmp_path: Path) -> None:
    with machine(f"{disk},ro") as vm:
        vm.snapshot(tmp_path / "snap", disks=True)
    assert sorted(os.listdir(tmp_path / "snap")) == ["memory", "snapshot.json", "state"]
    os.utime(disk, (1, 1))
    with pytest.raises(ConfigError, match="has changed since"):
        load(tmp_path / "snap")


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone"])
def test_a_damaged_copy_is_refused(disk: Path, tmp_path: Path, damage: str) -> None:
    with machine(str(disk)) as vm:
        vm.snapshot(tmp_path / "snap", disks=True)
    copy = tmp_path / "snap" / "disk0"
    copy.chmod(0o600)
    if damage == "gone":
        copy.unlink()
    elif damage == "flip":
        with open(copy, "r+b") as file:
            file.seek(2 << 20)  # a hole
            file.write(b"\1")
    else:
        os.truncate(copy, SIZE + (1 if damage == "longer" else -1))
    with pytest.raises(ConfigError, match="is damaged: disk0"):
        load(tmp_path / "snap")
    load(tmp_path / "snap", disks=(str(disk),)).close()  # another one in its place


def test_a_compacted_snapshot_has_its_disks(disk: Path, tmp_path: Path) -> None:
    with machine(str(disk)) as vm:
        vm.snapshot(tmp_path / "base", disks=True)
        vm.run(timeout=TIMEOUT_S)
        vm.snapshot(tmp_path / "diff", base=tmp_path / "base", disks=True)
    wanted = (tmp_path / "diff" / "disk0").read_bytes()
    compact(tmp_path / "diff")
    assert (tmp_path / "diff" / "disk0").read_bytes() == wanted
    load(tmp_path / "diff", verify=True).close()


def test_a_disk_elsewhere_is_taken_as_it_is_if_it_is_as_large(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "disk2").write_bytes(bytes(4096))
    with machine(str(disk), f"{disk}2,ro") as vm:
        vm.snapshot(tmp_path / "snap")
    disk.write_bytes(b"changed".ljust(SIZE, b"\0"))
    (tmp_path / "copy").write_bytes(bytes(SIZE))
    with pytest.raises(ConfigError, match=re.escape(f"{disk} has changed")):
        load(tmp_path / "snap")
    for where in (f"{tmp_path}/copy", f"vda={tmp_path}/copy", str(disk)):
        with Machine.restore(tmp_path / "snap", disks=(where,)) as vm:
            assert vm.config.disks[0].path == where.removeprefix("vda=")
            assert vm.config.disks[1] == DiskConfig(f"{disk}2", read_only=True)
    os.truncate(tmp_path / "copy", SIZE + 512)
    with pytest.raises(ConfigError, match="has 6145 sectors, and the guest knows of 6144"):
        Machine.restore(tmp_path / "snap", disks=(f"{tmp_path}/copy",))
    os.utime(f"{disk}2", (1, 1))
    with pytest.raises(ConfigError, match="disk2 has changed"):  # that one was not named
        load(tmp_path / "snap", disks=(str(disk),))


def test_a_disk_for_which_there_is_no_room_leaves_no_snapshot(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with machine(f"{disk},overlay=on") as vm:
        vm.run(timeout=TIMEOUT_S)
        with monkeypatch.context() as patch:
            patch.setattr("pykvm.snapshot.pages.copy_file", fail)
            with pytest.raises(HostError, match="No space left"):
                vm.snapshot(tmp_path / "snap", disks=True)
        assert sorted(os.listdir(tmp_path)) == ["disk"]
        with pytest.raises(ConfigError, match="--snapshot-disks"):  # it is not thought copied
            vm.snapshot(tmp_path / "snap")

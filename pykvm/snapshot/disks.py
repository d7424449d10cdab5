"""A snapshot's disks: copies in its folder; or they are not in it, and must be as they were.

Reached from `save`, which notes what they look like or copies them, and from `load`, which refuses
others and takes the copies. A copy is what a disk that the guest may write to was at that moment;
machines that go on from there have an overlay over it, so it stays so.
"""

from __future__ import annotations

import os

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.config import MachineConfig
    from pykvm.machine import Machine
    from pykvm.virtio.blk import Blk


def describe_disks(machine: Machine) -> list[dict[str, Any]]:
    """What tells whether a disk, or its overlay, has changed: size, inode, time of last write."""
    return [describe(disk.written_path or disk.path) for disk in machine.config.disks]


def describe(path: str) -> dict[str, Any]:
    status = os.stat(path)
    return {
        "path": os.path.abspath(path),
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
    }


def check_disks(disks: list[dict[str, Any]], folder: str) -> None:
    """Raises `ConfigError` when one of them is not what it was."""
    for disk in disks:
        path = disk["path"]
        try:
            now = describe(path)
        except OSError as error:
            raise ConfigError(
                f"snapshot {folder}: its disk {path}: {error.strerror}; name it with --disk"
            ) from None
        if now != disk:
            raise ConfigError(
                f"snapshot {folder}: its disk {path} has changed since; the guest would find "
                "another content than it knows of. Name a copy from then with --disk"
            )


# ── copies ───────────────────────────────────────────────────────────────────────────────────────


def copy_name(number: int | str) -> str:
    """The copy of a disk, in a snapshot's folder."""
    return f"disk{number}"


def served_disks(machine: Machine) -> dict[int, Blk]:
    """The disks that no other process serves, by their number among all."""
    if not machine.config.disks:
        return {}
    from pykvm.virtio.blk import Blk

    disks = [each.device for each in machine.virtio if each.device.device_id == Blk.device_id]
    return {number: disk for number, disk in enumerate(disks) if isinstance(disk, Blk)}


def written_disks(machine: Machine) -> dict[int, Blk]:
    """Those of them that the guest may write to."""
    disks = served_disks(machine).items()
    return {number: disk for number, disk in disks if not disk.config.read_only}


def use_copies(
    config: MachineConfig, head: dict[str, Any], numbers: set[int], folder: str, verify: bool
) -> tuple[MachineConfig, set[int]]:
    """`config` with the copies, checked, in the place of those of the disks in `numbers` that have
    one; and the other numbers. Raises `ConfigError`, and a `chain.NONSENSE` for the head's."""
    from pykvm.snapshot import chain
    from pykvm.virtio.config.disk import DROPPED, RAW

    disks, rest = list(config.disks), set(numbers)
    for number in sorted(numbers):
        copy = head.get("copies", {}).get(str(number))
        if copy is None:
            continue
        name = copy_name(number)
        os.close(chain.open_whole(folder, name, copy, int(copy["size"]), verify=verify))
        disks[number] = disks[number]._replace(
            path=os.path.join(folder, name), overlay=DROPPED, cache="writeback", format=RAW
        )
        rest.discard(number)
    return config._replace(disks=tuple(disks)), rest

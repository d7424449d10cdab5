"""A snapshot's disks: they are not in it, so they must be as they were.

Reached from `save`, which notes what they look like, and from `load`, which refuses others.
"""

from __future__ import annotations

import os

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.machine import Machine


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

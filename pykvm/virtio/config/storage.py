"""``--disk``, ``--fs`` and ``--root`` together: the machine's storage, and what its guest mounts.

Reached from `cli_boot`. A disk or share with ``mount=PATH`` is mounted there by pykvm's own init, a
share without at /mnt/TAG, and one of them at / is the root. What init is told has the form of
fstab(5); the other end is guests/init/mounts.c.
"""

from __future__ import annotations

import os

from pykvm.boot.files import open_at_once
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.disk import DiskConfig, parse_disk
from pykvm.virtio.config.share import ShareConfig, parse_share

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

ROOT: Final = "/"

AUTO: Final = "auto"  # init tries what the kernel has


class Storage(Record):
    """Disks and shares, in the order the guest finds them."""

    disks: tuple[DiskConfig, ...] = ()
    shares: tuple[ShareConfig, ...] = ()

    def __post_init__(self) -> None:
        tags = [share.tag for share in self.shares]
        if len(set(tags)) < len(tags):
            raise ConfigError("--fs: two folders have one tag; give each its own")
        targets = [path for path in self._mounts if path]
        if len(set(map(os.path.normpath, targets))) < len(targets):
            raise ConfigError("--root, mount=: two are to be mounted at one place; choose another")

    @property
    def asks_for_mounts(self) -> bool:
        """Whether a ``--root`` or ``mount=`` needs pykvm's own init."""
        return any(self._mounts)

    @property
    def _mounts(self) -> list[str]:
        return [disk.mount for disk in self.disks] + [share.mount for share in self.shares]

    def fstab(self) -> str:
        """What init mounts, the root first: source, target, type, options."""
        lines = []
        for number, disk in enumerate(self.disks):
            if disk.mount:
                source = f"{device(number)}{disk.partition or ''}"
                lines.append((disk.mount, source, file_system(disk), disk.read_only))
        lines += [(share.target, share.tag, "virtiofs", share.read_only) for share in self.shares]
        lines.sort(key=lambda line: line[0].count("/") if line[0] != ROOT else 0)
        return "".join(
            f"{_escape(source)} {_escape(target)} {kind} {'ro' if read_only else 'rw'}\n"
            for target, source, kind, read_only in lines
        )

    def file_systems(self) -> list[str]:
        """The types of file systems that the guest is to mount from disks, as far as is known."""
        return [name for disk in self.disks if disk.mount and (name := file_system(disk)) != AUTO]


def parse_storage(disks: Iterable[str], shares: Iterable[str], root: str | None) -> Storage:
    """What the three options are given. Raises `ConfigError` naming one.

    ``--root`` is the tag of a share, a folder (a share of its own), or what ``--disk`` takes; that
    disk is the first.
    """
    storage = Storage(tuple(map(parse_disk, disks)), tuple(map(parse_share, shares)))
    if root is None:
        return storage
    tags = [share.tag for share in storage.shares]
    if root in tags:
        shared = [
            share._replace(mount=ROOT) if share.tag == root else share for share in storage.shares
        ]
        return Storage(storage.disks, tuple(shared))
    folder, *options = root.split(",")
    if os.path.isdir(folder):
        share = parse_share(",".join((folder, "tag=root", f"mount={ROOT}", *options)))
        return Storage(storage.disks, (share, *storage.shares))
    disk = parse_disk(f"{root},mount={ROOT}", "--root")
    if disk.path and not os.path.exists(disk.path):
        raise ConfigError(
            f"--root: {disk.path} is neither a file or folder here nor the tag of a --fs"
        )
    return Storage((disk, *storage.disks), storage.shares)


def with_named_root(storage: Storage, cmdline: str) -> Storage:
    """`storage` with the root that the kernel's command line `cmdline` names, if it is in it.

    Raises `ConfigError` for one that is not. Source: Linux
    Documentation/admin-guide/kernel-parameters.txt, "root=" and "rootfstype=".
    """
    words = dict(word.partition("=")[::2] for word in cmdline.partition(" -- ")[0].split())
    root, kind = words.get("root", ""), words.get("rootfstype", "")
    if root in ("", "/dev/ram0", "/dev/ram"):  # the initrd
        return storage
    disks, shares = list(storage.disks), list(storage.shares)
    for number, disk in enumerate(disks):
        partition = root.removeprefix(device(number))
        if partition != root and (not partition or partition.isdecimal()):
            disks[number] = disk._replace(
                mount=ROOT, partition=int(partition or 0), fstype=kind.partition(",")[0]
            )
            return Storage(tuple(disks), storage.shares)
    for number, share in enumerate(shares):
        if (root, kind) == (share.tag, "virtiofs"):
            shares[number] = share._replace(mount=ROOT)
            return Storage(storage.disks, tuple(shares))
    raise ConfigError(
        f"--append: root={root} is nothing that this guest has; give its disk by --disk and write "
        f"root={device(0)}, or {device(0)}1, or leave root= out; with --initrd /dev/null the "
        "kernel looks for it alone"
    )


def device(number: int) -> str:
    """What Linux calls disk `number`, counted from 0."""
    return f"/dev/vd{chr(ord('a') + number)}"


def file_system(disk: DiskConfig) -> str:
    """The type of the file system on a disk: as the user says, or as a raw disk shows, or AUTO."""
    if disk.fstype:
        return disk.fstype
    if disk.is_vhost:
        return AUTO
    from pykvm.virtio.config import contents

    try:
        with open(disk.path, "rb", opener=open_at_once) as file:
            return contents.file_system(file, disk.partition, f"--disk: {disk.path}") or AUTO
    except OSError:
        return AUTO  # opening it as a disk says why


def _escape(text: str) -> str:
    """Blanks and backslashes as fstab(5) has them, in octal."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\\" else c for c in text)

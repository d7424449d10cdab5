"""What is on a raw disk: where its partitions begin, and which file systems are there.

Reached from `storage`, for a disk that the guest's init is to mount: the initrd needs the file
system's modules before the guest has seen the disk. Only enough is read to tell that; whether a
table or a file system is sound is for the guest. Sources: UEFI 2.10 §5 GUID Partition Table (GPT)
Disk Layout; for MBR and its extended partitions Linux block/partitions/msdos.c, whose numbers are
those of the guest's /dev/vdXN.
"""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO, Final

SECTOR: Final = 512

# File systems by (name, offset, magic), as their superblocks have it. The names are Linux's.
MAGICS: Final = (
    ("ext4", 0x438, b"\x53\xef"),  # and ext2 and ext3, which its driver mounts too
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    ("iso9660", 0x8001, b"CD001"),
    ("vfat", 82, b"FAT32   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 54, b"FAT12   "),
    ("exfat", 3, b"EXFAT   "),
    ("ntfs3", 3, b"NTFS    "),
)

MBR_SIGNATURE: Final = b"\x55\xaa"  # the last bytes of a boot sector
MBR_ENTRY: Final = struct.Struct("<4xB3xII")  # of 4 from byte 446 on: type, first sector, count
EXTENDED: Final = (0x05, 0x0F, 0x85)  # types that hold a chain of further tables
PROTECTIVE: Final = 0xEE  # the type that says: look for a GPT
CHAIN_MAX: Final = 256

GPT_HEADER: Final = struct.Struct("<8s64xQII")  # signature, LBA of the entries, count, bytes of one
GPT_ENTRY: Final = struct.Struct("<16s16xQ")  # type, first LBA
GPT_MAX: Final = 1024


def file_system(file: BinaryIO, partition: int, what: str) -> str | None:
    """The type of the file system in a partition, or on the whole disk for 0; None when it is not
    one of `MAGICS`. Raises `ConfigError`, with `what` in front, when there is no such partition."""
    start = 0
    if partition:
        starts = partitions(file)
        if partition not in starts:
            there = ", ".join(map(str, sorted(starts))) or "none"
            raise ConfigError(
                f"{what}: partition={partition} is not there (there is: {there}); name another, or "
                "leave partition= out for a file system on the whole disk"
            )
        start = starts[partition] * SECTOR
    for name, offset, magic in MAGICS:
        if _read(file, start + offset, len(magic)) == magic:
            return name
    return None


def partitions(file: BinaryIO) -> dict[int, int]:
    """Where each partition begins, in sectors, by its number."""
    mbr = _mbr(file, 0)
    if any(kind == PROTECTIVE for kind, _ in mbr.values()):
        return _gpt(file)
    starts = {number: first for number, (_, first) in mbr.items()}
    for kind, first in mbr.values():
        if kind in EXTENDED:
            starts.update(enumerate(_chain(file, first), 5))
    return starts


def _mbr(file: BinaryIO, sector: int) -> dict[int, tuple[int, int]]:
    """Type and first sector of what a partition table in one sector names, by number from 1."""
    table = _read(file, sector * SECTOR, SECTOR)
    if table[510:] != MBR_SIGNATURE:
        return {}
    entries = [MBR_ENTRY.unpack_from(table, 446 + 16 * at) for at in range(4)]
    return {number: (kind, first) for number, (kind, first, size) in enumerate(entries, 1) if size}


def _chain(file: BinaryIO, extended: int) -> list[int]:
    """The first sectors of the logical partitions: one to a table, which also leads to the next."""
    starts, table = [], extended
    for _ in range(CHAIN_MAX):
        following = 0
        for kind, first in _mbr(file, table).values():
            if kind in EXTENDED:
                following = extended + first
            else:
                starts.append(table + first)
        if not following:
            break
        table = following
    return starts


def _gpt(file: BinaryIO) -> dict[int, int]:
    header = _read(file, SECTOR, GPT_HEADER.size)
    if len(header) < GPT_HEADER.size:
        return {}
    signature, entries, count, size = GPT_HEADER.unpack(header)
    if signature != b"EFI PART" or size < GPT_ENTRY.size:
        return {}
    starts = {}
    for number in range(min(count, GPT_MAX)):
        entry = _read(file, entries * SECTOR + number * size, GPT_ENTRY.size)
        if len(entry) == GPT_ENTRY.size and any(entry[:16]):
            starts[number + 1] = GPT_ENTRY.unpack(entry)[1]
    return starts


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    """What is there of these bytes, for any `at` that a damaged table may name."""
    try:
        file.seek(at)
    except (OSError, OverflowError):
        return b""
    return file.read(size)

"""Guest memory as one sparse file: what is in it, and copies of that.

Reached from `save` and `template`. Offsets are those of the memory's file: low memory, then high
memory (csrc/mem.c). What was never touched is a hole; a page of zeros becomes one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib

from pykvm.lean import TYPE_CHECKING
from pykvm.memory import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from pykvm.memory import GuestMemory

PAGE: Final = 4096
PIECE: Final = 1 << 20  # bytes looked at in one go
ZEROS: Final = bytes(PIECE)
FICLONE: Final = 0x4004_9409  # <linux/fs.h>


def data_of(fd: int, size: int) -> Iterator[Region]:
    """The ranges of a file that are no holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield Region(start, end - start)


def joined(ranges: Iterable[Region]) -> Iterator[Region]:
    """Ranges in any order, some of them overlapping, as whole pages in order."""
    start = end = 0
    for lower, size in sorted(ranges):
        lower, upper = lower // PAGE * PAGE, -(-(lower + size) // PAGE) * PAGE
        if lower > end:
            if end > start:
                yield Region(start, end - start)
            start = lower
        end = max(end, upper)
    if end > start:
        yield Region(start, end - start)


def touched(memory: GuestMemory) -> Iterator[Region]:
    """Where a guest's memory may be other than zero."""
    below = data_of(memory.file, memory.size)
    return joined([*below, *memory.laid, *memory.changes()] if memory.is_private else below)


def pieces(memory: GuestMemory, ranges: Iterable[Region]) -> Iterator[tuple[int, memoryview]]:
    """The pages of `ranges` that are not all zeros, as (offset, bytes), many together."""
    for start, size in ranges:
        for offset in range(start, start + size, PIECE):
            length = min(PIECE, start + size - offset)
            with memory.at_offset(offset, length) as view:
                yield from without_zeros(offset, view)
    memory.check()


def without_zeros(offset: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The pages of `view`, whose first byte is at `offset`, that are not all zeros."""
    begin: int | None = None
    for at in range(0, len(view), PAGE):
        empty = bytes(view[at : at + PAGE]) == ZEROS[:PAGE]  # far faster than by the view
        if not empty and begin is None:
            begin = at
        if empty and begin is not None:
            yield offset + begin, view[begin:at]
            begin = None
    if begin is not None:
        yield offset + begin, view[begin:]


def copy(memory: GuestMemory, fd: int) -> None:
    """Write all of the memory of a machine at rest to an empty file of its size."""
    for offset, data in pieces(memory, touched(memory)):
        write(fd, offset, data)


def write(fd: int, offset: int, data: memoryview) -> None:
    """Write every byte."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def copy_file(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes of a file to an empty one: by reference where the file system can
    (ioctl_ficlonerange(2)), else what is no hole."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        for start, length in data_of(source, size):
            for offset in range(start, start + length, PIECE):
                data = os.pread(source, min(PIECE, start + length - offset), offset)
                write(target, offset, memoryview(data))
    os.truncate(target, size)


def checksums(fd: int, size: int) -> dict[int, int]:
    """CRC-32 of every piece of a file that is not all zeros, by its number; holes are not read."""
    found: dict[int, int] = {}
    for start, length in data_of(fd, size):
        for number in range(start // PIECE, -(-(start + length) // PIECE)):
            if number not in found:
                data = os.pread(fd, min(PIECE, size - number * PIECE), number * PIECE)
                found[number] = zlib.crc32(data) if data != ZEROS[: len(data)] else -1
    return {number: crc for number, crc in found.items() if crc >= 0}

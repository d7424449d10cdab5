"""The user's files as bytes: kernel mapped, initrds joined, multiboot modules read.

Reached from `machine` before anything on the host is touched. Read `boot.entry` for what becomes of
them.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable

from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Final

STAMP_AGE_NS: Final = 2 * 10**9
STREAM_MAX: Final = 1 << 29  # bytes; /dev/zero has no end

Source = str | os.PathLike[str] | bytes


class ImageFile(Record):
    """A kernel image: its bytes, and the file's name as a multiboot guest is told it.

    As long as a file has the same `stamp` it has the same bytes. It is empty when that cannot be
    told.
    """

    data: memoryview
    name: bytes = b"kernel"
    stamp: str = ""


def open_image(source: Source) -> ImageFile:
    """Map the kernel file `source` (or take the bytes themselves). Raises `BootError`.

    The mapping lasts as long as a view of it: a report may want the image's symbols at the end.
    """
    if isinstance(source, bytes):
        return ImageFile(memoryview(source))
    data, stamp = _map(source, "KERNEL")
    return ImageFile(memoryview(data), os.fsencode(source), stamp)


def _stamp(status: os.stat_result) -> str:
    """A file's stamp. The host's clock ticks in milliseconds: a file that changed this very moment
    has none yet."""
    return stamp(status) if time.time_ns() - status.st_ctime_ns >= STAMP_AGE_NS else ""


def stamp(status: os.stat_result) -> str:
    """What changes with a file's content: nobody can set a change time (inode(7), "ctime")."""
    times = f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
    return f"{status.st_ino:x}-{status.st_size:x}-{times}"


def _map(source: str | os.PathLike[str], option: str) -> tuple[mmap.mmap | bytes, str]:
    """The file's bytes and stamp."""
    try:
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:  # empty, or a pipe: process substitution
                data = file.read(STREAM_MAX + 1)
                if len(data) > STREAM_MAX:
                    raise BootError(
                        f"{option}: {os.fspath(source)}: more than {STREAM_MAX >> 20} MiB, from "
                        "what is no plain file; copy it to one"
                    )
                return data, ""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), _stamp(status)
    except OSError as error:
        raise BootError(
            f"{option}: {os.fspath(source)}: {error.strerror}; name a readable file"
        ) from None


def read_initrds(sources: Iterable[Source]) -> bytes | memoryview:
    """All initrds as one, in order, each at a 4-byte boundary. Raises `BootError`."""
    parts = [
        memoryview(source if isinstance(source, bytes) else _map(source, "--initrd")[0])
        for source in sources
    ]
    if len(parts) < 2:
        return parts[0] if parts else b""
    from pykvm.boot.initrd import concatenate

    return concatenate(parts)


def read_modules(specs: Iterable[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Multiboot modules from ``FILE ARGUMENTS…``: (data, command line). Raises `BootError`."""
    modules = []
    for spec in specs:
        path, _, _ = spec.partition(" ")
        modules.append((bytes(_map(path, "--module")[0]), os.fsencode(spec)))
    return tuple(modules)

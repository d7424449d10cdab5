"""The user's files as bytes: kernel mapped, initrds joined, multiboot modules read.

Reached from `machine` before anything on the host is touched. Read `boot.entry` for what becomes of
them.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable

from pykvm.config import PATIENCE_S
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Final

STAMP_AGE_NS: Final = 2 * 10**9
STREAM_MAX: Final = 1 << 29  # bytes; /dev/zero has no end
CHUNK: Final = 1 << 20

Source = str | os.PathLike[str] | bytes


class ImageFile(Record):
    """A kernel image: its bytes, and the file's name as a multiboot guest is told it.

    As long as a file has the same `stamp` it has the same bytes. It is empty when that cannot be
    told.
    """

    data: memoryview
    name: bytes = b"kernel"
    stamp: str = ""


def open_image(source: Source, patience: float = PATIENCE_S) -> ImageFile:
    """Map the kernel file `source` (or take the bytes themselves). Raises `BootError`, also when it
    is a pipe that nobody writes to for `patience` seconds.

    The mapping lasts as long as a view of it: a report may want the image's symbols at the end.
    """
    if isinstance(source, bytes):
        return ImageFile(memoryview(source))
    data, stamp = _map(source, "KERNEL", patience)
    return ImageFile(memoryview(data), os.fsencode(source), stamp)


def _stamp(status: os.stat_result) -> str:
    """A file's stamp. The host's clock ticks in milliseconds: a file that changed this very moment
    has none yet."""
    return stamp(status) if time.time_ns() - status.st_ctime_ns >= STAMP_AGE_NS else ""


def stamp(status: os.stat_result) -> str:
    """What changes with a file's content: nobody can set a change time (inode(7), "ctime")."""
    times = f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
    return f"{status.st_ino:x}-{status.st_size:x}-{times}"


def _map(
    source: str | os.PathLike[str], option: str, patience: float
) -> tuple[mmap.mmap | bytes, str]:
    """The file's bytes and stamp."""
    try:
        # To open a pipe that nobody writes to would wait for a writer.
        with open(source, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:  # empty, or a pipe: process substitution
                return _read(file.fileno(), f"{option}: {os.fspath(source)}", patience), ""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), _stamp(status)
    except OSError as error:
        raise BootError(
            f"{option}: {os.fspath(source)}: {error.strerror}; name a readable file"
        ) from None


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open`: a FIFO's other end need not be there."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(fd: int, name: str, patience: float) -> bytes:
    """All there is to read, as it comes. poll(2) tells of an end only when there was a writer."""
    from select import POLLIN, poll

    data, ready = bytearray(), poll()
    ready.register(fd, POLLIN)
    while len(data) <= STREAM_MAX:
        if not ready.poll(min(patience * 1000, 1 << 30)):
            raise BootError(
                f"{name}: nothing came through this pipe for {patience:g} s; is its writer there? "
                "Copy what it gives to a file, or let --timeout give it longer"
            )
        if not (piece := os.read(fd, CHUNK)):
            return bytes(data)
        data += piece
    raise BootError(
        f"{name}: more than {STREAM_MAX >> 20} MiB, from what is no plain file; copy it to one"
    )


def read_initrds(sources: Iterable[Source], patience: float = PATIENCE_S) -> bytes | memoryview:
    """All initrds as one, in order, each at a 4-byte boundary. Raises `BootError`."""
    parts = [
        memoryview(source if isinstance(source, bytes) else _map(source, "--initrd", patience)[0])
        for source in sources
    ]
    if len(parts) < 2:
        return parts[0] if parts else b""
    from pykvm.boot.initrd import concatenate

    return concatenate(parts)


def read_modules(
    specs: Iterable[str], patience: float = PATIENCE_S
) -> tuple[tuple[bytes, bytes], ...]:
    """Multiboot modules from ``FILE ARGUMENTS…``: (data, command line). Raises `BootError`."""
    modules = []
    for spec in specs:
        path, _, _ = spec.partition(" ")
        modules.append((bytes(_map(path, "--module", patience)[0]), os.fsencode(spec)))
    return tuple(modules)

"""The user's files as bytes: kernel mapped, initrds joined, multiboot modules read.

Reached from `machine` before anything on the host is touched. Read `boot.entry` for what becomes of
them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

from pykvm.errors import BootError
from pykvm.lean import Record

Source = str | os.PathLike[str] | bytes


class ImageFile(Record):
    """A kernel image: its bytes, and the file's name as a multiboot guest is told it."""

    data: memoryview
    name: bytes


def open_image(source: Source) -> ImageFile:
    """Map the kernel file `source` (or take the bytes themselves). Raises `BootError`.

    The mapping lasts as long as a view of it: a report may want the image's symbols at the end.
    """
    if isinstance(source, bytes):
        return ImageFile(memoryview(source), b"kernel")
    return ImageFile(memoryview(_map(source, "KERNEL")), os.fsencode(source))


def _map(source: str | os.PathLike[str], option: str) -> mmap.mmap | bytes:
    try:
        with open(source, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return file.read()  # empty, or a pipe: process substitution
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BootError(
            f"{option}: {os.fspath(source)}: {error.strerror}; name a readable file"
        ) from None


def read_initrds(sources: Iterable[Source]) -> bytes | memoryview:
    """All initrds as one, in order, each at a 4-byte boundary. Raises `BootError`."""
    parts = [
        memoryview(source if isinstance(source, bytes) else _map(source, "--initrd"))
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
        modules.append((bytes(_map(path, "--module")), os.fsencode(spec)))
    return tuple(modules)

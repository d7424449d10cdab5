"""The cache of decompressed kernels: entries by content, and the image files they came from.

Reached from `vmlinux`. ``$XDG_CACHE_HOME/pykvm/vmlinux`` holds::

    <key>           a vmlinux; the key is the SHA-256 of the payload it was compressed in
    images/<stamp>  a symbolic link to the entry of the image file with that stamp

A checksum of an entry's 40 MB at every boot would cost as much as loading them, so an entry is
*sealed* instead: its modification time is set to one derived from the key. Whoever writes to the
file afterwards, or truncates it, breaks the seal, and the entry is made anew. A stamp (see
`files.open_image`) saves hashing an image that has not changed since. Nothing is written where an
entry is only read: in the lab, that would copy all of it into an overlay. A cache that cannot be
used is no error.
"""

from __future__ import annotations

import os
from contextlib import suppress

from pykvm.cache import cache_name
from pykvm.errors import HostError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final, Self

ENTRIES_MAX: Final = 8
IMAGES_MAX: Final = 64


class Vmlinux:
    """An ELF kernel: `image`, and the descriptor of the file it is mapped from, if it is one.

    A context manager; the image outlives it.
    """

    def __init__(self, image: memoryview, file: int | None = None) -> None:
        self.image = image
        self.file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            os.close(self.file)


def lookup(key: str) -> Vmlinux | None:
    """Return the intact entry `key`, or None."""
    import mmap

    try:
        file = os.open(f"{_name()}/{key}", os.O_RDONLY | os.O_CLOEXEC)
    except (HostError, OSError):
        return None
    try:
        if os.fstat(file).st_mtime_ns == _seal(key):
            return Vmlinux(memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ)), file)
    except (OSError, ValueError):  # ValueError: an empty file
        pass
    os.close(file)
    return None


def store(key: str, data: bytes) -> None:
    """Make `data` the entry `key`; drop the oldest entries."""
    from pykvm.cache import atomic_write, keep_newest

    directory = _directory()
    if directory is None:
        return
    with suppress(OSError):
        atomic_write(directory / key, data)
        os.utime(directory / key, ns=(_seal(key), _seal(key)))
        keep_newest((each for each in directory.glob("[!.]*") if each.is_file()), ENTRIES_MAX)


def recall(stamp: str) -> str | None:
    """Return the key of the image file with `stamp`, when one was remembered."""
    if not stamp:
        return None
    with suppress(HostError, OSError):
        return os.path.basename(os.readlink(f"{_name()}/images/{stamp}"))
    return None


def remember(stamp: str, key: str) -> None:
    """Note that the image file with `stamp` holds the entry `key`. Too many notes are dropped."""
    directory = _directory()
    if not stamp or directory is None:
        return
    images = directory / "images"
    with suppress(OSError):
        images.mkdir(mode=0o700, exist_ok=True)
        links = list(images.iterdir())
        for link in links if len(links) >= IMAGES_MAX else ():
            link.unlink()
        (images / stamp).symlink_to(f"../{key}")


def _name() -> str:
    """Where the entries are, made or not: loading pathlib takes longer than reading one."""
    return f"{cache_name()}/vmlinux"


def _directory() -> Path | None:
    """The same directory, to write to; None when there can be none."""
    from pykvm.cache import cache_dir

    try:
        directory = cache_dir() / "vmlinux"
        directory.mkdir(mode=0o700, exist_ok=True)
    except (HostError, OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return directory


def _seal(key: str) -> int:
    """An intact entry's modification time, ns: even seconds, which every file system can keep."""
    return int(key[:7], 16) * 2 * 10**9

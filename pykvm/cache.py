"""Where pykvm keeps what is costly to make twice: fetched kernels, decompressed payloads.

Reached from `boot.kernels`, `boot.apt` and the bzImage loader. Whatever lies in here may be deleted
at any time; read `boot/kernels.py` beside it for what is kept.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from pykvm.errors import HostError, PykvmError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Final

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def cache_name() -> str:
    """Name pykvm's cache directory, there or not.

    ``$XDG_CACHE_HOME/pykvm``, or ``~/.cache/pykvm`` when that variable is unset, empty or relative
    (XDG Base Directory Specification 0.8, "Basics": a relative path is invalid, to be ignored).
    Raises `HostError` for a user without a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise HostError("no home directory for a cache; set XDG_CACHE_HOME to a directory")
    return os.path.join(base, "pykvm")


def cache_path() -> Path:
    """`cache_name` as a path, for those to whom loading pathlib is not too slow."""
    from pathlib import Path

    return Path(cache_name())


def cache_dir() -> Path:
    """Return pykvm's cache directory, made with mode 0700 when it is missing.

    Raises `HostError` when it cannot be made.
    """
    directory = cache_path()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make the cache directory {directory}: {error.strerror}; "
            "set XDG_CACHE_HOME to a directory you may write to"
        ) from error
    return directory


def atomic_write(path: Path, data: bytes) -> None:
    """Make `path` hold `data`: a reader, or a crash, sees the old file or the new one, never half.

    The temporary file is made in the same directory, because a rename is atomic only there.
    """
    import tempfile
    from pathlib import Path

    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def keep_newest(entries: Iterable[Path], count: int) -> None:
    """Delete all but the `count` files that were made last."""
    by_age = sorted(entries, key=lambda entry: entry.stat().st_ctime_ns)
    for entry in by_age[:-count]:
        entry.unlink()


@contextmanager
def locked(name: str, note: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Make the directory `name` in the cache; hold it against other processes that lock it too.

    Waits while another has it, after telling `note` so. The lock goes with its holder, however
    that ends: there is no stale one to clean up. Raises `HostError` as `writing` does.
    """
    import fcntl

    directory = cache_dir() / name
    with writing():
        directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if note:
                note(f"waiting for another pykvm that is working in {directory}")
            fcntl.flock(fd, fcntl.LOCK_EX)
        with writing():
            yield directory
    finally:
        os.close(fd)


@contextmanager
def writing() -> Iterator[None]:
    """For the time of it, a cache that is full or read-only is a `HostError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PykvmError) or error.errno not in UNWRITABLE:
            raise
        raise HostError(
            f"cannot write to the cache directory {cache_name()}: {error.strerror}; make room "
            "there, or set XDG_CACHE_HOME to another directory"
        ) from error

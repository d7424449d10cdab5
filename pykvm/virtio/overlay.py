"""``--disk FILE,overlay=``: where a disk's writes go when FILE is not to be written.

Reached from `blk`. The bytes move in csrc/overlay.c, whose header overlay.h has the picture; here
is the file: made, looked at, locked.

    kept:     HEADER, to 4096 │ bitmap, to a multiple of 4096 │ the disk, sparse
    dropped:  the disk, sparse, in a file that has no name
"""

from __future__ import annotations

import os
import stat
import struct

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, check
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.blk import OVERLAY_MAGIC as MAGIC
from pykvm.virtio.blk import PAGE
from pykvm.virtio.config.disk import DROPPED

if TYPE_CHECKING:
    from typing import Any, Final

VERSION: Final = 1
# Magic, version, bytes of a cluster; of the base: its size and time of the last write, in ns.
HEADER: Final = struct.Struct("<8sIIQQ")
CLUSTER: Final = lib.PK_OVERLAY_CLUSTER


class Overlay:
    """What a disk of `size` bytes, whose base is open as `base_fd`, has that its base has not.

    Raises `ConfigError` for a file that is not an overlay of this base.
    """

    def __init__(self, where: str, base_fd: int, size: int) -> None:
        self.is_kept = where != DROPPED
        bitmap = _round_up(-(-size // (CLUSTER * 8)))
        places = {"bitmap_at": 0, "data_at": 0}
        if self.is_kept:
            places = {"bitmap_at": PAGE, "data_at": PAGE + bitmap}
        length = places["data_at"] + size
        self.fd = _open_kept(where, base_fd, length, size) if self.is_kept else _open_dropped()
        try:
            if not self.is_kept:
                os.ftruncate(self.fd, length)
            out = ffi.new("struct pk_overlay **")
            config = {"base_fd": base_fd, "fd": self.fd, "size": size, **places}
            config_c = ffi.new("struct pk_overlay_config *", config)
            check(lib.pk_overlay_create(config_c, out), "an overlay's bitmap")
        except BaseException:
            os.close(self.fd)
            raise
        self.handle: Any = out[0]
        self._size = size

    def count(self) -> int:
        """How many clusters it has."""
        return int(lib.pk_overlay_count(self.handle))

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return self.count() * CLUSTER

    def empty(self) -> None:
        """Drop all of it; only while its disk is stopped."""
        check(lib.pk_overlay_empty(self.handle), "an overlay's file")

    def clone(self) -> Overlay:
        """An overlay of nothing that has what this one has now, to be assigned to others."""
        other = Overlay(DROPPED, -1, self._size)
        try:
            other.assign(self)
        except BaseException:
            other.close(durable=False)
            raise
        return other

    def assign(self, other: Overlay) -> None:
        """Have what `other` has, and nothing else; only while its disk is stopped."""
        check(lib.pk_overlay_assign(self.handle, other.handle), "an overlay's file")

    def add(self, other: Overlay) -> None:
        """Have what `other` has, over what it has itself; only while its disk is stopped."""
        check(lib.pk_overlay_add(self.handle, other.handle), "an overlay's file")

    def take(self, all: bool) -> tuple[Overlay, bool]:
        """An overlay of nothing that has what was written to this one since it was last taken; or
        `all` that it has, as it also has when there is no knowing, and True. Only while its disk is
        stopped."""
        other = Overlay(DROPPED, -1, self._size)
        try:
            is_all = check(lib.pk_overlay_take(other.handle, self.handle, all), "an overlay's file")
        except BaseException:
            other.close(durable=False)
            raise
        return other, bool(is_all)

    def close(self, durable: bool) -> int:
        """Keep it, if it is to be kept, past a failure of the host when `durable`. Returns 0 or
        -errno."""
        result = int(lib.pk_overlay_flush(self.handle, durable))
        lib.pk_overlay_destroy(self.handle)
        os.close(self.fd)
        return result


def _round_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _open_dropped() -> int:
    """A file without a name, which ends with the process; memory where no folder can have one."""
    try:
        return os.open(os.environ.get("TMPDIR") or "/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return os.memfd_create("pykvm-overlay", os.MFD_CLOEXEC)


def _open_kept(path: str, base_fd: int, length: int, size: int) -> int:
    import fcntl

    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"--disk: overlay={path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"--disk: overlay={path} is not a file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--disk: overlay={path} is in use by another machine; give each its own"
            ) from None
        except OSError:
            pass  # a file system without locks
        _begin_or_check(path, fd, base_fd, length, size)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"--disk: overlay={path}: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin_or_check(path: str, fd: int, base_fd: int, length: int, size: int) -> None:
    """Write the header of an empty file; compare that of another with the base."""
    header = HEADER.pack(MAGIC, VERSION, CLUSTER, size, _last_write(base_fd))
    if os.fstat(fd).st_size == 0:
        os.ftruncate(fd, length)
        os.pwrite(fd, header, 0)
        os.fsync(fd)
        return
    found = os.pread(fd, HEADER.size, 0)
    if not found.startswith(MAGIC):
        raise ConfigError(f"--disk: overlay={path} exists and is no overlay; name another file")
    if found[:16] != header[:16] or os.fstat(fd).st_size < length:
        raise ConfigError(
            f"--disk: overlay={path} is damaged, of another base or of another version of pykvm"
        )
    if found != header:
        raise ConfigError(
            f"--disk: overlay={path}: its base has changed since the overlay was begun, so the two "
            "are no disk any more; give it the base of then (cp --preserve=timestamps), or begin "
            "another overlay"
        )


def _last_write(fd: int) -> int:
    """0 for a block device, whose node does not tell."""
    status = os.fstat(fd)
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0

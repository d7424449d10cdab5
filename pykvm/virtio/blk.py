"""The disk: what the driver is told of it. Its bytes move in csrc/virtio_blk.c.

Reached from `attach`, one `Blk` for each ``--disk``. Source: virtio 1.2 §5.2 Block Device.

How honest a flush is: with ``cache=writeback`` and ``none`` a flush is an fdatasync, and a write is
durable at once (RWF_DSYNC) while the driver has the write cache off, or never asked for flushes.
"""

from __future__ import annotations

import enum
import os
import stat
import struct

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, check
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import VirtioDevice
from pykvm.virtio.queue import SIZE_MAX

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.config.disk import DiskConfig
    from pykvm.virtio.overlay import Overlay

SECTOR: Final = 512
PAGE: Final = 4096


class BlkFeature(enum.IntFlag):
    """§5.2.3 Feature bits: those that are offered."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11  # the driver may turn the write cache off and on
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


# §5.2.4 Device configuration layout, up to the write zeroes fields.
CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
assert CONFIG.size == 60
STATE: Final = struct.Struct("<?Q")  # whether there is a write cache, sectors
WRITEBACK: Final = 32  # offset of the one byte the driver may write

MAX_SEGMENTS: Final = 16  # of one discard or write zeroes: as csrc/blk_request.c takes
MAX_CLEARED: Final = 1 << 22  # sectors of one segment: 2 GiB

OVERLAY_MAGIC: Final = b"PKVMOVL\n"  # of `overlay`'s files

# Images in other formats, by (offset, magic).
IMAGES: Final = {
    "qcow2": (0, b"QFI\xfb"),
    "qed": (0, b"QED\0"),
    "vdi": (64, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "vmdk": (0, b"KDMV"),
    "vpc": (0, b"conectix"),
    "parallels": (0, b"WithouFreSpacExt"),
}


class Blk(VirtioDevice):
    """A disk backed by a raw file or a block device, which is locked while it is in use.

    Raises `ConfigError` when the file cannot be what was asked for.
    """

    device_id = 2
    feature_names = BlkFeature

    def __init__(self, memory: GuestMemory, config: DiskConfig) -> None:
        self.name = f"disk {config.path}"
        self.config = config
        self._fd = open_file(config)
        self.overlay: Overlay | None = None
        try:
            if not config.format:
                _refuse_image(config.path)
            lock_file(self._fd, config)
            self.sectors = _count_sectors(self._fd, config.path)
            self.block_size = _block_size(self._fd) if config.cache == "none" else SECTOR
            self.overlay = self._open_overlay()
            self._handle = self._create()
        except BaseException:
            self._close_overlay()
            os.close(self._fd)
            raise
        self.features = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.TOPOLOGY
        self.features |= BlkFeature.FLUSH | BlkFeature.CONFIG_WCE
        self.queue_count = config.queues
        if config.queues > 1:
            self.features |= BlkFeature.MQ
        if config.read_only:
            self.features |= BlkFeature.RO
        else:
            self.features |= BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
        self._writeback = True
        self.is_copied = False  # who is asking for the state has what the guest wrote
        super().__init__(memory)

    def _open_overlay(self) -> Overlay | None:
        if not self.config.overlay:
            return None
        from pykvm.virtio.overlay import Overlay

        return Overlay(self.config.overlay, self._fd, self.sectors * SECTOR)

    def _create(self) -> Any:
        out = ffi.new("struct pk_blk **")
        options = {
            "fd": self._fd,
            "sectors": self.sectors,
            "align": self.block_size if self.config.cache == "none" else 1,
            "read_only": self.config.read_only,
            "unsafe": self.config.cache == "unsafe",
            "id": self.config.serial.encode().ljust(20, b"\0"),
            "name": os.fsencode(self._name_for_log())[-255:],
            "limits": self.config.limits.for_c(),
            "overlay": self.overlay.handle if self.overlay is not None else ffi.NULL,
        }
        check(lib.pk_blk_create(ffi.new("struct pk_blk_config *", options), out), "memory")
        return out[0]

    def _name_for_log(self) -> str:
        """Both files, because either may fail."""
        overlay = self.config.overlay
        return f"{self.config.path},overlay={overlay}" if overlay else self.config.path

    # ── configuration ────────────────────────────────────────────────────────────────────────

    def read_config(self) -> bytes:
        block = self.block_size // SECTOR
        return CONFIG.pack(
            self.sectors,
            0,  # size_max: not offered
            SIZE_MAX - 2,  # seg_max: a chain has a header and a status too
            *(0, 0, 0),  # geometry: not offered
            self.block_size,
            *(0, 0, block, 0),  # topology: physical block, alignment, best and largest transfer
            self._writeback,
            self.queue_count,
            *(MAX_CLEARED, MAX_SEGMENTS, PAGE // SECTOR),  # discard, and its alignment
            *(MAX_CLEARED, MAX_SEGMENTS, 1),  # write zeroes; it may unmap
        )

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == WRITEBACK and len(data) == 1 and self.has_feature(BlkFeature.CONFIG_WCE):
            self._set_writeback(bool(data[0]))

    def _set_writeback(self, on: bool) -> None:
        self._writeback = on
        lib.pk_blk_set_writeback(self._handle, on)

    # ── the data plane ───────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        # §5.2.6.2: a driver that cannot flush gets a disk that need not be flushed.
        if not self.has_feature(BlkFeature.FLUSH):
            self._set_writeback(False)
        check(lib.pk_blk_start(self._handle, *self._c_args()), "a thread for a disk")

    def stop(self) -> None:
        lib.pk_blk_stop(self._handle)

    def reset(self) -> None:
        super().reset()
        self._set_writeback(True)

    def state(self) -> bytes:
        """Raises `ConfigError` when the guest knows of writes that no other machine could find."""
        if self.overlay is not None:
            self._settle_overlay(self.overlay)
        return STATE.pack(self._writeback, self.sectors) + super().state()

    def _settle_overlay(self, overlay: Overlay) -> None:
        if overlay.is_kept:
            # So that the end of this machine does not write to it, and it stays what was saved.
            check(lib.pk_overlay_flush(overlay.handle, 1), "an overlay's file")
        elif overlay.count() and not self.is_copied:
            raise ConfigError(
                f"snapshot: {self.name} has been written to, and overlay=on is dropped with the "
                "machine; save copies of the disks, too (--snapshot-disks), take it before the "
                "guest writes, or keep the overlay with overlay=PATH"
            )

    def copy_to(self, fd: int) -> None:
        """Write what the guest finds on the disk to an empty file, holes left out; while frozen."""
        from pykvm.snapshot.pages import copy_file

        with open(f"/proc/self/fd/{self._fd}", "rb") as base:  # O_DIRECT, if it has that, left out
            copy_file(base.fileno(), fd, self.sectors * SECTOR)
        if self.overlay is not None:
            check(lib.pk_overlay_copy(self.overlay.handle, fd), "a copy of a disk")

    def restore(self, state: bytes) -> None:
        writeback, sectors = STATE.unpack_from(state)
        if sectors != self.sectors:
            raise ValueError(
                f"{self.name} has {self.sectors} sectors, and the guest knows of {sectors}"
            )
        super().restore(state[STATE.size :])
        self._set_writeback(writeback)
        if self.overlay is not None and not self.overlay.is_kept:
            self.overlay.empty()  # as it was when the state was taken

    def close(self) -> None:
        super().close()
        if self._handle != ffi.NULL:
            lib.pk_blk_destroy(self._handle)
            self._handle = ffi.NULL
            self._close_overlay()
            os.close(self._fd)

    def _close_overlay(self) -> None:
        if self.overlay is None:
            return
        result = self.overlay.close(durable=self.config.cache != "unsafe")
        if result < 0:
            import sys

            print(
                f"pykvm: --disk: overlay={self.config.overlay}: {os.strerror(-result)}; "
                "it lacks what the guest wrote last",
                file=sys.stderr,
            )


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def open_file(config: DiskConfig) -> int:
    """The file or block device as `config` wants it. Raises `ConfigError` naming the remedy."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # to open a FIFO would wait for its other end
    flags |= os.O_RDWR if config.writes_file else os.O_RDONLY
    if config.cache == "none":
        flags |= os.O_DIRECT
    try:
        fd = os.open(config.path, flags)
    except OSError as error:
        hints = {
            "EACCES": "; open it with ,ro or change its permissions",
            "EROFS": "; open it with ,ro",
            "EINVAL": "; its file system has no O_DIRECT: leave cache=none out",
        }
        import errno

        hint = hints.get(errno.errorcode.get(error.errno or 0, ""), "")
        raise ConfigError(f"--disk: {config.path}: {error.strerror}{hint}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise ConfigError(f"--disk: {config.path} is neither a file nor a block device")
    return fd


def _refuse_image(path: str) -> None:
    """Raise `ConfigError` for an image that is not raw: as a raw disk the guest would see, and
    write over, what the format keeps there."""
    with open(path, "rb") as file:
        start = file.read(SECTOR)
    if start.startswith(OVERLAY_MAGIC):
        raise ConfigError(f"--disk: {path} is an overlay; name its base and add overlay={path}")
    for name, (offset, magic) in IMAGES.items():
        if start[offset : offset + len(magic)] == magic:
            raise ConfigError(
                f"--disk: {path} is a {name} image; add format={name}, or format=raw if the guest "
                "is to see its bytes as they are"
            )


def lock_file(fd: int, config: DiskConfig) -> None:
    """One writer, or many readers: two guests that write to one disk destroy it."""
    import fcntl

    kind = fcntl.LOCK_EX if config.writes_file else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"--disk: {config.path} is in use by another machine; end it, or give both ,ro or "
            "overlay="
        ) from None
    except OSError:
        return  # a file system without locks


def _count_sectors(fd: int, path: str) -> int:
    """Raises `ConfigError` for none at all; says so when there is a part of one behind them."""
    sectors, rest = divmod(os.lseek(fd, 0, os.SEEK_END), SECTOR)
    if sectors == 0:
        raise ConfigError(
            f"--disk: {path} has no sector, which is {SECTOR} bytes; give it a size, as in "
            f"truncate -s 1G {path}"
        )
    if rest:
        import sys

        print(
            f"pykvm: --disk: {path}: the guest does not see its last {rest} bytes, which are not a "
            f"whole sector; truncate -s %{SECTOR} {path} would add what they lack",
            file=sys.stderr,
        )
    return sectors


def _block_size(fd: int) -> int:
    """What O_DIRECT transfers must be a multiple of, found by trying the smallest."""
    import mmap

    with mmap.mmap(-1, PAGE) as buffer, memoryview(buffer) as view:
        try:
            with view[SECTOR : 2 * SECTOR] as piece:
                os.preadv(fd, [piece], SECTOR)
        except OSError:
            return PAGE
    return SECTOR

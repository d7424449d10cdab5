"""``--disk``: a file or block device of the host as a virtio disk.

The device is `virtio.blk`, for the formats of QEMU's and other back ends `virtio.vhostblk`.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.limits import WORDS, Limits, take_limits
from pykvm.virtio.config.words import check_mount, number, split

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

USAGE: Final = (
    "--disk FILE[,format=NAME][,ro][,serial=TEXT][,cache=MODE][,queues=N][,bps=N][,iops=N]"
    "[,overlay=on|PATH][,mount=PATH[,partition=N][,fstype=NAME]]"
)

SERIAL_MAX: Final = 20  # bytes: virtio 1.2 §5.2.6 Device Operation, VIRTIO_BLK_T_GET_ID

QUEUES_MAX: Final = 8  # at most PK_QUEUES_MAX in csrc/api.h

RECONNECT_MAX: Final = 3600  # seconds

CACHES: Final = {
    "writeback": "the host's page cache; a flush reaches the disk",
    "none": "O_DIRECT, past the page cache; a flush reaches the disk",
    "unsafe": "the host's page cache; a flush does nothing: for disks that may be lost",
}

RAW: Final = "raw"
FORMATS: Final = (RAW, "qcow2", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc", "parallels")

DROPPED: Final = "on"  # in the place of an overlay's PATH: it has none, and ends with the machine

STRANGER: Final = "vhost-user="  # in the place of FILE: --disk vhost-user=SOCKET[,reconnect=S]


class DiskConfig(Record):
    """A disk: a file or a block device of the host; or whatever a back end of the user's has."""

    path: str
    read_only: bool = False
    serial: str = ""
    cache: str = "writeback"  # one of CACHES
    queues: int = 1  # virtqueues, at most QUEUES_MAX: a driver has one for each CPU
    limits: Limits = Limits()
    format: str = ""  # one of FORMATS; "" is raw, unless the file looks like another
    vhost_user: str = ""  # a socket where a vhost-user-blk back end listens, in place of `path`
    mount: str = ""  # where pykvm's own init mounts it; "": nowhere; /: it is the root
    partition: int = 0  # which partition of it; 0: it has none
    fstype: str = ""  # of what is mounted; "": found out
    reconnect: int = 0  # how often, in seconds, to look for a `vhost_user` that ended; 0: never
    overlay: str = ""  # the file that has what the guest writes, or DROPPED; "": `path` has it

    @property
    def is_vhost(self) -> bool:
        """Whether another process serves it."""
        return bool(self.vhost_user) or self.format not in ("", RAW)

    @property
    def writes_file(self) -> bool:
        """Whether `path` itself is written to."""
        return not (self.read_only or self.overlay)

    @property
    def written_path(self) -> str:
        """The file that is written to, or "" when none is that stays."""
        if self.writes_file:
            return self.path
        return "" if self.overlay == DROPPED else self.overlay

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ConfigError(
                f"--disk: cache={self.cache!r} is unknown; write one of {', '.join(CACHES)}"
            )
        if not 1 <= self.queues <= QUEUES_MAX:
            raise ConfigError(f"--disk: queues={self.queues} is not 1 to {QUEUES_MAX}")
        if len(self.serial.encode()) > SERIAL_MAX:
            raise ConfigError(
                f"--disk: serial={self.serial!r} is longer than {SERIAL_MAX} bytes; shorten it"
            )
        self.limits.check("--disk")
        if self.format and self.format not in FORMATS:
            raise ConfigError(
                f"--disk: format={self.format!r} is unknown; write one of {', '.join(FORMATS)}"
            )
        check_mount("--disk", self.mount)
        if (self.partition or self.fstype) and not self.mount:
            raise ConfigError("--disk: partition= and fstype= say what to mount; add mount=PATH")
        if not set(self.fstype) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise ConfigError(f"--disk: fstype={self.fstype!r} is no file system; try fstype=ext4")
        if self.serial and self.is_vhost:
            raise ConfigError(
                "--disk: serial= is for disks that pykvm serves itself; leave it or format= out"
            )
        self._check_overlay()
        if not 0 <= self.reconnect <= RECONNECT_MAX:
            raise ConfigError(
                f"--disk: reconnect={self.reconnect} is not a number of seconds up to "
                f"{RECONNECT_MAX}"
            )
        if self.reconnect and not self.vhost_user:
            raise ConfigError(
                "--disk: reconnect= is for a back end of yours; add it to --disk vhost-user=SOCKET"
            )
        if self.vhost_user and (self.read_only, self.cache, self.limits, self.format) != (
            *(False, "writeback", Limits(), ""),
        ):
            raise ConfigError(
                "--disk: vhost-user= takes queues= and reconnect= alone; give the other options to "
                "the back end"
            )

    def _check_overlay(self) -> None:
        if not self.overlay:
            return
        if self.is_vhost:
            raise ConfigError(
                "--disk: overlay= is for raw disks that pykvm serves itself; leave it out, or make "
                "an image over the other with qemu-img create -b"
            )
        if self.read_only:
            raise ConfigError("--disk: overlay= is for what is written; leave it or ro out")
        if self.cache == "none":
            raise ConfigError(
                "--disk: an overlay goes through the page cache; leave overlay= or cache=none out"
            )


def parse_disk(text: str, option: str = "--disk") -> DiskConfig:
    """What ``--disk`` is given, see `USAGE`; a comma in FILE is written twice, as in QEMU.

    Raises `ConfigError` naming `option`, or `--disk` for a value that cannot be.
    """
    usage = USAGE.replace("--disk", option)
    values: dict[str, Callable[[str], Any]] = {
        **{"format": str, "serial": str, "cache": str, "mount": str, "fstype": str},
        "overlay": _overlay,
        **{"queues": number, "partition": number, "reconnect": number},
    }
    path, options = split(text, usage, flags=("ro",), values=values | WORDS)
    if path.startswith(STRANGER):
        path, options["vhost_user"] = "", path.removeprefix(STRANGER)
    if not path and not options.get("vhost_user"):
        raise ConfigError(f"{option}: FILE is missing; write {usage}")
    limits = take_limits(options)
    return DiskConfig(path, options.pop("ro", False), limits=limits, **options)


def _overlay(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text

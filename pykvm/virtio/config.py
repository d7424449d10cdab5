"""What the virtio options of the command line mean: ``--disk``.

Reached from `cli_boot`, and from users' code that fills `MachineConfig.disks`. Nothing of the host
is touched here; `blk` opens the file.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Any, Final

USAGE: Final = "--disk FILE[,ro][,serial=TEXT][,cache=MODE][,queues=N]"

SERIAL_MAX: Final = 20  # bytes: virtio 1.2 §5.2.6 Device Operation, VIRTIO_BLK_T_GET_ID

QUEUES_MAX: Final = 8  # as PK_QUEUES_MAX in csrc/api.h

CACHES: Final = {
    "writeback": "the host's page cache; a flush reaches the disk",
    "none": "O_DIRECT, past the page cache; a flush reaches the disk",
    "unsafe": "the host's page cache; a flush does nothing: for disks that may be lost",
}


class DiskConfig(Record):
    """A disk: a raw file or a block device of the host."""

    path: str
    read_only: bool = False
    serial: str = ""
    cache: str = "writeback"  # one of CACHES
    queues: int = 1  # virtqueues, at most QUEUES_MAX: a driver has one for each CPU

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


def parse_disk(text: str) -> DiskConfig:
    """What ``--disk`` is given, see `USAGE`; a comma in FILE is written twice, as in QEMU.

    Raises `ConfigError` naming `--disk`.
    """
    path, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    if not path:
        raise ConfigError(f"--disk: FILE is missing; write {USAGE}")
    options: dict[str, Any] = {}
    read_only = False
    for word in words:
        name, given, value = word.partition("=")
        if word == "ro":
            read_only = True
        elif given and name in ("serial", "cache"):
            options[name] = value
        elif name == "queues" and value.isascii() and value.isdigit():
            options[name] = int(value)
        else:
            raise ConfigError(f"--disk: {word!r} is unknown; write {USAGE}")
    return DiskConfig(path, read_only, **options)

"""``--fs``: a folder of the host that the guest mounts. The device is `virtio.fs`."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.words import check_mount, split

if TYPE_CHECKING:
    from typing import Final

USAGE: Final = "--fs HOSTDIR,tag=NAME[,ro][,cache=MODE][,mount=PATH]"

TAG_MAX: Final = 36  # bytes: virtio 1.2 §5.11.4 Device configuration layout

CACHES: Final = {
    "auto": "the guest asks again after a second",
    "none": "the guest always asks",
    "always": "the guest keeps what it has seen: for folders that only it changes",
}


class ShareConfig(Record):
    """A shared folder."""

    path: str
    tag: str
    read_only: bool = False
    cache: str = "auto"  # one of CACHES
    mount: str = ""  # where pykvm's own init mounts it; "": /mnt/TAG; /: it is the root

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ConfigError(
                f"--fs: cache={self.cache!r} is unknown; write one of {', '.join(CACHES)}"
            )
        if len(self.tag.encode()) > TAG_MAX or self.tag in (".", "..") or "/" in self.tag:
            raise ConfigError(
                f"--fs: tag={self.tag!r} is no name of at most {TAG_MAX} bytes without a slash"
            )
        check_mount("--fs", self.mount)

    @property
    def target(self) -> str:
        """Where it is mounted."""
        return self.mount or f"/mnt/{self.tag}"


def parse_share(text: str) -> ShareConfig:
    """What ``--fs`` is given, see `USAGE`; a comma in HOSTDIR is written twice.

    Raises `ConfigError` naming `--fs`.
    """
    path, options = split(
        text, USAGE, flags=("ro",), values=dict.fromkeys(("tag", "cache", "mount"), str)
    )
    if not path or not options.get("tag"):
        raise ConfigError(f"--fs: {'tag=NAME' if path else 'HOSTDIR'} is missing; write {USAGE}")
    return ShareConfig(path, read_only=options.pop("ro", False), **options)

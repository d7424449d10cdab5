"""``--vsock``: sockets between host and guest without a network. The device is `virtio.vsock`."""

from __future__ import annotations

import os

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.words import number, split

if TYPE_CHECKING:
    from typing import Final

USAGE: Final = "--vsock PATH[,cid=N]"

CID_FIRST: Final = 3  # virtio 1.2 §5.10.4 Device configuration layout: 0 to 2 are reserved,
CID_LAST: Final = 0xFFFF_FFFE  # and so is this plus 1, VMADDR_CID_ANY

# PATH_PORT must fit struct sockaddr_un too: 108 bytes, the last of them NUL.
PATH_MAX: Final = 107 - len("_4294967295")


class VsockConfig(Record):
    """A socket device: its unix socket on the host, and the guest's address."""

    path: str
    cid: int | None = None  # None: the first there is, and one of its own for a copy

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"--vsock: PATH is missing; write {USAGE}")
        if len(os.fsencode(self.path)) > PATH_MAX:
            raise ConfigError(
                f"--vsock: {self.path}: longer than the {PATH_MAX} bytes that leave room for _PORT "
                "in a unix socket's address; choose a shorter path"
            )
        if self.cid is not None and not CID_FIRST <= self.cid <= CID_LAST:
            raise ConfigError(f"--vsock: cid={self.cid} is not {CID_FIRST} to {CID_LAST}")


def parse_vsock(text: str) -> VsockConfig:
    """What ``--vsock`` is given, see `USAGE`. Raises `ConfigError` naming `--vsock`."""
    path, options = split(text, USAGE, values={"cid": number})
    return VsockConfig(path, **options)

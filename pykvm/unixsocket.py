"""Listening unix sockets that options name: made, taken over when stale, removed at the end.

Reached from devices whose host side is such a socket (`virtio.vsock`). A socket's file outlives a
process that was killed; whether somebody still listens there, only connecting tells.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

BACKLOG: Final = 4096  # the kernel takes as much of it as net.core.somaxconn allows


class UnixListener:
    """A non-blocking stream socket that listens at `path`, for the option `option`.

    Raises `ConfigError` when the path cannot be one, or somebody listens there already.
    """

    def __init__(self, path: str, option: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_stale(path, option)
            self.socket.bind(path)
            self._inode = os.stat(path).st_ino
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise ConfigError(
                f"{option}: {path}: {error.strerror or error}; name a short path in a folder "
                "that you may write to"
            ) from None
        except ConfigError:
            self.socket.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours. Safe to call twice."""
        if self.socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        self.socket.close()


def _remove_stale(path: str, option: str) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{option}: {path} is a file and no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # it listens, and is busy
    raise ConfigError(
        f"{option}: {path} is in use by another program; end it, or name another path"
    )

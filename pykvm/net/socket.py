"""A unix socket as a cable between two machines, of which one may be QEMU's.

Reached from `net`, for ``--net socket=PATH[,peer=PATH]``. As with QEMU's ``-netdev stream`` one
end listens at PATH, here whichever is first, and the other connects; with ``peer=`` as with its
``-netdev dgram`` a frame is a datagram, from PATH to the peer's. The framing is in
csrc/net_stream.c and net_dgram.c.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from contextlib import ExitStack

from pykvm._core import lib
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.net.wire import Wire

if TYPE_CHECKING:
    from pykvm.virtio.config.net import NetConfig

TRIES = 3  # others may come and go meanwhile


def open_socket(config: NetConfig) -> Wire:
    """Connect or listen. Raises `ConfigError`."""
    kind = socket.SOCK_DGRAM if config.peer else socket.SOCK_STREAM
    resources = ExitStack()
    try:
        for _ in range(TRIES):
            end = resources.enter_context(socket.socket(socket.AF_UNIX, kind))
            end.setblocking(False)
            listening = config.peer != "" or not _connect(end, config.where)
            if not listening or _bind(end, config.where, resources):
                break
        else:
            raise ConfigError(f"--net socket={config.where}: other machines use it; try another")
        if listening and not config.peer:
            end.listen(1)
    except OSError as error:
        resources.close()
        raise ConfigError(f"--net socket={config.where}: {error.strerror}") from None
    except BaseException:
        resources.close()
        raise
    role = "" if listening else " (connected)"
    return Wire(
        lib.PK_NET_DGRAM if config.peer else lib.PK_NET_STREAM,
        [end.fileno()],
        name=config.where + role,
        mtu=config.mtu,
        listening=listening and not config.peer,
        peer=config.peer,
        resources=resources,
    )


def _connect(end: socket.socket, path: str) -> bool:
    """Whether somebody listens at `path`; then `end` is connected to it."""
    try:
        end.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except BlockingIOError:
        raise ConfigError(
            f"--net socket={path}: two machines are connected there already; try another path"
        ) from None
    except OSError:
        if not os.path.exists(path) or stat.S_ISSOCK(os.stat(path).st_mode):
            raise
        raise _no_socket(path) from None
    return True


def _bind(end: socket.socket, path: str, resources: ExitStack) -> bool:
    """Make the socket file, in the place of one that nobody answers at. False: it is in use."""
    try:
        end.bind(path)
    except OSError:
        if not os.path.exists(path):
            raise
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise _no_socket(path) from None
        with socket.socket(socket.AF_UNIX, end.type) as other:
            other.setblocking(False)
            try:
                other.connect(path)
            except ConnectionRefusedError:  # left by a machine that was killed
                os.unlink(path)
        return False
    resources.callback(_unlink, path, os.stat(path).st_ino)
    return True


def _no_socket(path: str) -> ConfigError:
    return ConfigError(f"--net socket={path}: there is something else already; try another path")


def _unlink(path: str, inode: int) -> None:
    """Remove the file that we made, not one that has taken its place."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)

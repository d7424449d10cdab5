"""What the console device's ports lead to on the host: files, sockets, our own standard streams.

Reached from `console`, which hands the descriptors to csrc/virtio_console.c.
"""

from __future__ import annotations

import contextlib
import os
import stat

from pykvm.console import create
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.unixsocket import UnixListener

if TYPE_CHECKING:
    from typing import Final

    from pykvm.virtio.config.console import PortConfig

Files = dict[str, int]  # struct pk_console_port
NOTHING: Final[Files] = {"in_fd": -1, "out_fd": -1, "listen_fd": -1}


class PortFiles:
    """The descriptors of a device's ports, until the device has its own, and their sockets."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._listeners: list[UnixListener] = []

    def open(self, port: PortConfig) -> Files:
        """Open what `port` leads to. Raises `ConfigError`."""
        files = dict(NOTHING)
        if port.kind == "unix":
            self._listeners.append(UnixListener(port.path, f"--port {port.name}"))
            files["listen_fd"] = self._listeners[-1].fileno()
        elif port.kind == "file":
            files["out_fd"] = self._keep(_create(port))
        elif port.kind == "fd":
            files["in_fd"] = files["out_fd"] = self._keep(_inherit(port))
        if port.where in ("stdin", "stdio"):
            files["in_fd"] = self._keep(_reopen(0, os.O_RDONLY))
        if port.where in ("stdout", "stdio"):
            files["out_fd"] = self._keep(_reopen(1, os.O_WRONLY))
        if port.where == "stderr":
            files["out_fd"] = self._keep(_reopen(2, os.O_WRONLY))
        return files

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def close_copies(self) -> None:
        """The device has descriptors of its own now. Safe to call twice."""
        while self._fds:
            os.close(self._fds.pop())

    def close(self) -> None:
        """Remove the sockets. Safe to call twice."""
        self.close_copies()
        while self._listeners:
            self._listeners.pop().close()


def _create(port: PortConfig) -> int:
    try:
        return create(port.path)
    except OSError as error:
        raise ConfigError(
            f"--port {port.name}: {port.path}: {error.strerror}; name a file you may write to"
        ) from None


def _inherit(port: PortConfig) -> int:
    import fcntl

    try:
        return fcntl.fcntl(int(port.path), fcntl.F_DUPFD_CLOEXEC, 3)
    except (OSError, OverflowError):
        raise ConfigError(
            f"--port {port.name}: {port.path} is no open descriptor; open it where pykvm is "
            f"started, as a shell does with {port.path}<>FILE"
        ) from None


def _reopen(fd: int, flags: int) -> int:
    """What the standard stream `fd` leads to, opened anew where that can be: so it does not block
    us, and whoever has it too does not notice. Nothing, when there is no such stream."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return os.open(os.devnull, flags | os.O_CLOEXEC)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):  # it may be another user's, or have no reader
            path = f"/proc/self/fd/{fd}"
            return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

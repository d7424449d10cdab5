"""Where the guest's console leads on the host: `--serial`.

Reached from `machine`, on the main thread only: its poll loop moves bytes between the UART's queues
(csrc/serial.c), or a virtio console's (`virtio.hvc`), and a `Console`. Read `terminal` for the
interactive one.
"""

from __future__ import annotations

import contextlib
import os

from pykvm.errors import ConfigError


class Console:
    """One end of the serial line. This base class is a line that leads nowhere: ``none``."""

    look_again_s = 3600.0  # after so long `input_fds` is to be asked again, whatever happens

    def input_fds(self) -> list[int]:
        """Descriptors to poll for input now; asked again before every poll."""
        return []

    def read(self, fd: int) -> bytes:
        """Bytes for the guest from `fd`, which is readable (or at its end)."""
        return b""

    def write(self, data: bytes) -> int | None:
        """Bytes from the guest. Returns how many were taken when it may be not all of them: the
        others come again when `output_fd` is ready."""
        return None

    def output_fd(self) -> int:
        """The descriptor to poll for room when `write` has not taken everything."""
        raise NotImplementedError

    def take_commands(self) -> str:
        """The letters of the Ctrl-A commands that the user typed since the last call."""
        return ""

    def window(self) -> tuple[int, int]:
        """Columns and rows of the terminal that this is; zeros where there is none."""
        return (0, 0)

    def resume(self) -> None:
        """The process was stopped, or in the background, and goes on."""

    def close(self) -> None:
        """Give back what was opened; restore what was changed. Safe to call twice."""


class BytesConsole(Console):
    """Sends `source` to the guest; its output is only in `Outcome.console`."""

    def __init__(self, source: bytes) -> None:
        self._fd = os.memfd_create("console-input", os.MFD_CLOEXEC)
        write_all(self._fd, source)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def input_fds(self) -> list[int]:
        return [self._fd] if self._fd >= 0 else []

    def read(self, fd: int) -> bytes:
        data = os.read(fd, 4096)
        if not data:
            self.close()
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, also to a descriptor that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [])


def create(path: str) -> int:
    """Open `path` to write to, made or truncated. To open a FIFO would wait for ever for somebody
    to read it: without, this is an `OSError` that says so."""
    import errno

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads this pipe", path) from None
        raise
    os.set_blocking(fd, True)
    return fd


class FileConsole(Console):
    """``file:PATH``: output is written there, created or truncated; no input."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = create(path)
        except OSError as error:
            raise ConfigError(
                f"--serial file:{path}: {error.strerror}; name a writable file"
            ) from None

    def write(self, data: bytes) -> None:
        write_all(self._fd, data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PtyConsole(Console):
    """``pty``: a new pseudo-terminal; its name goes to standard error, for screen or picocom."""

    def __init__(self) -> None:
        import sys
        import tty

        self._fd, self._slave = os.openpty()  # the slave stays open: no hang-up between clients
        tty.setraw(self._slave)
        os.set_blocking(self._fd, False)
        self.path = os.ttyname(self._slave)
        print(f"pykvm: the serial port is {self.path}", file=sys.stderr, flush=True)

    def input_fds(self) -> list[int]:
        return [self._fd]

    def read(self, fd: int) -> bytes:
        try:
            return os.read(fd, 4096)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        # A pty that nobody reads fills up; the guest must not stop for that.
        with contextlib.suppress(BlockingIOError):
            os.write(self._fd, data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._slave)
            self._fd = -1


class UnixConsole(Console):
    """``unix:PATH``: a listening stream socket; one client at a time.

    What the guest says before the first client comes waits for it, the last 64 KiB of it. A client
    that does not read is hung up on: the machine's own time must not stand still for it.
    """

    BACKLOG = 1 << 16
    PATIENCE_S = 2.0

    def __init__(self, path: str) -> None:
        import socket

        self.path = path
        self._client: socket.socket | None = None
        self._early = b""
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._server.bind(path)
        except OSError as error:
            self._server.close()
            raise ConfigError(
                f"--serial unix:{path}: {error.strerror or error}; "
                "name a short path where no file is yet"
            ) from None
        self._server.listen(1)

    def input_fds(self) -> list[int]:
        return [(self._client or self._server).fileno()]

    def read(self, fd: int) -> bytes:
        if self._client is None:
            self._client, _ = self._server.accept()
            self._client.settimeout(self.PATIENCE_S)
            early, self._early = self._early, b""
            self.write(early)
            return b""
        try:
            data = self._client.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._hang_up()
        return data

    def write(self, data: bytes) -> None:
        if self._client is None:
            self._early = (self._early + data)[-self.BACKLOG :]
            return
        try:
            self._client.sendall(data)
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        if self._server.fileno() >= 0:
            self._hang_up()
            self._server.close()
            os.unlink(self.path)


def open_console(spec: str) -> Console:
    """The console that `--serial` names: stdio, none, pty, file:PATH or unix:PATH.

    Raises `ConfigError` for anything else.
    """
    kind, _, path = spec.partition(":")
    if spec == "stdio":
        from pykvm.terminal import Terminal

        return Terminal()
    if spec == "none":
        return Console()
    if spec == "pty":
        return PtyConsole()
    if kind == "file" and path:
        return FileConsole(path)
    if kind == "unix" and path:
        return UnixConsole(path)
    raise ConfigError(
        f"--serial: {spec!r} is unknown; write stdio, none, pty, file:PATH or unix:PATH"
    )

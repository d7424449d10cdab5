"""Back ends: programs of the host's that serve a device, started and ended by us; or a user's own.

Reached from `vhost`. A program inherits a listening socket without a name, so none is left
behind, and it ends with us, however that happens (PR_SET_PDEATHSIG). What it says on stderr is
shown, and is the reason when it fails. Read `vhostuser` for what is said over the socket.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.vhostuser import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

WHY_S: Final = 1.0  # to end, for one whose connection has ended
END_S: Final = 10.0  # to write back what it holds and end, on a busy host
MESSAGES_MAX: Final = 1 << 16
UCRED: Final = struct.Struct("iII")  # unix(7): pid, uid, gid


class Backend:
    """A running back end. `socket` is connected to it; `log_fd`, when it has one, is its stderr."""

    socket: socket.socket
    log_fd: int = -1
    name: str

    def tell(self) -> None:
        """Show what it said since the last time."""

    def why(self) -> str:
        """What it said at last, or how it ended."""
        return ""

    def settle(self) -> None:
        """Wait until it can write to the guest no more. Its connection has ended."""

    def close(self) -> None:
        """End it, and wait until it has ended. Safe to call twice."""
        self.socket.close()


class Program(Backend):
    """The program `name`, started with the command that `command` makes of its listening socket."""

    def __init__(self, name: str, command: Callable[[int], list[str]]) -> None:
        self.name = name
        listener, self.socket = unnamed_sockets()
        self.log_fd, log = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(log, True)
        self._last = ""
        with listener:
            self._process = subprocess.Popen(
                # prctl(PR_SET_PDEATHSIG) by a program: no Python between fork and exec
                ["setpriv", "--pdeathsig=KILL", "--", *command(listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for us, who end it in order
            )
            os.close(log)

    def _read(self) -> list[str]:
        """What it said since the last time, line by line, without what stands in front of it: its
        name, and the option of ours that it is about."""
        if self.log_fd < 0:
            return []
        try:
            text = os.read(self.log_fd, MESSAGES_MAX).decode(errors="replace")
        except BlockingIOError:
            return []
        if not text:
            self._close_log()
        lines = [line.removeprefix(f"{self.name}: ") for line in text.splitlines() if line.strip()]
        return [line.rpartition("}: ")[2] if line[:2] == "--" else line for line in lines]

    def tell(self) -> None:
        for line in self._read():
            self._last = line
            print(f"pykvm: {self.name}: {line}", file=sys.stderr)

    def why(self) -> str:
        try:
            code = self._process.wait(WHY_S)
        except subprocess.TimeoutExpired:
            return "; ".join(self._read()) or self._last
        lines = self._read()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return "; ".join(lines) or self._last or how

    def close(self) -> None:
        self.tell()
        self.socket.close()
        if self._process.poll() is None:
            self._process.terminate()  # qemu-storage-daemon then closes its images in order
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.returncode not in (0, -signal.SIGTERM):
            self.tell()  # else it is no news: virtiofsd complains whenever it is left
        self._close_log()

    def _close_log(self) -> None:
        if self.log_fd >= 0:
            os.close(self.log_fd)
            self.log_fd = -1


class Stranger(Backend):
    """A back end that somebody else started and that listens at `path`."""

    def __init__(self, path: str) -> None:
        self.name = f"the back end at {path}"
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(path)
        except OSError as error:
            self.socket.close()
            raise BackendError(f"{error.strerror or error}; is it running?") from None
        peer = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        self._pid = UCRED.unpack(peer)[0]

    def settle(self) -> None:
        """It may end the connection before it ends itself, and finish in between what it has taken:
        qemu-storage-daemon does. One that lives on has END_S for that."""
        try:
            process = os.pidfd_open(self._pid)
        except OSError:  # it has ended, or is in a namespace where we do not see it
            return
        select.select([process], [], [], END_S)
        os.close(process)


def unnamed_sockets() -> tuple[socket.socket, socket.socket]:
    """A listening socket and one connected to it. Neither has a name when this returns."""
    with tempfile.TemporaryDirectory(prefix="pykvm-") as directory:
        listener, connected = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(f"{directory}/socket")
        listener.listen(1)
        connected.connect(f"{directory}/socket")
    return listener, connected

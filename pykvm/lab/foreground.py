"""A command in the lab as if it ran here: this process's streams, terminal and signals are its own.

Reached from `cli`. The other end is guests/lab-agent/command.c. With a terminal on stdin and stdout
the command gets one of its own, and this one is raw meanwhile: every key goes to the command,
except that Ctrl-] three times within a second ends it. Without, signals are passed on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import termios
import tty
from collections import deque
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from pykvm.errors import HostError
from pykvm.lab.client import CHUNK, Connection, exec_frame, exit_code
from pykvm.lab.wire import U32, WINDOW, WINSIZE, ExecFlags, Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMED_OUT: Final = 124  # as timeout(1) has it
SIGNALLED: Final = 128  # plus the signal's number, as shells have it
PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE_S: Final = 5.0  # which a command has after SIGTERM and SIGHUP
ESCAPE: Final = 0x1D  # Ctrl-]
ESCAPE_COUNT: Final = 3
ESCAPE_S: Final = 1.0


def run(
    connection: Connection,
    argv: Sequence[str],
    *,
    writable: Sequence[str] = (),
    timeout_s: float | None = None,
) -> int:
    """Run `argv` through `connection` and return its exit code; after `timeout_s`, `TIMED_OUT`."""
    flags = _stream_flags()
    with _signals() as wakeup, _raw_terminal(bool(flags & ExecFlags.TTY)):
        size = _window_size() if flags & ExecFlags.TTY else (0, 0)
        connection.send_packed(exec_frame(argv, None, None, writable, flags, size))
        return _Pump(connection, wakeup, flags, timeout_s).run()


class _Pump:
    """Moves bytes and signals both ways until the command ends. Never blocks but in poll()."""

    def __init__(
        self,
        connection: Connection,
        wakeup: socket.socket,
        flags: ExecFlags,
        timeout_s: float | None,
    ) -> None:
        self._connection = connection
        self._wakeup = wakeup
        self._tty = bool(flags & ExecFlags.TTY)
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._late = TIMED_OUT  # the exit code when the deadline passes
        self._credit = WINDOW  # bytes of stdin that may be sent
        self._stdin_open = True
        self._unwritten: dict[int, deque[memoryview]] = {1: deque(), 2: deque()}
        self._interrupted = False
        self._escapes: deque[float] = deque(maxlen=ESCAPE_COUNT)
        self._exit: int | None = None

    def run(self) -> int:
        """Return the exit code, once all output is written."""
        while self._exit is None or any(self._unwritten.values()):
            wait = None if self._deadline is None else self._deadline - monotonic()
            if wait is not None and wait <= 0:
                return self._late
            for fd, _ in self._poller().poll(None if wait is None else wait * 1000):
                if fd == 0:
                    self._read_stdin()
                elif fd in self._unwritten:
                    self._write(fd)
                elif fd == self._wakeup.fileno():
                    self._pass_signals()
                else:
                    for frame in self._connection.receive():
                        self._take(frame)
        return self._exit

    def _poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if self._exit is None:
            poller.register(self._connection.socket, select.POLLIN)
            if self._stdin_open and self._credit:
                poller.register(0, select.POLLIN)
        for fd, waiting in self._unwritten.items():
            if waiting:
                poller.register(fd, select.POLLOUT)
        return poller

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                self._unwritten[frame.arg].append(memoryview(frame.data))
            case Kind.CREDIT:
                self._credit += U32.unpack(frame.data)[0]
            case Kind.CLOSE:
                self._stdin_open = False
            case Kind.EXIT:
                code = exit_code(frame)
                self._exit = code if code >= 0 else SIGNALLED - code

    def _read_stdin(self) -> None:
        try:
            data = os.read(0, min(self._credit, CHUNK))
        except OSError:  # closed, or a terminal that has hung up
            data = b""
        if not data:
            self._stdin_open = False
            self._connection.send(Kind.CLOSE, 0)
            return
        if self._tty and self._escaped(data):
            self._end(signal.SIGHUP, 0)
        self._credit -= len(data)
        self._connection.send(Kind.DATA, 0, data)

    def _escaped(self, data: bytes) -> bool:
        now = monotonic()
        for key in data:
            if key == ESCAPE:
                self._escapes.append(now)
            else:
                self._escapes.clear()
        return len(self._escapes) == ESCAPE_COUNT and now - self._escapes[0] < ESCAPE_S

    def _write(self, fd: int) -> None:
        """Write what poll() says can be written without blocking: PIPE_BUF bytes, pipe(7)."""
        data = self._unwritten[fd].popleft()
        try:
            size = os.write(fd, data[: select.PIPE_BUF])
        except BrokenPipeError:  # nobody reads it any more: the command is to meet that itself
            self._unwritten[fd].clear()
            self._connection.send(Kind.CLOSE, fd)
            return
        except OSError as error:
            raise HostError(f"writing to file descriptor {fd}: {error.strerror}") from error
        if size < len(data):
            self._unwritten[fd].appendleft(data[size:])
        self._connection.took(fd, size)

    def _pass_signals(self) -> None:
        for number in self._wakeup.recv(64):
            if number == signal.SIGWINCH:
                if self._tty:
                    self._connection.send(Kind.WINSIZE, 0, WINSIZE.pack(*_window_size()))
                continue
            self._connection.send(Kind.SIGNAL, number)
            if number in (signal.SIGTERM, signal.SIGHUP):
                self._end(number, PATIENCE_S)
            elif self._interrupted:
                self._end(number, 0)
            self._interrupted = True

    def _end(self, number: int, patience_s: float) -> None:
        """End in `patience_s` at the latest, with the exit code of signal `number`."""
        self._deadline = min(self._deadline or float("inf"), monotonic() + patience_s)
        self._late = SIGNALLED + number


def _stream_flags() -> ExecFlags:
    flags = ExecFlags(0)
    if os.isatty(0) and os.isatty(1):
        flags |= ExecFlags.TTY
        if os.isatty(2):
            flags |= ExecFlags.TTY_ERR
    else:
        with suppress(OSError):  # one of them is closed
            if os.path.sameopenfile(1, 2):  # then their order matters
                flags |= ExecFlags.MERGE
    return flags


def _window_size() -> tuple[int, int]:
    size = os.get_terminal_size(1)
    return size.lines, size.columns


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Give a socket from which the numbers of the signals that come can be read."""
    read, write = socket.socketpair()
    write.setblocking(False)
    old_fd = signal.set_wakeup_fd(write.fileno())
    # What is ignored stays so: nohup
    numbers = [n for n in (*PASSED_ON, signal.SIGWINCH) if signal.getsignal(n) != signal.SIG_IGN]
    old = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield read
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        read.close()
        write.close()


@contextmanager
def _raw_terminal(raw: bool) -> Iterator[None]:
    """Put the terminal on stdin into raw mode, if `raw`, and back, whatever happens."""
    if not raw:
        yield
        return
    old = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed meanwhile is for the command
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, old)

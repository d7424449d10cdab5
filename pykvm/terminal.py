"""The interactive console: standard input and output, raw mode, the Ctrl-A commands.

Reached from `console.open_console("stdio")`. Raw mode only when standard input is a terminal that
is ours to change; then Ctrl-C belongs to the guest and ``Ctrl-A x`` ends the machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

from pykvm.console import Console
from pykvm.errors import HostError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

ESCAPE = 0x01  # Ctrl-A, as in QEMU and screen
HELP = """\r
Ctrl-A h    this help\r
Ctrl-A x    end the machine\r
Ctrl-A s    save a snapshot\r
Ctrl-A p    press the power button (ACPI)\r
Ctrl-A ?    where each vCPU is\r
Ctrl-A a    send Ctrl-A to the guest\r
"""


class Terminal(Console):
    """Standard input and output as the serial line. Piped input passes unchanged."""

    def __init__(self) -> None:
        self._open = True
        self._escaped = False
        self._commands = ""
        self._saved: Any = None  # termios attributes
        self._stdin: int | None = None
        self._terminal: int | None = None  # standard input, when it is one and until it hangs up
        try:
            fd = sys.__stdin__.fileno() if sys.__stdin__ else -1
            os.fstat(fd)
        except (OSError, ValueError):
            return  # started without standard input: output only
        if not os.isatty(fd):
            self._stdin = fd
        else:
            self._terminal = fd
            self.resume()
            if self._stdin is None:
                self.look_again_s = 1.0

    def resume(self) -> None:
        """Take the terminal if it is ours to change now, whatever its modes are: a shell's."""
        if self._open and self._terminal is not None and _in_foreground(self._terminal):
            self._stdin = self._terminal
            self._make_raw(self._terminal)

    def _make_raw(self, fd: int) -> None:
        import atexit
        import termios

        if self._saved is None:
            self._saved = termios.tcgetattr(fd)
            atexit.register(self.close)
        mode = termios.tcgetattr(fd)
        # Every key goes to the guest. OPOST stays: a guest that sends a bare LF is still readable.
        mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        termios.tcsetattr(fd, termios.TCSANOW, mode)

    def input_fds(self) -> list[int]:
        if self._stdin is None:
            self.resume()  # a shell's fg says nothing to a process that runs
        return [self._stdin] if self._stdin is not None else []

    def read(self, fd: int) -> bytes:
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""  # the terminal hung up
        if not data:
            self._stdin = self._terminal = None
        return self._without_commands(data) if self._saved else data

    def _without_commands(self, data: bytes) -> bytes:
        """What of `data` is for the guest; Ctrl-A commands are set aside."""
        passed = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    passed.append(byte)
                continue
            self._escaped = False
            if byte in (ESCAPE, ord("a")):
                passed.append(ESCAPE)
            else:
                self._commands += chr(byte)
        return bytes(passed)

    def take_commands(self) -> str:
        commands, self._commands = self._commands, ""
        return commands

    def write(self, data: bytes) -> int:
        """Write what needs no waiting: once poll() says so, that is PIPE_BUF bytes (pipe(7)).

        Raises `BrokenPipeError` when nobody reads any more, `HostError` for a full disk.
        """
        room = select.poll()
        room.register(1, select.POLLOUT)
        if not room.poll(0):
            return 0
        try:
            return os.write(1, data[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HostError(f"writing to standard output: {error.strerror}") from None

    def output_fd(self) -> int:
        return 1

    def window(self) -> tuple[int, int]:
        if self._saved is None:
            return (0, 0)
        try:
            size = os.get_terminal_size(0)
        except OSError:
            return (0, 0)  # it hung up
        return size.columns, size.lines

    def close(self) -> None:
        # In the background the terminal has the shell's modes, and to set others would stop us.
        if self._saved is not None and self._open and _in_foreground(0):
            import termios

            with contextlib.suppress(termios.error):  # it hung up
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
        self._open = False


def _in_foreground(fd: int) -> bool:
    """Whether the terminal is ours to change: not when a shell has put us in the background."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not our session's terminal (setsid): no shell shares it with us

"""What may become of a command in a guest, beside its end.

Reached from `link` and `guest`. The base of all errors is in `pykvm.errors`. ::

    PykvmError
     ├─ GuestEndedError       the guest ended, or its init does not answer: the machine is lost
     ├─ CommandError          with check=True: the exit code was not 0
     ├─ CommandTimeoutError   it was killed; the machine can be used on
     └─ OutputError           it wrote more than the host would keep, and was killed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from pykvm.agent.link import Completed

TAIL: Final = 2000  # characters or bytes of an output that a message has


class GuestEndedError(PykvmError):
    """The guest ended, or did not answer. The message has the end of its console."""

    def __init__(self, what: str, console: str = "") -> None:
        self.console = console
        super().__init__(f"{what}\n{console[-TAIL:]}".rstrip())


class _BrokenError(PykvmError):
    def __init__(self, what: str, completed: Completed[str] | Completed[bytes]) -> None:
        self.completed = completed  # what it wrote, to the end or so far
        super().__init__(f"{what}\n{_text(completed.stderr or completed.stdout)}".rstrip())


class CommandError(_BrokenError):
    """The command's exit code was not 0."""


class CommandTimeoutError(_BrokenError, TimeoutError):
    """The command did not end in time, and was killed with all in its process group."""


class OutputError(_BrokenError):
    """The command wrote too much, and was killed with all in its process group."""


def _text(output: str | bytes) -> str:
    tail = output[-TAIL:]
    return tail if isinstance(tail, str) else tail.decode(errors="replace")

"""What the gdb stub asks of what it debugs, and how it is refused.

Reached from `gdbstub`, which carries packets out on a `Target`, and from `target`, which makes a
machine one; tests have another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pykvm.debug.breakpoints import Kind

# Error numbers in replies; gdb shows them and asks no further. Linux' own values.
EFAULT: Final = 14
EINVAL: Final = 22
ESRCH: Final = 3


class TargetError(PykvmError):
    """The target cannot do that; `number` is what gdb is told."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or f"error {number}")
        self.number = number


class Target(Protocol):
    """What is debugged. Threads count from 1. Methods raise `TargetError`."""

    def threads(self) -> Iterable[int]:
        """The threads there are."""

    def thread_state(self, thread: int) -> str:
        """What a thread is called, and does."""

    def description(self) -> bytes:
        """target.xml."""

    def read_registers(self, thread: int) -> bytes: ...
    def write_registers(self, thread: int, data: bytes) -> None: ...
    def read_register(self, thread: int, number: int) -> bytes: ...
    def write_register(self, thread: int, number: int, data: bytes) -> None: ...
    def read_memory(self, thread: int, address: int, size: int, physical: bool) -> bytes:
        """Up to `size` bytes, fewer at the end of what is mapped."""

    def write_memory(self, thread: int, address: int, data: bytes, physical: bool) -> None: ...
    def insert(self, thread: int, kind: Kind, address: int, length: int) -> None:
        """Set a breakpoint. Raises `BreakpointError` too."""

    def remove(self, kind: Kind, address: int, length: int) -> None: ...
    def resume(self, plan: Mapping[int, bool], ranges: Mapping[int, range]) -> None:
        """Let these threads go on, those with a true value for one step; those with a range step
        until they are out of it."""

    def interrupt(self) -> None:
        """Stop; `Stub.tell` is called when it has."""

    def monitor(self, thread: int, command: str) -> str:
        """Answer a ``monitor`` command, in lines."""

    def detach(self) -> None: ...
    def kill(self) -> None: ...
    def stop_reply(self, swbreak: bool, hwbreak: bool) -> bytes:
        """Why it stands still, as packet T has it."""

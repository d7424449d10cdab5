"""How a virtio device interrupts: the handle of csrc/interrupt.c, and its eventfds.

Reached from the transports, which say what signals each cause, and from devices whose data plane
is Python. Read csrc/interrupt.c.
"""

from __future__ import annotations

from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

QUEUE: Final = 1  # bits of the ISR: §4.1.4.5 "ISR status capability"
CONFIG: Final = 2
CONFIG_CAUSE: Final = 0  # causes; queue n is 1 + n


class Interrupt:
    """A device's interrupt. Any thread may raise it."""

    def __init__(self, vm_fd: int = -1, gsi: int = 0) -> None:
        out = ffi.new("struct pk_interrupt **")
        check(lib.pk_interrupt_create(vm_fd, gsi, out), "memory for an interrupt")
        self.handle = out[0]
        self._fds: dict[int, int] = {}
        self._by_isr = False  # the driver asks for the cause, so an eventfd alone tells it nothing
        self.on_move: Callable[[int], None] | None = None  # told a cause whose `message_fd` changed

    def serve(self, c_bus: Any, gpa: int) -> None:
        """Answer virtio-mmio's InterruptStatus and InterruptACK at `gpa` in C."""
        self._by_isr = True
        check(lib.pk_interrupt_serve(self.handle, c_bus, gpa), "a place on the bus of C devices")

    def set_fd(self, cause: int, fd: int) -> None:
        """Signal `cause` by the eventfd `fd`; -1: by the line."""
        lib.pk_interrupt_set_fd(self.handle, cause, fd)
        before, self._fds[cause] = self._fds.get(cause, -1), fd
        if fd != before and self.on_move is not None:
            self.on_move(cause)

    def message_fd(self, cause: int) -> int:
        """The eventfd by which another process may signal `cause` (MSI-X); -1 when an eventfd is
        not enough, because the driver asks for the cause."""
        return -1 if self._by_isr else self._fds.get(cause, -1)

    def use_line(self, on: bool) -> None:
        """Let causes without an eventfd raise the device's line, or not."""
        lib.pk_interrupt_use_line(self.handle, on)

    def notify(self, cause: int) -> None:
        """Interrupt the driver."""
        lib.pk_interrupt_raise(self.handle, cause)

    def trace(self, kind: int, queue: int) -> None:
        """Tell a trace, if there is one: the queue was kicked, or a chain of it given back."""
        lib.pk_interrupt_trace(self.handle, kind, queue, 1)

    @property
    def pending(self) -> int:
        """The bits the driver has not acknowledged."""
        return int(lib.pk_interrupt_pending(self.handle))

    def acknowledge(self, bits: int) -> int:
        """Clear bits; returns what was pending."""
        return int(lib.pk_interrupt_ack(self.handle, bits))

    def close(self) -> None:
        """Free it. The data plane has stopped. Safe to call twice."""
        if self.handle != ffi.NULL:
            lib.pk_interrupt_destroy(self.handle)
            self.handle = ffi.NULL

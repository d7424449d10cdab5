"""Ports through which a guest ends the machine with a code: QEMU's isa-debug-exit, and pykvm's own.

Reached from the bus at `layout.PORT_DEBUG_EXIT` and `layout.PORT_EXIT_CODE`. Source of the first:
QEMU hw/misc/debugexit.c, which test suites such as kvm-unit-tests rely on.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device


class DebugExit(Device):
    """A write of `value` leaves with code ``(value << 1) | 1``, cut to the 8 bits a shell sees.

    So a guest cannot leave with 0 here: 1 means it wrote 0, which by custom is success.
    """

    name = "debug exit"

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._on_exit((value << 1 | 1) & 0xFF)


class ExitCode(Device):
    """A write of `value` leaves with that code, cut to 8 bits: the plain way, 0 included."""

    name = "exit code"

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def write(self, offset: int, size: int, value: int) -> None:
        self._on_exit(value & 0xFF)

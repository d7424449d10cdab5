"""The port through which a panicking kernel says so.

Reached from the bus at `layout.PORT_PVPANIC`; Linux's pvpanic driver finds it through the DSDT's
QEMU0001 device (`acpi`). Source: QEMU docs/specs/pvpanic.rst.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device
from pykvm.lean import IntFlag


class PanicEvent(IntFlag):
    """What the guest may report; a read of the port tells which of them we take."""

    PANICKED = 1 << 0  # the kernel is dead
    CRASH_LOADED = 1 << 1  # it panicked and goes on into its crash kernel


class PvPanic(Device):
    """A read tells the supported events; a write reports some of them."""

    name = "pvpanic"

    def __init__(self, on_event: Callable[[PanicEvent], None]) -> None:
        self._on_event = on_event

    def read(self, offset: int, size: int) -> int:
        return PanicEvent.PANICKED | PanicEvent.CRASH_LOADED

    def write(self, offset: int, size: int, value: int) -> None:
        event = PanicEvent(value & (PanicEvent.PANICKED | PanicEvent.CRASH_LOADED))
        if event:
            self._on_event(event)

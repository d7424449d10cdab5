"""What is at an address: the devices' names, as the buses and `layout` have them.

Reached from `trace` and `stats`, which show them beside ports, addresses and interrupt lines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pykvm import layout
from pykvm._core import lib

if TYPE_CHECKING:
    from pykvm.bus import Bus
    from pykvm.machine import Machine

LINES: Final = {
    layout.IRQ_KEYBOARD: "i8042",
    layout.IRQ_COM1: "serial",
    layout.IRQ_RTC: "CMOS/RTC",
    layout.IRQ_SCI: "ACPI SCI",
}


class DeviceName(NamedTuple):
    """A range of a space, and what is there."""

    space: int  # PK_PIO, PK_MMIO or PK_GSI
    base: int
    end: int
    name: str


def plain(name: str) -> str:
    """`name` without what JSON or CSV would have to quote."""
    return re.sub(r"[^\w ./:+-]", "_", name, flags=re.ASCII)


def device_names(machine: Machine) -> list[DeviceName]:
    """The devices on both buses, by address."""
    buses: tuple[tuple[int, Bus], ...] = (
        (lib.PK_PIO, machine.pio_bus),
        (lib.PK_MMIO, machine.mmio_bus),
    )
    return [
        DeviceName(space, base, end, plain(device.name))
        for space, bus in buses
        for base, end, device in bus
    ]


def gsi_names(machine: Machine) -> list[DeviceName]:
    """What interrupts by which line; a virtio device's line stands for its messages, too."""
    names = LINES | {each.gsi: plain(each.name) for each in machine.virtio}
    return [DeviceName(lib.PK_GSI, gsi, gsi + 1, name) for gsi, name in names.items()]

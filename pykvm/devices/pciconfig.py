"""The ports of PCI's configuration space, and the bus of a machine that has no device on it.

Reached from the bus at `layout.PORT_PCI_CONFIG`, 8 ports. Read `pci` for a bus with devices.
Source: PCI Local Bus Specification 3.0, §3.2.2.3.2 Software Generation of Configuration
Transactions.

::

    port 0xCF8   enable │ bus │ slot │ function │ register    which dword of which function
    port 0xCFC   its four bytes
    port 0xCF9   a byte: the reset control register, as in every PC (devices/reset.py)
"""

from __future__ import annotations

import threading

from pykvm.devices.base import Device, all_ones
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.pci import PciBus

ENABLE: Final = 1 << 31  # of the address port

# Function 0 of slot 0: by its class a kernel sees that the ports lead to a PCI bus.
BRIDGE_VENDOR: Final = 0x1B36
BRIDGE_DEVICE: Final = 0x0008  # QEMU docs/specs/pci-ids.rst: its own host bridge
BRIDGE_CLASS: Final = 0x06_00_00


class ConfigPorts(Device):
    """Ports 0xCF8 to 0xCFF. What is no configuration cycle is the reset control register's."""

    name = "pci configuration"

    def __init__(self, bus: PciBus | EmptyBus, reset_control: Device) -> None:
        self._bus = bus
        self._reset_control = reset_control
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        with self._bus.lock:
            if (offset, size) == (0, 4):
                return self._address
            if offset < 4:
                return self._reset_control.read(offset, size)
            if not self._is_cycle(offset, size):
                return all_ones(size)
            return self._bus.read_config(self._target(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self._bus.lock:
            if (offset, size) == (0, 4):
                self._address = value & 0x80FF_FFFC
            elif offset < 4:
                self._reset_control.write(offset, size, value)
            elif self._is_cycle(offset, size):
                self._bus.write_config(self._target(offset), size, value)

    def _is_cycle(self, offset: int, size: int) -> bool:
        return bool(self._address & ENABLE) and offset + size <= 8

    def _target(self, offset: int) -> int:
        return (self._address & ~ENABLE) + offset - 4

    def reset(self) -> None:
        self._address = 0
        self._reset_control.reset()

    def state(self) -> bytes:
        return self._address.to_bytes(4, "little") + self._reset_control.state()

    def restore(self, state: bytes) -> None:
        # A snapshot of before there was an `EmptyBus` has the reset control register's byte alone.
        self._address = int.from_bytes(state[:-1], "little")
        self._reset_control.restore(state[-1:])


class EmptyBus:
    """Bus 0 with a host bridge and nothing else: the bus of a machine without PCI devices. Put
    `ports` on the port bus.

    ACPI names no such bus, so that nobody looks for devices on it. Without the bridge Linux would
    say "PCI: Fatal: No config space access function found".
    """

    REGISTERS: Final = {
        0x00: BRIDGE_DEVICE << 16 | BRIDGE_VENDOR,
        0x08: BRIDGE_CLASS << 8 | 1,  # revision 1
        0x2C: BRIDGE_VENDOR,  # of the subsystem, which has no number
    }

    def __init__(self, reset_control: Device) -> None:
        self.lock = threading.RLock()
        self.ports = ConfigPorts(self, reset_control)

    def read_config(self, address: int, size: int) -> int:
        """As `PciBus.read_config`."""
        if address > 0xFF:
            return all_ones(size)
        return self.REGISTERS.get(address & ~3, 0) >> 8 * (address & 3) & all_ones(size)

    def write_config(self, address: int, size: int, value: int) -> None:
        """The bridge has no register that could be written."""

"""A PCI bus: configuration space, the ways to reach it, and the window that BARs lie in.

Reached from `board`, when devices are to be found by PCI; else there is an `EmptyBus`.
The registers of a function's own are its subclass's affair (`virtio.pci`). Source: PCI Local Bus
Specification 3.0, §6 Configuration Space. The ports are in devices/pciconfig.py.
"""

from __future__ import annotations

import struct
import threading

from pykvm import layout
from pykvm.devices.base import Device, all_ones
from pykvm.devices.pciconfig import BRIDGE_CLASS, BRIDGE_DEVICE, BRIDGE_VENDOR, ConfigPorts
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

CONFIG_SIZE: Final = 256
SLOTS: Final = 32

# Offsets in configuration space (§6.1 Configuration Space Organization, type 0 header).
COMMAND: Final = 0x04
STATUS: Final = 0x06
BAR0: Final = 0x10
CAPABILITIES: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D

MEMORY_ENABLE: Final = 1 << 1  # of the command register
BUS_MASTER: Final = 1 << 2
INTX_DISABLE: Final = 1 << 10
HAS_CAPABILITIES: Final = 1 << 4  # of the status register

HEADER: Final = struct.Struct("<HHHHBBBBBBBB24xIHHI8xBBBB")
assert HEADER.size == 64


class PciFunction:
    """A function: 256 bytes of configuration space, of which some bits can be written, and BAR 0.

    Used with the bus's lock held.
    """

    name = "pci function"
    bar_size = 0  # a power of two, at least 16; 0: no BAR

    def __init__(self, vendor: int, device: int, class_code: int, subsystem: int = 0) -> None:
        pin = 1 if self.bar_size else 0
        self.config = bytearray(
            HEADER.pack(
                vendor,
                device,
                *(0, 0),  # command, status
                1,  # revision: modern virtio devices have 1
                *(class_code & 0xFF, class_code >> 8 & 0xFF, class_code >> 16),
                *(0, 0, 0, 0),  # cache line, latency, header type 0, self-test
                *(0, vendor, subsystem, 0),  # CardBus, subsystem, expansion ROM
                *(0, pin, 0, 0),  # interrupt line, pin (INTA# or none); latencies
            ).ljust(CONFIG_SIZE, b"\0")
        )
        self._writable = bytearray(CONFIG_SIZE)
        self._writable[INTERRUPT_LINE] = 0xFF
        if self.bar_size:
            struct.pack_into(
                "<H", self._writable, COMMAND, MEMORY_ENABLE | BUS_MASTER | INTX_DISABLE
            )
            struct.pack_into("<I", self._writable, BAR0, -self.bar_size & 0xFFFF_FFFF)
        self._last_capability = CAPABILITIES
        self._next_free = HEADER.size
        self.power_on = b""  # what a reset returns to; set once the function is complete

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (§6.7 Capabilities List): its id and link, then `body`.

        Returns its offset. `writable` masks the bits of `body` that can be written.
        """
        offset = self._next_free
        self.config[offset : offset + 2 + len(body)] = bytes([kind, 0]) + body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        pointer = self._last_capability + (self._last_capability != CAPABILITIES)
        self.config[pointer] = offset
        self.config[STATUS] |= HAS_CAPABILITIES
        self._last_capability = offset
        self._next_free = -(-(offset + 2 + len(body)) // 4) * 4
        return offset

    # ── configuration space ──────────────────────────────────────────────────────────────────

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, both as a dword allows."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the bits that can be written, then act on them."""
        for at, byte in zip(
            range(offset, offset + size), value.to_bytes(size, "little"), strict=True
        ):
            mask = self._writable[at]
            self.config[at] = self.config[at] & ~mask | byte & mask
        self.config_written(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """Act on a write to [offset, offset + size)."""

    @property
    def command(self) -> int:
        return self.read_config(COMMAND, 2)

    @property
    def bar(self) -> int | None:
        """Where BAR 0 lies, or None while it is switched off."""
        on = self.bar_size and self.command & MEMORY_ENABLE
        return self.read_config(BAR0, 4) & -self.bar_size if on else None

    def read_bar(self, offset: int, size: int) -> int:
        """Answer a read in BAR 0."""
        return all_ones(size)

    def write_bar(self, offset: int, size: int, value: int) -> None:
        """Take a write in BAR 0."""

    def reset(self) -> None:
        """Return to power-on state."""
        self.config[:] = self.power_on or self.config
        self.config_written(0, CONFIG_SIZE)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────

    def freeze(self) -> None:
        """As `Device.freeze`."""

    def thaw(self) -> None:
        """As `Device.thaw`."""

    def state(self) -> bytes:
        return bytes(self.config)

    def restore(self, state: bytes) -> None:
        self.config[:] = state
        self.config_written(0, CONFIG_SIZE)


class HostBridge(PciFunction):
    """Function 0 of slot 0."""

    name = "host bridge"

    def __init__(self) -> None:
        super().__init__(BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS)


class PciBus:
    """Bus 0, the only one, and the devices by which a guest reaches it: put `ports` on the port bus
    at `layout.PORT_PCI_CONFIG`, `ecam` and `window` on the MMIO bus at `layout.PCI_ECAM` and
    `layout.PCI_MMIO`."""

    def __init__(self, reset_control: Device) -> None:
        self.lock = threading.RLock()
        self.functions: dict[int, PciFunction] = {0: HostBridge()}  # by slot
        self.ports = ConfigPorts(self, reset_control)
        self.ecam = Ecam(self)
        self.window = Window(self)

    def add(self, function: PciFunction) -> int:
        """Put a function into the next slot, its BAR at a place of its own, as firmware would.

        Returns the slot. Raises `ValueError` when the bus is full.
        """
        slot = len(self.functions)
        if slot == SLOTS:
            raise ValueError("the PCI bus is full")
        gpa = layout.PCI_MMIO + slot * layout.PCI_MMIO_SIZE // SLOTS
        function.config[BAR0 : BAR0 + 4] = gpa.to_bytes(4, "little")
        function.power_on = bytes(function.config)
        self.functions[slot] = function
        return slot

    def read_config(self, address: int, size: int) -> int:
        """`address`: bus << 16 | slot << 11 | function << 8 | offset."""
        function = self._find(address)
        return function.read_config(address & 0xFF, size) if function else all_ones(size)

    def write_config(self, address: int, size: int, value: int) -> None:
        if function := self._find(address):
            function.write_config(address & 0xFF, size, value)

    def _find(self, address: int) -> PciFunction | None:
        bus, slot, number = address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7
        return self.functions.get(slot) if (bus, number) == (0, 0) else None


class Ecam(Device):
    """Configuration space as memory, 4 KiB a function (PCI Express Base Specification 5.0, §7.2.2
    Enhanced Configuration Access Mechanism). Ours have the first 256 bytes; behind are all ones."""

    name = "pci ecam"

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def _target(self, offset: int, size: int) -> int | None:
        """The address as `PciBus` has it, if the access is one that configuration space knows."""
        register = offset & 0xFFF
        known = register < CONFIG_SIZE and size <= 4 and register % size == 0
        return offset >> 12 << 8 | register if known else None

    def read(self, offset: int, size: int) -> int:
        target = self._target(offset, size)
        with self._bus.lock:
            return all_ones(size) if target is None else self._bus.read_config(target, size)

    def write(self, offset: int, size: int, value: int) -> None:
        target = self._target(offset, size)
        with self._bus.lock:
            if target is not None:
                self._bus.write_config(target, size, value)


class Window(Device):
    """The memory that BARs may lie in: finds the one at an address, wherever the guest put it.

    Its state is that of all functions.
    """

    name = "pci window"

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def _find(self, offset: int, size: int) -> tuple[PciFunction, int] | None:
        gpa = layout.PCI_MMIO + offset
        for function in self._bus.functions.values():
            base = function.bar
            if base is not None and base <= gpa and gpa + size <= base + function.bar_size:
                return function, gpa - base
        return None

    def read(self, offset: int, size: int) -> int:
        with self._bus.lock:
            if found := self._find(offset, size):
                return found[0].read_bar(found[1], size)
            return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self._bus.lock:
            if found := self._find(offset, size):
                found[0].write_bar(found[1], size, value)

    def reset(self) -> None:
        with self._bus.lock:
            for function in self._bus.functions.values():
                function.reset()

    def freeze(self) -> None:
        for function in self._bus.functions.values():
            function.freeze()

    def thaw(self) -> None:
        for function in self._bus.functions.values():
            function.thaw()

    def state(self) -> bytes:
        with self._bus.lock:
            states = [function.state() for function in self._bus.functions.values()]
        return b"".join(struct.pack("<I", len(state)) + state for state in states)

    def restore(self, state: bytes) -> None:
        with self._bus.lock:
            at = 0
            for function in self._bus.functions.values():
                (size,) = struct.unpack_from("<I", state, at)
                function.restore(state[at + 4 : at + 4 + size])
                at += 4 + size

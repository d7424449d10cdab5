"""QEMU's pc-testdev: a register, interrupt lines and memory for tests of a hypervisor.

Reached from the buses at `layout.PORT_TEST`, `layout.PORT_TEST_LINES` and `layout.TEST_MEMORY`, in
the machines of multiboot guests: kvm-unit-tests are such, and those of ports, of the instruction
emulator and of the IOAPIC rely on it. Source: QEMU hw/misc/pc-testdev.c.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device, all_ones
from pykvm.layout import TEST_MEMORY_SIZE


class Register(Device):
    """A 32-bit register, at offset 0 and once more at 8: what was written is read. The four bytes
    between are told of a page that KVM is to map anew; here nobody unmaps one, so nothing is due.
    """

    name = "test ports"

    def __init__(self) -> None:
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        if offset & 4:
            return 0
        return self._value >> 8 * (offset & 3) & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if not offset & 4:
            shift = 8 * (offset & 3)
            kept = self._value & ~(all_ones(size) << shift)
            self._value = (kept | value << shift) & 0xFFFF_FFFF

    def reset(self) -> None:
        self._value = 0

    def state(self) -> bytes:
        return self._value.to_bytes(4, "little")

    def restore(self, state: bytes) -> None:
        self._value = int.from_bytes(state, "little")


class Lines(Device):
    """A byte at offset n raises GSI n, or lowers it when it is 0."""

    name = "test lines"

    def __init__(self, irq: Callable[[int, int], None]) -> None:
        self._irq = irq

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            self._irq(offset, int(value != 0))


class Memory(Device):
    """Memory each access of which is an exit, so that KVM has to emulate the instruction."""

    name = "test memory"

    def __init__(self) -> None:
        self._bytes = bytearray(TEST_MEMORY_SIZE)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        size = min(size, TEST_MEMORY_SIZE - offset)
        self._bytes[offset : offset + size] = (value & all_ones(size)).to_bytes(size, "little")

    def reset(self) -> None:
        self.restore(b"")

    def state(self) -> bytes:
        return bytes(self._bytes).rstrip(b"\0")

    def restore(self, state: bytes) -> None:
        self._bytes[:] = state.ljust(TEST_MEMORY_SIZE, b"\0")

"""A device whose registers are one byte wide, as on the ISA bus.

Reached from the old PC devices (`cmos`, `i8042`, `pm`), which derive from it. See also `base`.
"""

from __future__ import annotations

from pykvm.devices.base import Device


class ByteWide(Device):
    """Splits an access of several bytes into byte accesses at rising offsets, as the ISA bus does.

    Offsets past the device's own registers do reach it: they read as 0xFF and ignore writes.
    """

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= self.read_byte(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self.write_byte(offset + i, value >> (8 * i) & 0xFF)

    def read_byte(self, offset: int) -> int:
        """Answer a read of the register at `offset`."""
        return 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        """Take a write of 0 to 255 to the register at `offset`."""

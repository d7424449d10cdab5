"""The reset control register at port 0xCF9, in the middle of PCI's address port.

Reached from `pciconfig`, which has the ports around it. ACPI's reset register (`acpi`) is this.
Source: Intel 82371SB (PIIX3) data sheet, "RC: Reset Control Register".
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device, all_ones
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

RESET_CONTROL: Final = 1  # offset of port 0xCF9
RESET_CPU: Final = 1 << 2
WRITABLE: Final = 0b1010  # SRST and FULL_RST: what sort of reset; kept, without effect


class ResetControl(Device):
    """A byte with bit 2 set, written to 0xCF9, resets the machine.

    Its offset is that in the address port, whose other bytes read as all ones.
    """

    name = "reset control"

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value if (offset, size) == (RESET_CONTROL, 1) else all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) != (RESET_CONTROL, 1):
            return
        self._value = value & WRITABLE
        if value & RESET_CPU:
            self._on_reset()

    def reset(self) -> None:
        self._value = 0

    def state(self) -> bytes:
        return bytes([self._value])

    def restore(self, state: bytes) -> None:
        self._value = state[0]

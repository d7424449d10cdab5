"""As much of a PC's display adapter as kernels take for granted: the cursor's registers.

Reached from the bus at `layout.PORT_CRTC`, in the machines of guests that know a BIOS. Nothing is
displayed, but who asks where the cursor is, as xv6 does, must not hear of a place off the screen.
What such a guest writes to the screen, `report` tells of. Source: IBM VGA Technical Reference,
"CRT Controller Registers" and "Input Status Register 1".
"""

from __future__ import annotations

from pykvm.devices.base import Device, all_ones
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

INDEX: Final = 0  # offsets
DATA: Final = 1
STATUS: Final = 6
COUNT: Final = 0x19
RETRACE: Final = 1 << 0 | 1 << 3  # display disabled, vertical retrace


class Crtc(Device):
    """Registers that keep what they are given. Each read of the status finds a retrace begun or
    over, so nobody waits for one."""

    name = "CRTC"

    def __init__(self) -> None:
        self._index = 0
        self._status = 0
        self._registers = bytearray(COUNT)

    def read(self, offset: int, size: int) -> int:
        if offset == INDEX and size == 1:
            return self._index
        if offset == DATA and size == 1:
            return self._registers[self._index] if self._index < COUNT else 0
        if offset == STATUS and size == 1:
            self._status ^= RETRACE
            return self._status
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == INDEX and size <= 2:  # a word is index and data
            self._index = value & 0xFF
            if size == 2:
                self.write(DATA, 1, value >> 8)
        elif offset == DATA and size == 1 and self._index < COUNT:
            self._registers[self._index] = value & 0xFF

    def reset(self) -> None:
        self._index = self._status = 0
        self._registers[:] = bytes(COUNT)

    def state(self) -> bytes:
        return bytes((self._index, self._status, *self._registers))

    def restore(self, state: bytes) -> None:
        self._index, self._status = state[:2]
        self._registers[:] = state[2:]

"""Port 0x80: power-on self-test codes, and the write that kernels use as a delay.

Reached from the bus at `layout.PORT_POST`. Reports of a hang show `codes`: a boot loader or a small
kernel marks its progress here.
"""

from __future__ import annotations

from collections import deque

from pykvm.devices.base import Device
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

KEPT: Final = 8


class Post(Device):
    """Remembers the last few codes; a repeated code, as delays write, counts once."""

    name = "POST"

    def __init__(self) -> None:
        self._codes: deque[int] = deque(maxlen=KEPT)

    @property
    def codes(self) -> bytes:
        """The last codes, oldest first."""
        return bytes(self._codes)

    def read(self, offset: int, size: int) -> int:
        return self._codes[-1] if self._codes else 0

    def write(self, offset: int, size: int, value: int) -> None:
        code = value & 0xFF
        if not self._codes or self._codes[-1] != code:
            self._codes.append(code)

    def reset(self) -> None:
        self._codes.clear()

    def state(self) -> bytes:
        return self.codes

    def restore(self, state: bytes) -> None:
        self._codes = deque(state, maxlen=KEPT)

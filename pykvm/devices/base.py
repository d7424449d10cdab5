"""What a device is: something that answers reads and writes at offsets of a range.

Reached from `bus`, which finds the range and computes the offset. A device does not care where it
sits in the address space. Read `devices/debugexit.py` for the smallest one.
"""

from __future__ import annotations

from collections.abc import Callable


def all_ones(size: int) -> int:
    """What a bus without a listener returns for a read of `size` bytes."""
    return (1 << (8 * size)) - 1


class Device:
    """A device on a bus. Called on the thread of the vCPU that exits; several may call at once."""

    name: str = "device"

    def read(self, offset: int, size: int) -> int:
        """Answer a guest's read of `size` bytes (1, 2, 4 or 8) at `offset` in the range."""
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a guest's write of `size` bytes at `offset` in the range."""

    def reset(self) -> None:
        """Return to power-on state."""

    def freeze(self) -> None:
        """Come to rest: finish what is in flight, then do nothing until `thaw`. Nothing that was
        raised is lost. The machine is paused."""

    def thaw(self) -> None:
        """Go on after `freeze`, with the state that was there or the one `restore` has set."""

    def state(self) -> bytes:
        """Describe the device for a snapshot. A device without state returns ``b""``."""
        return b""

    def restore(self, state: bytes) -> None:
        """Take back what `state()` gave. The machine is paused."""


class FunctionDevice(Device):
    """A device made of one function: ``f(offset, size, value)``, where `value` is None for a read.

    What it returns answers a read; None reads as all ones.
    """

    def __init__(self, function: Callable[[int, int, int | None], int | None]) -> None:
        self.name = getattr(function, "__name__", "function")
        self._function = function

    def read(self, offset: int, size: int) -> int:
        value = self._function(offset, size, None)
        return all_ones(size) if value is None else value

    def write(self, offset: int, size: int, value: int) -> None:
        self._function(offset, size, value)

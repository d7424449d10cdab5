"""The bus: which device answers at an address. One class serves ports and memory alike.

Reached from `vcpu` for every exit that C did not answer. A device sees offsets, never addresses.
Read csrc/bus.c for the devices that never get here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from pykvm.devices.base import Device, all_ones
from pykvm.errors import ConfigError

Range = tuple[int, int, Device, int]  # base, end, device, and where its offset 0 is


class Bus:
    """Ranges of one address space, none overlapping. Changed only while no vCPU runs."""

    def __init__(self, space: str, devices: Iterable[tuple[int, int, Device]] = ()) -> None:
        """`devices` are there from the beginning: base, size and device of each, as for `add`."""
        self.space = space  # "port" or "mmio", for messages
        self._ranges: list[Range] = sorted(
            [(base, base + size, device, base) for base, size, device in devices]
        )
        self._starts = [base for base, _, _, _ in self._ranges]

    def add(self, base: int, size: int, device: Device) -> None:
        """Put `device` at [base, base + size). Raises `ConfigError` when the range is taken."""
        taken = self._overlapping(base, size, device)
        if taken:
            lower, end, other, _ = taken[0]
            raise ConfigError(
                f"{self.space} {base:#x} for {device.name}: {other.name} is there already "
                f"([{lower:#x}, {end:#x})); choose another base"
            )
        self._insert(base, base + size, device, base)

    def replace(self, base: int, size: int, device: Device) -> None:
        """Put `device` at [base, base + size) in place of what is there; what a device that was
        there has outside that range stays its own."""
        for lower, end, other, origin in self._overlapping(base, size, device):
            at = self._starts.index(lower)
            del self._starts[at], self._ranges[at]
            if lower < base:
                self._insert(lower, base, other, origin)
            if base + size < end:
                self._insert(base + size, end, other, origin)
        self._insert(base, base + size, device, base)

    def _overlapping(self, base: int, size: int, device: Device) -> list[Range]:
        """What is in [base, base + size) already."""
        if size <= 0 or base < 0:
            raise ConfigError(f"{self.space} range of {device.name}: base {base:#x}, size {size}")
        first, last = bisect_right(self._starts, base), bisect_left(self._starts, base + size)
        if first and base < self._ranges[first - 1][1]:
            first -= 1  # one that begins before, and ends in it
        return self._ranges[first:last]

    def _insert(self, base: int, end: int, device: Device, origin: int) -> None:
        at = bisect_right(self._starts, base)
        self._starts.insert(at, base)
        self._ranges.insert(at, (base, end, device, origin))

    def find(self, addr: int) -> tuple[Device, int] | None:
        """The device at `addr` and the offset in its range, or None."""
        at = bisect_right(self._starts, addr) - 1
        if at < 0:
            return None
        _, end, device, origin = self._ranges[at]
        return (device, addr - origin) if addr < end else None

    def read(self, addr: int, size: int) -> int:
        """Answer a guest's read; all ones where no device is."""
        found = self.find(addr)
        if found is None:
            return all_ones(size)
        device, offset = found
        return device.read(offset, size) & all_ones(size)

    def write(self, addr: int, size: int, value: int) -> None:
        """Take a guest's write; nothing happens where no device is."""
        found = self.find(addr)
        if found is not None:
            device, offset = found
            device.write(offset, size, value)

    def __iter__(self) -> Iterator[tuple[int, int, Device]]:
        """The ranges as (base, end, device), lowest first."""
        return (entry[:3] for entry in self._ranges)

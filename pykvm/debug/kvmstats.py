"""KVM's own counters, of a VM or of a vCPU, through KVM_GET_STATS_FD.

Reached from `stats`. The file that the ioctl gives describes itself: a header, a descriptor for
each statistic, the data. Source: Linux Documentation/virt/kvm/api.rst, §4.133 KVM_GET_STATS_FD.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pykvm._core import lib
from pykvm.errors import check

if TYPE_CHECKING:
    from typing import Self

HEADER: Final = struct.Struct("<6I")  # flags, name_size, num_desc, id_, desc_ and data_offset
DESCRIPTOR: Final = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size
assert (HEADER.size, DESCRIPTOR.size) == (24, 16)

TYPES: Final = ("cumulative", "instant", "peak", "linear histogram", "logarithmic histogram")
UNITS: Final = ("", "bytes", "seconds", "cycles", "boolean")
BASES: Final = (10, 2)
DATA: Final = 8  # bytes of one value


class Statistic(NamedTuple):
    """One of them, as its descriptor has it: its value times base ** exponent is in `unit`."""

    name: str
    type: str  # one of TYPES
    unit: str  # one of UNITS
    base: int
    exponent: int
    size: int  # values: 1, or a histogram's buckets
    offset: int  # bytes, in the data
    bucket_size: int  # of a linear histogram


class StatsFile:
    """A statistics file, open as `fd`, which it owns from now on."""

    @classmethod
    def of(cls, fd: int) -> StatsFile:
        """That of a VM or of a vCPU, which may be closed before it. Raises `KvmError` when this
        KVM has none (before Linux 5.14)."""
        return cls(check(lib.pk_ioctl_val(fd, lib.KVM_GET_STATS_FD, 0), "KVM_GET_STATS_FD"))

    def __init__(self, fd: int) -> None:
        self.fd = fd
        _, name_size, count, id_offset, desc_offset, self._data = self._unpack(HEADER, 0)
        self.id = os.pread(self.fd, name_size, id_offset).split(b"\0")[0].decode()
        step = DESCRIPTOR.size + name_size
        self.statistics = [self._describe(desc_offset + i * step, name_size) for i in range(count)]
        self._size = max((s.offset + s.size * DATA for s in self.statistics), default=0)

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        return layout.unpack(os.pread(self.fd, layout.size, offset))

    def _describe(self, at: int, name_size: int) -> Statistic:
        flags, exponent, size, offset, bucket_size = self._unpack(DESCRIPTOR, at)
        name = os.pread(self.fd, name_size, at + DESCRIPTOR.size).split(b"\0")[0].decode()
        kind, unit, base = (flags >> shift & 15 for shift in (0, 4, 8))
        return Statistic(
            name,
            TYPES[kind] if kind < len(TYPES) else "unknown",
            UNITS[unit] if unit < len(UNITS) else "unknown",
            BASES[base] if base < len(BASES) else 10,
            exponent,
            size,
            offset,
            bucket_size,
        )

    def read(self) -> dict[str, int]:
        """The values now, by name; histograms, which have several, are left out."""
        data = os.pread(self.fd, self._size, self._data)
        return {
            s.name: int.from_bytes(data[s.offset : s.offset + DATA], "little")
            for s in self.statistics
            if s.size == 1
        }

    def read_histogram(self, name: str) -> list[int]:
        """The buckets of the statistic called `name`. Raises `KeyError`."""
        for s in self.statistics:
            if s.name == name:
                data = os.pread(self.fd, s.size * DATA, self._data + s.offset)
                return [value for (value,) in struct.iter_unpack("<Q", data)]
        raise KeyError(name)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

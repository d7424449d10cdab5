"""KVM's statistics file, from bytes that are put together as api.rst says."""

from __future__ import annotations

import os
import struct

import pytest

from pykvm.debug.kvmstats import DESCRIPTOR, HEADER, StatsFile

NAME = 48


def stats_file(*rows: tuple[str, int, int, list[int]]) -> StatsFile:
    """A file of (name, flags, exponent, values)."""
    ident = b"kvm-1/vcpu-0".ljust(NAME, b"\0")
    descriptors, data = b"", b""
    for name, flags, exponent, values in rows:
        descriptors += DESCRIPTOR.pack(flags, exponent, len(values), len(data), 7)
        descriptors += name.encode().ljust(NAME, b"\0")
        data += struct.pack(f"<{len(values)}Q", *values)
    offset = HEADER.size + NAME
    header = HEADER.pack(0, NAME, len(rows), HEADER.size, offset, offset + len(descriptors))
    fd = os.memfd_create("stats")
    os.write(fd, header + ident + descriptors + data)
    return StatsFile(fd)


def test_values_are_found_by_name() -> None:
    with stats_file(("exits", 0, 0, [17]), ("hist", 4, 0, [1, 2]), ("blocking", 0x41, 0, [1])) as f:
        assert f.id == "kvm-1/vcpu-0"
        assert f.read() == {"exits": 17, "blocking": 1}
        assert f.read_histogram("hist") == [1, 2]


def test_flags_say_type_unit_and_base() -> None:
    with stats_file(("wait_ns", 0x020, -9, [5]), ("hist", 0x143, 0, [0])) as f:
        wait, hist = f.statistics
    assert (wait.type, wait.unit, wait.base, wait.exponent) == ("cumulative", "seconds", 10, -9)
    assert (hist.type, hist.unit, hist.base) == ("linear histogram", "boolean", 2)
    assert hist.bucket_size == 7


def test_kinds_of_a_later_kvm_do_not_matter() -> None:
    with stats_file(("new", 0xFFF, 0, [3])) as f:
        assert (f.statistics[0].type, f.statistics[0].unit) == ("unknown", "unknown")
        assert f.read() == {"new": 3}


def test_an_unknown_histogram_is_a_key_error() -> None:
    with stats_file() as f, pytest.raises(KeyError):
        f.read_histogram("none")

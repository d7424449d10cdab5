"""Guest memory from Python: what is memory, what is not, and that nothing in between is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.errors import ConfigError, KvmError
from pykvm.layout import GIB, MIB
from pykvm.memory import GuestMemory, GuestMemoryError, Region


@pytest.mark.parametrize(
    ("size", "regions"),
    [
        (1 * MIB, (Region(0, MIB),)),
        (3 * GIB, (Region(0, 3 * GIB),)),
        (3 * GIB + MIB, (Region(0, 3 * GIB), Region(4 * GIB, MIB))),
        (3584 * MIB, (Region(0, 3 * GIB), Region(4 * GIB, 512 * MIB))),
        (5 * GIB, (Region(0, 3 * GIB), Region(4 * GIB, 2 * GIB))),
    ],
)
def test_memory_beyond_three_gib_continues_above_four(
    size: int, regions: tuple[Region, ...]
) -> None:
    with GuestMemory(size) as memory:
        assert memory.regions == regions
        assert memory.low_end == regions[0].end
        last = regions[-1].end
        assert memory.contains(last - 1)
        assert not memory.contains(last)


def test_written_bytes_are_read_again_on_both_sides_of_the_hole() -> None:
    with GuestMemory(3 * GIB + MIB) as memory:
        for gpa in (0, layout.MMIO_HOLE - 4, layout.MMIO_HOLE_END):
            memory.write(gpa, b"abcd")
            assert memory.read(gpa, 4) == b"abcd"


def test_a_range_into_the_hole_is_refused_and_nothing_is_written() -> None:
    with GuestMemory(3 * GIB + MIB) as memory:
        with pytest.raises(GuestMemoryError, match="is not guest memory"):
            memory.write(layout.MMIO_HOLE - 2, b"abcd")
        assert memory.read(layout.MMIO_HOLE - 2, 2) == b"\0\0"


@pytest.mark.parametrize("gpa", [-1, MIB, MIB - 1, layout.MMIO_HOLE, (1 << 64) - 1])
def test_what_is_not_memory_cannot_be_read(gpa: int) -> None:
    with GuestMemory(MIB) as memory, pytest.raises(IndexError):
        memory.read(gpa, 2)


@given(st.integers(-(1 << 66), 1 << 66), st.integers(-(1 << 66), 1 << 66))
def test_any_numbers_give_a_view_or_a_guest_memory_error(gpa: int, size: int) -> None:
    with GuestMemory(MIB) as memory:
        inside = gpa >= 0 and size >= 0 and gpa + size <= MIB
        try:
            assert len(memory.view(gpa, size)) == size
        except GuestMemoryError:
            assert not inside or gpa == MIB


def test_a_view_is_the_memory_itself() -> None:
    with GuestMemory(MIB) as memory:
        view = memory.view(0x1000, 4)
        memory.write(0x1000, b"wxyz")
        assert bytes(view) == b"wxyz"
        view[0] = ord("!")
        assert memory.read(0x1000, 4) == b"!xyz"


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097])
def test_a_size_that_is_no_number_of_pages_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        GuestMemory(size)


@pytest.mark.parametrize("size", [1 << 56, 1 << 62, 1 << 70])
def test_a_size_that_no_host_has_is_an_error_that_names_the_option(size: int) -> None:
    with pytest.raises((KvmError, ConfigError), match="--memory"):
        GuestMemory(size)


def test_closing_twice_is_harmless_and_leaves_no_memory() -> None:
    memory = GuestMemory(MIB)
    memory.close()
    memory.close()
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)

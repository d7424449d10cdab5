"""Claims: two things never overlap, and a refusal names the option that helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot.claims import PAGE, Claims
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory


def claims_of(memory: GuestMemory, mode: CpuMode = CpuMode.REAL) -> Claims:
    return Claims(memory, BootSpec(), mode)


def test_ranges_that_touch_do_not_overlap() -> None:
    with GuestMemory(4 * MIB) as memory:
        claims = claims_of(memory)
        claims.claim(2 * MIB, 4096, "a")
        claims.claim(2 * MIB + 4096, 4096, "b")
        claims.claim(2 * MIB - 4096, 4096, "c")


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12))
def test_a_claim_is_refused_exactly_when_it_overlaps_another(wanted: list[tuple[int, int]]) -> None:
    taken: set[int] = set()
    with GuestMemory(4096) as memory:
        claims = claims_of(memory)
        for gpa, size in wanted:
            these = set(range(gpa, gpa + size))
            if these & taken:
                with pytest.raises(BootError, match="overlaps"):
                    claims.claim(gpa, size, "x")
            else:
                claims.claim(gpa, size, "x")
                taken |= these


def test_too_little_memory_is_refused_with_the_size_that_would_do() -> None:
    with (
        GuestMemory(2 * MIB) as memory,
        pytest.raises(BootError, match=r"--memory.* try --memory 10M or more"),
    ):
        claims_of(memory).claim(9 * MIB, MIB - 1, "the kernel")


def test_a_range_in_the_mmio_hole_is_refused_whatever_the_memory() -> None:
    with GuestMemory(4096 * MIB) as memory, pytest.raises(BootError, match="3 GiB"):
        claims_of(memory).claim(layout.MMIO_HOLE - 1, 2, "the kernel")


@pytest.mark.parametrize("mode", [CpuMode.PROTECTED, CpuMode.LONG])
def test_the_structures_of_the_cpu_mode_are_taken_from_the_start(mode: CpuMode) -> None:
    with GuestMemory(MIB) as memory, pytest.raises(BootError, match="GDT"):
        claims_of(memory, mode).claim(0, 0x1000, "the kernel")


def test_initrds_go_down_from_the_top_in_whole_pages() -> None:
    with GuestMemory(16 * MIB) as memory:
        claims = claims_of(memory)
        claims.claim(MIB, MIB, "the kernel")
        first = claims.place_high(5000, 1 << 32)
        second = claims.place_high(1, 1 << 32)
        assert (first, second) == (16 * MIB - 2 * PAGE, 16 * MIB - 3 * PAGE)


def test_an_initrd_keeps_below_the_kernels_limit() -> None:
    with GuestMemory(16 * MIB) as memory:
        assert claims_of(memory).place_high(4096, 8 * MIB) == 8 * MIB - 4096


def test_an_initrd_that_does_not_fit_names_the_memory_that_would_do() -> None:
    with GuestMemory(8 * MIB) as memory:
        claims = claims_of(memory)
        claims.claim(MIB, 4 * MIB, "the kernel")
        with pytest.raises(BootError, match=r"--initrd: .* try --memory 15M or more"):
            claims.place_high(10 * MIB, 1 << 32)
    with GuestMemory(15 * MIB) as memory:
        claims = claims_of(memory)
        claims.claim(MIB, 4 * MIB, "the kernel")
        assert claims.place_high(10 * MIB, 1 << 32) == 5 * MIB


def test_an_initrd_that_no_memory_has_room_for_is_told_so() -> None:
    with GuestMemory(8 * MIB) as memory, pytest.raises(BootError, match="no --memory makes room"):
        claims_of(memory).place_high(10 * MIB, 8 * MIB)

"""The memory map: what is RAM, for every size of memory around the hole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot.e820 import memory_map
from pykvm.boot.entry import E820, E820_RAM, E820_RESERVED
from pykvm.layout import GIB, KIB, MIB
from pykvm.memory import GuestMemory


def test_memory_below_1_mib_is_split_at_the_ebda_and_the_hole_is_left_out() -> None:
    with GuestMemory(5 * GIB) as memory:
        assert memory_map(memory) == [
            E820(0, layout.EBDA, E820_RAM),
            E820(layout.EBDA, MIB - layout.EBDA, E820_RESERVED),
            E820(MIB, 3 * GIB - MIB, E820_RAM),
            E820(4 * GIB, 2 * GIB, E820_RAM),
        ]


@pytest.mark.parametrize("size", [4096, 512 * KIB, layout.EBDA - 0xC00, MIB])
def test_small_memory_has_no_ram_above_1_mib(size: int) -> None:
    with GuestMemory(size) as memory:
        assert sum(entry.size for entry in memory_map(memory)) == size
        assert all(entry.gpa + entry.size <= MIB for entry in memory_map(memory))


@given(st.integers(1, 6 * GIB // 4096))
def test_the_map_is_sorted_has_no_overlaps_and_adds_up_to_the_memory(pages: int) -> None:
    with GuestMemory(pages * 4096) as memory:
        entries = memory_map(memory)
        assert sum(entry.size for entry in entries) == memory.size
        assert all(memory.contains(entry.gpa, entry.size) for entry in entries)
        for before, after in pairwise(entries):
            assert before.gpa + before.size <= after.gpa

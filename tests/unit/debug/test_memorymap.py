"""The memory map: every address once, and what is there, as text and as a picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from traces import boot

from pykvm import layout
from pykvm.debug.memorymap import MemoryMap
from pykvm.memory import GuestMemory

SVG = "{http://www.w3.org/2000/svg}"
RANGES = st.lists(
    st.builds(
        lambda gpa, size: (gpa, gpa + size, "something"),
        st.integers(0, 5 << 30),
        st.integers(1, 1 << 30),
    ),
    max_size=8,
)


def test_the_memory_map_has_no_gap_and_no_overlap() -> None:
    machine = boot()[0]["args"]
    found = MemoryMap.of_trace(machine)
    assert found[0].gpa == 0
    assert found[-1].end == 1 << 32
    assert all(a.end == b.gpa for a, b in pairwise(found))
    assert {"free memory", "nothing", "IOAPIC (KVM's)"} <= {block.what for block in found}


def test_memory_above_the_hole_is_on_the_map() -> None:
    machine = {**boot()[0]["args"], "regions": [[0, 3 << 30], [4 << 30, 6 << 30]]}
    assert MemoryMap.of_trace(machine)[-1][:3] == (4 << 30, 6 << 30, "free memory")


@given(RANGES, RANGES)
def test_whatever_overlaps_every_address_is_on_the_map_once(
    placed: list[tuple[int, int, str]], devices: list[tuple[int, int, str]]
) -> None:
    found = MemoryMap.drawn_up([(0, 3 << 30), (4 << 30, 6 << 30)], placed, devices)
    assert (found[0].gpa, found[-1].end) == (0, 6 << 30)
    assert all(a.end == b.gpa for a, b in pairwise(found))
    assert all(block.size > 0 for block in found)


def test_memory_without_a_machine_has_a_map_too() -> None:
    with GuestMemory(64 << 10) as memory:
        assert memory.map()[0][:3] == (0, 64 << 10, "free memory")


def test_the_bios_area_is_not_free() -> None:
    with GuestMemory(2 << 20) as memory:
        (area,) = [block for block in memory.map() if block.kind == "reserved"]
        assert (area.gpa, area.end) == (layout.EBDA, layout.HIGH_MEMORY)


def test_the_text_has_a_line_for_each_block_and_the_picture_its_name() -> None:
    with GuestMemory(1 << 20) as memory:
        memory.placed = [(0x1000, 0x3000, "a <b> & c")]
        found = memory.map()
        lines = str(found).splitlines()
        assert lines[1] == "0x00000001000 - 0x00000002fff     8 KiB  a <b> & c"
        assert len(lines) == len(found)
        shown = [text.text for text in ET.fromstring(found.svg()).iter(f"{SVG}text")]
        assert {block.what for block in found} <= set(shown)

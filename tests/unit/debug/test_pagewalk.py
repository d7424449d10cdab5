"""Page tables of every mode, made by hand and walked."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.debug.pagewalk import CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, Paging, walk
from pykvm.memory import GuestMemory

PG = 1 << 31
ROOT, SECOND, THIRD, FOURTH, FIFTH = (n << 12 for n in range(1, 6))
LONG = Paging(PG | 1, ROOT, CR4_PAE, EFER_LMA)


@pytest.fixture(scope="module")
def blank() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


@pytest.fixture
def memory(blank: GuestMemory) -> GuestMemory:
    blank.write(0, bytes(1 << 16))
    return blank


def entry(memory: GuestMemory, table: int, place: int, value: int) -> None:
    memory.write(table + 8 * place, struct.pack("<Q", value))


def test_four_levels_lead_to_a_page(memory: GuestMemory) -> None:
    gva = 0xFFFF_8000_0040_3ABC  # PML4E 256, PDPTE 0, PDE 2, PTE 3
    entry(memory, ROOT, 256, SECOND | 7)
    entry(memory, SECOND, 0, THIRD | 7)
    entry(memory, THIRD, 2, FOURTH | 7)
    entry(memory, FOURTH, 3, 0x5000 | 3 | 1 << 63)
    found = walk(memory, LONG, gva)
    assert found.gpa == 0x5ABC
    assert [(level.name, level.place) for level in found.levels] == [
        ("PML4E", 256), ("PDPTE", 0), ("PDE", 2), ("PTE", 3),
    ]  # fmt: skip
    assert (found.page, found.writable, found.user, found.executable) == (4096, True, False, False)
    text = repr(found)
    assert "0xffff800000403abc: 4-level paging, CR3 at 0x1000" in text
    assert "└ PTE[3]" in text
    assert "present, writable, no execute" in text
    assert "= gpa 0x5abc: byte 0xabc of the 4 KiB page at 0x5000" in text
    assert "<td>PTE[3]</td>" in found._repr_html_()


@pytest.mark.parametrize(("level", "page"), [("PDPTE", 1 << 30), ("PDE", 1 << 21)])
def test_large_pages_end_the_walk(memory: GuestMemory, level: str, page: int) -> None:
    entry(memory, ROOT, 0, SECOND | 3)
    entry(memory, SECOND, 1, 2 << 30 | 0x83 if level == "PDPTE" else THIRD | 3)
    entry(memory, THIRD, 5, 3 << 30 | 0x83)
    gva = 1 << 30 | 5 << 21 | 0x1234
    found = walk(memory, LONG, gva)
    assert found.levels[-1].name == level
    assert found.page == page
    assert found.gpa == (2 << 30 if level == "PDPTE" else 3 << 30) + gva % page
    assert "large page" in found.levels[-1].flags


def test_five_levels_when_the_processor_has_them_on(memory: GuestMemory) -> None:
    entry(memory, ROOT, 1, SECOND | 3)
    entry(memory, SECOND, 0, THIRD | 3)
    entry(memory, THIRD, 0, 0x83)
    found = walk(memory, LONG._replace(cr4=CR4_PAE | CR4_LA57), 1 << 48 | 0x42)
    assert (found.mode, found.gpa) == ("5-level paging", 0x42)
    assert walk(memory, LONG, 1 << 48).why == "not canonical"


def test_pae_has_three_levels(memory: GuestMemory) -> None:
    root = ROOT + 0x20  # PDPTs are 32 bytes, aligned to as many
    entry(memory, root, 3, SECOND | 1)
    entry(memory, SECOND, 511, THIRD | 3)
    entry(memory, THIRD, 511, 0x9000 | 3)
    found = walk(memory, Paging(PG | 1, root, CR4_PAE, 0), 0xFFFF_F123)
    assert (found.mode, found.gpa) == ("PAE paging", 0x9123)


@pytest.mark.parametrize("pse", [True, False])
def test_32_bit_paging_has_large_pages_when_told(memory: GuestMemory, pse: bool) -> None:
    # PDE 3: 4 MiB at 1 << 32 | 0x00c0_0000 by PSE-36, or a table at 0x2000.
    large = 0x00C0_0000 | 1 << 13 | 0x83
    memory.write(ROOT + 4 * 3, struct.pack("<I", large if pse else SECOND | 0x83))
    memory.write(SECOND + 4 * 7, struct.pack("<I", 0x6000 | 3))
    found = walk(memory, Paging(PG | 1, ROOT, CR4_PSE * pse, 0), 3 << 22 | 7 << 12 | 0x10)
    assert found.mode == "32-bit paging"
    assert found.gpa == ((1 << 32 | 0x00C0_0000) + (7 << 12 | 0x10) if pse else 0x6010)


def test_without_paging_an_address_is_itself(memory: GuestMemory) -> None:
    found = walk(memory, Paging(1, 0, 0, 0), 0x1234)
    assert (found.gpa, found.levels) == (0x1234, ())
    assert "no paging" in repr(found)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (0, "the PML4E is not present"),
        (0x7000_0000 | 3, "the PDPTE would be at 0x70000000, where no memory is"),
    ],
)
def test_what_is_not_mapped_says_why(memory: GuestMemory, value: int, why: str) -> None:
    entry(memory, ROOT, 0, value)
    found = walk(memory, LONG, 0)
    assert (found.gpa, found.why) == (None, why)
    assert f"not mapped: {why}" in repr(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=4096), st.integers(0, (1 << 64) - 1), st.data())
def test_any_tables_end_in_an_answer(
    memory: GuestMemory, table: bytes, gva: int, data: st.DataObject
) -> None:
    memory.write(ROOT, table)
    paging = Paging(*(data.draw(st.integers(0, (1 << 64) - 1)) for _ in range(4)))
    for each in (paging, paging._replace(cr0=PG, cr3=ROOT)):
        found = walk(memory, each, gva)
        assert (found.gpa is None) == bool(found.why)
        assert repr(found)
        assert found._repr_html_()

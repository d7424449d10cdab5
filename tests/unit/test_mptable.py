"""The MP table, read back as a kernel reads it."""

from __future__ import annotations

import struct

import pytest

from pykvm import layout, mptable
from pykvm.memory import GuestMemory

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}  # of an entry, by its type


def entries(data: bytes) -> list[bytes]:
    """The entries of the table that the floating pointer names."""
    (gpa,) = struct.unpack_from("<I", data, 4)
    table = data[gpa - layout.MP_TABLE :]
    size, count = struct.unpack_from("<4xH28xH", table)
    assert (len(table), table[:4]) == (size, b"PCMP")
    assert sum(table) % 256 == 0
    found, at = [], 44
    while at < size:
        found.append(table[at : at + SIZES[table[at]]])
        at += len(found[-1])
    assert (at, len(found)) == (size, count)
    return found


@pytest.mark.parametrize("cpus", [1, 2, 255, 1024])
def test_all_processors_with_a_short_id_are_in_it_and_the_first_one_boots(cpus: int) -> None:
    processors = [entry for entry in entries(mptable.build(cpus)) if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(min(cpus, 255)))
    assert [entry[3] for entry in processors] == [3] + [1] * (len(processors) - 1)


def test_the_pointer_is_where_and_how_it_is_looked_for() -> None:
    pointer = mptable.build(1)[:16]
    assert layout.MP_TABLE % 16 == 0
    assert layout.BIOS_ROM <= layout.MP_TABLE < layout.HIGH_MEMORY
    assert (pointer[:4], pointer[8], sum(pointer) % 256) == (b"_MP_", 1, 0)


def test_every_line_leads_to_the_pin_of_its_number() -> None:
    lines = [entry for entry in entries(mptable.build(1)) if entry[0] == 3]
    assert [entry[5] for entry in lines] == [entry[7] for entry in lines]
    assert {0, 1, 4, 8, 14, 15, 23} < {entry[5] for entry in lines}
    (sci,) = (entry for entry in lines if entry[5] == layout.IRQ_SCI)
    assert struct.unpack_from("<H", sci, 2) == (0b1101,)


def test_what_lies_there_already_stays() -> None:
    with GuestMemory(1 << 20) as memory:
        memory.write(layout.MP_TABLE + 100, b"image")
        mptable.place(memory, 1)
        assert memory.read(layout.MP_TABLE, 4) == bytes(4)
    with GuestMemory(1 << 20) as memory:
        mptable.place(memory, 1)
        assert memory.read(layout.MP_TABLE, 4) == b"_MP_"


def test_there_is_room_for_the_largest() -> None:
    assert layout.MP_TABLE + len(mptable.build(1024)) < layout.BIOS_ROM + 0xFFF0

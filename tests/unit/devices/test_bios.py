"""BIOS services, called without a CPU."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from bioscaller import Caller
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot import bios as rom
from pykvm.boot.e820 import memory_map
from pykvm.boot.entry import E820, E820_RAM
from pykvm.devices.bios import CARRY, FIELDS, FRAME, SMAP, WAIT, ZERO, Call

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.close()


@pytest.fixture(scope="module")
def battered() -> Iterator[Caller]:
    """One caller for all examples of a property: what they did to memory stays."""
    caller = Caller()
    yield caller
    caller.close()


WORD = st.integers(0, 0xFFFF)
DOUBLE = st.sampled_from([0, 1, 0xE820, SMAP, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF)


@given(
    number=st.sampled_from(rom.SERVICES) | st.integers(0, 255),
    ah=st.integers(0, 255),
    registers=st.fixed_dictionaries(
        dict.fromkeys(("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp"), DOUBLE)
        | dict.fromkeys(("es", "ds", "flags"), WORD)
    ),
)
def test_no_registers_make_a_service_raise(
    battered: Caller, number: int, ah: int, registers: dict[str, int]
) -> None:
    battered.line.sent = b""
    registers["eax"] = registers["eax"] & 0xFFFF_00FF | ah << 8
    registers["ecx"] &= 0xFFFF_03FF  # the longest strings and moves only take time
    battered.call(number, **registers)


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 8), st.sampled_from([1, 2, 4, 8]))
def test_no_write_to_the_port_raises(battered: Caller, value: int, offset: int, size: int) -> None:
    battered.bios.write(offset, size, value)


@given(st.binary(min_size=FRAME.size, max_size=FRAME.size))
def test_registers_go_back_as_they_came(frame: bytes) -> None:
    assert Call(frame).frame() == frame


def test_parts_of_registers_leave_the_rest_alone() -> None:
    call = Call()
    call.eax = 0x1122_3344
    call.ah, call.al = 0x155, 0x66
    assert call.eax == 0x1122_5566
    call.ax = 0x7788
    assert (call.eax, call.ah, call.al) == (0x1122_7788, 0x77, 0x88)


def test_an_unknown_service_changes_nothing(caller: Caller) -> None:
    before = {name: 0x11 for name in FIELDS if name != "number"}
    call = caller.call(0x40, **before)
    assert {name: getattr(call, name) for name in before} == before


def test_equipment_and_memory_are_those_of_the_data_area(caller: Caller) -> None:
    assert caller.call(0x11).ax == rom.EQUIPMENT
    assert caller.call(0x12).ax == layout.EBDA // KIB


def read_map(caller: Caller) -> list[E820]:
    entries, index = [], 0
    while True:
        call = caller.call(0x15, eax=0xE820, ebx=index, ecx=24, edx=SMAP, es=0x2000, edi=0x10)
        assert (call.eax, call.ecx, call.flags & CARRY) == (SMAP, 20, 0)
        entries.append(E820(*struct.unpack("<QQI", caller.memory.read(0x2_0010, 20))))
        index = call.ebx
        if index == 0:
            return entries


def test_e820_walks_the_memory_map(caller: Caller) -> None:
    assert read_map(caller) == memory_map(caller.memory)
    assert E820(MIB, 3 * MIB, E820_RAM) in read_map(caller)


def test_e820_past_the_last_entry_fails(caller: Caller) -> None:
    call = caller.call(0x15, eax=0xE820, ebx=99, ecx=20, edx=SMAP)
    assert call.flags & CARRY


@pytest.mark.parametrize(
    ("size", "below_16m", "above_16m", "extended"),
    [(MIB, 0, 0, 0), (8 * MIB, 7 * KIB, 0, 7 * KIB), (128 * MIB, 15 * KIB, 112 * 16, 63 * KIB)],
)
def test_older_memory_sizes(size: int, below_16m: int, above_16m: int, extended: int) -> None:
    caller = Caller(size)
    call = caller.call(0x15, eax=0xE801)
    assert (call.ax, call.bx, call.cx, call.dx) == (below_16m, above_16m) * 2
    assert caller.call(0x15, eax=0x8800).ax == extended
    caller.close()


def test_a_block_is_moved_between_descriptors(caller: Caller) -> None:
    def descriptor(gpa: int) -> bytes:
        return struct.pack("<HHBBBB", 0xFFFF, gpa & 0xFFFF, gpa >> 16 & 0xFF, 0x93, 0, gpa >> 24)

    caller.memory.write(0x2_0000, bytes(16) + descriptor(0x3_0000) + descriptor(2 * MIB))
    caller.memory.write(0x3_0000, b"sixteen letters!")
    call = caller.call(0x15, ax=0x8700, cx=8, es=0x2000, esi=0)
    assert (call.ah, call.flags & (CARRY | ZERO)) == (0, ZERO)
    assert caller.memory.read(2 * MIB, 16) == b"sixteen letters!"


def test_a_block_outside_memory_is_not_moved(caller: Caller) -> None:
    caller.memory.write(0x2_0000, bytes(16) + b"\xff" * 16)
    call = caller.call(0x15, ax=0x8700, cx=8, es=0x2000, esi=0)
    assert call.ah != 0
    assert call.flags & CARRY


def test_a20_is_on(caller: Caller) -> None:
    assert caller.call(0x15, ax=0x2402).ax == 1
    assert not caller.call(0x15, ax=0x2401, flags=CARRY).flags & CARRY


@pytest.mark.parametrize("ax", [0x5300, 0xC000, 0xD800])
def test_what_is_not_there_says_so(caller: Caller, ax: int) -> None:
    call = caller.call(0x15, ax=ax)
    assert (call.ah, call.flags & CARRY) == (0x86, CARRY)


def test_waiting_halts_until_the_time_has_come(caller: Caller) -> None:
    assert caller.call(0x15, ax=0x8600, cx=0, dx=50_000).number & WAIT
    caller.now += 0.049
    assert caller.call(0x15, ax=0x8600, cx=0, dx=50_000).number & WAIT
    caller.now += 0.002
    assert not caller.call(0x15, ax=0x8600, cx=0, dx=50_000).number & WAIT


@pytest.mark.parametrize("ah", [0x00, 0x02, 0x08, 0x41, 0x42])
def test_there_are_no_drives(caller: Caller, ah: int) -> None:
    call = caller.call(0x13, ax=ah << 8, dx=0x80)
    assert (call.ah, call.flags & CARRY) == (1, CARRY)


def test_the_drive_type_is_none(caller: Caller) -> None:
    call = caller.call(0x13, ax=0x15FF, dx=0x80, flags=CARRY)
    assert (call.ah, call.flags & CARRY) == (0, 0)


def test_the_serial_service_is_the_line(caller: Caller) -> None:
    caller.call(0x14, ax=0x0141, dx=0)
    assert caller.line.sent == b"A"
    caller.type(b"z")
    assert caller.call(0x14, ax=0x0200, dx=0).ax == ord("z")
    assert caller.call(0x14, ax=0x0200, dx=0).ah == 0x80
    assert caller.call(0x14, ax=0x0300, dx=0).ah == 0x60
    assert caller.call(0x14, ax=0x0300, dx=1).ah == 0x80


def test_ticks_are_those_of_the_data_area(caller: Caller) -> None:
    caller.call(0x1A, ax=0x0100, cx=0x0012, dx=0x3456)
    assert struct.unpack("<I", caller.memory.read(0x46C, 4)) == (0x12_3456,)
    call = caller.call(0x1A, ax=0x00FF)
    assert (call.cx, call.dx, call.al) == (0x12, 0x3456, 0)


def test_the_clock_tells_time_and_date(caller: Caller) -> None:
    call = caller.call(0x1A, ax=0x0200)
    assert (call.ch, call.cl, call.dh) == (0x22, 0x13, 0x20)
    call = caller.call(0x1A, ax=0x0400)
    assert (call.cx, call.dx) == (0x2023, 0x1114)


def test_without_a_pci_bus_there_is_no_pci_bios(caller: Caller) -> None:
    assert caller.call(0x1A, ax=0xB101).flags & CARRY


@pytest.mark.parametrize("number", [0x18, 0x19])
def test_nothing_to_boot_ends_the_machine_once_and_never_returns(
    caller: Caller, number: int
) -> None:
    call = caller.call(number)
    assert call.number & WAIT
    assert caller.call(call.number & 0xFF).number & WAIT
    assert caller.ends == 1
    assert caller.line.sent.count(b"No bootable device") == 1


def test_a_fault_is_told_once_and_never_returns(caller: Caller) -> None:
    call = caller.call(0x06, cs=0x07C0, ip=0x0123)
    assert b"invalid opcode at 07c0:0123" in caller.line.sent
    said = caller.line.sent
    assert call.number & WAIT
    assert caller.call(call.number & 0xFF).number & WAIT
    assert caller.line.sent == said

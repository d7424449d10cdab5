"""What breakpoints do to memory and debug registers, on each kind of host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.debug.breakpoints import INT3, OUTSB, BreakpointError, Breakpoints, Kind, aligned
from pykvm.debug.host import Abilities
from pykvm.debug.pagewalk import Walk
from pykvm.memory import GuestMemory

COMPLETE = Abilities()
SOFTWARE_KVM = Abilities(int3=False, refused=True, execute=True, watch=False)
TCG = Abilities(int3=False, refused=False, execute=False, watch=False)
CODE = bytes(range(0x40, 0x80))
AT = 0x1000
KERNEL = 0xFFFF_FFFF_8000_0000  # where the first MiB is mapped


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        memory.write(AT, CODE)
        yield memory


def find(gva: int) -> Walk:
    gpa = gva - KERNEL if gva >= KERNEL else None
    return Walk(gva, "test", 0, (), gpa, "" if gpa is not None else "the PTE is not present")


def made(memory: GuestMemory, abilities: Abilities) -> Breakpoints:
    return Breakpoints(memory, find, lambda: abilities)


def shown(points: Breakpoints, memory: GuestMemory) -> bytes:
    data = bytearray(memory.read(AT, len(CODE)))
    points.hide(AT, data)
    return bytes(data)


def test_int3_is_planted_hidden_and_taken_away(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    for offset in range(20):
        points.insert(Kind.SOFTWARE, KERNEL + AT + offset, 1)
    assert memory.read(AT, 20) == INT3 * 20
    assert shown(points, memory) == CODE
    assert points.uses_int3
    assert points.is_int3(AT)
    assert points.stops_at(KERNEL + AT, AT) is Kind.SOFTWARE
    assert points.debug_registers() == ([0, 0, 0, 0], 0)
    points.clear()
    assert memory.read(AT, len(CODE)) == CODE


def test_the_same_breakpoint_twice_is_one(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.SOFTWARE, KERNEL + AT, 1)
    points.insert(Kind.SOFTWARE, KERNEL + AT, 1)
    points.remove(Kind.SOFTWARE, KERNEL + AT, 1)
    points.remove(Kind.SOFTWARE, KERNEL + AT, 1)
    assert memory.read(AT, len(CODE)) == CODE


def test_what_is_written_over_a_breakpoint_is_there_without_it(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.SOFTWARE, KERNEL + AT + 1, 1)
    points.write(AT, b"\x90\x91\x92")
    assert memory.read(AT, 3) == b"\x90" + INT3 + b"\x92"
    points.clear()
    assert memory.read(AT, 3) == b"\x90\x91\x92"


def test_code_that_the_guest_rewrites_stays_the_guests(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.SOFTWARE, KERNEL + AT, 1)
    memory.write(AT, b"\x90")
    points.clear()
    assert memory.read(AT, 1) == b"\x90"


def test_a_lifted_breakpoint_comes_back(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.SOFTWARE, KERNEL + AT, 1)
    assert points.lift(AT)
    assert memory.read(AT, 1) == CODE[:1]
    points.replant(AT)
    assert memory.read(AT, 1) == INT3
    assert not points.lift(AT + 1)


def test_an_address_not_mapped_yet_takes_a_debug_register(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.SOFTWARE, 0x5000, 1)
    assert points.debug_registers() == ([0x5000, 0, 0, 0], 0x602)
    assert points.debug_registers(but=0x5000)[1] == 0
    assert points.slot(1) == (Kind.SOFTWARE, 0x5000)


def test_software_kvm_takes_debug_registers_first_then_int3(memory: GuestMemory) -> None:
    points = made(memory, SOFTWARE_KVM)
    for offset in range(6):
        points.insert(Kind.SOFTWARE, KERNEL + AT + offset, 1)
    assert points.debug_registers()[0] == [KERNEL + AT + offset for offset in range(4)]
    assert memory.read(AT, 6) == CODE[:4] + INT3 * 2


def test_tcg_takes_both_and_no_more_than_four(memory: GuestMemory) -> None:
    points = made(memory, TCG)
    for offset in range(4):
        points.insert(Kind.SOFTWARE, KERNEL + AT + offset, 1)
    assert memory.read(AT, 5) == OUTSB * 4 + CODE[4:5]
    assert shown(points, memory) == CODE
    assert not points.uses_int3
    with pytest.raises(BreakpointError, match="0 of 4 are free"):
        points.insert(Kind.HARDWARE, KERNEL + AT + 4, 1)
    with pytest.raises(BreakpointError, match="not mapped"):
        points.insert(Kind.SOFTWARE, 0x5000, 1)
    points.clear()
    assert memory.read(AT, 8) == CODE[:8]
    assert points.debug_registers()[1] == 0


def test_a_watchpoint_is_cut_into_what_registers_hold(memory: GuestMemory) -> None:
    points = made(memory, COMPLETE)
    points.insert(Kind.WRITE, KERNEL + 0x1FFE, 12)
    addresses, dr7 = points.debug_registers()
    assert addresses == [KERNEL + 0x1FFE, KERNEL + 0x2000, KERNEL + 0x2008, 0]
    # DR7: writes (01); lengths 2 (01), 8 (10), 2 (01)
    assert dr7 >> 16 == 0b0101 | 0b1001 << 4 | 0b0101 << 8
    assert points.slot(0b100) == (Kind.WRITE, KERNEL + 0x1FFE)
    with pytest.raises(BreakpointError, match="1 of 4 are free"):
        points.insert(Kind.ACCESS, KERNEL + 0x3001, 3)
    points.remove(Kind.WRITE, KERNEL + 0x1FFE, 12)
    assert points.debug_registers() == ([0, 0, 0, 0], 0)


def test_a_host_without_watchpoints_has_the_bytes_compared(memory: GuestMemory) -> None:
    points = made(memory, TCG)
    points.insert(Kind.WRITE, KERNEL + AT, 8)
    assert points.watching
    assert points.look() is None
    memory.write(AT + 7, b"!")
    assert points.look() == KERNEL + AT
    assert points.look() is None
    points.write(AT, b"?")  # the debugger's own
    assert points.look() is None
    with pytest.raises(BreakpointError, match="reads"):
        points.insert(Kind.ACCESS, KERNEL + AT, 8)


@pytest.mark.parametrize(("gva", "length"), [(KERNEL + AT, 0), (KERNEL + 0x1FFF, 2), (0x5000, 4)])
def test_a_watchpoint_that_cannot_be_seen_is_refused(
    memory: GuestMemory, gva: int, length: int
) -> None:
    with pytest.raises(BreakpointError):
        made(memory, TCG).insert(Kind.WRITE, gva, length)


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_pieces_are_aligned_and_bounded(gva: int, length: int) -> None:
    pieces = list(aligned(gva, length))
    assert len(pieces) <= 5
    assert all(at % size == 0 and size in (1, 2, 4, 8) for at, size in pieces)
    if len(pieces) <= 4:
        assert sum(size for _, size in pieces) == length

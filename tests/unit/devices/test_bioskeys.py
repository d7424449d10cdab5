"""int 16h: what is typed on the line arrives as a PC's keys."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from bioscaller import Caller

from pykvm.devices.bios import WAIT, ZERO

READ, POLL, PUSH = 0x0000, 0x0100, 0x0500


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.close()


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (b"a", 0x1E61),
        (b"A", 0x1E41),
        (b"1", 0x0231),
        (b"!", 0x0221),
        (b"/", 0x352F),
        (b" ", 0x3920),
        (b"\r", 0x1C0D),
        (b"\n", 0x1C0D),
        (b"\x7f", 0x0E08),
        (b"\x02", 0x3002),  # Ctrl-B
        (b"\x1b", 0x011B),
        (b"\x1b[A", 0x4800),
        (b"\x1bOB", 0x5000),
        (b"\x1b[3~", 0x5300),
        (b"\xe9", 0x00E9),
    ],
)
def test_a_typed_byte_or_sequence_is_a_key(caller: Caller, typed: bytes, key: int) -> None:
    caller.type(typed)
    assert caller.call(0x16, ax=READ).ax == key
    assert caller.call(0x16, ax=POLL).flags & ZERO


@pytest.mark.parametrize("ax", [READ, 0x1000])
def test_reading_without_a_key_waits(caller: Caller, ax: int) -> None:
    assert caller.call(0x16, ax=ax).number & WAIT
    caller.type(b"x")
    call = caller.call(0x16, ax=ax)
    assert (call.al, call.number & WAIT) == (ord("x"), 0)


@pytest.mark.parametrize("ax", [POLL, 0x1100])
def test_polling_leaves_the_key(caller: Caller, ax: int) -> None:
    assert caller.call(0x16, ax=ax).flags & ZERO
    caller.type(b"xy")
    for _ in range(2):
        call = caller.call(0x16, ax=ax, flags=ZERO)
        assert (call.al, call.flags & ZERO) == (ord("x"), 0)


def test_keys_keep_their_order_around_the_buffers_end(caller: Caller) -> None:
    text = bytes(range(ord("a"), ord("z"))) * 3
    got = b""
    for at in range(0, len(text), 10):
        caller.type(text[at : at + 10])
        got += bytes(caller.call(0x16, ax=READ).al for _ in text[at : at + 10])
    assert got == text


def test_a_full_buffer_takes_no_more(caller: Caller) -> None:
    answers = [caller.call(0x16, ax=PUSH, cx=0x1E61).al for _ in range(16)]
    assert answers == [0] * 15 + [1]


def test_no_shift_key_is_down(caller: Caller) -> None:
    assert caller.call(0x16, ax=0x02FF).al == 0
    assert caller.call(0x16, ax=0x1200).ax == 0  # ISOLINUX takes AH for an Alt key held down


def test_a_guest_may_leave_nonsense_in_the_pointers(caller: Caller) -> None:
    for pointers in ((0xFFFF, 0xFFFE), (0, 0xFFFF), (0x1E, 0x21)):
        caller.memory.write(0x41A, struct.pack("<HH", *pointers))
        caller.type(b"x")
        caller.call(0x16, ax=READ)

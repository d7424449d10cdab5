"""The real-time clock, driven by a clock of the test's own, and the memory-size bytes."""

from __future__ import annotations

import calendar
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.cmos import DATA, INDEX, UIP, B, C, Cmos, Register

MIB = 1 << 20
GIB = 1 << 30
SUNDAY = calendar.timegm((2023, 12, 31, 23, 59, 58))


class Board:
    """A clock whose time stands still until the test moves it."""

    def __init__(self, memory: int = 256 * MIB, high: int = 0) -> None:
        self.now = float(SUNDAY)
        self.levels: list[int] = []
        self.raised = threading.Event()
        self.cmos = Cmos(memory, self.irq, high_memory_size=high, now=lambda: self.now)

    def irq(self, level: int) -> None:
        self.levels.append(level)
        if level:
            self.raised.set()

    def __getitem__(self, register: int) -> int:
        self.cmos.write(INDEX, 1, register)
        return self.cmos.read(DATA, 1)

    def __setitem__(self, register: int, value: int) -> None:
        self.cmos.write(INDEX, 1, register)
        self.cmos.write(DATA, 1, value)

    def clock(self) -> list[int]:
        """Century to second, as the registers have them."""
        names = ("CENTURY", "YEAR", "MONTH", "DAY", "HOURS", "MINUTES", "SECONDS")
        return [self[getattr(Register, name)] for name in names]

    def set_clock(self, *values: int) -> None:
        """As a driver does: stop the clock, write the fields, let it go."""
        self[Register.B] = self[Register.B] | B.SET
        names = ("CENTURY", "YEAR", "MONTH", "DAY", "HOURS", "MINUTES", "SECONDS")
        for name, value in zip(names, values, strict=True):
            self[getattr(Register, name)] = value
        self[Register.B] = self[Register.B] & ~B.SET


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.cmos.close()


def test_time_is_binary_coded_decimal_and_24_hours_at_power_on(board: Board) -> None:
    assert board.clock() == [0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58]
    assert board[Register.WEEKDAY] == 1


def test_time_can_be_binary(board: Board) -> None:
    board[Register.B] = B.BINARY | B.HOURS_24
    assert board.clock() == [20, 23, 12, 31, 23, 59, 58]


@pytest.mark.parametrize(("hour", "value"), [(0, 0x12), (1, 0x01), (12, 0x92), (23, 0x91)])
def test_twelve_hour_mode_marks_the_afternoon(board: Board, hour: int, value: int) -> None:
    board[Register.B] = 0
    board.now = calendar.timegm((2024, 1, 1, hour, 0, 0))
    assert board[Register.HOURS] == value


def test_the_clock_runs(board: Board) -> None:
    board.now += 3
    assert board.clock() == [0x20, 0x24, 0x01, 0x01, 0x00, 0x00, 0x01]


def test_update_in_progress_is_never_seen(board: Board) -> None:
    board[Register.A] = 0xFF
    assert not board[Register.A] & UIP


def test_the_battery_is_good_and_cannot_be_written(board: Board) -> None:
    board[Register.D] = 0
    assert board[Register.D] == 0x80


def test_the_nmi_mask_is_not_part_of_the_index(board: Board) -> None:
    board.cmos.write(INDEX, 1, 0x80 | Register.D)
    assert board.cmos.read(DATA, 1) == 0x80


def test_index_and_data_can_be_written_as_one_word(board: Board) -> None:
    board.cmos.write(INDEX, 2, 0x5A << 8 | 0x40)
    assert board[0x40] == 0x5A


def test_the_guest_can_set_the_clock(board: Board) -> None:
    board.set_clock(0x19, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59)
    board.now += 2
    assert board.clock() == [0x19, 0x99, 0x03, 0x01, 0x00, 0x00, 0x01]


def test_time_stands_still_while_it_is_being_set(board: Board) -> None:
    board[Register.B] = B.SET | B.HOURS_24
    board.now += 100
    assert board[Register.SECONDS] == 0x58


def test_a_nonsensical_time_changes_nothing(board: Board) -> None:
    board.set_clock(0x20, 0x23, 0x02, 0x31, 0x23, 0x59, 0x59)
    assert board.clock() == [0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58]


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),
        max_value=datetime(9999, 1, 1),
    ),
    st.sampled_from([0, B.BINARY, B.HOURS_24, B.BINARY | B.HOURS_24]),
)
def test_a_time_that_was_set_reads_back_in_every_format(when: datetime, mode: int) -> None:
    seconds = calendar.timegm(when.timetuple())
    source, target = Board(), Board()
    source.now = float(seconds)
    source[Register.B] = target[Register.B] = mode
    target.set_clock(*source.clock())
    assert target.clock() == source.clock()


def test_register_c_tells_of_a_passed_second_once(board: Board) -> None:
    board.now += 1
    assert board[Register.C] == C.UPDATE
    assert board[Register.C] == 0


def test_an_enabled_update_interrupt_fires_and_reading_c_acknowledges_it() -> None:
    board = Board()
    board.now += 0.999
    board[Register.B] = B.HOURS_24 | B.UPDATE
    board.now += 0.5  # before the timer, which waits a real millisecond, looks
    assert board.raised.wait(10)
    assert board[Register.C] & (C.INTERRUPT | C.UPDATE) == C.INTERRUPT | C.UPDATE
    board[Register.B] = B.HOURS_24
    assert board.levels == [1, 0]


@pytest.mark.parametrize(("seconds_alarm", "rings"), [(0x00, True), (0x30, False), (0xFF, True)])
def test_the_alarm_rings_when_all_three_fields_match(
    board: Board, seconds_alarm: int, rings: bool
) -> None:
    board[Register.HOURS_ALARM] = 0x00
    board[Register.MINUTES_ALARM] = 0xC0  # any
    board[Register.SECONDS_ALARM] = seconds_alarm
    board.now += 2
    assert bool(board[Register.C] & C.ALARM) == rings


def test_close_leaves_no_timer_behind(board: Board) -> None:
    board[Register.B] = B.HOURS_24 | B.ALARM
    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    board.cmos.close()
    for timer in timers:
        timer.join(10)
    assert timers
    assert not any(timer.is_alive() for timer in timers)


@pytest.mark.parametrize(
    ("memory", "high", "base", "extended", "above_16m", "above_4g"),
    [
        (MIB // 2, 0, 512, 0, 0, 0),
        (8 * MIB, 0, 640, 7 * 1024, 0, 0),
        (256 * MIB, 0, 640, 63 * 1024, 240 * 16, 0),
        (3 * GIB, 5 * GIB, 640, 63 * 1024, (3072 - 16) * 16, 5 * 1024 * 16),
    ],
)
def test_the_memory_size_is_told(
    memory: int, high: int, base: int, extended: int, above_16m: int, above_4g: int
) -> None:
    board = Board(memory, high)

    def number(register: int, size: int) -> int:
        return int.from_bytes(bytes(board[register + i] for i in range(size)), "little")

    assert number(Register.BASE_KIB, 2) == base
    assert number(Register.EXTENDED_KIB, 2) == number(Register.EXTENDED_KIB_COPY, 2) == extended
    assert number(Register.ABOVE_16M, 2) == above_16m
    assert number(Register.ABOVE_4G, 3) == above_4g

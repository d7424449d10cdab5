"""int 10h: text on a terminal. What it shows is judged by a terminal of a few lines below."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from bioscaller import Caller


def screen(sent: bytes) -> list[str]:
    """The rows a terminal of 200 columns shows after `sent`, trailing blanks cut."""
    rows: dict[int, dict[int, str]] = {}
    row = column = 0
    for token in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[\s\S]", sent.decode()):
        if token.startswith("\x1b"):
            count = int(token[2:-1]) if token[2:-1].isdigit() else 1
            match token[-1]:
                case "A":
                    row -= count
                case "C":
                    column += count
                case "D":
                    column -= count
                case "H":
                    row = column = 0
                case "J":
                    rows.clear()
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
        elif token == "\b":
            column -= 1
        else:
            rows.setdefault(row, {})[column] = token
            column += 1
        assert row >= 0
        assert column >= 0
    last = max(rows, default=-1)
    return [
        "".join(cells.get(i, " ") for i in range(max(cells) + 1)).rstrip() if cells else ""
        for cells in (rows.get(i, {}) for i in range(last + 1))
    ]


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.close()


def cursor(caller: Caller) -> tuple[int, int]:
    call = caller.call(0x10, ax=0x0300)
    return call.dh, call.dl


def test_teletype_is_sent_as_it_is(caller: Caller) -> None:
    caller.print(b"one\r\ntwo")
    assert caller.line.sent == b"one\r\ntwo"
    assert cursor(caller) == (1, 3)


def test_a_mode_is_set_without_a_trace_in_the_log(caller: Caller) -> None:
    caller.call(0x10, ax=0x0003)
    caller.print(b"hello")
    assert caller.line.sent == b"hello"
    assert caller.call(0x10, ax=0x0F00).ax == 80 << 8 | 3


def test_colour_written_in_place_and_again_by_teletype_appears_once(caller: Caller) -> None:
    for character in b"iPXE":
        call = caller.call(0x10, ax=0x0800)
        if call.ah != 0x0F:
            caller.call(0x10, ax=0x0900 | character, bx=0x0F, cx=1)
        caller.call(0x10, ax=0x0E00 | character)
    assert caller.line.sent == b"\x1b[0;1miPXE"


def test_colours_are_a_terminals(caller: Caller) -> None:
    caller.call(0x10, ax=0x0920, bx=0x1C, cx=1)  # bright red on blue
    assert caller.line.sent.startswith(b"\x1b[0;1;31;44m")


def test_writing_in_place_leaves_the_cursor(caller: Caller) -> None:
    caller.print(b"ab")
    caller.call(0x10, ax=0x0A00 | ord("x"), cx=3)
    assert cursor(caller) == (0, 2)
    caller.print(b"cd")
    assert screen(caller.line.sent) == ["abcdx"]


def test_the_cursor_goes_anywhere(caller: Caller) -> None:
    for row, column, text in ((5, 10, b"low"), (2, 20, b"high"), (2, 3, b"left"), (6, 0, b"end")):
        caller.call(0x10, ax=0x0200, dx=row << 8 | column)
        caller.print(text)
    assert screen(caller.line.sent) == [
        "",
        "",
        "   left             high",
        "",
        "",
        "          low",
        "end",
    ]


def test_backspace_moves_and_erases_nothing(caller: Caller) -> None:
    caller.print(b"abc\b\bX")
    assert screen(caller.line.sent) == ["aXc"]


def test_the_line_breaks_after_80_columns(caller: Caller) -> None:
    caller.print(b"x" * 80 + b"y")
    assert screen(caller.line.sent) == ["x" * 80, "y"]
    assert cursor(caller) == (1, 1)


def test_the_last_row_is_never_left(caller: Caller) -> None:
    caller.print(b"row\r\n" * 40)
    assert cursor(caller) == (24, 0)
    assert screen(caller.line.sent) == ["row"] * 40


def test_clearing_the_window_starts_at_the_top(caller: Caller) -> None:
    caller.print(b"old\r\nold\r\n")
    caller.call(0x10, ax=0x0600, bx=0x0700, cx=0, dx=24 << 8 | 79)
    caller.call(0x10, ax=0x0200, dx=0)
    caller.print(b"new")
    assert screen(caller.line.sent) == ["new"]


@pytest.mark.parametrize(("al", "after"), [(0, (0, 0)), (1, (3, 6))])
def test_a_string_is_written_where_it_belongs(
    caller: Caller, al: int, after: tuple[int, int]
) -> None:
    caller.memory.write(0x2_0000, b"text")
    caller.call(0x10, ax=0x1300 | al, bx=7, cx=4, dx=0x0302, es=0x2000, ebp=0)
    assert screen(caller.line.sent)[3] == "  text"
    assert cursor(caller) == after


def test_a_string_may_hold_attributes(caller: Caller) -> None:
    caller.memory.write(0x2_0000, b"a\x07b\x07")
    caller.call(0x10, ax=0x1303, cx=2, dx=0, es=0x2000, ebp=0)
    assert screen(caller.line.sent) == ["ab"]


def test_line_drawing_is_unicode(caller: Caller) -> None:
    caller.print(b"\xc9\xcd\xbb")
    assert caller.line.sent == "╔═╗".encode()

"""The BIOS screen (int 10h): text output, turned into what a terminal understands.

Reached from `devices/bios.py`. There is no screen memory: characters go to the serial line as they
are written, the cursor's position is kept in the BIOS data area. Source: Ralf Brown's Interrupt
List, int 10h; ECMA-48 for the terminal's side.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.boot.bios import BDA, BDA_CURSOR, COLUMNS, ROWS, TEXT_MODE
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from typing import Final

    from pykvm.devices.bios import Call

NORMAL: Final = 0x07  # light grey on black
BRIGHT: Final = 0x08
ANSI_COLOURS: Final = (0, 4, 2, 6, 1, 5, 3, 7)  # a PC counts blue, green, red; a terminal backwards
CURSOR_SHAPE: Final = 0x0607
LAST_ROW: Final = ROWS - 1


class Video:
    """An 80 x 25 text screen on a terminal; `send` takes bytes for the terminal.

    The terminal's cursor follows lazily: it moves when something is written elsewhere. It moves by
    so many rows and columns, never to a fixed place, because our row 0 may be anywhere on a
    terminal that showed other things before.
    """

    def __init__(self, memory: GuestMemory, send: Callable[[bytes], None]) -> None:
        self._memory = memory
        self._send = send
        self._attribute = NORMAL
        self._terminal = (0, 0)  # row and column of the terminal's cursor
        self._shown: tuple[int, int, int] | None = None  # row, column and character just written

    def call(self, call: Call) -> None:
        """int 10h. What a screen without graphics cannot do is ignored."""
        match call.ah:
            case 0x00:
                self._set_mode()
            case 0x02:
                self._set_cursor(min(call.dh, LAST_ROW), min(call.dl, COLUMNS - 1))
            case 0x03:
                call.cx = CURSOR_SHAPE
                call.dh, call.dl = self._cursor()
            case 0x06 | 0x07:
                self._scroll(call)
            case 0x08:
                call.ah, call.al = self._attribute, ord(" ")
            case 0x09:
                self._set_attribute(call.bl)
                self._write_in_place(call.al, call.cx)
            case 0x0A:
                self._write_in_place(call.al, call.cx)
            case 0x0E:
                self._teletype(call.al)
            case 0x0F:
                call.ah, call.al, call.bh = COLUMNS, TEXT_MODE, 0
            case 0x13:
                self._write_string(call)

    def _cursor(self) -> tuple[int, int]:
        column, row = self._memory.read(BDA + BDA_CURSOR, 2)
        return min(row, LAST_ROW), min(column, COLUMNS - 1)

    def _set_cursor(self, row: int, column: int) -> None:
        self._memory.write(BDA + BDA_CURSOR, bytes([column, row]))

    def _set_mode(self) -> None:
        """A new screen: a new line is enough, so that a log stays readable."""
        if self._terminal[1]:
            self._send(b"\r\n")
        self._set_attribute(NORMAL)
        self._set_cursor(0, 0)
        self._terminal = (0, 0)

    def _scroll(self, call: Call) -> None:
        """Windows as wide as the screen only; scrolling by 0 lines clears."""
        if call.cl != 0 or call.dl < COLUMNS - 1 or call.ch != 0 or call.dh < LAST_ROW:
            return
        self._set_attribute(call.bh)
        if call.al == 0:
            self._send(b"\x1b[2J\x1b[H")
            self._terminal = (0, 0)
        else:
            self._send(b"\x1b[%d%c" % (call.al, ord("S") if call.ah == 0x06 else ord("T")))
        self._shown = None

    def _set_attribute(self, attribute: int) -> None:
        """Colours for what is written from now on. Blinking is not passed on."""
        attribute &= 0x7F
        if attribute == self._attribute:
            return
        self._attribute = attribute
        codes = [0]
        if attribute & BRIGHT:
            codes.append(1)
        if attribute & 7 != NORMAL:
            codes.append(30 + ANSI_COLOURS[attribute & 7])
        if attribute >> 4:
            codes.append(40 + ANSI_COLOURS[attribute >> 4])
        self._send(b"\x1b[%sm" % ";".join(map(str, codes)).encode())

    def _write_in_place(self, character: int, count: int) -> None:
        """Write at the cursor, which stays: `count` times, to the row's end at most."""
        row, column = self._cursor()
        count = min(count, COLUMNS - column)
        self._put((row, column), _glyph(character) * count, count)
        self._shown = (row, column, character) if count == 1 else None

    def _teletype(self, character: int) -> None:
        """Write and go on; bell, backspace, line feed and carriage return are obeyed."""
        row, column = self._cursor()
        if character == 0x07:
            self._send(b"\a")
        elif character == 0x08:
            self._set_cursor(row, max(column - 1, 0))
        elif character == 0x0D:
            self._set_cursor(row, 0)
        elif character == 0x0A:
            self._line_feed(row, column)
        else:
            # A loader that wants colour writes in place first, then again by teletype.
            if self._shown != (row, column, character):
                self._put((row, column), _glyph(character), 1)
            self._shown = None
            if column + 1 < COLUMNS:
                self._set_cursor(row, column + 1)
            else:
                self._set_cursor(min(row + 1, LAST_ROW), 0)

    def _line_feed(self, row: int, column: int) -> None:
        self._move((row, column))
        self._send(b"\n")  # a terminal keeps the column, as a PC does
        row = min(row + 1, LAST_ROW)
        self._set_cursor(row, column)
        self._terminal = (row, column)

    def _write_string(self, call: Call) -> None:
        """AL bit 0: the cursor stays at the end; bit 1: an attribute follows each character."""
        before = self._cursor()
        step = 2 if call.al & 2 else 1
        text = self._memory.read((call.es << 4) + call.bp, call.cx * step)
        self._set_cursor(min(call.dh, LAST_ROW), min(call.dl, COLUMNS - 1))
        for at in range(0, len(text), step):
            self._set_attribute(text[at + 1] if step == 2 else call.bl)
            self._teletype(text[at])
        if not call.al & 1:
            self._set_cursor(*before)

    def _put(self, at: tuple[int, int], text: bytes, columns: int) -> None:
        """Send `text`, which takes `columns` columns, to the terminal at row and column `at`."""
        self._move(at)
        self._send(text)
        row, column = at[0], at[1] + columns
        if column == COLUMNS:  # terminals differ in what they do at the edge: leave it
            self._send(b"\r\n")
            row, column = min(row + 1, LAST_ROW), 0
        self._terminal = (row, column)

    def _move(self, to: tuple[int, int]) -> None:
        """Bring the terminal's cursor to row and column `to`."""
        row, column = self._terminal
        right, down = to[1] - column, to[0] - row
        if to[1] == 0 and right:
            self._send(b"\r")
        elif right < 0:
            self._send(b"\b" * -right if right > -4 else b"\x1b[%dD" % -right)
        elif right > 0:
            self._send(b"\x1b[%dC" % right)
        if down < 0:
            self._send(b"\x1b[%dA" % -down)
        else:
            self._send(b"\n" * down)
        self._terminal = to


def _glyph(character: int) -> bytes:
    """A character of code page 437 as UTF-8; the control characters' pictures are left blank."""
    if 0x20 <= character < 0x7F:
        return bytes([character])
    if character < 0x80:
        return b" "
    return bytes([character]).decode("cp437").encode()

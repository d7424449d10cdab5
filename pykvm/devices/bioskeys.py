"""The BIOS keyboard (int 16h): bytes typed on a serial line, turned into a PC's key codes.

Reached from `devices/bios.py`. Keys wait in the buffer of the BIOS data area, where programs may
look themselves. Source: Ralf Brown's Interrupt List, int 16h and MEM 0040h:001Ah.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pykvm.boot import bios as rom
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from typing import Final

ESCAPE: Final = 0x1B

# Scan codes of a US keyboard, by the characters on and above its keys; one row a string.
ROWS: Final = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
SCAN_CODES: Final = {
    ord(letter): first + i
    for first, *rows in ROWS
    for row in rows
    for i, letter in enumerate(str(row))
}
KEYS: Final = {  # what differs between a terminal and a PC: (scan code, character)
    0x08: (0x0E, 0x08),  # backspace
    0x09: (0x0F, 0x09),  # tab
    0x0A: (0x1C, 0x0D),  # enter
    0x0D: (0x1C, 0x0D),
    0x1B: (0x01, 0x1B),  # escape
    0x20: (0x39, 0x20),  # space
    0x7F: (0x0E, 0x08),  # what terminals send for backspace
}
# What a terminal sends after ESC [ or ESC O, and the scan code of that key.
SEQUENCES: Final = {
    b"A": 0x48,  # up
    b"B": 0x50,  # down
    b"C": 0x4D,  # right
    b"D": 0x4B,  # left
    b"H": 0x47,  # home
    b"F": 0x4F,  # end
    b"2~": 0x52,  # insert
    b"3~": 0x53,  # delete
    b"5~": 0x49,  # page up
    b"6~": 0x51,  # page down
}


def key_of(byte: int) -> int:
    """The key (scan code << 8 | character) that types `byte`; control characters included."""
    if byte in KEYS:
        scan_code, character = KEYS[byte]
        return scan_code << 8 | character
    letter = byte | 0x60 if byte < 0x20 else byte  # Ctrl-A is on the key of "a"
    return SCAN_CODES.get(letter, 0) << 8 | byte


class Keyboard:
    """The key buffer, filled from `receive`, which gives a typed byte or None."""

    def __init__(self, memory: GuestMemory, receive: Callable[[], int | None]) -> None:
        self._memory = memory
        self._receive = receive

    def next(self, *, take: bool) -> int | None:
        """The oldest key, removed when `take`; None when there is none."""
        while (byte := self._receive()) is not None:
            self.push(self._sequence() if byte == ESCAPE else key_of(byte))
        head, tail, _, _ = self._pointers()
        if head == tail:
            return None
        (key,) = struct.unpack("<H", self._memory.read(rom.BDA + head, 2))
        if take:
            head = self._after(head)
            self._memory.write(rom.BDA + rom.BDA_KEY_HEAD, struct.pack("<H", head))
        return int(key)

    def push(self, key: int) -> bool:
        """Append a key; false, and nothing done, when the buffer is full."""
        head, tail, _, _ = self._pointers()
        after = self._after(tail)
        if after == head:
            return False
        self._memory.write(rom.BDA + tail, struct.pack("<H", key))
        self._memory.write(rom.BDA + rom.BDA_KEY_TAIL, struct.pack("<H", after))
        return True

    def _pointers(self) -> tuple[int, int, int, int]:
        """Head, tail, start and end of the buffer: guest memory, so any value at all."""
        head, tail = struct.unpack("<HH", self._memory.read(rom.BDA + rom.BDA_KEY_HEAD, 4))
        start, end = struct.unpack("<HH", self._memory.read(rom.BDA + rom.BDA_KEYS, 4))
        return head, tail, start, end

    def _after(self, place: int) -> int:
        _, _, start, end = self._pointers()
        return start if place + 2 >= end else place + 2

    def _sequence(self) -> int:
        """The key of an escape sequence whose ESC was just received, or ESC itself."""
        if self._receive() not in (ord("["), ord("O")):
            return key_of(ESCAPE)
        sequence = b""
        while len(sequence) < 2 and (byte := self._receive()) is not None:
            sequence += bytes([byte])
            if sequence in SEQUENCES:
                return SEQUENCES[sequence] << 8
        return key_of(ESCAPE)

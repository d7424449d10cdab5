"""What the packets of the GDB Remote Serial Protocol are made of: numbers, threads, ranges.

Reached from `gdbstub`. Every function raises `ValueError` for what is none. Source: "Debugging with
GDB", appendix E "GDB Remote Serial Protocol", section E.2 Packets. Read `rsp` for the packets.
"""

from __future__ import annotations

import re
from typing import Final

from pykvm.debug.breakpoints import Kind
from pykvm.debug.rsp import escape

ALL: Final = -1  # thread ids of a packet: every thread, and any
ANY: Final = 0


def number(text: bytes) -> int:
    """A hexadecimal number as the protocol has it: digits and nothing else, 64 bits at most."""
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError("not a hexadecimal number")
    return int(text, 16)


def thread(text: bytes) -> int:
    """A thread's number, `ALL` or `ANY`."""
    return ALL if text == b"-1" else number(text)


def unhex(text: bytes) -> bytes:
    """Bytes of two digits each."""
    if not re.fullmatch(rb"(?:[0-9a-fA-F]{2})*", text):
        raise ValueError("not hexadecimal bytes")
    return bytes.fromhex(text.decode())


def address_and_length(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH."""
    address, _, length = text.partition(b",")
    return number(address), number(length)


def breakpoint_of(text: bytes) -> tuple[Kind, int, int]:
    """TYPE,ADDRESS,KIND; conditions and commands may follow, which gdb sends only when offered."""
    kind, address, length = text.partition(b";")[0].split(b",")
    return Kind(number(kind)), number(address), number(length)


def split(text: bytes) -> tuple[bytes, bytes, bytes]:
    """A query's name, what ends it, and the rest."""
    match = re.match(rb"([^:,]*)([:,]?)(.*)", text, re.DOTALL)
    assert match is not None  # it matches anything
    return match[1], match[2], match[3]


def printable(text: str) -> bytes:
    """What may stand in a reply as it is."""
    return escape(text.encode("ascii", "replace"))

"""Packets of the GDB Remote Serial Protocol: their frame, their checksum, their escapes.

Reached from `server`, which has the socket. Source: "Debugging with GDB", appendix E "GDB Remote
Serial Protocol", section E.1 Overview. What the packets say is `gdbstub`'s affair.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pykvm.lean import Enum, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPE: Final = 0x7D  # "}": the byte after it has bit 5 flipped
PACKET_SIZE: Final = 0x4000  # bytes between "$" and "#": what qSupported tells gdb


class Kind(Enum):
    """What has arrived."""

    PACKET = "packet"
    BAD = "packet with a wrong checksum"
    ACK = "+"
    NAK = "-"
    INTERRUPT = "Ctrl-C"


class Event(Record):
    """One thing that has arrived."""

    kind: Kind
    payload: bytes = b""  # of a packet, escapes undone


def unescape(data: bytes) -> bytes:
    """Undo the escapes of a payload. An escape at its end escapes nothing and is dropped."""
    return re.sub(rb"}(.?)", lambda match: bytes(b ^ 0x20 for b in match[1]), data, flags=re.DOTALL)


def escape(data: bytes) -> bytes:
    """Make `data` fit into a packet."""
    return re.sub(rb"[#$}*]", lambda match: bytes((ESCAPE, match[0][0] ^ 0x20)), data)


def frame(payload: bytes) -> bytes:
    """The packet of `payload`, which is escaped already."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


class Framer:
    """Cuts a stream of bytes into events. Bytes between packets are skipped, and so is a packet
    that grows longer than `PACKET_SIZE` allows."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` completes."""
        self._rest += data
        while self._rest:
            first = self._rest[0]
            if first == ord("$"):
                event = self._packet()
                if event is None:
                    return
                yield event
                continue
            del self._rest[0]
            if first in _SINGLE:
                yield Event(_SINGLE[first])

    def _packet(self) -> Event | None:
        """The packet that begins here, or None when it is not complete."""
        end = self._rest.find(b"#", 1, PACKET_SIZE + 2)
        if end < 0 and len(self._rest) >= PACKET_SIZE + 2:
            del self._rest[0]  # the rest of it is skipped, up to the next "$"
            return Event(Kind.BAD)
        if end < 0 or len(self._rest) < end + 3:
            return None
        payload = bytes(self._rest[1:end])
        checksum = bytes(self._rest[end + 1 : end + 3])
        del self._rest[: end + 3]
        if checksum.lower() != b"%02x" % (sum(payload) & 0xFF):
            return Event(Kind.BAD)
        return Event(Kind.PACKET, unescape(payload))


_SINGLE: Final = {ord("+"): Kind.ACK, ord("-"): Kind.NAK, 0x03: Kind.INTERRUPT}

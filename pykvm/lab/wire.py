"""The frames between a client, the supervisor and the agent in the lab.

Reached from `client`, `supervisor` and the tests; guests/lab-agent/agent.h has the same in C. All
three speak them, over unix sockets outside and a virtio-serial port into the lab::

    client ──EXEC, DATA 0, CREDIT 1, SIGNAL──▶ supervisor ──▶ agent ──▶ the command
           ◀──DATA 1, DATA 2, CREDIT 0, EXIT──            ◀──

The supervisor passes frames on unread, except that it gives each client a command number, so one
port carries many commands. Nobody may have more than `WINDOW` bytes of a stream under way: the
receiver's CREDIT says, in steps of half a window, how many it has got rid of. So a client that does
not read stops its own command and no other.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COMMANDS_MAX: Final = 64
WINDOW: Final = 256 << 10

FRAME: Final = struct.Struct("<HBBI")  # command, kind, argument, size of the data behind it
assert FRAME.size == 8
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
WINSIZE: Final = struct.Struct("<HH")  # rows, columns
EXEC: Final = struct.Struct("<HHHHIII")  # struct exec of agent.h; then strings that end in NUL
assert EXEC.size == 20


class Kind(enum.IntEnum):
    """What a frame says. `arg` is the file descriptor (0, 1, 2) where not told otherwise."""

    READY = 1  # agent → supervisor → clients: the lab runs
    EXEC = 2  # → agent: run this
    DATA = 3  # both ways: bytes of a stream
    CLOSE = 4  # → agent: end of stdin, or nobody reads stdout; from the agent: nobody reads stdin
    CREDIT = 5  # both ways: that many bytes of a stream are gone, send as many more
    SIGNAL = 6  # → agent: signal number `arg` to the command; 9 to all it has started
    WINSIZE = 7  # → agent: the terminal's new size
    EXIT = 8  # from the agent: the command's wait status; nothing follows
    FAIL = 9  # from the supervisor: why there is no lab; nothing follows
    STOP = 10  # client → supervisor: end the lab
    CLOCK = 11  # supervisor → agent: nanoseconds since 1970; a PC's own clock knows only seconds


class ExecFlags(enum.IntFlag):
    """How the command's streams are made."""

    TTY = 1  # stdin and stdout are a terminal of its own
    TTY_ERR = 2  # stderr is that terminal, too
    MERGE = 4  # stderr is the same file as stdout


PLAIN: Final = ExecFlags(0)


class Frame(NamedTuple):
    """One frame, taken apart."""

    command: int
    kind: int
    arg: int
    data: bytes


def pack(kind: Kind, arg: int = 0, data: bytes = b"", command: int = 0) -> bytes:
    """Return the frame's bytes."""
    return FRAME.pack(command, kind, arg, len(data)) + data


def pack_exec(
    argv: Sequence[str | bytes],
    env: Mapping[str, str] | Mapping[bytes, bytes],
    cwd: str,
    shares: Sequence[str] = (),
    flags: ExecFlags = PLAIN,
    winsize: tuple[int, int] = (0, 0),
    umask: int = 0o022,
) -> bytes:
    """Return an EXEC frame. `shares` are the directories where the command writes for real."""
    pairs = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in env.items()]
    strings = [os.fsencode(text) for text in (cwd, *shares, *argv)] + pairs
    head = EXEC.pack(flags, *winsize, umask, len(shares), len(argv), len(pairs))
    return pack(Kind.EXEC, 0, head + b"".join(text + b"\0" for text in strings))


class Reader:
    """Takes frames out of a stream that arrives in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take `data` and yield the frames that are complete now."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= FRAME.size:
                command, kind, arg, size = FRAME.unpack_from(buffer, at)
                end = at + FRAME.size + size
                if len(buffer) < end:
                    break
                data = bytes(buffer[at + FRAME.size : end])
                at = end
                yield Frame(command, kind, arg, data)
        finally:
            del buffer[:at]

"""The protocol between us and a guest's init: frames, and the requests that are made of them.

Reached from `link`. guests/init/agent.c describes the protocol and is the other end. What comes
from the guest is checked: it may send anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final

from pykvm.errors import ConfigError

HEAD: Final = struct.Struct("<BI")  # kind, size of what follows
CODE: Final = struct.Struct("<I")
TIME: Final = struct.Struct("<Q")
MODE: Final = struct.Struct("<I")
PIECE: Final = 16 * 1024  # bytes of input or output in a frame, at most

REQUEST_MAX: Final = 128 * 1024 - 1  # bytes of strings, NULs included: guests/init/init.c
WORDS_MAX: Final = 4096  # of a command, and of its environment


class ToGuest(IntEnum):
    """Frames of ours."""

    RUN = 1
    READ = 2
    WRITE = 3
    INPUT = 4
    KILL = 5
    CLOCK = 6


class FromGuest(IntEnum):
    """Frames of the agent's."""

    END = 0
    OUTPUT = 1
    ERROR = 2
    TAKEN = 3


SIZES: Final = {  # least and most bytes
    FromGuest.END: (CODE.size, CODE.size),
    FromGuest.OUTPUT: (1, PIECE),
    FromGuest.ERROR: (1, PIECE),
    FromGuest.TAKEN: (0, 0),
}


class ProtocolError(Exception):
    """The guest sent what is no frame of the agent's."""


def frame(kind: ToGuest, data: bytes | memoryview = b"") -> bytes:
    return HEAD.pack(kind, len(data)) + data


def greeting() -> bytes:
    """Asks for nothing but an answer."""
    return frame(ToGuest.RUN)


def clock(ns: int) -> bytes:
    """Sets the guest's time, in ns since 1970."""
    return frame(ToGuest.CLOCK, TIME.pack(ns))


def command(words: Sequence[str], cwd: str, env: Mapping[str, str]) -> bytes:
    """Runs a command. Raises `ConfigError` when it cannot be sent."""
    if not words or not words[0]:
        raise ConfigError("command: it is empty; name a program of the guest's")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ConfigError(f"env: {name!r} is no name, or {value!r} no value, of a variable")
    if max(len(words), len(env)) > WORDS_MAX:
        raise ConfigError(
            f"command: {len(words)} words and {len(env)} variables; init takes {WORDS_MAX}"
        )
    variables = [f"{name}={value}" for name, value in env.items()]
    return frame(ToGuest.RUN, _strings("command", [cwd, *variables, "", *words]))


def read(path: str) -> bytes:
    """Reads a file. Raises as `command`."""
    return frame(ToGuest.READ, _strings("path", [path]))


def write(path: str, mode: int) -> bytes:
    """Writes the input to a file. Raises as `command`."""
    return frame(ToGuest.WRITE, MODE.pack(mode) + _strings("path", [path]))


def _strings(what: str, strings: Sequence[str]) -> bytes:
    for string in strings:
        if "\0" in string:
            raise ConfigError(f"{what}: there is a NUL in {string!r}; remove it")
    data = b"".join(string.encode(errors="surrogateescape") + b"\0" for string in strings)
    if len(data) + MODE.size > REQUEST_MAX:
        raise ConfigError(
            f"{what}: {len(data)} bytes are more than the {REQUEST_MAX - MODE.size} that init "
            "takes; give it as input, or write it to a file of the guest's first"
        )
    return data


def pieces(data: bytes) -> Iterator[bytes]:
    """The frames of a command's input, its end included. Each waits for the one before."""
    view = memoryview(data)
    for at in range(0, len(data), PIECE):
        yield frame(ToGuest.INPUT, view[at : at + PIECE])
    yield frame(ToGuest.INPUT)


class Decoder:
    """The agent's frames, from the bytes that come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[FromGuest, bytes]]:
        """The frames that are complete now. Raises `ProtocolError`."""
        self._rest += data
        at, end = 0, len(self._rest)
        try:
            while end - at >= HEAD.size:
                kind, size = HEAD.unpack_from(self._rest, at)
                least, most = SIZES.get(kind, (1, 0))
                if not least <= size <= most:
                    raise ProtocolError(f"a frame of kind {kind} with {size} bytes")
                if end - at < HEAD.size + size:
                    break
                start = at + HEAD.size
                at = start + size
                yield FromGuest(kind), bytes(self._rest[start:at])
        finally:
            del self._rest[:at]

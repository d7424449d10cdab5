"""The names a Linux kernel carries of itself, for images whose symbol table was stripped.

Reached from `symbols`. CONFIG_KALLSYMS puts compressed names and addresses among the kernel's
read-only data, for its own stack traces; so they are in guest memory, at their final addresses,
even after KASLR. Nothing points there from outside: the tables are found by their looks.
Source: Linux scripts/kallsyms.c, write_src(), and kernel/kallsyms.c. ::

    since 6.4:  num_syms  names  markers  token_table  token_index  offsets  relative_base
    before:     offsets  relative_base  num_syms  names  markers  token_table  token_index
    some:       … and between markers and token_table three bytes for each symbol

Each is aligned to 8 bytes. A name is a length and so many tokens; a token stands for one or more
characters; the first character is the type, as nm has it.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS: Final = 256
# Digits are never made part of a longer token's number: their tokens are themselves, in order.
DIGITS: Final = re.compile(rb"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
TOKEN_MAX: Final = 64  # characters; the longest ever seen have about 30
NAMES_PER_MARKER: Final = 256
NAME_MAX: Final = 512  # bytes of a compressed name: KSYM_NAME_LEN
MARKERS_SIZE_MAX: Final = 4 << 20  # bytes of the markers, with what may come after them
SYMBOLS_MIN: Final = 256  # fewer is no kernel's table
ABSOLUTE: Final = "A"  # nm's letter for what is a number and no place: per-CPU data's offsets
Symbol = tuple[int, str, str]


def read(image: memoryview) -> list[Symbol]:
    """The symbols in a piece of memory: (address, nm's letter for its kind, name), by address.
    Empty when there is no (sound) table."""
    for match in DIGITS.finditer(image):
        found = _tokens(image, match.start())
        if found is None:
            continue
        start, tokens, end = found
        try:
            symbols = _read(image, start, tokens, end)
        except (struct.error, ValueError, IndexError):
            continue
        if symbols:
            return symbols
    return []


def _align(offset: int) -> int:
    return offset + 7 & ~7


def _tokens(image: memoryview, digit_0: int) -> tuple[int, list[bytes], int] | None:
    """The token table around the token of "0": its beginning, the tokens, the end of its index."""
    first = max(0, digit_0 - ord("0") * (TOKEN_MAX + 1) - 8)
    before = bytes(image[first:digit_0])
    after = bytes(image[digit_0 : digit_0 + (TOKENS - ord("0")) * (TOKEN_MAX + 1)])
    # The tokens before "0": the strings between the last NULs.
    pieces = before.split(b"\0")[:-1]
    if len(pieces) < ord("0"):
        return None
    tokens = pieces[len(pieces) - ord("0") :]
    start = digit_0 - sum(len(token) + 1 for token in tokens)
    tokens += after.split(b"\0")[: TOKENS - ord("0")]
    if start % 8 or len(tokens) != TOKENS:
        return None
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token) + 1
    index = struct.pack(f"<{TOKENS}H", *(offset & 0xFFFF for offset in offsets))
    index_at = _align(start + at)
    if image[index_at : index_at + len(index)] != index:
        return None
    return start, tokens, index_at + len(index)


def _read(image: memoryview, tokens_at: int, tokens: list[bytes], end: int) -> list[Symbol]:
    for markers_at, markers in _markers(image, tokens_at):
        spans = _spans_at(image, markers_at, markers)
        if spans:
            return _decode(image, spans, tokens, end)
    return []


def _decode(
    image: memoryview, spans: list[tuple[int, int]], tokens: list[bytes], end: int
) -> list[Symbol]:
    names, names_at, count = list(_names(image, spans, tokens)), spans[0][0], len(spans)
    size = _align(4 * count)
    # Since 6.4 the addresses come after, before that they came first.
    for offsets_at in (_align(end), names_at - 8 - 8 - size):
        if offsets_at < 0:
            continue
        (base,) = struct.unpack_from("<Q", image, offsets_at + size)
        if base >> 31 in ((1 << 33) - 1, 0) or base >> 47 == (1 << 17) - 1:
            offsets = struct.unpack_from(f"<{count}i", image, offsets_at)
            addresses = _addresses(base, offsets)
            if addresses is not None:
                return sorted(
                    (address, name[0], name[1:])
                    for address, name in zip(addresses, names, strict=True)
                )
    return []


def _markers(image: memoryview, end: int) -> Iterator[tuple[int, list[int]]]:
    """Where the offsets of every 256th name may be, and the offsets: what could be them, backwards
    from where the tokens begin. Between them may be three bytes for each name."""
    word = struct.Struct("<II")
    for at in range((end & ~7) - 8, max(0, end - MARKERS_SIZE_MAX), -8):
        zero, second = word.unpack_from(image, at)
        if zero or not 0 < second <= NAMES_PER_MARKER * NAME_MAX:
            continue
        room = end - at
        with_sequences = room // (4 + 3 * NAMES_PER_MARKER)
        for count in (room // 4, room // 4 - 1, *range(with_sequences, with_sequences + 3)):
            values = struct.unpack_from(f"<{count}I", image, at)
            if all(0 < b - a <= NAMES_PER_MARKER * NAME_MAX for a, b in pairwise(values)):
                yield at, list(values)


def _spans_at(image: memoryview, markers_at: int, markers: list[int]) -> list[tuple[int, int]]:
    """Where each name is and how long, with its length; empty: these are not their markers."""
    most = len(markers) * NAMES_PER_MARKER
    last = markers[-1]
    # After the last marker there are up to 256 names more; before the first is their number.
    for at in range(markers_at - last & ~7, markers_at - last - NAMES_PER_MARKER * NAME_MAX, -8):
        if at < 8:
            break
        (count,) = struct.unpack_from("<Q", image, at - 8)
        if most - NAMES_PER_MARKER < count <= most and count >= SYMBOLS_MIN:
            spans = list(_spans(image, at, count))
            if (
                all(
                    start - at == marker
                    for (start, _), marker in zip(spans[::NAMES_PER_MARKER], markers, strict=True)
                )
                and _align(sum(spans[-1])) == markers_at
            ):
                return spans
    return []


def _spans(image: memoryview, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Where each name is, its length first, and how many bytes that and the name take."""
    for _ in range(count):
        length, head = image[at], 1
        if length & 0x80:  # since 6.1: a second byte of the length
            length, head = length & 0x7F | image[at + 1] << 7, 2
        yield at, head + length
        at += head + length


def _names(image: memoryview, spans: list[tuple[int, int]], tokens: list[bytes]) -> Iterator[str]:
    """The names, each after the letter of its kind."""
    for start, size in spans:
        head = 2 if image[start] & 0x80 else 1
        name = b"".join([tokens[token] for token in image[start + head : start + size]])
        yield name.decode("latin-1")


def _addresses(base: int, offsets: tuple[int, ...]) -> list[int] | None:
    """What kallsyms_sym_address() makes of them. None: these are no offsets."""
    negative = sum(offset < 0 for offset in offsets)
    mask = (1 << 64) - 1
    if negative > len(offsets) // 2:
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an address itself.
        addresses = [o if o >= 0 else base - 1 - o & mask for o in offsets]
    else:
        addresses = [base + (o & 0xFFFF_FFFF) & mask for o in offsets]
    rising = sum(a <= b for a, b in pairwise(addresses))
    return addresses if rising >= len(addresses) * 9 // 10 else None

"""A guest's memory as several files have it: one that has all of it, and layers over it.

Reached from `template`, whose machines map it, and from `diff` and `compact`, which read it. Each
layer is what a differential snapshot has: the pages that had changed, at their places::

    layers[1]   ......[==]..............[=]....    the last snapshot's
    layers[0]   ...[=====]....[===]............    of the one that it was taken on
    fd          ===============================    of the first, which is a full one

A machine maps the file, and over it the ranges that show. A mapping of its own costs a range some
microseconds, and two of the 65,000 mappings that Linux allows a process: short ranges, and those
that are too many, are copied instead.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from operator import attrgetter

from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import Region
from pykvm.snapshot.pages import PAGE, PIECE, data_of, joined, without_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final, Self

    from pykvm.memory import GuestMemory

MAPPED: Final = 256  # ranges with a mapping of their own, in one machine
LARGE: Final = 16 * PAGE  # from here on they are worth it
ADDED: Final = 64  # ranges that a fork's layer has at most
BLOCKS: Final = (LARGE, 4 * LARGE, 16 * LARGE)  # what its ranges are made of


class Layer:
    """Pages that lie over the memory's file: of a snapshot that holds only what had changed."""

    def __init__(self, fd: int, ranges: Sequence[Region], *, is_mapped: bool = True) -> None:
        self.fd = fd
        self.ranges = ranges  # by their place in the memory's file; in `fd` at the same place
        self.is_mapped = is_mapped  # else its ranges are always copied

    def copy(self) -> Layer:
        """The same, with a descriptor of its own."""
        return Layer(os.dup(self.fd), self.ranges, is_mapped=self.is_mapped)


def close_files(fd: int, layers: Iterable[Layer]) -> None:
    """Close a memory's file and its layers', those of them that are open (-1: not)."""
    for each in (fd, *(layer.fd for layer in layers)):
        if each >= 0:
            os.close(each)


class Shown(Record):
    """A range that no layer above hides: of the layer with this number."""

    offset: int
    size: int
    layer: int


def shown(layers: Sequence[Layer]) -> list[Shown]:
    """What is to be seen of the layers, lowest first; no two overlap."""
    found: list[Shown] = []
    hidden: list[Region] = []
    for number in reversed(range(len(layers))):
        ranges = layers[number].ranges
        found += (Shown(*region, number) for region in without(ranges, hidden))
        hidden = list(joined([*ranges, *hidden]))
    return sorted(found)


def without(ranges: Iterable[Region], others: Sequence[Region]) -> Iterator[Region]:
    """The parts of `ranges` that are in none of `others`; both in order and without overlaps."""
    at = 0
    for region in ranges:
        start = region.gpa
        while at < len(others) and others[at].end <= start:
            at += 1
        first = at
        while first < len(others) and others[first].gpa < region.end:
            if others[first].gpa > start:
                yield Region(start, others[first].gpa - start)
            start = others[first].end
            first += 1
        if start < region.end:
            yield Region(start, region.end - start)


class Placing:
    """Which ranges of the layers a machine maps, and which it copies."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        ranges = shown(layers)
        large = (entry for entry in ranges if entry.size >= LARGE and layers[entry.layer].is_mapped)
        mapped = set(sorted(large, key=attrgetter("size"), reverse=True)[:MAPPED])
        self.mapped: list[list[Region]] = [[] for _ in layers]
        self.copied: list[list[Region]] = [[] for _ in layers]
        for entry in ranges:
            table = self.mapped if entry in mapped else self.copied
            table[entry.layer].append(Region(entry.offset, entry.size))


def blocks_of(ranges: Iterable[Region], size: int) -> list[Region] | None:
    """Few enough ranges, each worth a mapping, that have all of `ranges` of a memory of `size`
    bytes. None: there are none."""
    ranges = list(ranges)
    for block in BLOCKS:
        whole = [Region(at // block * block, -(-(at + n) // block) * block) for at, n in ranges]
        found = list(joined(Region(at, min(end, size) - at) for at, end in whole))
        if len(found) <= ADDED:
            return found
    return None


class Stack:
    """A memory of `size` bytes: what `fd` has, under `layers`. Owns their descriptors."""

    def __init__(self, fd: int, size: int, layers: Sequence[Layer] = ()) -> None:
        self.fd = fd
        self.size = size
        self.layers = list(layers)
        self._shown = shown(self.layers)
        self._starts = [entry.offset for entry in self._shown]

    def touched(self) -> Iterator[Region]:
        """Where it may be other than zero."""
        own = (region for layer in self.layers for region in layer.ranges)
        return joined([*data_of(self.fd, self.size), *own])

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there, all within the memory."""
        data = bytearray(os.pread(self.fd, size, offset))
        for entry in self._shown[max(0, bisect_right(self._starts, offset) - 1) :]:
            if entry.offset >= offset + size:
                break
            start = max(offset, entry.offset)
            end = min(offset + size, entry.offset + entry.size)
            if start < end:
                fd = self.layers[entry.layer].fd
                data[start - offset : end - offset] = os.pread(fd, end - start, start)
        if len(data) != size:
            raise OSError("a snapshot's memory has become shorter")
        return bytes(data)

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """All of it that is not zeros, as (offset, bytes), many pages together."""
        for start, size in self.touched():
            for offset in range(start, start + size, PIECE):
                data = self.read(offset, min(PIECE, start + size - offset))
                yield from without_zeros(offset, memoryview(data))

    def close(self) -> None:
        """Close the descriptors. Safe to call twice."""
        close_files(self.fd, self.layers)
        self.fd, self.layers = -1, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differing(
    memory: GuestMemory, stack: Stack, candidates: Iterable[Region]
) -> Iterator[tuple[int, memoryview]]:
    """The pages of `candidates` in which `memory` is other than `stack`, as (offset, bytes), many
    together."""
    for start, size in candidates:
        for offset in range(start, start + size, PIECE):
            length = min(PIECE, start + size - offset)
            with memory.at_offset(offset, length) as view:
                mine, beneath = bytes(view), stack.read(offset, length)
            if mine != beneath:
                yield from _differing_pages(offset, mine, beneath)
    memory.check()


def _differing_pages(offset: int, mine: bytes, beneath: bytes) -> Iterator[tuple[int, memoryview]]:
    begin: int | None = None
    for at in range(0, len(mine), PAGE):
        same = mine[at : at + PAGE] == beneath[at : at + PAGE]
        if not same and begin is None:
            begin = at
        if same and begin is not None:
            yield offset + begin, memoryview(mine)[begin:at]
            begin = None
    if begin is not None:
        yield offset + begin, memoryview(mine)[begin:]

"""Layers of pages over a memory's file, against a model: an array that each layer is written to."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.memory import GuestMemory, Region
from pykvm.snapshot import layers, pages
from pykvm.snapshot.layers import Layer, Placing, Stack, differing, without

PAGE = pages.PAGE
COUNT = 64  # pages of the memory
SIZE = COUNT * PAGE

# Each layer: first page and number of pages of its ranges.
LAYERS = st.lists(
    st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(1, 24)), max_size=6), max_size=5
)


def regions(ranges: list[tuple[int, int]]) -> list[Region]:
    inside = (Region(page * PAGE, min(count, COUNT - page) * PAGE) for page, count in ranges)
    return list(pages.joined(inside))


def page(value: int) -> bytes:
    return bytes([value]) * PAGE


class Pile(contextlib.ExitStack):
    """A stack of files, and what it should be."""

    def __init__(self, ranges: list[list[tuple[int, int]]]) -> None:
        super().__init__()
        self.model = bytearray(b"".join(page(number % 3) for number in range(COUNT)))
        base = self.file()
        os.pwrite(base, self.model, 0)
        above = []
        for number, layer in enumerate(ranges):
            fd = self.file()
            above.append(Layer(fd, regions(layer)))
            for start, size in above[-1].ranges:
                data = b"".join(page(100 + number) for _ in range(size // PAGE))
                if (start // PAGE) % 5 == 0:  # zeros, as a hole
                    data = page(0) + data[PAGE:]
                    os.pwrite(fd, data[PAGE:], start + PAGE)
                else:
                    os.pwrite(fd, data, start)
                self.model[start : start + size] = data
        self.stack = Stack(base, SIZE, above)

    def file(self) -> int:
        fd = os.memfd_create("layer")
        os.truncate(fd, SIZE)
        self.callback(os.close, fd)
        return fd


@given(LAYERS, st.integers(0, SIZE - 1), st.integers(0, SIZE))
def test_a_stack_reads_as_its_layers_say(
    ranges: list[list[tuple[int, int]]], start: int, size: int
) -> None:
    size = min(size, SIZE - start)
    with Pile(ranges) as pile:
        assert pile.stack.read(start, size) == pile.model[start : start + size]
        whole = bytearray(SIZE)
        for offset, data in pile.stack.pieces():
            whole[offset : offset + len(data)] = data
        assert whole == pile.model


@settings(deadline=None)
@given(LAYERS, st.integers(0, 3), st.integers(1, 8))
def test_memory_that_is_mapped_and_copied_reads_as_its_layers_say(
    ranges: list[list[tuple[int, int]]], mapped: int, large: int
) -> None:
    with Pile(ranges) as pile, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "MAPPED", mapped)
        patch.setattr(layers, "LARGE", large * PAGE)
        placing = Placing(pile.stack.layers)
        assert sum(map(len, placing.mapped)) <= mapped
        with GuestMemory(SIZE, pile.stack.fd) as memory:
            for layer, some in zip(pile.stack.layers, placing.mapped, strict=True):
                memory.lay(layer.fd, some)
            for layer, some in zip(pile.stack.layers, placing.copied, strict=True):
                memory.lay(layer.fd, some, copied=True)
            assert memory.read(0, SIZE) == pile.model
            changed = [*differing(memory, pile.stack, [Region(0, SIZE)])]
            assert not changed
            memory.write(7 * PAGE + 5, b"changed")
            (difference,) = differing(memory, pile.stack, memory.changes())
            assert difference[0] == 7 * PAGE


RANGES = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(1, 9)))


@given(RANGES, RANGES)
def test_without_leaves_what_only_the_first_have(
    some: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    def numbers(found: list[Region]) -> list[int]:
        return [n for region in found for n in range(region.gpa // PAGE, region.end // PAGE)]

    one, other = regions(some), regions(others)
    left = numbers(list(without(one, other)))
    assert left == sorted(set(numbers(one)) - set(numbers(other)))

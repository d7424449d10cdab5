"""Linux's own symbol tables, in each order that they have had, found in the middle of memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.debug import kallsyms

BASE = 0xFFFF_FFFF_8100_0000
COUNT = 700
PER_CPU = [(64 * n, "A", f"variable_{n}") for n in range(20)]
SYMBOLS = [*PER_CPU, *((BASE + 16 * n, "T", f"function_{n}") for n in range(COUNT - len(PER_CPU)))]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def image(layout: str) -> bytes:
    """Tables as scripts/kallsyms.c writes them, every token one character."""
    tokens = b"".join(bytes([c or 1]) + b"\0" for c in range(256))
    index = struct.pack("<256H", *range(0, 512, 2))
    names, markers = b"", []
    for n, (_, kind, name) in enumerate(SYMBOLS):
        if n % 256 == 0:
            markers.append(len(names))
        names += bytes([len(name) + 1]) + kind.encode() + name.encode()
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU, as every x86-64 kernel for several CPUs before 6.15 has it.
    offsets = struct.pack(f"<{COUNT}i", *(a if k == "A" else BASE - 1 - a for a, k, _ in SYMBOLS))
    where = pad(offsets) + struct.pack("<Q", BASE)
    what = struct.pack("<Q", COUNT) + pad(names) + pad(struct.pack(f"<{len(markers)}I", *markers))
    if layout == "sequences":
        what += pad(bytes(range(1, 4)) * COUNT)
    table = pad(tokens) + pad(index)
    tables = what + table + where if layout == "6.4" else where + what + table
    return b"\x5a" * 4096 + tables + b"\xa5" * 4096


@pytest.mark.parametrize("layout", ["6.4", "before", "sequences"])
def test_names_and_addresses_are_read(layout: str) -> None:
    assert kallsyms.read(memoryview(image(layout))) == SYMBOLS


@given(st.binary(max_size=200), st.integers(0, 20_000))
def test_damaged_tables_give_names_or_none_but_no_error(noise: bytes, at: int) -> None:
    damaged = bytearray(image("6.4"))
    damaged[at : at + len(noise)] = noise
    kallsyms.read(memoryview(damaged))


def test_memory_without_a_kernel_has_no_symbols() -> None:
    assert kallsyms.read(memoryview(bytes(100_000))) == []

"""Decompression: every format, and an end to every bomb."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import payload
from pykvm.errors import BootError

DATA = bytes(range(256)) * 64 + bytes(100_000)


def lz4_legacy(data: bytes) -> bytes:
    block: Any = pytest.importorskip("lz4.block")
    frame = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), payload.LZ4_BLOCK):
        piece = block.compress(data[at : at + payload.LZ4_BLOCK], store_size=False)
        frame += struct.pack("<I", len(piece)) + piece
    return frame


def lzop(data: bytes) -> bytes:
    """As lzop(1) writes it: a stored block, then packed ones, each with a checksum (here: 0)."""
    lzo: Any = pytest.importorskip("lzo")
    flags = 0x1  # an Adler-32 of the plain bytes
    file = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBI", 0x1040, 0x20A0, 0x940, 1, 9, flags)
    file += struct.pack(">IIIB", 0, 0, 0, 4) + b"name" + bytes(4)
    file += struct.pack(">III", 100, 100, 0) + data[:100]
    for at in range(100, len(data), 1 << 15):
        block = data[at : at + (1 << 15)]
        piece = lzo.compress(block, 1, False)
        file += struct.pack(">III", len(block), len(piece), 0) + piece
    return file + bytes(4)


def zstd(data: bytes) -> bytes:
    zstandard: Any = pytest.importorskip("zstandard")
    return bytes(zstandard.ZstdCompressor(write_content_size=False).compress(data))


def xz_with_bcj(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": xz_with_bcj,
    "lzma": lzma_alone,
    "lz4": lz4_legacy,
    "zstd": zstd,
    "lzo": lzop,
}
LIBRARIES = {"lz4": "lz4", "zstd": "zstandard", "lzo": "lzo"}
INSTALLED = [name for name in COMPRESSORS if find_spec(LIBRARIES.get(name, "sys"))]
by_format = pytest.mark.parametrize("name", COMPRESSORS)


@by_format
def test_every_format_is_recognised_and_undone(name: str) -> None:
    data = memoryview(COMPRESSORS[name](DATA))
    assert payload.format_of(data) == name
    assert payload.decompress(data, len(DATA)) == DATA


@by_format
def test_more_than_the_limit_is_refused_by_the_memory_option(name: str) -> None:
    with pytest.raises(BootError, match="--memory"):
        payload.decompress(memoryview(COMPRESSORS[name](DATA)), len(DATA) - 1)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "lzma", "lz4", "lzo"])
def test_a_truncated_stream_is_refused(name: str) -> None:
    data = memoryview(COMPRESSORS[name](DATA))
    with pytest.raises(BootError, match=r"damaged|truncated"):
        payload.decompress(data[: len(data) // 2], len(DATA))


def test_lz4_blocks_are_joined() -> None:
    data = bytes(payload.LZ4_BLOCK) + b"the last block is shorter"
    assert payload.decompress(memoryview(lz4_legacy(data)), len(data)) == data


def test_lz4_ends_at_the_first_block_that_is_not_full() -> None:
    data = lz4_legacy(DATA) + b"\1\0\0\0\0" * 1000
    assert payload.decompress(memoryview(data), len(DATA)) == DATA


def test_a_missing_library_is_named_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression", None)
    for module, package, magic in (
        ("zstandard", "zstandard", b"\x28\xb5\x2f\xfd"),
        ("lz4", "lz4", b"\x02\x21\x4c\x18"),
        ("lzo", "python-lzo", b"\x89LZO\0\r\n\x1a\n"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(payload.UnsupportedError, match=f"pip install {package}"):
            payload.decompress(memoryview(magic + bytes(64)), 100)


def test_an_unknown_magic_is_unsupported() -> None:
    with pytest.raises(payload.UnsupportedError, match="01 02 03"):
        payload.decompress(memoryview(b"\1\2\3"), 100)


@given(st.sampled_from(payload.FORMATS), st.binary(max_size=300))
def test_random_bytes_behind_a_magic_raise_nothing_but_boot_error(
    known: tuple[bytes, str, object], tail: bytes
) -> None:
    try:
        output = payload.decompress(memoryview(known[0] + tail), 1000)
    except BootError:
        return
    assert len(output) <= 1000


@given(st.sampled_from(INSTALLED), st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_flipped_byte_raises_nothing_but_boot_error(name: str, at: int, flip: int) -> None:
    data = bytearray(COMPRESSORS[name](DATA[:5000]))
    data[at % len(data)] ^= flip
    try:
        output = payload.decompress(memoryview(data), 5000)
    except BootError:
        return
    assert len(output) <= 5000

"""Decompression of kernel payloads: every format Linux' build system can choose.

Reached from `vmlinux` (the payload of a bzImage) and `detect` (a compressed ELF file). What is not
in Python's standard library is imported when met: zstandard, lz4, lzo. Source of the formats a
payload can have: Linux Documentation/arch/x86/boot.rst, "payload_offset"; scripts/Makefile.lib.
"""

from __future__ import annotations

from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

NEEDS: Final = "KERNEL: to decompress its {} payload needs Python's {}"
CHUNK: Final = 1 << 20
LZMA_MEMORY: Final = 1 << 28  # an xz dictionary has at most 128 MiB in kernels
ZSTD_WINDOW: Final = 1 << 27  # `zstd --ultra -22`
LZO_FILTER: Final = 0x800  # lzop's header flags
LZO_CHECKS_PLAIN: Final = 0x101  # each bit: 4 bytes of checksum in every block
LZO_CHECKS_PACKED: Final = 0x202  # the same, in blocks that did get smaller
LZ4_BLOCK: Final = 8 << 20  # the legacy frame's block size


class UnsupportedError(BootError):
    """The payload may be good, but nothing here can decompress it."""


def _gzip(data: memoryview, limit: int) -> bytes:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    return _whole(stream.decompress(data, limit + 1), stream.eof, limit)


def _bzip2(data: memoryview, limit: int) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    return _whole(stream.decompress(data, limit + 1), stream.eof, limit)


def _xz(data: memoryview, limit: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY)
    return _whole(stream.decompress(data, limit + 1), stream.eof, limit)


def _lzma(data: memoryview, limit: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY)
    return _whole(stream.decompress(data, limit + 1), stream.eof, limit)


def _zstd(data: memoryview, limit: int) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # 3.14
    except ImportError:
        return _zstandard(data, limit)
    stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    return _whole(stream.decompress(data, limit + 1), stream.eof, limit)


def _zstandard(data: memoryview, limit: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedError(NEEDS.format("zstd", "zstandard: pip install zstandard")) from None
    output = bytearray()
    with zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(data) as reader:
        while len(output) <= limit and (chunk := reader.read(CHUNK)):
            output += chunk
    return _whole(output, True, limit)


def _lz4(data: memoryview, limit: int) -> bytes:
    """LZ4's legacy frame: blocks, each with its size, all of them full but the last.

    Source: lz4 doc/lz4_Frame_format.md, "Legacy frame".
    """
    try:
        from lz4 import block  # type: ignore[import-untyped]
    except ImportError:
        raise UnsupportedError(NEEDS.format("lz4", "lz4: pip install lz4")) from None
    output = bytearray()
    at = 4
    while at + 4 <= len(data) and len(output) <= limit:
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            return _whole(output, False, limit)
        piece = block.decompress(data[at + 4 : at + 4 + size], uncompressed_size=LZ4_BLOCK)
        output += piece
        at += 4 + size
        if len(piece) < LZ4_BLOCK:
            break
    return _whole(output, True, limit)


def _lzo(data: memoryview, limit: int) -> bytes:
    """lzop's file: a header of variable length, then blocks with both sizes, big-endian.

    Source: Linux lib/decompress_unlzo.c, which reads the same few of its fields.
    """
    try:
        import lzo  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UnsupportedError(
            NEEDS.format("lzo", "lzo: apt install python3-lzo, or pip install python-lzo")
        ) from None

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "big")

    new = number(9, 2) >= 0x940  # the version that added three fields
    at = 17 if new else 14  # magic, versions, method, level
    flags = number(at, 4)
    at += 4 + (4 if flags & LZO_FILTER else 0) + (12 if new else 8)  # mode, times
    at += 1 + number(at, 1) + 4  # name, header checksum
    output = bytearray()
    while size := number(at, 4):
        if len(output) + size > limit:
            raise _too_large(limit)
        packed = number(at + 4, 4)
        checks = LZO_CHECKS_PLAIN | (LZO_CHECKS_PACKED if packed < size else 0)
        at += 8 + 4 * (flags & checks).bit_count()
        piece = bytes(data[at : at + packed])
        output += lzo.decompress(piece, False, size) if packed < size else piece
        at += packed
    return _whole(output, at + 4 <= len(data), limit)


# By magic, longest first where one could be taken for another.
FORMATS: Final[tuple[tuple[bytes, str, Callable[[memoryview, int], bytes]], ...]] = (
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x89LZO\0\r\n\x1a\n", "lzo", _lzo),
    (b"\x1f\x8b\x08", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
)


def format_of(data: memoryview) -> str | None:
    """The compression format's name by the magic at the start of `data`."""
    return next((name for magic, name, _ in FORMATS if bytes(data[: len(magic)]) == magic), None)


def decompress(data: memoryview, limit: int) -> bytes:
    """Return what `data` holds; bytes after its end do not matter.

    At most a little more than `limit` bytes are ever made. Raises `UnsupportedError` for another
    format or a missing library, `BootError` for damaged data or more than `limit` bytes.
    """
    name = format_of(data)
    if name is None:
        magic = bytes(data[:6]).hex(" ")
        raise UnsupportedError(f"KERNEL: its payload is of unknown compression (magic {magic})")
    function = next(function for _, known, function in FORMATS if known == name)
    try:
        return function(data, limit)
    except BootError:
        raise
    except Exception as error:
        # Six libraries, each with errors of its own, all of them about the user's file.
        raise BootError(f"KERNEL: its {name} payload is damaged: {error}") from error


def _whole(output: bytes | bytearray, complete: bool, limit: int) -> bytes:
    """Check that a stream's output is all of it and no more than `limit`."""
    if len(output) > limit:
        raise _too_large(limit)
    if not complete:
        raise BootError("KERNEL: its compressed payload is truncated; copy the file again")
    return bytes(output)


def _too_large(limit: int) -> BootError:
    return BootError(
        f"--memory: the kernel decompresses to more than the {limit} bytes there is room for; "
        "try a larger --memory"
    )

"""The vmlinux inside a bzImage, decompressed on the host once and cached by content.

Reached from `bzimage`. The guest would need most of a second to decompress its kernel, and minutes
where ring 0 is emulated; the host needs it once. Read `payload` and `pykvm/cache.py` beside it.

A cache entry is ``$XDG_CACHE_HOME/pykvm/vmlinux/<sha256 of the compressed payload>``. A checksum of
its 40 MB at every boot would cost as much as loading them, so an entry is *sealed* instead: its
modification time is set to one derived from the key. Whoever writes to the file afterwards, or
truncates it, breaks the seal, and the entry is made anew. The payload itself is always hashed.
Reading an entry leaves no trace on it: in the lab, that would copy all of it into an overlay.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from pykvm.boot import elf, payload
from pykvm.boot.claims import size_text
from pykvm.boot.setupheader import Field, SetupHeader
from pykvm.errors import BootError, HostError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

CACHE_ENTRIES_MAX: Final = 8
WARM_MAX: Final = 1 << 28  # bytes; no distribution's kernel comes near
PROGRAM_FILE_SIZE: Final = 32  # offset of p_filesz in an Elf64_Phdr


def find_payload(image: memoryview, header: SetupHeader) -> memoryview | None:
    """Return the compressed payload, its size field last; None when the header names none.

    Raises `BootError` when it lies outside the file.
    """
    length = header[Field.payload_length]
    if not length:
        return None
    start = header.setup_size + header[Field.payload_offset]
    if start + length > len(image) or length < 8:
        raise BootError(
            f"KERNEL: truncated: its payload ends at byte {start + length} of {len(image)}; "
            "copy the file again"
        )
    return image[start : start + length]


def warm(image: memoryview) -> None:
    """Put the vmlinux inside the bzImage `image` into the cache, for boots to come, if possible."""
    with suppress(BootError):
        data = find_payload(image, SetupHeader.parse(image))
        if data is not None:
            extract(data, WARM_MAX)


def extract(data: memoryview, limit: int) -> memoryview:
    """Return the vmlinux in the payload `data`, from the cache or decompressed.

    `limit` is the guest's memory. Raises `payload.UnsupportedError` or another `BootError`.
    """
    name = payload.format_of(data)
    if name is None:
        return memoryview(payload.decompress(data, 0))  # says why
    # Every payload ends with its uncompressed size: gzip's own, or one the build appends.
    size = int.from_bytes(data[-4:], "little")
    if size > limit:
        raise BootError(
            f"--memory: the kernel has {size} bytes decompressed, the guest's memory {limit}; "
            f"try --memory {size_text(2 * size)}"
        )
    from hashlib import sha256

    key = sha256(data).hexdigest()
    path = _cache_path(key)
    cached = _read_sealed(path, key) if path else None
    if cached is not None:
        return cached
    output = payload.decompress(data if name == "gzip" else data[:-4], size)
    if len(output) != size:
        raise BootError(
            f"KERNEL: its {name} payload is damaged: {len(output)} bytes decompressed, not {size}"
        )
    output = _without_trailing_zeros(output)
    if path:
        _write_sealed(path, key, output)
    return memoryview(output)


def _without_trailing_zeros(image: bytes) -> bytes:
    """Cut the zeros at the end of each segment of an ELF64, and what follows the last one.

    Guest memory is zero already. In Debian's kernels this is the bss, a third of the bytes. Nothing
    is lost behind it: a payload is stripped, and its relocations are for KASLR.
    """
    try:
        kernel = elf.parse(memoryview(image))
    except BootError:
        return image  # not an ELF: the loader will say so
    if kernel.bits != 64 or kernel.symbols:
        return image
    if sum(segment.file_size for segment in kernel.segments) > len(image):
        return image  # segments that share bytes: no kernel, and no end to the work
    trimmed = bytearray(image)
    end = phoff = int.from_bytes(image[32:40], "little")
    for i in range(int.from_bytes(image[56:58], "little")):
        at = phoff + i * elf.PROGRAM64.size
        end = max(end, at + elf.PROGRAM64.size)
        kind, _, offset, _, _, file_size, _, _ = elf.PROGRAM64.unpack_from(image, at)
        if kind == elf.PT_LOAD and offset + file_size <= len(image):
            file_size = len(image[offset : offset + file_size].rstrip(b"\0"))
            struct.pack_into("<Q", trimmed, at + PROGRAM_FILE_SIZE, file_size)
        end = max(end, offset + file_size)
    struct.pack_into("<Q", trimmed, 40, 0)  # e_shoff: the section headers are gone
    return bytes(trimmed[:end])


def _cache_path(key: str) -> Path | None:
    """The cache entry's path, or None when there can be no cache."""
    from pykvm.cache import cache_dir

    try:
        directory = cache_dir() / "vmlinux"
        directory.mkdir(mode=0o700, exist_ok=True)
    except (HostError, OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return directory / key


def _seal(key: str) -> int:
    """An intact entry's modification time, ns: even seconds, which every file system can keep."""
    return int(key[:7], 16) * 2 * 10**9


def _read_sealed(path: Path, key: str) -> memoryview | None:
    """Map an intact entry; None when there is none."""
    import mmap

    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime_ns != _seal(key):
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    return memoryview(mapped)


def _write_sealed(path: Path, key: str, data: bytes) -> None:
    """Add an entry and drop the oldest; a cache that cannot be written is no error."""
    from pykvm.cache import atomic_write

    with suppress(OSError):
        atomic_write(path, data)
        os.utime(path, ns=(_seal(key), _seal(key)))
        entries = sorted(path.parent.glob("[!.]*"), key=lambda entry: entry.stat().st_ctime_ns)
        for entry in entries[:-CACHE_ENTRIES_MAX]:
            entry.unlink()

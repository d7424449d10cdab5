"""The vmlinux inside a bzImage, decompressed on the host, once.

Reached from `bzimage`. The guest would need most of a second to decompress its kernel, and minutes
where ring 0 is emulated; the host needs it once. Read `payload` (how) and `vmlinuxcache` (where to)
beside it.
"""

from __future__ import annotations

import struct

from pykvm.boot import elf, payload, vmlinuxcache
from pykvm.boot.claims import size_text
from pykvm.boot.setupheader import Field, SetupHeader
from pykvm.boot.vmlinuxcache import Vmlinux
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.files import ImageFile

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


def warm(kernel: ImageFile) -> None:
    """Put the vmlinux inside a bzImage into the cache, for boots to come, if possible."""
    try:
        with inside(kernel):
            pass
    except BootError:
        pass


def inside(kernel: ImageFile) -> Vmlinux:
    """The vmlinux inside a bzImage, whatever a guest's memory may be. Raises `BootError`."""
    data = find_payload(kernel.data, SetupHeader.parse(kernel.data))
    if data is None:
        raise BootError("KERNEL: there is no vmlinux inside")
    return extract(data, WARM_MAX, kernel.stamp)


def extract(data: memoryview, limit: int, stamp: str = "") -> Vmlinux:
    """Return the vmlinux in the payload `data`, from the cache or decompressed.

    `limit` is the guest's memory, `stamp` that of the image file. Raises
    `payload.UnsupportedError` or another `BootError`.
    """
    # Every payload ends with its uncompressed size: gzip's own, or one the build appends.
    size = int.from_bytes(data[-4:], "little")
    if payload.format_of(data) and size > limit:
        raise BootError(
            f"--memory: the kernel has {size} bytes decompressed, the guest's memory {limit}; "
            f"try --memory {size_text(2 * size)}"
        )
    key = vmlinuxcache.recall(stamp)
    cached = vmlinuxcache.lookup(key) if key else None
    if cached is not None:
        return cached
    from hashlib import sha256

    key = sha256(data).hexdigest()
    cached = vmlinuxcache.lookup(key)
    if cached is None:
        output = unpack(data, size)
        if len(output) != size:
            raise BootError(
                f"KERNEL: its payload is damaged: {len(output)} bytes decompressed, not {size}"
            )
        output = _without_trailing_zeros(output)
        vmlinuxcache.store(key, output)
        cached = Vmlinux(memoryview(output))
    vmlinuxcache.remember(stamp, key)
    return cached


def unpack(data: memoryview, limit: int) -> bytes:
    """Decompress the payload `data` without its size field. Raises as `payload.decompress()`."""
    own_field = payload.format_of(data) == "gzip"  # part of the format: gzip checks it
    return payload.decompress(data if own_field else data[:-4], limit)


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

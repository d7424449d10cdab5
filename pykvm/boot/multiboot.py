"""Multiboot 1: ELF kernels and raw ones ("a.out kludge"), with modules.

Reached from `boot.load()`. Source: Multiboot Specification version 0.6.96, §3.1 "OS image format",
§3.2 "Machine state" and §3.3 "Boot information format". What it leaves open follows what its users
have been tried with: the command line begins with the kernel's name, modules follow the kernel.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.boot import elf
from pykvm.boot.claims import Claims, page_align
from pykvm.boot.detect import MULTIBOOT_MAGIC, MULTIBOOT_SEARCH, is_elf
from pykvm.boot.e820 import memory_map
from pykvm.boot.entry import CpuMode, Entry
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING, IntFlag, Record

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

LOADER_MAGIC: Final = 0x2BADB002  # in EAX
MULTIBOOT2_MAGIC: Final = 0xE85250D6.to_bytes(4, "little")
MULTIBOOT2_SEARCH: Final = 32768

HEADER: Final = struct.Struct("<III")  # magic flags checksum
ADDRESSES: Final = struct.Struct("<IIIII")  # header load load_end bss_end entry
assert (HEADER.size, ADDRESSES.size) == (12, 20)
INFO: Final = struct.Struct("<IIIIIII16xIIIIIII44x")
assert INFO.size == 116
MODULE: Final = struct.Struct("<IIII")  # start end string reserved
MMAP_ENTRY: Final = struct.Struct("<IQQI")  # size of the rest, base, length, type


class HeaderFlags(IntFlag):
    """§3.1.2 The magic fields of Multiboot header, "flags"."""

    PAGE_ALIGN = 1 << 0  # modules on page boundaries: always so here
    MEMORY_INFO = 1 << 1  # mem_* and the memory map: always given
    VIDEO_MODE = 1 << 2
    ADDRESSES = 1 << 16  # the load addresses are in the header, whatever the file's format


REQUIRED_UNKNOWN: Final = 0xFFF8  # bits 3 to 15: refuse the image when we do not know one


class InfoFlags(IntFlag):
    """§3.3 Boot information format, "flags"."""

    MEMORY = 1 << 0
    CMDLINE = 1 << 2
    MODULES = 1 << 3
    MMAP = 1 << 6
    LOADER_NAME = 1 << 9


class Header(Record):
    """A valid multiboot header, `offset` bytes into the image."""

    offset: int
    flags: int


def find_header(image: memoryview) -> Header | None:
    """Return the first header in the image's first 8 KiB whose checksum is right."""
    head = bytes(image[:MULTIBOOT_SEARCH])
    offset = head.find(MULTIBOOT_MAGIC)
    while 0 <= offset <= len(head) - HEADER.size:
        if offset % 4 == 0:
            magic, flags, checksum = HEADER.unpack_from(head, offset)
            if (magic + flags + checksum) & 0xFFFF_FFFF == 0:
                return Header(offset, flags)
        offset = head.find(MULTIBOOT_MAGIC, offset + 1)
    return None


def is_multiboot2(image: memoryview) -> bool:
    """Whether a multiboot 2 header starts in the image's first 32 KiB."""
    head = bytes(image[:MULTIBOOT2_SEARCH])
    at = head.find(MULTIBOOT2_MAGIC)
    return at >= 0 and at % 8 == 0


def load(image: memoryview, memory: GuestMemory, spec: BootSpec) -> Entry:
    """Load a multiboot image and its modules, write the boot information. Raises `BootError`."""
    header = find_header(image)
    if header is None:
        raise BootError("KERNEL: no multiboot header in the first 8192 bytes")
    if header.flags & REQUIRED_UNKNOWN:
        raise BootError(
            f"KERNEL: its multiboot header requires features ({header.flags & 0xFFFF:#06x}) that "
            "multiboot 1 does not define"
        )
    notes: tuple[str, ...] = ()
    if header.flags & HeaderFlags.VIDEO_MODE:
        notes = ("the image asks for a video mode; there is no display, only the serial console",)

    claims = Claims(memory, spec, CpuMode.PROTECTED)
    claims.claim(layout.MULTIBOOT_INFO, layout.MULTIBOOT_INFO_SIZE, "the multiboot information")
    symbols = None
    if header.flags & HeaderFlags.ADDRESSES:
        entry = _load_addresses(image, header, memory, claims)
    elif is_elf(image):
        kernel = elf.parse(image)
        entry = kernel.physical_entry()
        elf.load_segments(kernel, memory, claims)
        symbols = kernel.symbols
    else:
        raise BootError(
            "KERNEL: a multiboot header without load addresses, and the file is not ELF either; an "
            "EFI application, as xen.efi is, has an ELF file beside it: pass that (xen.gz)"
        )
    modules = _place_modules(memory, spec, claims)
    memory.write(layout.MULTIBOOT_INFO, _information(memory, spec, modules))
    regs = {"rax": LOADER_MAGIC, "rbx": layout.MULTIBOOT_INFO}
    return Entry("multiboot", CpuMode.PROTECTED, entry, regs, symbols=symbols, notes=notes)


def _load_addresses(image: memoryview, header: Header, memory: GuestMemory, claims: Claims) -> int:
    """Load by §3.1.3 The address fields of Multiboot header; return the entry."""
    at = header.offset + HEADER.size
    if at + ADDRESSES.size > len(image):
        raise BootError("KERNEL: the multiboot header is truncated; copy the file again")
    header_addr, load_addr, load_end, bss_end, entry = ADDRESSES.unpack_from(image, at)
    start = header.offset - (header_addr - load_addr)
    size = load_end - load_addr if load_end else len(image) - start
    if load_addr > header_addr or start < 0 or size <= 0:
        raise BootError("KERNEL: the multiboot header's load addresses contradict each other")
    if start + size > len(image):
        raise BootError("KERNEL: truncated: it ends before its multiboot load_end_addr")
    memory_size = max(size, bss_end - load_addr) if bss_end else size
    if not load_addr <= entry < load_addr + memory_size:
        raise BootError(f"KERNEL: its multiboot entry_addr {entry:#x} is outside the image")
    claims.claim(load_addr, memory_size, "the kernel")
    memory.write(load_addr, image[start : start + size])
    return int(entry)


def _place_modules(
    memory: GuestMemory, spec: BootSpec, claims: Claims
) -> list[tuple[int, int, bytes]]:
    """Copy the modules behind the kernel, each from a page boundary; return (gpa, end, string).

    An initrd is a module too, the first one.
    """
    wanted = [(spec.initrd, b"initrd")] if spec.initrd else []
    wanted += spec.modules
    placed = []
    gpa = page_align(claims.above(memory.low_end))
    for data, string in wanted:
        name = string.decode(errors="replace")
        claims.claim(gpa, len(data), f"the module {name!r}", "--module")
        memory.write(gpa, data)
        placed.append((gpa, gpa + len(data), string))
        gpa = page_align(gpa + len(data))
    return placed


def _information(
    memory: GuestMemory, spec: BootSpec, modules: list[tuple[int, int, bytes]]
) -> bytes:
    """The multiboot information structure with all it points to, for `layout.MULTIBOOT_INFO`."""
    blob = bytearray(INFO.size)

    def put(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % 4))
        gpa = layout.MULTIBOOT_INFO + len(blob)
        blob.extend(data)
        return gpa

    # Programs that parse their arguments expect argv[0] first, as every loader gives it.
    cmdline = put(spec.name + b" " * bool(spec.cmdline) + spec.cmdline + b"\0")
    loader_name = put(b"pykvm\0")
    entries = memory_map(memory)
    mmap = put(b"".join(MMAP_ENTRY.pack(MMAP_ENTRY.size - 4, *entry) for entry in entries))
    strings = [put(string + b"\0") for _, _, string in modules]
    module_list = put(
        b"".join(
            MODULE.pack(gpa, end, string, 0)
            for (gpa, end, _), string in zip(modules, strings, strict=True)
        )
    )
    if len(blob) > layout.MULTIBOOT_INFO_SIZE:
        raise BootError(
            f"--append: the command line and the modules' strings take {len(blob)} bytes of "
            f"{layout.MULTIBOOT_INFO_SIZE}; shorten them"
        )
    flags = InfoFlags.MEMORY | InfoFlags.CMDLINE | InfoFlags.MMAP | InfoFlags.LOADER_NAME
    if modules:
        flags |= InfoFlags.MODULES
    # fmt: off
    INFO.pack_into(
        blob, 0, flags,
        min(memory.low_end, layout.EBDA) // 1024,               # mem_lower, KiB
        max(memory.low_end - layout.HIGH_MEMORY, 0) // 1024,    # mem_upper, KiB above 1 MiB
        0,                                                      # boot_device: none, flag clear
        cmdline, len(modules), module_list,
        len(entries) * MMAP_ENTRY.size, mmap,
        0, 0, 0,                                                # drives, config_table: none
        loader_name, 0,                                         # apm_table: none
    )
    # fmt: on
    return bytes(blob)

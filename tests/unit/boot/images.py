"""Kernel images made up for the loaders' tests: the smallest that are still right."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pykvm.layout import MIB

HLT = b"\xf4"


class Load(NamedTuple):
    """A PT_LOAD (or, with `type` 4, PT_NOTE) segment to be."""

    paddr: int
    data: bytes = HLT * 64
    memory_size: int | None = None
    vaddr: int | None = None
    type: int = 1
    file_size: int | None = None


def elf(
    *loads: Load,
    entry: int | None = None,
    bits: int = 64,
    machine: int = 62,
    symbols: bool = False,
    pad: int = 0,
) -> bytes:
    """An ELF executable: header, program headers, `pad` bytes, then the segments' data."""
    loads = loads or (Load(MIB),)
    ehsize, phsize = (64, 56) if bits == 64 else (52, 32)
    offset = ehsize + phsize * len(loads) + pad
    headers, body = b"", b""
    for load in loads:
        at = offset + len(body)
        file_size = len(load.data) if load.file_size is None else load.file_size
        size = file_size if load.memory_size is None else load.memory_size
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        if bits == 64:
            headers += struct.pack(
                "<IIQQQQQQ", load.type, 7, at, vaddr, load.paddr, file_size, size, 1
            )
        else:
            headers += struct.pack(
                "<IIIIIIII", load.type, at, vaddr, load.paddr, file_size, size, 7, 1
            )
        body += load.data
    sections = b""
    if symbols:
        section = struct.Struct("<4xI56x" if bits == 64 else "<4xI32x")
        sections = section.pack(0) + section.pack(2)
    shoff = offset + len(body) if sections else 0
    shentsize = 64 if bits == 64 else 40
    entry = loads[0].paddr if entry is None else entry
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    form = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    header = ident + struct.pack(
        form, 2, machine, 1, entry, ehsize, shoff, 0, ehsize, phsize, len(loads),
        shentsize, 2 if symbols else 0, 0,
    )  # fmt: skip
    return header + headers + bytes(pad) + body + sections


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """One ELF note, name and desc padded to 4 bytes."""
    name += b"\0"
    padded = [data + bytes(-len(data) % 4) for data in (name, desc)]
    return struct.pack("<III", len(name), len(desc), kind) + b"".join(padded)


def pvh_elf(entry: int, *notes: bytes, bits: int = 64) -> bytes:
    """An ELF whose second segment is a PVH note naming `entry`, before `notes`."""
    data = note(b"Xen", 18, entry.to_bytes(8, "little")) + b"".join(notes)
    return elf(Load(MIB), Load(0, data, type=4), bits=bits, machine=62 if bits == 64 else 3)


def multiboot_header(flags: int = 0, *addresses: int) -> bytes:
    """A multiboot 1 header; `addresses` are those of flag bit 16."""
    magic = 0x1BADB002
    return struct.pack("<III", magic, flags, -(magic + flags) & 0xFFFF_FFFF) + b"".join(
        address.to_bytes(4, "little") for address in addresses
    )


def bzimage(
    payload: bytes = b"",
    *,
    version: int = 0x20F,
    xloadflags: int = 1,
    code32_start: int = MIB,
    pref_address: int = 16 * MIB,
    init_size: int = 2 * MIB,
    loadflags: int = 1,
    cmdline_size: int = 2047,
    initrd_addr_max: int = 0x7FFF_FFFF,
    setup_sects: int = 4,
) -> bytes:
    """A bzImage whose protected-mode code is 0x400 bytes of HLT and `payload`."""
    code = HLT * 0x400 + payload
    code += bytes(-len(code) % 16)
    setup = bytearray((setup_sects + 1) * 512)
    for offset, size, value in (
        (0x1F1, 1, setup_sects),
        (0x1F4, 4, len(code) // 16),
        (0x1FE, 2, 0xAA55),
        (0x200, 2, 0x6AEB),  # jmp to 0x26c: where the header ends
        (0x206, 2, version),
        (0x211, 1, loadflags),
        (0x214, 4, code32_start),
        (0x22C, 4, initrd_addr_max),
        (0x230, 4, 2 * MIB),
        (0x234, 1, 1),
        (0x236, 2, xloadflags),
        (0x238, 4, cmdline_size),
        (0x248, 4, 0x400 if payload else 0),
        (0x24C, 4, len(payload)),
        (0x258, 8, pref_address),
        (0x260, 4, init_size),
    ):
        setup[offset : offset + size] = value.to_bytes(size, "little")
    setup[0x202:0x206] = b"HdrS"
    return bytes(setup) + code

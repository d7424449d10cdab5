"""ELF: program headers, the physical entry, notes; and the segments' way into guest memory.

Reached from the loaders of ELF images (linux64, pvh, multiboot). Source: System V ABI, chapters 4
"Object Files" and 5 "Program Loading and Dynamic Linking". Symbols are read elsewhere, by
pyelftools, and only when a report wants them: importing it costs more than loading a guest.
"""

from __future__ import annotations

import struct

from pykvm.boot.detect import is_elf
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from pykvm.boot.claims import Claims
    from pykvm.memory import GuestMemory

# e_type e_machine e_version e_entry e_phoff e_shoff e_flags e_ehsize e_phentsize e_phnum …
HEADER32: Final = struct.Struct("<16x HHI III I HHHHHH")
HEADER64: Final = struct.Struct("<16x HHI QQQ I HHHHHH")
assert (HEADER32.size, HEADER64.size) == (52, 64)
PROGRAM32: Final = struct.Struct("<IIIIIIII")  # type offset vaddr paddr filesz memsz flags align
PROGRAM64: Final = struct.Struct("<IIQQQQQQ")  # type flags offset vaddr paddr filesz memsz align
assert (PROGRAM32.size, PROGRAM64.size) == (32, 56)
SECTION32: Final = struct.Struct("<4x I 32x")  # sh_type alone
SECTION64: Final = struct.Struct("<4x I 56x")
assert (SECTION32.size, SECTION64.size) == (40, 64)
NOTE: Final = struct.Struct("<III")  # namesz descsz type

PT_LOAD: Final = 1
PT_INTERP: Final = 3  # the dynamic loader of a Linux program
PT_NOTE: Final = 4
SHT_SYMTAB: Final = 2
NOTES_MAX: Final = 256  # more notes than any kernel has: an end for hostile images


# e_machine: the two that run here, and those a user may hand in by mistake.
EM_386: Final = 3
EM_X86_64: Final = 62
FOREIGN_MACHINES: Final = {
    2: "SPARC",
    8: "MIPS",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "S/390",
    40: "Arm",
    183: "arm64",
    243: "RISC-V",
    258: "LoongArch",
}


class Segment(Record):
    """One program header."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int


class Elf(Record):
    """An ELF executable for x86: bytes and what its headers say of them."""

    image: memoryview
    bits: int  # 32 or 64
    entry: int  # e_entry as it stands
    segments: tuple[Segment, ...]  # PT_LOAD and PT_NOTE
    symbols: memoryview | None  # the image, when it has a symbol table

    @property
    def loadable(self) -> tuple[Segment, ...]:
        """The PT_LOAD segments that take up memory."""
        return tuple(s for s in self.segments if s.type == PT_LOAD and s.memory_size)

    @property
    def linked(self) -> tuple[tuple[int, int, int], ...]:
        """Where the segments will be mapped: (vaddr, paddr, size), for `Entry.linked`."""
        return tuple((s.vaddr, s.paddr, s.memory_size) for s in self.loadable)

    def physical_entry(self) -> int:
        """e_entry as a physical address. Raises `BootError` when it lies in no segment.

        Linux stores a physical address there; other kernels store the linked, virtual one, which
        the segment that contains it translates.
        """
        for segment in self.loadable:
            if 0 <= self.entry - segment.paddr < segment.memory_size:
                return self.entry
        for segment in self.loadable:
            if 0 <= self.entry - segment.vaddr < segment.memory_size:
                return self.entry - segment.vaddr + segment.paddr
        raise BootError(f"KERNEL: the ELF entry point {self.entry:#x} lies in no loadable segment")

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (name, type, desc) of each note; a malformed one ends its segment silently."""
        seen = 0
        for segment in self.segments:
            if segment.type != PT_NOTE:
                continue
            position, end = segment.offset, segment.offset + segment.file_size
            end = min(end, len(self.image))
            while position + NOTE.size <= end and seen < NOTES_MAX:
                seen += 1
                name_size, desc_size, note_type = NOTE.unpack_from(self.image, position)
                name_at = position + NOTE.size
                desc_at = name_at + (name_size + 3 & ~3)
                position = desc_at + (desc_size + 3 & ~3)
                if desc_at + desc_size > end:
                    break
                name = bytes(self.image[name_at : name_at + name_size]).rstrip(b"\0")
                yield name, note_type, bytes(self.image[desc_at : desc_at + desc_size])


def parse(image: memoryview) -> Elf:
    """Read the headers of `image`. Raises `BootError` for anything not an x86 executable."""
    if not is_elf(image) or len(image) < HEADER32.size:
        raise BootError("KERNEL: not an ELF file, or only the beginning of one")
    if image[4] not in (1, 2) or image[5] != 1:
        raise BootError(
            "KERNEL: an ELF file of another kind than 32- or 64-bit little-endian; "
            "pykvm boots kernels for x86"
        )
    bits = 64 if image[4] == 2 else 32
    header, program = (HEADER64, PROGRAM64) if bits == 64 else (HEADER32, PROGRAM32)
    if len(image) < header.size:
        raise BootError("KERNEL: the ELF header is truncated; copy the file again")
    (_type, machine, _version, entry, phoff, shoff, _flags, _ehsize, phentsize, phnum, shentsize,
     shnum, _shstrndx) = header.unpack_from(image)  # fmt: skip
    if machine not in (EM_386, EM_X86_64):
        name = FOREIGN_MACHINES.get(machine, f"machine {machine}")
        raise BootError(f"KERNEL: an ELF file for {name}; pykvm boots kernels for x86")
    if phnum == 0:
        raise BootError("KERNEL: the ELF file has no program headers: not linked, or a module")
    if phentsize != program.size:
        raise BootError(f"KERNEL: ELF program headers of {phentsize} bytes, not {program.size}")
    if phoff + phnum * program.size > len(image):
        raise BootError("KERNEL: the ELF program headers are truncated; copy the file again")
    segments = []
    for fields in program.iter_unpack(image[phoff : phoff + phnum * program.size]):
        if bits == 64:
            kind, _, offset, vaddr, paddr, file_size, memory_size, _ = fields
        else:
            kind, offset, vaddr, paddr, file_size, memory_size, _, _ = fields
        if kind == PT_INTERP:
            raise BootError(
                "KERNEL: a Linux program, not a kernel; to run it in a guest: "
                "pykvm boot --add FILE -- FILE"
            )
        if kind in (PT_LOAD, PT_NOTE):
            segments.append(Segment(kind, offset, vaddr, paddr, file_size, memory_size))
    has_symbols = _has_symbols(image, bits, shoff, shentsize, shnum)
    return Elf(image, bits, entry, tuple(segments), image if has_symbols else None)


def _has_symbols(image: memoryview, bits: int, shoff: int, shentsize: int, shnum: int) -> bool:
    """Whether a section is a symbol table. Damaged section headers are no obstacle to booting."""
    section = SECTION64 if bits == 64 else SECTION32
    end = shoff + shnum * section.size
    if shoff == 0 or shentsize != section.size or end > len(image):
        return False
    return any(kind == SHT_SYMTAB for (kind,) in section.iter_unpack(image[shoff:end]))


def load_segments(elf: Elf, memory: GuestMemory, claims: Claims, file: int | None = None) -> None:
    """Copy every PT_LOAD segment to its physical address; from `file`, a descriptor, when given.

    The rest of a segment (its bss) is not written: guest memory starts as zeros. Overlapping
    segments are refused, so the work is bounded by the size of guest memory whatever the headers
    say. Raises `BootError`, having copied nothing.
    """
    if not elf.loadable:
        raise BootError("KERNEL: the ELF file has no loadable segment")
    for number, segment in enumerate(elf.loadable):
        if segment.file_size > segment.memory_size:
            raise BootError(
                f"KERNEL: ELF segment {number} has {segment.file_size:#x} bytes in the file but "
                f"only {segment.memory_size:#x} in memory"
            )
        if segment.offset + segment.file_size > len(elf.image):
            raise BootError(
                f"KERNEL: truncated: ELF segment {number} ends at byte "
                f"{segment.offset + segment.file_size} of {len(elf.image)}; copy the file again"
            )
    # The highest first: when memory is too small, the error tells how much will do for all.
    for number, segment in sorted(
        enumerate(elf.loadable), key=lambda item: item[1].paddr + item[1].memory_size, reverse=True
    ):
        claims.claim(segment.paddr, segment.memory_size, f"the kernel's ELF segment {number}")
    for segment in elf.loadable:
        if file is not None:
            try:
                memory.write_from(segment.paddr, file, segment.offset, segment.file_size)
            except OSError as error:
                raise BootError(f"KERNEL: cannot read it decompressed: {error}") from error
        else:
            data = elf.image[segment.offset : segment.offset + segment.file_size]
            memory.write(segment.paddr, data)

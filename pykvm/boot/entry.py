"""What a loader is given and what it gives back. Loading bytes is one thing, CPU state another.

Reached from `boot.load()`; `x86.enter()` turns an `Entry` into vCPU registers. Every loader is a
function `load(image, memory, spec) -> Entry` in a module of its own, named after its protocol.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING, Enum, Record

if TYPE_CHECKING:
    from collections.abc import Mapping


class CpuMode(Enum):
    """The processor mode at the guest's first instruction."""

    REAL = "real"  # 16-bit, segment registers given
    PROTECTED = "protected"  # 32-bit, flat 4 GiB segments, paging off
    LONG = "long"  # 64-bit, flat segments, the first 4 GiB identity-mapped


class Entry(Record):
    """Where and how the boot vCPU starts."""

    protocol: str  # as `--protocol` spells it
    mode: CpuMode
    rip: int
    regs: Mapping[str, int] = {}  # general registers, by name; others are 0
    segments: Mapping[str, int] = {}  # REAL only: selectors by name
    symbols: bytes | memoryview | None = None  # an ELF image whose symbol table names functions
    linked: tuple[tuple[int, int, int], ...] = ()  # of an ELF: vaddr, paddr and size by segment
    notes: tuple[str, ...] = ()  # what the user should know: one line each, for stderr


class E820(Record):
    """One entry of the guest's memory map (ACPI 6.5 §15 System Address Map Interfaces)."""

    gpa: int
    size: int
    type: int  # E820_RAM or E820_RESERVED


E820_RAM = 1
E820_RESERVED = 2


class BootSpec(Record):
    """What the user asked for, as bytes. Addresses are the loaders' affair."""

    cmdline: bytes = b""  # without the final NUL
    initrd: bytes | memoryview = b""  # several files, already joined
    modules: tuple[tuple[bytes, bytes], ...] = ()  # multiboot modules: (data, command line)
    rsdp: int | None = None  # gpa of the ACPI RSDP, when there are tables
    mode: CpuMode | None = None  # flat binaries only
    load: int | None = None  # flat binaries only: gpa
    entry: int | None = None  # flat binaries only: gpa
    name: bytes = b"kernel"  # the image's file name: argv[0] of a multiboot command line
    stamp: str = ""  # the image file's (see `files.open_image`); empty: hash the image

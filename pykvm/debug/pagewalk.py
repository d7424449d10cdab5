"""Following the guest's page tables by hand, as its processor would.

Reached from the gdb stub, for every address gdb names, and from ``vm.memory.walk(gva)``. Sources:
Intel SDM vol. 3A §4.3 "32-Bit Paging", §4.4 "PAE Paging", §4.5 "4-Level Paging and 5-Level
Paging"; AMD APM vol. 2 ch. 5 "Page Translation and Protection". Nothing is cached and no bit is
set: this is what the tables say now, and the processor's TLB may still remember something else.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from pykvm.lean import Record
from pykvm.memory import GuestMemoryError

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory

CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
EFER_LMA: Final = 1 << 10

PRESENT: Final = 1 << 0
LARGE: Final = 1 << 7
ADDRESS: Final = 0x000F_FFFF_FFFF_F000  # bits 51:12 of an entry of 8 bytes

# Bit, letter, meaning: the same in every level and mode (SDM vol. 3A tables 4-14 to 4-20).
FLAGS: Final = (
    (0, "P", "present"),
    (1, "W", "writable"),
    (2, "U", "user"),
    (3, "T", "write-through"),
    (4, "C", "cache disabled"),
    (5, "A", "accessed"),
    (6, "D", "dirty"),
    (7, "L", "large page"),
    (8, "G", "global"),
    (63, "X", "no execute"),
)
# What only an entry that maps a page has; elsewhere these bits are ignored or mean something else.
LEAF_BITS: Final = (6, 7, 8)


class Level(Record):
    """One entry that the walk has read."""

    name: str  # PML5E, PML4E, PDPTE, PDE or PTE
    gpa: int  # where the entry lies
    place: int  # which one of its table it is: the part of the address that chose it
    value: int
    page: int  # the size in bytes of the page it maps; 0: it leads to another table

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the bits that are set."""
        return tuple(
            gloss
            for bit, _, gloss in FLAGS
            if self.value >> bit & 1 and (self.page or bit not in LEAF_BITS)
        )

    @property
    def letters(self) -> str:
        """The flags as one letter each, a dash for each that is not set."""
        return "".join(
            letter if self.value >> bit & 1 and (self.page or bit not in LEAF_BITS) else "-"
            for bit, letter, _ in reversed(FLAGS)
        )


class Walk(Record):
    """A guest-virtual address, and how the processor gets from it to a guest-physical one."""

    gva: int
    mode: str  # the paging mode, in the manual's words
    root: int  # where the first table lies: from CR3
    levels: tuple[Level, ...]
    gpa: int | None  # None: not mapped
    why: str = ""  # not mapped: why

    @property
    def page(self) -> int:
        """The size of the page, in bytes; 0 without one."""
        return self.levels[-1].page if self.levels else 0

    @property
    def writable(self) -> bool:
        """Whether every level allows writing."""
        return self.gpa is not None and all(level.value >> 1 & 1 for level in self.levels)

    @property
    def user(self) -> bool:
        """Whether every level lets ring 3 in."""
        return self.gpa is not None and all(level.value >> 2 & 1 for level in self.levels)

    @property
    def executable(self) -> bool:
        """Whether no level forbids execution."""
        return self.gpa is not None and not any(level.value >> 63 for level in self.levels)

    def __repr__(self) -> str:
        from pykvm.debug.draw import walk_text

        return walk_text(self)

    def _repr_html_(self) -> str:
        from pykvm.debug.draw import walk_html

        return walk_html(self)


class Paging(Record):
    """What of a processor's state the walk depends on."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    @classmethod
    def of(cls, sregs: Any) -> Paging:
        """From a `struct kvm_sregs`."""
        return cls(int(sregs.cr0), int(sregs.cr3), int(sregs.cr4), int(sregs.efer))


class _Tables(Record):
    """The tables of a paging mode."""

    levels: tuple[tuple[str, int, int], ...]  # name, lowest bit of the index, its width
    large: tuple[str, ...] = ("PDE",)  # whose entries may map a page
    entry: struct.Struct = struct.Struct("<Q")
    address: int = ADDRESS  # the bits of an entry that say where the next table or the page is

    def page(self, value: int, shift: int) -> int:
        """Where the page of an entry lies that maps 1 << `shift` bytes."""
        base = value & self.address & ~((1 << shift) - 1)
        if self.entry.size == 4 and shift == 22:  # PSE-36: bits 39:32 are in bits 20:13
            base |= (value >> 13 & 0xFF) << 32
        return base


# SDM vol. 3A tables 4-3 to 4-20. PAE's PDPTE maps no page; nor does a PML4E (table 4-15).
_4_LEVEL: Final = _Tables(
    (("PML4E", 39, 9), ("PDPTE", 30, 9), ("PDE", 21, 9), ("PTE", 12, 9)), ("PDPTE", "PDE")
)
_5_LEVEL: Final = _4_LEVEL._replace(levels=(("PML5E", 48, 9), *_4_LEVEL.levels))
_PAE: Final = _Tables((("PDPTE", 30, 2), ("PDE", 21, 9), ("PTE", 12, 9)))
_32_BIT: Final = _Tables(
    (("PDE", 22, 10), ("PTE", 12, 10)), (), struct.Struct("<I"), address=0xFFFF_F000
)


def walk(memory: GuestMemory, paging: Paging, gva: int) -> Walk:
    """Translate `gva`. Never raises: what is not mapped says why."""
    if not paging.cr0 & CR0_PG:
        gva &= 0xFFFF_FFFF
        return Walk(gva, "no paging", 0, (), gva)
    if not paging.efer & EFER_LMA:
        gva &= 0xFFFF_FFFF
        if paging.cr4 & CR4_PAE:
            # The entries are read from CR3's table; the processor has them since CR3 was written.
            return _walk(memory, "PAE paging", paging.cr3 & 0xFFFF_FFE0, _PAE, gva)
        tables = _32_BIT._replace(large=("PDE",) if paging.cr4 & CR4_PSE else ())
        return _walk(memory, "32-bit paging", paging.cr3 & 0xFFFF_F000, tables, gva)
    mode, bits, tables = "4-level paging", 48, _4_LEVEL
    if paging.cr4 & CR4_LA57:
        mode, bits, tables = "5-level paging", 57, _5_LEVEL
    root = paging.cr3 & ADDRESS
    if gva >> (bits - 1) not in (0, (1 << (65 - bits)) - 1):
        return Walk(gva, mode, root, (), None, "not canonical")
    return _walk(memory, mode, root, tables, gva)


def _walk(memory: GuestMemory, mode: str, root: int, tables: _Tables, gva: int) -> Walk:
    levels: list[Level] = []
    table, size = root, tables.entry.size
    for name, shift, width in tables.levels:
        place = gva >> shift & (1 << width) - 1
        at = table + size * place
        try:
            (value,) = tables.entry.unpack(memory.read(at, size))
        except GuestMemoryError:
            why = f"the {name} would be at {at:#x}, where no memory is"
            return Walk(gva, mode, root, tuple(levels), None, why)
        last = name == "PTE" or (name in tables.large and bool(value & LARGE))
        levels.append(Level(name, at, place, value, 1 << shift if last else 0))
        if not value & PRESENT:
            return Walk(gva, mode, root, tuple(levels), None, f"the {name} is not present")
        if last:
            gpa = tables.page(value, shift) | gva & (1 << shift) - 1
            return Walk(gva, mode, root, tuple(levels), gpa)
        table = value & tables.address
    raise AssertionError("the last level maps a page")

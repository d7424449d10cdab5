"""The MP table: what kernels without ACPI know of CPUs and interrupts.

Reached from `machine`, for guests whose boot protocol does not tell them of ACPI alone. xv6 and
other small kernels look for it, and Linux without ACPI (``acpi=off``, or configured so, as for
Firecracker). Source: Intel MultiProcessor Specification 1.4, chapter 4. ::

    "_MP_"  floating pointer, where a BIOS is searched
      └─ "PCMP"  processors, the ISA bus, the IOAPIC, and what leads to its pins
"""

from __future__ import annotations

import struct
from functools import lru_cache

from pykvm import layout
from pykvm.acpi import checksum
from pykvm.lean import TYPE_CHECKING, IntEnum

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

CPUS_MAX: Final = 255  # ids of 8 bits, without the one that means all

POINTER: Final = struct.Struct("<4sIBBB5s")  # §4.1 MP Floating Pointer Structure
HEADER: Final = struct.Struct("<4sHBB8s12sIHHIHBx")  # §4.2 MP Configuration Table Header
PROCESSOR: Final = struct.Struct("<BBBBII8x")  # §4.3.1: APIC id and version, flags, signature
BUS: Final = struct.Struct("<BB6s")  # §4.3.2
IOAPIC: Final = struct.Struct("<BBBBI")  # §4.3.3: id, version, flags, address
INTERRUPT: Final = struct.Struct("<BBHBBBB")  # §4.3.4, §4.3.5: kind, flags, from bus and line, to
assert (POINTER.size, HEADER.size, PROCESSOR.size, BUS.size) == (16, 44, 20, 8)
assert (IOAPIC.size, INTERRUPT.size) == (8, 8)

REVISION: Final = 4  # 1.4
ENABLED: Final = 1 << 0  # flags of a processor, and of an IOAPIC
BOOT_PROCESSOR: Final = 1 << 1
LAPIC_VERSION: Final = 0x14
IOAPIC_VERSION: Final = 0x11
SIGNATURE: Final = 0x600  # a P6; CPUID says it better
FEATURES: Final = 1 << 0 | 1 << 9  # an FPU, an APIC
PINS: Final = 24  # of KVM's IOAPIC
CASCADE: Final = 2  # the line of the second PIC
ACTIVE_HIGH_LEVEL: Final = 0b1101
ALL: Final = 0xFF


class Entry(IntEnum):
    """§4.3 Base MP Configuration Table Entries, "Entry Type"."""

    PROCESSOR = 0
    BUS = 1
    IOAPIC = 2
    IO_INTERRUPT = 3
    LOCAL_INTERRUPT = 4


class Kind(IntEnum):
    """§4.3.4 I/O Interrupt Assignment Entries, "Interrupt type"."""

    INT = 0  # vectored by the IOAPIC
    NMI = 1
    EXTINT = 3  # vectored by the PIC


@lru_cache(maxsize=16)
def build(cpus: int) -> bytes:
    """The pointer, and the table behind it, for `layout.MP_TABLE`; of the first `CPUS_MAX` CPUs."""
    entries = [
        PROCESSOR.pack(
            Entry.PROCESSOR,
            apic_id,
            LAPIC_VERSION,
            ENABLED if apic_id else ENABLED | BOOT_PROCESSOR,
            SIGNATURE,
            FEATURES,
        )
        for apic_id in range(min(cpus, CPUS_MAX))
    ]
    entries.append(BUS.pack(Entry.BUS, 0, b"ISA   "))
    entries.append(IOAPIC.pack(Entry.IOAPIC, 0, IOAPIC_VERSION, ENABLED, layout.IOAPIC))
    # As KVM has them wired, each line leads to the pin of its number: see `acpi`, on the MADT.
    entries += [
        INTERRUPT.pack(Entry.IO_INTERRUPT, Kind.INT, flags, 0, line, 0, line)
        for line in range(PINS)
        for flags in [ACTIVE_HIGH_LEVEL if line == layout.IRQ_SCI else 0]
        if line != CASCADE
    ]
    entries.append(INTERRUPT.pack(Entry.LOCAL_INTERRUPT, Kind.EXTINT, 0, 0, 0, 0, 0))
    entries.append(INTERRUPT.pack(Entry.LOCAL_INTERRUPT, Kind.NMI, 0, 0, 0, ALL, 1))
    body = b"".join(entries)
    size = HEADER.size + len(body)
    # fmt: off
    table = bytearray(HEADER.pack(
        b"PCMP", size, REVISION, 0,
        b"PYKVM   ", b"PYKVM       ", 0, 0,  # no table of the maker's own
        len(entries), layout.LAPIC, 0, 0,    # no extended entries
    ) + body)
    # fmt: on
    table[7] = checksum(table)
    at = layout.MP_TABLE + POINTER.size
    pointer = bytearray(POINTER.pack(b"_MP_", at, 1, REVISION, 0, bytes(5)))
    pointer[10] = checksum(pointer)
    return bytes(pointer + table)


def place(memory: GuestMemory, cpus: int) -> None:
    """Write it, unless the guest's image lies there."""
    data = build(cpus)
    end = layout.MP_TABLE + len(data)
    if memory.contains(layout.MP_TABLE, len(data)) and not any(
        memory.read(layout.MP_TABLE, len(data))
    ):
        memory.write(layout.MP_TABLE, data)
        memory.placed.append((layout.MP_TABLE, end, "the MP table"))

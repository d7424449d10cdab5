"""The boot vCPU's state: from an `Entry` to registers, descriptors and page tables.

Reached from `machine` after the loaders. Sources: Intel SDM vol. 3A ch. 3 "Protected-Mode Memory
Management", ch. 4 "Paging", ch. 9 "Processor Management and Initialization". Read `boot.entry`.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.boot.entry import CpuMode, Entry
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory
from pykvm.vcpu import Vcpu

if TYPE_CHECKING:
    from typing import Any, Final

CR0_PE: Final = 1 << 0  # protected mode
CR0_ET: Final = 1 << 4  # fixed to 1
CR0_PG: Final = 1 << 31  # paging
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_RESERVED: Final = 1 << 1  # always 1

PAGE_PRESENT: Final = 1 << 0
PAGE_WRITABLE: Final = 1 << 1
PAGE_LARGE: Final = 1 << 7  # in a page-directory entry: 2 MiB

# Linux Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL": __BOOT_CS is 0x10, __BOOT_DS 0x18.
BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18
TYPE_CODE: Final = 0xB  # execute/read, accessed
TYPE_DATA: Final = 0x3  # read/write, accessed

MSR_MTRR_DEF_TYPE: Final = 0x2FF
MTRR_ENABLE_WRITE_BACK: Final = 1 << 11 | 6

LAPIC_SPURIOUS: Final = 0x0F0  # offsets of the local APIC's registers
LAPIC_LINT0: Final = 0x350
LAPIC_LINT1: Final = 0x360
LAPIC_ENABLED: Final = 1 << 8  # in the spurious-interrupt vector register
LAPIC_EXTINT: Final = 7 << 8  # delivery modes: ask the PIC; NMI
LAPIC_NMI: Final = 4 << 8


def enter(vcpu: Vcpu, memory: GuestMemory, entry: Entry) -> None:
    """Put the boot vCPU at `entry`. Writes the GDT and, for long mode, page tables to memory."""
    sregs = vcpu.get_sregs()
    if entry.mode is CpuMode.REAL:
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            selector = entry.segments.get(name, 0)
            segment = getattr(sregs, name)
            segment.selector, segment.base = selector, selector << 4
    else:
        _set_flat_segments(sregs, long=entry.mode is CpuMode.LONG)
        _write_gdt(memory, sregs)
        sregs.cr0 = CR0_PE | CR0_ET
    if entry.mode is CpuMode.LONG:
        sregs.cr3 = _write_identity_map(memory)
        sregs.cr4 |= CR4_PAE
        sregs.cr0 |= CR0_PG
        sregs.efer |= EFER_LME | EFER_LMA
    vcpu.set_sregs(sregs)

    regs = vcpu.get_regs()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"):
        setattr(regs, name, entry.regs.get(name, 0))
    regs.rsp = entry.regs.get("rsp", layout.BOOT_STACK)
    regs.rip = entry.rip
    regs.rflags = RFLAGS_RESERVED
    vcpu.set_regs(regs)


def set_memory_types(vcpu: Vcpu) -> None:
    """Memory is write-back unless the guest says otherwise: what firmware would have set up."""
    vcpu.set_msrs({MSR_MTRR_DEF_TYPE: MTRR_ENABLE_WRITE_BACK})


def set_up_lapic(vcpu: Vcpu) -> None:
    """Leave the boot vCPU's local APIC as firmware does: enabled, in virtual wire mode (Intel SDM
    vol. 3A §11.5.1 "Local Vector Table"; MultiProcessor Specification 1.4 §3.6.2.2).

    After the last vCPU was created: KVM finds the target of an IPI in a map that it only draws anew
    when a local APIC's state changes, and a guest may send INIT before it changes anything.
    """
    lapic = vcpu.get_lapic()
    for register, value in (
        (LAPIC_SPURIOUS, LAPIC_ENABLED | 0xFF),
        (LAPIC_LINT0, LAPIC_EXTINT),
        (LAPIC_LINT1, LAPIC_NMI),
    ):
        lapic.regs[register : register + 4] = value.to_bytes(4, "little")
    vcpu.set_lapic(lapic)


def _set_flat_segments(sregs: Any, *, long: bool) -> None:
    """4 GiB segments from 0; the code segment is 64-bit in long mode."""
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        code = name == "cs"
        segment.base = 0
        segment.limit = 0xFFFF_FFFF
        segment.selector = BOOT_CS if code else BOOT_DS
        segment.type = TYPE_CODE if code else TYPE_DATA
        segment.present, segment.s, segment.g, segment.dpl = 1, 1, 1, 0
        segment.l = 1 if code and long else 0
        segment.db = 0 if code and long else 1


def _descriptor(segment: Any) -> int:
    """The 8-byte segment descriptor of `segment` (Intel SDM vol. 3A §3.4.5)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    return int(
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _write_gdt(memory: GuestMemory, sregs: Any) -> None:
    """null, null, code, data: what the selectors in `sregs` name, for guests that reload them."""
    table = (0, 0, _descriptor(sregs.cs), _descriptor(sregs.ds))
    memory.write(layout.GDT, struct.pack("<4Q", *table))
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, len(table) * 8 - 1


def _write_identity_map(memory: GuestMemory) -> int:
    """Map the first 4 GiB to themselves in 2 MiB pages; returns the gpa of the PML4.

    ::

        PML4[0] ──> PDPT[0..3] ──> 4 page directories of 512 entries, 2 MiB each
    """
    pml4 = layout.PAGE_TABLES
    pdpt = pml4 + 0x1000
    directories = pdpt + 0x1000
    flags = PAGE_PRESENT | PAGE_WRITABLE
    memory.write(pml4, struct.pack("<Q", pdpt | flags))
    memory.write(pdpt, struct.pack("<4Q", *(directories + i * 0x1000 | flags for i in range(4))))
    pages = range(flags | PAGE_LARGE, 4 << 30, 2 << 20)
    memory.write(directories, struct.pack("<2048Q", *pages))
    return pml4

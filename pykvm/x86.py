"""The boot vCPU's state: from an `Entry` to registers, descriptors and page tables.

Reached from `machine` after the loaders. Sources: Intel SDM vol. 3A ch. 3 "Protected-Mode Memory
Management", ch. 4 "Paging", ch. 9 "Processor Management and Initialization". Read `boot.entry`.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from pykvm import layout
from pykvm._core import ffi
from pykvm.boot.entry import CpuMode, Entry
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory
from pykvm.vcpu import Vcpu, pack_msrs

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


def _flat(selector: int, type: int, **size: int) -> Any:
    """A segment of 4 GiB from 0; its `size` is db (32 bits) or l (64 bits)."""
    fields = {"selector": selector, "type": type, "limit": 0xFFFF_FFFF}
    return ffi.new("struct kvm_segment *", {**fields, "present": 1, "s": 1, "g": 1, **size})[0]


CODE_32: Final = _flat(BOOT_CS, TYPE_CODE, db=1)
CODE_64: Final = _flat(BOOT_CS, TYPE_CODE, l=1)
DATA: Final = _flat(BOOT_DS, TYPE_DATA, db=1)

MSR_MTRR_DEF_TYPE: Final = 0x2FF
MEMORY_TYPES: Final = pack_msrs({MSR_MTRR_DEF_TYPE: 1 << 11 | 6})  # enabled; write-back

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
        long = entry.mode is CpuMode.LONG
        sregs.cs = CODE_64 if long else CODE_32
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = DATA
        table = _gdt(long)
        memory.write(layout.GDT, table)
        sregs.gdt.base, sregs.gdt.limit = layout.GDT, len(table) - 1
        sregs.cr0 = CR0_PE | CR0_ET
    if entry.mode is CpuMode.LONG:
        memory.write(layout.PAGE_TABLES, _identity_map())
        sregs.cr3 = layout.PAGE_TABLES
        sregs.cr4 |= CR4_PAE
        sregs.cr0 |= CR0_PG
        sregs.efer |= EFER_LME | EFER_LMA
    vcpu.set_sregs(sregs)
    start = {"rsp": layout.BOOT_STACK, **entry.regs, "rip": entry.rip, "rflags": RFLAGS_RESERVED}
    vcpu.set_regs(ffi.new("struct kvm_regs *", start))


def set_memory_types(vcpu: Vcpu) -> None:
    """Memory is write-back unless the guest says otherwise: what firmware would have set up."""
    vcpu.set_msr_rows(MEMORY_TYPES)


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


@lru_cache
def _gdt(long: bool) -> bytes:
    """null, null, code, data: what the selectors name, for guests that reload them."""
    code = CODE_64 if long else CODE_32
    return struct.pack("<4Q", 0, 0, _descriptor(code), _descriptor(DATA))


@lru_cache
def _identity_map() -> bytes:
    """Page tables for `layout.PAGE_TABLES` that map the first 4 GiB to themselves in 2 MiB pages.

    ::

        PML4[0] ──> PDPT[0..3] ──> 4 page directories of 512 entries, 2 MiB each
    """
    pdpt = layout.PAGE_TABLES + 0x1000
    directories = pdpt + 0x1000
    flags = PAGE_PRESENT | PAGE_WRITABLE
    pages = range(flags | PAGE_LARGE, 4 << 30, 2 << 20)
    return (
        struct.pack("<Q4088x", pdpt | flags)
        + struct.pack("<4Q4064x", *(directories + i * 0x1000 | flags for i in range(4)))
        + struct.pack("<2048Q", *pages)
    )

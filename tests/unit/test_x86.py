"""The boot vCPU's state, set on registers that no processor has: descriptors, paging, the APIC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm import layout, x86
from pykvm._core import ffi
from pykvm.boot.entry import CpuMode, Entry
from pykvm.memory import GuestMemory


class Registers:
    """What `x86` needs of a vCPU: get and set."""

    def __init__(self) -> None:
        self.regs = ffi.new("struct kvm_regs *", {"rax": 0x600, "r15": 9})
        self.sregs = ffi.new("struct kvm_sregs *")
        self.lapic = ffi.new("struct kvm_lapic_state *")

    def get_regs(self) -> Any:
        return self.regs

    def set_regs(self, regs: Any) -> None:
        self.regs = regs

    def get_sregs(self) -> Any:
        return self.sregs

    def set_sregs(self, sregs: Any) -> None:
        self.sregs = sregs

    def get_lapic(self) -> Any:
        return self.lapic

    def set_lapic(self, lapic: Any) -> None:
        self.lapic = lapic


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


def entered(memory: GuestMemory, entry: Entry) -> Any:
    vcpu: Any = Registers()
    x86.enter(vcpu, memory, entry)
    return vcpu


def walk(memory: GuestMemory, cr3: int, gva: int) -> int | None:
    """The gpa of `gva` by 4-level paging (Intel SDM vol. 3A §4.5), or None when not mapped."""
    table = cr3
    for shift in (39, 30, 21, 12):
        (entry,) = struct.unpack("<Q", memory.read(table + (gva >> shift & 0x1FF) * 8, 8))
        if not entry & 1:
            return None
        table = entry & 0x000F_FFFF_FFFF_F000
        if shift == 12 or (entry >> 7 & 1 and shift < 39):
            return int(table) + (gva & (1 << shift) - 1)
    return None


@pytest.mark.parametrize(
    "gva", [0, 0xFFF, 0x1F_FFFF, 0x20_0000, 0x4000_0000, 0xFEC0_0000, 0xFFFF_FFFF]
)
def test_first_four_gib_are_mapped_to_themselves(memory: GuestMemory, gva: int) -> None:
    vcpu = entered(memory, Entry("flat", CpuMode.LONG, 0x10_0000))
    assert walk(memory, vcpu.sregs.cr3, gva) == gva


@pytest.mark.parametrize("gva", [1 << 32, 1 << 39, (1 << 47) - 1])
def test_beyond_four_gib_nothing_is_mapped(memory: GuestMemory, gva: int) -> None:
    vcpu = entered(memory, Entry("flat", CpuMode.LONG, 0x10_0000))
    assert walk(memory, vcpu.sregs.cr3, gva) is None


@pytest.mark.parametrize(
    ("mode", "code"),
    [(CpuMode.PROTECTED, 0x00CF_9B00_0000_FFFF), (CpuMode.LONG, 0x00AF_9B00_0000_FFFF)],
)
def test_gdt_has_what_the_selectors_name(memory: GuestMemory, mode: CpuMode, code: int) -> None:
    sregs = entered(memory, Entry("flat", mode, 0x10_0000)).sregs
    table = memory.read(sregs.gdt.base, sregs.gdt.limit + 1)
    descriptors = struct.unpack(f"<{len(table) // 8}Q", table)
    assert descriptors[sregs.cs.selector // 8] == code
    assert descriptors[sregs.ds.selector // 8] == 0x00CF_9300_0000_FFFF
    assert descriptors[0] == 0


@pytest.mark.parametrize(
    ("mode", "cr0", "cr4", "efer"),
    [
        (CpuMode.PROTECTED, 0x0000_0011, 0, 0),
        (CpuMode.LONG, 0x8000_0011, 0x20, 0x500),
    ],
)
def test_control_registers_are_those_of_the_mode(
    memory: GuestMemory, mode: CpuMode, cr0: int, cr4: int, efer: int
) -> None:
    sregs = entered(memory, Entry("flat", mode, 0x10_0000)).sregs
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (cr0, cr4, efer)
    assert (sregs.cs.l, sregs.cs.db) == ((1, 0) if mode is CpuMode.LONG else (0, 1))
    assert sregs.ds.limit == 0xFFFF_FFFF


def test_real_mode_segments_begin_at_sixteen_times_the_selector(memory: GuestMemory) -> None:
    entry = Entry("flat", CpuMode.REAL, 0x100, segments={"cs": 0x1020, "ds": 0x1000})
    vcpu = entered(memory, entry)
    assert (vcpu.sregs.cs.selector, vcpu.sregs.cs.base) == (0x1020, 0x1_0200)
    assert (vcpu.sregs.ds.base, vcpu.sregs.es.base) == (0x1_0000, 0)
    assert vcpu.sregs.cr0 & 1 == 0
    assert vcpu.regs.rip == 0x100


def test_registers_are_the_entrys_and_the_rest_are_zero(memory: GuestMemory) -> None:
    entry = Entry("flat", CpuMode.PROTECTED, 0x10_0000, regs={"rsi": 0x7000, "rbx": 5})
    regs = entered(memory, entry).regs
    assert (regs.rsi, regs.rbx, regs.rax, regs.rdx) == (0x7000, 5, 0, 0)
    assert (regs.rip, regs.rsp, regs.rflags) == (0x10_0000, layout.BOOT_STACK, 2)


def test_boot_cpus_local_apic_is_enabled_in_virtual_wire_mode() -> None:
    vcpu: Any = Registers()
    x86.set_up_lapic(vcpu)
    page = bytes(ffi.buffer(vcpu.lapic))
    registers = {at: struct.unpack_from("<I", page, at)[0] for at in (0x0F0, 0x350, 0x360)}
    assert registers == {0x0F0: 0x1FF, 0x350: 0x700, 0x360: 0x400}

"""Flat binaries: where they go and how they are entered, by mode."""

from __future__ import annotations

import pytest
from images import HLT, elf

from pykvm import boot
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory


def test_a_boot_sector_finds_itself_at_7c00_with_its_stack_below() -> None:
    with GuestMemory(MIB) as memory:
        entry = boot.load(HLT * 512, memory, BootSpec(mode=CpuMode.REAL))
        assert memory.read(0x7C00, 512) == HLT * 512
        assert (entry.mode, entry.rip, set(entry.segments.values())) == (CpuMode.REAL, 0x7C00, {0})
        assert entry.regs == {"rsp": 0x7C00, "rdx": 0x80}


@pytest.mark.parametrize("mode", [CpuMode.PROTECTED, CpuMode.LONG])
def test_other_modes_load_at_1_mib(mode: CpuMode) -> None:
    with GuestMemory(2 * MIB) as memory:
        entry = boot.load(HLT, memory, BootSpec(mode=mode))
        assert (entry.protocol, entry.mode, entry.rip) == ("flat", mode, MIB)
        assert memory.read(MIB, 2) == HLT + b"\0"


def test_load_and_entry_are_taken_as_given() -> None:
    with GuestMemory(8 * MIB) as memory:
        spec = BootSpec(mode=CpuMode.LONG, load=4 * MIB, entry=4 * MIB + 16)
        assert boot.load(HLT * 32, memory, spec).rip == 4 * MIB + 16
        assert memory.read(4 * MIB, 1) == HLT


def test_a_real_mode_entry_above_64_kib_gets_a_segment() -> None:
    with GuestMemory(MIB) as memory:
        entry = boot.load(HLT * 32, memory, BootSpec(load=0x2_3000, entry=0x2_3010))
        assert (entry.segments["cs"] << 4) + entry.rip == 0x2_3010
        assert set(entry.segments.values()) == {0x2000}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (BootSpec(mode=CpuMode.REAL, load=MIB), "--entry: 0x100000 is out of real mode's reach"),
        (BootSpec(mode=CpuMode.LONG, entry=0x1234), "--entry: 0x1234 is not in the image"),
        (BootSpec(mode=CpuMode.LONG, entry=MIB + 4096), "--entry: .* is not in the image"),
        (BootSpec(mode=CpuMode.LONG, load=1 << 40), r"--load: .*3 GiB"),
        (BootSpec(mode=CpuMode.LONG, load=64 * MIB), "--memory 65M"),
        (BootSpec(mode=CpuMode.LONG, load=-1), "--load: -1"),
        (BootSpec(mode=CpuMode.LONG, load=0xA000), "overlaps pykvm's page tables"),
        (BootSpec(mode=CpuMode.PROTECTED, load=0x8000), "overlaps the initial stack"),
        (BootSpec(mode=CpuMode.REAL, initrd=b"x"), "--initrd: a flat binary"),
    ],
)
def test_what_cannot_work_is_refused_by_the_options_name(spec: BootSpec, message: str) -> None:
    with GuestMemory(2 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(HLT * 4096, memory, spec)


def test_mode_for_an_elf_file_is_refused_unless_flat_is_forced() -> None:
    with GuestMemory(4 * MIB) as memory:
        with pytest.raises(BootError, match=r"--mode, --load and --entry .* an ELF file"):
            boot.load(elf(), memory, BootSpec(mode=CpuMode.LONG))
        assert boot.load(elf(), memory, BootSpec(mode=CpuMode.LONG), "flat").protocol == "flat"

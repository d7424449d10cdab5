"""What a guest finds in its local APIC without having touched it."""

from __future__ import annotations

from pykvm import guest_programs
from pykvm._core import ffi
from pykvm.config import MachineConfig
from pykvm.machine import Machine


def test_the_boot_cpus_local_apic_is_in_virtual_wire_mode() -> None:
    config = MachineConfig(kernel=guest_programs.path("smp"), memory=16 << 20, cpus=2)
    with Machine(config) as vm:
        registers = bytes(ffi.buffer(vm.vcpus[0].get_lapic()))
    spurious, lint0, lint1 = (
        int.from_bytes(registers[at : at + 4], "little") for at in (0xF0, 0x350, 0x360)
    )
    assert spurious & 1 << 8
    assert (lint0, lint1) == (0x700, 0x400)

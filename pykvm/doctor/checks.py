"""What the doctor asks, in one table.

Reached from `doctor.examination`, and from `doctor.why_not_linux` for the rows that Linux cannot do
without. A row's key is part of the JSON output: never renamed. Read `doctor.questions` for how.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pykvm import layout
from pykvm.boot.entry import CpuMode
from pykvm.doctor.debugging import at_int3, breakpoint, single_step, watchpoint
from pykvm.doctor.guest import EXCEPTION
from pykvm.doctor.host import Host, Question, Result
from pykvm.doctor.questions import (
    cpuid_hidden,
    dirty_log,
    immediate_exit,
    ioeventfd,
    irqfd,
    kick,
    mmio,
    page_fault,
    probe,
    second_cpu,
    string_io,
    timer,
)
from pykvm.errors import PykvmError


class Check(NamedTuple):
    """A question. `linux`: a stock 64-bit Linux cannot do without a yes."""

    key: str
    label: str
    function: Question
    linux: bool = False

    def run(self, host: Host) -> Result:
        """Ask. A failing ioctl is an answer."""
        try:
            return self.function(host)
        except PykvmError as error:
            return Result(False, str(error))


def complaint(check: Check, result: Result) -> str:
    """What is wrong, in half a sentence."""
    joint = " " if result.detail.startswith("does not") else ": "
    return f"{check.label}{joint}{result.detail}"


GROUPS: Final[dict[str, tuple[Check, ...]]] = {
    "modes and rings": (
        Check("real_mode", "real mode", probe("real_mode", mode=CpuMode.REAL)),
        Check("protected_mode", "protected mode", probe("protected_mode", mode=CpuMode.PROTECTED)),
        Check("long_mode", "long mode, paging", probe("long_mode"), linux=True),
        Check("ring3", "ring 3 and back", probe("ring3"), linux=True),
        Check("syscall", "SYSCALL from ring 3", probe("syscall_enters_ring0"), linux=True),
        Check("sysret", "SYSRET to ring 3", probe("sysret_enters_ring3"), linux=True),
        Check("int80", "INT 80h from ring 3", probe("int80")),
    ),
    "interrupts and exceptions": (
        Check("page_fault", "page fault", page_fault, linux=True),
        Check("ud2", "UD2", probe("ud2", wanted=EXCEPTION + 6), linux=True),
        Check("pit", "PIT interrupt", timer("pit_interrupt", 0x20), linux=True),
        Check("lapic_timer", "local APIC timer", timer("lapic_interrupt", 0x40), linux=True),
        Check("irqfd", "irqfd", irqfd),
        Check("second_cpu", "second vCPU by INIT, SIPI", second_cpu),
    ),
    "instructions in ring 0": (
        Check("int3", "INT3", probe("int3", wanted=EXCEPTION + 3), linux=True),
        Check("popcnt", "POPCNT", probe("popcnt", feature="popcnt"), linux=True),
        Check("cmpxchg16b", "CMPXCHG16B", probe("cmpxchg16b", feature="cx16"), linux=True),
        Check("clac", "CLAC", probe("clac", feature="smap"), linux=True),
        Check("stac", "STAC", probe("stac", feature="smap"), linux=True),
        Check("fwait", "FWAIT", probe("fwait"), linux=True),
        Check("ldmxcsr", "LDMXCSR", probe("ldmxcsr"), linux=True),
        Check("xsetbv", "XSETBV", probe("xsetbv", feature="xsave"), linux=True),
        Check("xsave", "XSAVE", probe("xsave", feature="xsave"), linux=True),
        Check("xrstor", "XRSTOR", probe("xrstor", feature="xsave"), linux=True),
        Check("rdfsbase", "RDFSBASE", probe("rdfsbase", feature="fsgsbase"), linux=True),
        Check("swapgs", "SWAPGS", probe("swapgs"), linux=True),
        Check("invpcid", "INVPCID", probe("invpcid", feature="invpcid"), linux=True),
    ),
    "leaving the guest": (
        Check("string_io", "string I/O", string_io),
        Check("mmio", "MMIO", mmio, linux=True),
        Check(
            "ioeventfd_pio",
            "ioeventfd on a port",
            ioeventfd("write_port", layout.PORT_POST, pio=True),
        ),
        Check(
            "ioeventfd_mmio",
            "ioeventfd in memory",
            ioeventfd("write_memory", layout.MMIO_HOLE, pio=False),
        ),
        Check("dirty_log", "dirty log", dirty_log),
        Check("immediate_exit", "immediate_exit", immediate_exit),
        Check("kick_ring0", "kick out of ring 0", kick("spin")),
        Check("kick_ring3", "kick out of ring 3", kick("spin_in_ring3")),
    ),
    "debugging": (
        Check("breakpoint_ring0", "hardware breakpoint, ring 0", breakpoint("steps", "breakpoint")),
        Check(
            "breakpoint_ring3",
            "hardware breakpoint, ring 3",
            breakpoint("steps_in_ring3", "user_breakpoint"),
        ),
        Check("watchpoint", "watchpoint, ring 0", watchpoint),
        Check("breakpoint_int3", "INT3 to the debugger", at_int3),
        Check("step_ring0", "single step, ring 0", single_step("steps", "steps")),
        Check("step_ring3", "single step, ring 3", single_step("steps_in_ring3", "user_steps")),
    ),
    "CPUID": (
        Check("cpuid_ring0", "hiding a feature, ring 0", cpuid_hidden("cpuid_ring0")),
        Check("cpuid_ring3", "hiding a feature, ring 3", cpuid_hidden("cpuid_ring3")),
    ),
}
CHECKS: Final = tuple(check for group in GROUPS.values() for check in group)

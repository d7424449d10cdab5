"""The exercises of lesson 3."""

from pykvm.boot.entry import CpuMode
from pykvm.lessons.exercise import Exercise, demand, guest, run

WRITABLE = 1 << 1


def second_name(file):
    with guest(file, "modes", mode=CpuMode.REAL) as vm:
        outcome = run(vm)
        demand(outcome.console == b"RPL\n", f"the guest printed {outcome.console!r}, not RPL")
        for gva in (0x7C00, 0x4000_7C00):
            gpa = vm.vcpus[0].translate(gva)
            demand(gpa == 0x7C00, f"{gva:#x} leads to {gpa if gpa is None else hex(gpa)}")


def read_only(file):
    with guest(file, "modes", mode=CpuMode.REAL) as vm:
        outcome = run(vm)
        level = vm.memory.walk(0x7C00).levels[-1]
    demand(outcome.console == b"RPL\n", f"the guest printed {outcome.console!r}, not RPL")
    demand(level.name == "PDE" and level.value & 1, f"0x7c00 is not mapped by a PDE: {level}")
    demand(not level.value & WRITABLE, f"the PDE {level.value:#x} is writable")


EXERCISES = (
    Exercise(
        "0x40007c00 is a second name for what is at 0x7c00.",
        "modes.S",
        (
            (
                "        movl    $PD + PRESENT_WRITABLE, PDPT        /* mem",
                "        movl    $PD + PRESENT_WRITABLE, PDPT + 8    /* and from 1 GiB on */\n"
                "        movl    $PD + PRESENT_WRITABLE, PDPT        /* mem",
            ),
        ),
        second_name,
    ),
    Exercise(
        "The guest's memory is mapped read-only, and the guest runs as before.",
        "modes.S",
        (("$0 + PRESENT_WRITABLE + LARGE, PD", "$0 + 1 + LARGE, PD"),),
        read_only,
    ),
)

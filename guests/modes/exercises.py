"""The exercise of lesson 3."""

from pykvm.boot.entry import CpuMode
from pykvm.lessons.exercise import Exercise, demand, guest, run


def second_name(file):
    with guest(file, "modes", mode=CpuMode.REAL) as vm:
        outcome = run(vm)
        demand(outcome.console == b"RPL\n", f"the guest printed {outcome.console!r}, not RPL")
        for gva in (0x7C00, 0x4000_7C00):
            gpa = vm.vcpus[0].translate(gva)
            demand(gpa == 0x7C00, f"{gva:#x} leads to {gpa if gpa is None else hex(gpa)}")


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
)

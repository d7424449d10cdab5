"""The exercise of lesson 5."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

LVT_TIMER, PERIODIC = 0x320, 1 << 17


def one_shot(file):
    with guest(file, "timer", cmdline="ticks=10") as vm:
        outcome = run(vm)
        state = vm.vcpus[0].get_lapic()
        lapic = b"".join(state.regs)
    text = outcome.console.decode()
    demand("ok: 10 ticks of the local APIC\n" in text, f"the guest printed\n{text}")
    entry = int.from_bytes(lapic[LVT_TIMER : LVT_TIMER + 4], "little")
    demand(not entry & PERIODIC, "the timer is still periodic")


EXERCISES = (
    Exercise(
        "The local APIC's timer is in one-shot mode, and ticks ten times all the same.",
        "main.c",
        (
            ("#define TIMER_PERIODIC (1 << 17)\n", "#define COUNT 1000000\n"),
            (
                "    ticks++;\n    *lapic(LAPIC_EOI) = 0;",
                "    ticks++;\n    *lapic(LAPIC_EOI) = 0;\n    *lapic(LAPIC_TIMER_COUNT) = COUNT;",
            ),
            ("TIMER_PERIODIC | LAPIC_VECTOR", "LAPIC_VECTOR"),
        ),
        one_shot,
    ),
)

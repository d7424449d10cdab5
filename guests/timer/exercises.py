"""The exercises of lesson 5."""

from pykvm._core import ffi, lib
from pykvm.lessons.exercise import Exercise, demand, guest, run

LVT_TIMER, PERIODIC = 0x320, 1 << 17
PIT_HZ = 1193182


def one_shot(file):
    with guest(file, "timer", cmdline="ticks=10") as vm:
        outcome = run(vm)
        state = vm.vcpus[0].get_lapic()
        lapic = b"".join(state.regs)
    text = outcome.console.decode()
    demand("ok: 10 ticks of the local APIC\n" in text, f"the guest printed\n{text}")
    entry = int.from_bytes(lapic[LVT_TIMER : LVT_TIMER + 4], "little")
    demand(not entry & PERIODIC, "the timer is still periodic")


def every_two_milliseconds(file):
    with guest(file, "timer", cmdline="ticks=10") as vm:
        outcome = run(vm)
        state = ffi.new("struct kvm_pit_state2 *")
        vm.vm.ioctl(lib.KVM_GET_PIT2, state, "KVM_GET_PIT2")
        count = int.from_bytes(ffi.buffer(state)[0:4], "little")
    demand(outcome.code == 0, f"the guest printed\n{outcome.console.decode()}")
    demand(count == PIT_HZ // 500, f"the PIT counts down from {count}: {1000 * count / PIT_HZ} ms")


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
    Exercise(
        "The PIT ticks every two milliseconds.",
        "main.c",
        (("PIT_HZ / 1000; /* a tick is a millisecond */", "PIT_HZ / 500;"),),
        every_two_milliseconds,
    ),
)

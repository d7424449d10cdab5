"""The exercise of lesson 6."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

UNINITIALIZED = 1  # KVM_MP_STATE_UNINITIALIZED: it waits for INIT


def one_of_three(file):
    with guest(file, "smp", cpus=3) as vm:
        text = run(vm).console.decode()
        states = [cpu.get_mp_state() for cpu in vm.vcpus]
    demand("\n2 CPUs\n" in text, f"the guest printed\n{text}")
    demand(states[2] == UNINITIALIZED, "CPU 2 got a message too")


EXERCISES = (
    Exercise(
        "Of three CPUs the guest starts only the one with APIC id 1.",
        "main.c",
        (
            ("0xC4500 /* to all but self, assert */", "0x4500 /* assert */"),
            ("(0xC4600 | ", "(0x4600 | "),
            (
                "    *lapic(LAPIC_ICR) = ICR_INIT;\n",
                "    *lapic(LAPIC_ICR_DESTINATION) = 1 << 24;\n    *lapic(LAPIC_ICR) = ICR_INIT;\n",
            ),
        ),
        one_of_three,
    ),
)

"""The exercises of lesson 6."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

UNINITIALIZED = 1  # KVM_MP_STATE_UNINITIALIZED: it waits for INIT


def one_of_three(file):
    with guest(file, "smp", cpus=3) as vm:
        text = run(vm).console.decode()
        states = [cpu.get_mp_state() for cpu in vm.vcpus]
    demand("\n2 CPUs\n" in text, f"the guest printed\n{text}")
    demand(states[2] == UNINITIALIZED, "CPU 2 got a message too")


def elsewhere(file):
    with guest(file, "smp", cpus=2) as vm:
        outcome = run(vm)
        selector = vm.vcpus[1].read_register("cs")
    demand(outcome.code == 0, f"the guest printed\n{outcome.console.decode()}")
    demand(selector == 0x4000, f"CPU 1's CS is {selector:#06x}, not 0x4000")


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
    Exercise(
        "The other CPU begins at 0x40000.",
        "main.c",
        (("#define START_PAGE 0x8000UL", "#define START_PAGE 0x40000UL"),),
        elsewhere,
    ),
)

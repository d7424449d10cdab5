"""The exercises of lesson 4."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

UNMAPPED = 0x40_0000_0000


def not_canonical(file):
    with guest(file, "exceptions") as vm:
        outcome = run(vm)
    text = outcome.console.decode()
    demand("ok: a non-canonical address is #GP\n" in text, f"the guest printed\n{text}")
    demand(outcome.code == 0, "one of its other checks failed")


def repaired(file):
    with guest(file, "exceptions") as vm:
        outcome = run(vm)
        gpa = vm.vcpus[0].translate(UNMAPPED)
        written = vm.memory.read(0, 1)
    demand(outcome.code == 0, f"a check failed:\n{outcome.console.decode()}")
    demand(gpa == 0, f"{UNMAPPED:#x} leads to {gpa if gpa is None else hex(gpa)}, not to 0")
    demand(written == b"\x01", "nothing was written to address 0")


EXERCISES = (
    Exercise(
        "A write to 0x800000000000 raises an exception: the guest handles it and names it.",
        "main.c",
        (
            (
                "    return failures;",
                '    __asm__ volatile("mov %%al, (%0)" : : "b"(1UL << 47), "a"(1) : "memory");\n'
                '    check(seen[GENERAL_PROTECTION] == 2, "a non-canonical address is #GP");\n'
                "    return failures;",
            ),
        ),
        not_canonical,
    ),
    Exercise(
        "The handler of the page fault maps the page, and the write is tried again.",
        "main.c",
        (
            (
                '    __asm__ volatile("mov %%cr2, %0" : "=r"(fault_address));\n    skip(frame);\n',
                "    uint64_t *pml4, *pdpt;\n"
                "    (void)frame;\n"
                '    __asm__ volatile("mov %%cr2, %0" : "=r"(fault_address));\n'
                '    __asm__ volatile("mov %%cr3, %0" : "=r"(pml4));\n'
                "    pdpt = (uint64_t *)(pml4[0] & ~0xFFFUL);\n"
                "    pdpt[fault_address >> 30] = pdpt[0];\n",
            ),
        ),
        repaired,
    ),
)

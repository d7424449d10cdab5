"""The exercises of lesson 9."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

USER = 1 << 2


def private_page(file):
    with guest(file, "ring3") as vm:
        outcome = run(vm)
        entry = vm.memory.read(vm.vcpus[0].read_register("cr3"), 8)
        for _ in range(2):  # PML4, PDPT: then the page directory's second entry
            table = int.from_bytes(entry, "little") & 0x000F_FFFF_FFFF_F000
            entry = vm.memory.read(table, 8)
        mapping = int.from_bytes(vm.memory.read(table + 8, 8), "little")
    text = outcome.console.decode()
    demand(mapping & 1 and not mapping & USER, f"the entry for 0x200000 is {mapping:#x}")
    demand("ok: a page of the kernel's is #PF, error code 5\n" in text, f"it printed\n{text}")
    demand(outcome.code == 0, "one of its checks failed")


HANDLER = """\
HANDLER page_fault(struct frame *frame, uint64_t error)
{
    (void)frame;
    check(error == 5, "a page of the kernel's is #PF, error code 5");
    outb(PORT_EXIT_CODE, (uint8_t)failures);
}

static void user(void)
"""


def knows_its_stack(file):
    with guest(file, "ring3") as vm:
        outcome = run(vm)
    text = outcome.console.decode()
    demand("ok: the stack is the TSS's\n" in text, f"it printed\n{text}")
    demand(outcome.code == 0, "one of its checks failed")


EXERCISES = (
    Exercise(
        "The kernel has a page for itself, and ring 3 reads it in vain.",
        "main.c",
        (
            ("static void user(void)\n", HANDLER),
            ('__asm__ volatile("hlt");', "(void)*(volatile uint8_t *)0x200000UL;"),
            (
                "    pd[0] = PAGE_FLAGS;",
                "    pd[1] = 0x200000 | 0x83; /* present, writable, 2 MiB */\n"
                "    pd[0] = PAGE_FLAGS;",
            ),
            (
                "    load_idt();",
                "    on_interrupt(14, page_fault, 0);\n    load_idt();",
            ),
        ),
        private_page,
    ),
    Exercise(
        "The kernel checks that its stack is the one which the TSS names.",
        "main.c",
        (
            (
                '    check(calls == 3, "three',
                "    check((uint8_t *)frame > kernel_stack &&\n"
                "              (uint8_t *)frame < kernel_stack + sizeof(kernel_stack),\n"
                '          "the stack is the TSS\'s");\n'
                '    check(calls == 3, "three',
            ),
        ),
        knows_its_stack,
    ),
)

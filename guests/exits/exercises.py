"""The exercises of lesson 12."""

from pykvm.lessons.exercise import Exercise, demand, guest, run

PORT, COUNT = 0x5F0, 4000


def four_at_once(file):
    sizes = []

    def device(offset, size, value):
        sizes.append(size)

    with guest(file, "exits", cmdline=f"count={COUNT} port={PORT:#x}") as vm:
        vm.pio(PORT, size=4)(device)
        demand(run(vm).code == 0, "the guest did not end with 0")
    demand(sum(sizes) == COUNT, f"{sum(sizes)} bytes arrived, not {COUNT}")
    demand(len(sizes) == COUNT // 4, f"it took {len(sizes)} accesses, not {COUNT // 4}")


def many_in_an_exit(file):
    read = []

    def device(offset, size, value):
        read.append(size)
        return 0x55

    with guest(file, "exits", cmdline=f"count={COUNT} port={PORT:#x} in=1") as vm:
        vm.pio(PORT, size=4)(device)
        outcome = run(vm)
    demand(outcome.code == 0, "the guest did not end with 0")
    demand(sum(read) == COUNT, f"{sum(read)} bytes were read, not {COUNT}")
    demand(outcome.stats.exits < COUNT // 100, f"that took {outcome.stats.exits} exits")


EXERCISES = (
    Exercise(
        "The guest moves `count` bytes to the port in count / 4 accesses.",
        "main.c",
        (
            (
                '        __asm__ volatile("1: out %%al, %%dx; dec %0; jnz 1b" : "+r"(count)',
                "        count /= 4;\n"
                '    __asm__ volatile("1: out %%eax, %%dx; dec %0; jnz 1b" : "+r"(count)',
            ),
        ),
        four_at_once,
    ),
    Exercise(
        "With in=1, the guest reads `count` bytes (4096 at most) in a few exits.",
        "main.c",
        (
            (
                '        __asm__ volatile("1: in %%dx, %%al; dec %0; jnz 1b" : "+r"(count)'
                ' : "d"(port) : "al");\n',
                '        __asm__ volatile("rep insb"\n'
                '                         : "+D"(to), "+c"(count)\n'
                '                         : "d"(port)\n'
                '                         : "memory");\n',
            ),
            (
                "    if (option(cmdline",
                "    static uint8_t buffer[4096];\n"
                "    uint8_t *to = buffer;\n\n"
                "    if (option(cmdline",
            ),
        ),
        many_in_an_exit,
    ),
)

"""The exercise of lesson 12."""

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
)

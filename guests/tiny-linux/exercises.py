"""The exercise of lesson 10."""

from pykvm import layout
from pykvm.lessons.exercise import Exercise, demand, guest, run

E820_ENTRIES = 0x1E8


def counts(file):
    with guest(file, "tiny-linux", cmdline="entries") as vm:
        number = vm.memory.read(layout.ZERO_PAGE + E820_ENTRIES, 1)[0]
        console = run(vm).console.decode()
    demand(console == f"{number}entries\n", f"the map has {number} entries; it printed {console!r}")


EXERCISES = (
    Exercise(
        "The kernel prints the number of entries in the memory map before its command line.",
        "kernel.S",
        (
            (
                "        mov     CMD_LINE_PTR(%rsi), %esi\n        mov     $PORT_COM1, %dx\n",
                "        mov     $PORT_COM1, %dx\n"
                "        mov     0x1e8(%rsi), %al\n"
                "        add     $'0', %al\n"
                "        out     %al, %dx\n"
                "        mov     CMD_LINE_PTR(%rsi), %esi\n",
            ),
        ),
        counts,
    ),
)

"""The exercises of lesson 10."""

from pykvm import layout
from pykvm.lessons.exercise import Exercise, demand, guest, load, run

E820_ENTRIES = 0x1E8


def counts(file):
    with guest(file, "tiny-linux", cmdline="entries") as vm:
        number = vm.memory.read(layout.ZERO_PAGE + E820_ENTRIES, 1)[0]
        console = run(vm).console.decode()
    demand(console == f"{number}entries\n", f"the map has {number} entries; it printed {console!r}")


def has_an_initrd(file):
    size = getattr(load(file), "initrd_size", None)
    demand(size == 5, f"initrd_size is {size}, not 5")


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
    Exercise(
        "The machine has an initrd of five bytes, and boot_params knows its size.",
        "host.py",
        (
            (
                'cmdline="hello from the command line"))\n',
                'cmdline="hello from the command line", initrd=(b"hello",)))\n',
            ),
            (
                'print("memory map:")\n',
                '(initrd_size,) = struct.unpack_from("<I", zero_page, 0x21C)\n'
                'print("memory map:")\n',
            ),
        ),
        has_an_initrd,
    ),
)

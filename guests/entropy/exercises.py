"""The exercises of lesson 8."""

import struct

from pykvm.lessons.exercise import Exercise, demand, guest, run, symbol

NEXT, WRITE = 1, 2


def two_buffers(file):
    with guest(file, "entropy", rng=True, transport="mmio") as vm:
        outcome = run(vm)
        table = vm.memory.read(symbol(vm, "desc"), 32)
        used = vm.memory.read(symbol(vm, "used"), 12)
    demand(outcome.code == 0, f"the guest printed\n{outcome.console.decode()}")
    first, second = struct.iter_unpack("<QIHH", table)
    demand(first[1:3] == (8, NEXT | WRITE), "descriptor 0 is no buffer of 8 bytes with a next one")
    demand(second[1:3] == (8, WRITE), "descriptor 1 is no last buffer of 8 bytes")
    demand(struct.unpack_from("<I", used, 8)[0] == 16, "the device did not write 16 bytes")


def two_requests(file):
    with guest(file, "entropy", rng=True, transport="mmio") as vm:
        outcome = run(vm)
        table = vm.memory.read(symbol(vm, "desc"), 32)
        avail = struct.unpack("<4H", vm.memory.read(symbol(vm, "avail"), 8))
        used = struct.unpack("<2H4I", vm.memory.read(symbol(vm, "used"), 20))
    demand(outcome.code == 0, f"the guest printed\n{outcome.console.decode()}")
    for number, (_, size, flags, _) in enumerate(struct.iter_unpack("<QIHH", table)):
        demand((size, flags) == (8, WRITE), f"descriptor {number} is no chain of 8 bytes by itself")
    demand(avail[1] == 2 and sorted(avail[2:]) == [0, 1], f"the available ring is {avail}")
    demand(used[1] == 2 and used[3] == used[5] == 8, f"the used ring is {used}")


EXERCISES = (
    Exercise(
        "The sixteen bytes come in two buffers of eight: a chain of two descriptors.",
        "main.c",
        (
            (
                "    desc[0].len = sizeof(buffer);\n    desc[0].flags = WRITE; /*",
                "    desc[0].len = 8;\n"
                "    desc[0].next = 1;\n"
                "    desc[1].addr = (uintptr_t)(buffer + 8);\n"
                "    desc[1].len = 8;\n"
                "    desc[1].flags = WRITE;\n"
                "    desc[0].flags = WRITE | 1; /* NEXT, and",
            ),
        ),
        two_buffers,
    ),
    Exercise(
        "The sixteen bytes come by two requests of eight, and one notification.",
        "main.c",
        (
            (
                "    desc[0].len = sizeof(buffer);\n    desc[0].flags = WRITE; /*",
                "    desc[0].len = 8;\n"
                "    desc[1].addr = (uintptr_t)(buffer + 8);\n"
                "    desc[1].len = 8;\n"
                "    desc[1].flags = WRITE;\n"
                "    avail.ring[1] = 1;\n"
                "    desc[0].flags = WRITE; /*",
            ),
            ("__atomic_store_n(&avail.idx, 1,", "__atomic_store_n(&avail.idx, 2,"),
            ("(&used.idx, __ATOMIC_ACQUIRE) == 0)", "(&used.idx, __ATOMIC_ACQUIRE) < 2)"),
            (
                "used.ring[0].id == 0 && used.ring[0].len == sizeof(buffer),",
                "used.ring[0].len + used.ring[1].len == sizeof(buffer),",
            ),
        ),
        two_requests,
    ),
)

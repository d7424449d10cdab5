"""The exercises of lesson 2."""

from pykvm.boot.entry import CpuMode
from pykvm.lessons.exercise import Exercise, demand, guest, run


def twice(file):
    for number in (21, 50):
        with guest(file, "hello-real", mode=CpuMode.REAL) as vm:
            vm.pio(0x510)(lambda offset, size, value, answer=number: answer)
            code = run(vm).code
        demand(code == 2 * number, f"port 0x510 gave {number}, and the guest left with {code}")


def says_it_twice(file):
    with guest(file, "hello-real", mode=CpuMode.REAL) as vm:
        said = run(vm).console
    demand(said == 2 * b"hello from real mode\n", f"the guest printed {said!r}")


EXERCISES = (
    Exercise(
        "The guest reads a byte from port 0x510 and leaves with twice that as its exit code.",
        "hello.S",
        (
            (
                "        mov     $PORT_EXIT_CODE, %dx\n        mov     $0, %al ",
                "        mov     $0x510, %dx\n        in      %dx, %al\n        add     %al, %al\n"
                "        mov     $PORT_EXIT_CODE, %dx\n                        ",
            ),
        ),
        twice,
    ),
    Exercise(
        "The guest says its message twice.",
        "hello.S",
        (
            (
                "        rep outsb                       /* CX bytes",
                "        rep outsb\n"
                "        mov     $message, %si\n"
                "        mov     $message_end - message, %cx\n"
                "        rep outsb                       /* CX bytes",
            ),
        ),
        says_it_twice,
    ),
)

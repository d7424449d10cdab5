"""The exercise of lesson 4."""

from pykvm.lessons.exercise import Exercise, demand, guest, run


def not_canonical(file):
    with guest(file, "exceptions") as vm:
        outcome = run(vm)
    text = outcome.console.decode()
    demand("ok: a non-canonical address is #GP\n" in text, f"the guest printed\n{text}")
    demand(outcome.code == 0, "one of its other checks failed")


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
)

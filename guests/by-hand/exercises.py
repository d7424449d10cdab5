"""The exercise of lesson 1."""

import subprocess
import sys

from pykvm.lessons.exercise import Exercise, demand


def product(file):
    demand("pykvm" not in file.read_text(), "this lesson does without pykvm")
    command = [sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    demand(done.returncode == 0, f"the program ended with {done.returncode}: {done.stderr}")
    demand("8\nthe guest halted" in done.stdout, f"the guest printed no 8: {done.stdout}")


EXERCISES = (
    Exercise(
        "The guest prints 8, the product of 2 and 4.",
        "host.py",
        (
            ('"00 d8"  #    add %bl, %al', '"f6 e3"  #    mul %bl'),
            ("rax=2, rbx=2", "rax=2, rbx=4"),
        ),
        product,
    ),
)

"""The exercises of lesson 1."""

import subprocess
import sys

from pykvm.lessons.exercise import Exercise, demand


def _printed(file):
    demand("pykvm" not in file.read_text(), "this lesson does without pykvm")
    command = [sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    demand(done.returncode == 0, f"the program ended with {done.returncode}: {done.stderr}")
    return done.stdout


def product(file):
    text = _printed(file)
    demand("8\nthe guest halted" in text, f"the guest printed no 8: {text}")


def answers(file):
    text = _printed(file)
    demand("7\nthe guest halted" in text, f"the guest printed no 7: {text}")


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
    Exercise(
        "The guest asks by IN, and the loop answers 7.",
        "host.py",
        (
            ('"00 d8"  #    add %bl, %al', '"ec 90"  #    in (%dx), %al; nop'),
            (
                "        data = shared[run.io.data_offset : run.io.data_offset + run.io.size]\n"
                '        print(data.decode(), end="")\n',
                "        if run.io.direction == 0:\n"
                "            shared[run.io.data_offset] = 7\n"
                "        else:\n"
                "            data = shared[run.io.data_offset : run.io.data_offset + run.io.size]\n"
                '            print(data.decode(), end="")\n',
            ),
        ),
        answers,
    ),
)

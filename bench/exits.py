"""What an exit costs: the raw ioctl loop in C, pykvm answering in C, pykvm answering in Python.

    python bench/exits.py [--rounds N] [--json FILE]

The same guest everywhere: laps of some hundred accesses, a mark before each (floor/exits.S). A
sample is the median lap; the bars compare the samples' lower quartiles. Answered in C: the UART's
scratch register at 0x3ff. Answered in Python: a `Device` on the bus.
"""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from measure import Bar, Samples, compiled, interleaved, main, options, quiet, table

from pykvm import Device, Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.debug.trace import Tracer

COUNT = 200  # accesses a lap: a millisecond or two, so that most laps are not interrupted
LAPS = 125  # as in floor.c
MEMORY = 16 << 20
MARK = 0x540
SCRATCH = 0x3FF  # COM1's scratch register
PORT = 0x520  # a Python device's
GPA = 0xD000_0000

ACCESSES = {
    "port write": ("out %al, %dx", PORT),
    "port read": ("in %dx, %al", PORT),
    "memory write": ("movl %eax, (%edx)", GPA),
    "memory read": ("movl (%edx), %eax", GPA),
}


class Mark(Device):
    """Takes the time of the guest's marks, and ends the run after `LAPS` laps."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.times: list[float] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) > LAPS:
            self.machine.stop()


class Cell(Device):
    """A register that reads what was written."""

    value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


Pick = Callable[[Iterable[float]], float]  # the lap that stands for all


def pykvm_us(guest: bytes, tracer: Tracer | None = None, pick: Pick = median) -> tuple[float]:
    """Microseconds an exit, in a machine with a `Cell` at `PORT` and at `GPA`."""
    with Machine(MachineConfig(kernel=guest, mode=CpuMode.PROTECTED, memory=MEMORY)) as machine:
        mark = Mark(machine)
        machine.pio(MARK)(mark)
        machine.pio(PORT)(Cell)
        machine.mmio(GPA, 0x1000)(Cell)
        machine.run(tracer=tracer)
    return (pick(b - a for a, b in pairwise(mark.times)) / COUNT * 1e6,)


def raw_us(command: list[str], count: int = COUNT, pick: Pick = median) -> tuple[float]:
    """The same by the C program, whose laps are of `count`."""
    return (pick(map(int, subprocess.check_output(command).split())) / count / 1e3,)


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """One table for each kind of access."""
    floor = compiled("floor.c", "program")

    def guest(access: str, address: int) -> Path:
        return compiled("exits.S", "flat", COUNT=COUNT, ACCESS=access, ADDRESS=address)

    tables: dict[str, Samples] = {}
    bars = []
    for kind, (access, address) in ACCESSES.items():
        scratch, other = guest(access, SCRATCH), guest(access, address)
        command = [str(floor), "exits", str(other), str(MEMORY)]
        rivals = {
            "raw": partial(raw_us, command),
            "C": partial(pykvm_us, scratch.read_bytes()),
            "Python": partial(pykvm_us, other.read_bytes()),
        }
        if address == GPA:
            del rivals["C"]  # no device in memory is answered in C yet
        (found,) = interleaved(rivals, args.rounds)
        tables[f"{kind}, µs"] = found
        table(f"{kind}, µs", found, "raw")
        if "C" in found:
            in_c = quiet(found["C"]) / quiet(found["raw"])
            bars.append(Bar(f"{kind} answered in C / raw", in_c, 1.1))
        added = quiet(found["Python"]) - quiet(found["raw"])
        bars.append(Bar(f"{kind} answered in Python - raw", added, 5, "µs"))
    return tables, bars


if __name__ == "__main__":
    main(options("What an exit costs.", rounds=15), run)

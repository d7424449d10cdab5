"""The phases of a boot, told from what the console said and when.

Reached from `explain` and `plot`. A kernel keeps what it says until its console works, and prints
it all then. Such lines are put back to where their own time stamps have them (Linux's
`sched_clock()`), counted from when the printing began; the printing is a phase of its own.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.debug.traceread import Mark, Trace

STAMP: Final = re.compile(r"\[ *(\d+\.\d+)\] ")
CONSOLE_BEGINS: Final = re.compile(r"printk: (legacy )?(boot)?console \[\w+\] enabled")
CATCHES_UP: Final = "the console prints what was kept"

# The phase that begins with the first line like this. In the order of Linux init/main.c.
LANDMARKS: Final = (
    (r"Linux version ", "memory map, ACPI tables (setup_arch)"),
    (r"Kernel command line: |Dentry cache hash table", "allocators, scheduler, interrupts"),
    (CONSOLE_BEGINS.pattern, "clocks, interrupt controllers (late_time_init)"),
    (r"Calibrating delay loop", "CPU features, mitigations"),
    (r"smp: Bringing up secondary CPUs", "starting the other CPUs"),
    (r"smp: Brought up ", "built-in drivers (initcalls)"),
    (r"Freeing unused kernel (image|memory)", "freeing and protecting memory"),
    (r"Run /\S+ as init process", "user space: init"),
    (r"pykvm: .* reached init", "user space: after pykvm's init"),
    (r"reboot: |ACPI: PM: Preparing to enter|Kernel panic", "going down"),
)
FIRST: Final = "until the kernel speaks"
WHOLE: Final = "the run"


class Phase(NamedTuple):
    """A part of a run; times in microseconds of the trace's clock."""

    name: str
    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


class Line(NamedTuple):
    """A line of the console, and when it was most likely said."""

    time: float
    text: str


def kept(marks: Sequence[Mark]) -> int:
    """How many of the console's lines were said before it worked."""
    return next((i for i, mark in enumerate(marks) if CONSOLE_BEGINS.search(mark.name)), 0)


def lines(marks: Sequence[Mark], start: float) -> list[Line]:
    """The console's lines; those that had to wait are put back, but not before `start`."""
    waited = kept(marks)
    anchor = STAMP.match(marks[waited].name) if waited else None
    if anchor is None:
        return [Line(mark.time, mark.name) for mark in marks]
    offset = marks[0].time - float(anchor[1]) * 1e6
    found, latest = [], start
    for i, mark in enumerate(marks):
        stamp = STAMP.match(mark.name)
        if i < waited and stamp:
            latest = max(latest, min(mark.time, offset + float(stamp[1]) * 1e6))
            found.append(Line(latest, mark.name))
        else:
            found.append(Line(mark.time, mark.name))
    return found


def phases(trace: Trace) -> list[Phase]:
    """The phases from the first instruction to the end: one, when the console tells none."""
    said = lines(trace.console, trace.start)
    begins: list[tuple[float, str]] = []
    seen = -1
    for line in said:
        for number, (pattern, name) in enumerate(LANDMARKS):
            if number > seen and re.search(pattern, line.text):
                begins.append((line.time, name))
                seen = number
                break
    if not begins:
        return [Phase(WHOLE, trace.start, trace.end)]
    if kept(trace.console):
        begins.insert(0, (trace.console[0].time, CATCHES_UP))
    begins.insert(0, (trace.start, FIRST))
    begins.sort(key=itemgetter(0))  # of those that came at once, the first said stays the first
    ends = [time for time, _ in begins[1:]] + [trace.end]
    return [
        Phase(name, start, end)
        for (start, name), end in zip(begins, ends, strict=True)
        if end > start
    ]

"""``pykvm explain``: where the time of a traced boot went, and what would give some of it back.

Reached from `cli_explain`. What an exit costs: the time to serve it, and the way out of the guest
and back, which no clock of ours sees alone. The shortest stays in KVM_RUN between two exits are
little else, so their first percentile stands for it. Read `phases`, `causes`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pykvm._core import lib
from pykvm.debug.causes import Cause, cause_of
from pykvm.debug.phases import STAMP, kept, lines, phases
from pykvm.debug.stats import duration, percentile

if TYPE_CHECKING:
    from pykvm.debug.symbols import SymbolTable
    from pykvm.debug.traceread import Trace

TOP: Final = 10
GAPS: Final = 5
NOT_STARTED: Final = 0xFFF0  # where a CPU is between INIT and SIPI
# How much the kernel says on its console, the last one counting (Linux init/main.c), and what is
# too little for its phases, which it tells by pr_info().
LOUDNESS: Final = re.compile(r"debug|quiet|loglevel=\d+")
QUIET: Final = re.compile(r"quiet|loglevel=[0-6]")
WORTH: Final = 0.001  # of the run: a cause that takes less is not told


class Sum:
    """Exits of one kind, added up."""

    def __init__(self) -> None:
        self.count = 0
        self.handler = 0.0  # µs

    def add(self, handler: float) -> None:
        self.count += 1
        self.handler += handler

    def cost(self, floor: float) -> float:
        """Microseconds, with `floor` for each way out and back."""
        return self.handler + self.count * floor


class Findings:
    """A trace, read once."""

    def __init__(self, trace: Trace, symbols: SymbolTable | None) -> None:
        self.trace, self.symbols = trace, symbols
        self.phases = phases(trace)
        self.by_phase = [Sum() for _ in self.phases]
        self.by_place: dict[tuple[str, int], Sum] = {}  # name, RIP
        self.by_cause: dict[Cause, Sum] = {}
        self.samples: Counter[str] = Counter()
        self.kicks = Sum()
        self.exits = Sum()
        self._read()

    def _read(self) -> None:
        stays = [0] * lib.PK_STATS_BUCKETS
        starts = [phase.start for phase in self.phases]
        for event in self.trace.exits():
            if event.kind != "exit":
                self.kicks.add(event.handler)
                if event.kind == "sample" and event.rip != NOT_STARTED:
                    self.samples[self.place(event.rip)] += 1
                continue
            stays[lib.pk_stats_bucket(int(event.guest * 1000))] += 1
            self.exits.add(event.handler)
            self.by_phase[max(bisect_right(starts, event.time) - 1, 0)].add(event.handler)
            self.by_place.setdefault((event.name, event.rip), Sum()).add(event.handler)
            cause = cause_of(event.name + " ")
            if cause is not None:
                self.by_cause.setdefault(cause, Sum()).add(event.handler)
        self.floor = percentile(stays, 0.01) / 1000

    def place(self, rip: int) -> str:
        """The function at `rip`, or its address."""
        symbol = self.symbols.find(rip) if self.symbols else None
        return symbol.partition("+")[0] if symbol else f"{rip:#x}"

    @property
    def seconds(self) -> float:
        """From the first instruction to the end."""
        return (self.trace.end - self.trace.start) / 1e6

    def share(self, us: float) -> float:
        """`us` as a part of the time of all vCPUs."""
        return us / 1e6 / max(self.seconds * max(len(self.trace.vcpus), 1), 1e-9)


def explain(trace: Trace, symbols: SymbolTable | None) -> str:
    """The whole text, in lines without a final newline."""
    found = Findings(trace, symbols)
    parts = [_head(found), _phases(found), _exits(found), _causes(found), _gaps(found)]
    parts += [_samples(found), _kvm(found)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(found: Findings) -> list[str]:
    trace = found.trace
    kernel = str(trace.machine.get("kernel", "a guest")).rpartition("/")[2]
    vcpus = "1 vCPU" if len(trace.vcpus) == 1 else f"{len(trace.vcpus)} vCPUs"
    text = [
        f"{trace.path}: {kernel}, {vcpus}, {found.seconds:.3f} s from the first instruction, "
        f"{found.exits.count:,} exits"
    ]
    made = trace.find("make")
    if made:
        text.append(f"pykvm took {duration(made[0].duration * 1e3)} to make the machine")
    lost = trace.summary.get("lost", 0)
    if lost:
        text.append(f"{lost:,} records were lost: the counts below are too small")
    if not trace.summary:
        text.append("the trace has no end: pykvm was killed, or runs still")
    return text


def _phases(found: Findings) -> list[str]:
    width = max(len(phase.name) for phase in found.phases)
    text = [
        f"{'phase':{width}} {'begins':>8} {'takes':>8}   of all {'exits':>9}  {'their cost':>10}"
    ]
    for phase, exits in zip(found.phases, found.by_phase, strict=True):
        begins, takes = (phase.start - found.trace.start) / 1e6, phase.duration / 1e6
        cost = duration(exits.cost(found.floor) * 1e3) if exits.count else ""
        text.append(
            f"{phase.name:{width}} {begins:8.3f} {takes:8.3f} {takes / found.seconds:8.1%} "
            f"{exits.count:9,}  {cost:>10}"
        )
    words = str(found.trace.machine.get("cmdline", "")).split()
    loudness = [word for word in words if LOUDNESS.fullmatch(word)]
    if loudness and QUIET.fullmatch(loudness[-1]) and is_linux(found.trace):
        rest = " ".join(word for word in words if word not in loudness)
        text.append(f"(the kernel tells its phases itself: --append '{rest} loglevel=7')")
    return text


def _exits(found: Findings) -> list[str]:
    if not found.by_place:
        return []
    order = sorted(found.by_place.items(), key=lambda item: -item[1].cost(found.floor))[:TOP]
    width = max(len("the most expensive exits"), *(len(name) for (name, _), _ in order))
    text = [f"{'the most expensive exits':{width}} {'count':>9} {'cost':>9}  share  where"]
    for (name, rip), exits in order:
        cost = exits.cost(found.floor)
        where = found.place(rip)
        place = where if where.startswith("0x") else f"{where} ({rip:#x})"
        text.append(
            f"{name:{width}} {exits.count:9,} {duration(cost * 1e3):>9} {found.share(cost):6.1%}  "
            f"{place}"
        )
    text.append(
        f"A cost is the time to serve the exit and {duration(found.floor * 1e3)} for the way out "
        "of the guest and back."
    )
    return text


def is_linux(trace: Trace) -> bool:
    """Whether the guest is most likely Linux: the remedies are its options."""
    if "console=" in str(trace.machine.get("cmdline", "")):
        return True
    return any(STAMP.match(mark.name) or " Linux " in mark.name for mark in trace.console)


def _causes(found: Findings) -> list[str]:
    if not is_linux(found.trace):
        return []
    order = sorted(found.by_cause.items(), key=lambda item: -item[1].cost(found.floor))
    text = []
    for cause, exits in order:
        cost = exits.cost(found.floor)
        given = re.search(cause.option, str(found.trace.machine.get("cmdline", "")))
        if given or found.share(cost) < WORTH:
            continue
        count = f"{exits.count:,} exits" if exits.count > 1 else "1 exit"
        text.append(f"{duration(cost * 1e3):>9}  {cause.why} ({count})")
        text.append(f"{'':9}  → {cause.remedy}")
    return ["what would remove them", *text] if text else []


def _gaps(found: Findings) -> list[str]:
    """The longest times in which the console said nothing."""
    said = lines(found.trace.console, found.trace.start)
    pairs = list(pairwise(said))
    if waited := kept(found.trace.console):
        del pairs[waited - 1]  # then it printed what it had kept
    gaps = sorted(((b.time - a.time, a, b) for a, b in pairs), reverse=True)[:GAPS]
    text = [
        f"{duration(us * 1e3):>9}  after {before.text[:40]!r}, before {after.text[:40]!r}"
        for us, before, after in gaps
        if found.share(us) > 10 * WORTH
    ]
    return ["the longest silences of the console", *text] if text else []


def _samples(found: Findings) -> list[str]:
    total = found.samples.total()
    if not total:
        return []
    text = [f"where the vCPUs were, by {total:,} sample{'s' * (total > 1)}"]
    text += [f"{count / total:9.1%}  {place}" for place, count in found.samples.most_common(TOP)]
    if found.symbols is None:
        text.append("(--symbols vmlinux or System.map gives these places their names)")
    return text


def _kvm(found: Findings) -> list[str]:
    """What only KVM's own counters know."""
    kvm = found.trace.summary.get("kvm", {})
    text = []
    ports = sum(
        s.count for (name, _), s in found.by_place.items() if name.startswith(("in", "out"))
    )
    inside = kvm.get("io_exits", 0) - ports
    if inside > 0:
        text.append(f"{inside:9,}  port exits that KVM's own PIT and PICs answered")
        if inside > MANY_PORTS:
            text.append(
                f"{'':9}  → TSC calibration by the PIT: let the guest have kvmclock, or give it "
                "'tsc_early_khz='"
            )
    if kvm.get("halt_wait_ns"):
        text.append(f"{duration(kvm['halt_wait_ns']):>9}  halted: the vCPUs had nothing to do")
    if kvm.get("irq_injections"):
        text.append(f"{kvm['irq_injections']:9,}  interrupts that KVM injected")
    return ["from KVM's counters", *text] if text else []


MANY_PORTS: Final = 200  # a boot with kvmclock makes about 40

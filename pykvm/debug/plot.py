"""The picture of a traced run: its phases, its exits over time, the guest's memory.

Reached from ``--plot`` of ``pykvm boot`` and ``pykvm explain``. Each lane is one kind of exits of a
vCPU; the darker, the more of them in that moment (a logarithm, or a console would outshine all).
"""

from __future__ import annotations

from collections import Counter
from math import log2
from typing import TYPE_CHECKING, Final

from pykvm.debug.explain import Findings
from pykvm.debug.memorymap import MemoryMap
from pykvm.debug.memorymap import draw as draw_memory
from pykvm.debug.phases import phases
from pykvm.debug.stats import duration
from pykvm.debug.svg import Drawing

if TYPE_CHECKING:
    from pykvm.debug.phases import Phase
    from pykvm.debug.traceread import Trace

WIDTH: Final = 1240
MARGIN: Final = 16
LABELS: Final = 150  # of the lanes, left of them
COUNTS: Final = 76  # right of them
MAP_WIDTH: Final = 350
TIME_WIDTH: Final = WIDTH - 3 * MARGIN - MAP_WIDTH - LABELS - COUNTS
BINS: Final = 320
LANE: Final = 15
KINDS_MAX: Final = 8  # lanes of exits a vCPU; what is left has one together
VCPUS_MAX: Final = 8
STEPS: Final = 6  # of darkness
# Okabe and Ito's palette, told apart by all kinds of eyes.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a900")
PHASE_COLOURS: Final = ("#9ecae1", "#fdd0a2", "#a1d99b", "#dadaeb", "#fcbba1", "#d9d9d9")
SAMPLES: Final = "samples (pykvm's)"
OTHERS: Final = "others"

Lane = Counter[int]  # bin to number


class Timeline:
    """The left part: an axis of time, and what is drawn along it."""

    def __init__(self, drawing: Drawing, trace: Trace, top: float) -> None:
        self.drawing, self.trace, self.y = drawing, trace, top
        self.left = MARGIN + LABELS
        self.span = max(trace.end - trace.start, 1.0)

    def x(self, time: float) -> float:
        """Where a time of the trace is."""
        part = (time - self.trace.start) / self.span
        return self.left + TIME_WIDTH * min(max(part, 0.0), 1.0)

    def bin(self, time: float) -> int:
        return min(max(int((time - self.trace.start) / self.span * BINS), 0), BINS - 1)

    def draw_phases(self, parts: list[Phase]) -> None:
        """A band of the phases, and below it their names and durations."""
        band = self.y
        for number, phase in enumerate(parts):
            x, fill = self.x(phase.start), PHASE_COLOURS[number % len(PHASE_COLOURS)]
            width = max(self.x(phase.end) - x, 0.5)
            title = f"{phase.name}: {duration(phase.duration * 1e3)}"
            self.drawing.rect(x, band, width, 24, fill, stroke="#999", title=title)
            if width > 16:
                self.drawing.text(x + width / 2, band + 16, str(number + 1), anchor="middle")
        self.drawing.text(self.left - 8, band + 16, "phases", anchor="end")
        self.y = band + 42
        for number, phase in enumerate(parts):
            column, row = number % 2, number // 2
            x, y = self.left + column * TIME_WIDTH / 2, self.y + row * 16
            fill = PHASE_COLOURS[number % len(PHASE_COLOURS)]
            self.drawing.rect(x, y - 9, 10, 10, fill, stroke="#999")
            took = duration(phase.duration * 1e3)
            self.drawing.text(x + 15, y, f"{number + 1}  {phase.name}, {took}", size=10)
        self.y += (len(parts) + 1) // 2 * 16 + 10

    def draw_axis(self, bottom: float) -> None:
        """Ticks and grid from the top of the lanes to `bottom`."""
        step = _step(self.span / 1e6)
        tick = 0.0
        while tick * 1e6 <= self.span:
            x = self.x(self.trace.start + tick * 1e6)
            self.drawing.line(x, self.y, x, bottom, "#e4e4e4")
            self.drawing.text(x, bottom + 14, f"{tick:g} s", anchor="middle", size=10)
            tick = round(tick + step, 9)

    def draw_lane(self, label: str, lane: Lane, fill: str, note: str = "") -> None:
        """One lane; `note` stands right of it."""
        self.drawing.text(self.left - 8, self.y + LANE - 4, label[:24], anchor="end", size=10)
        most = max(lane.values(), default=1)
        for start, end, step in _runs(lane, most):
            x, width = self.left + start * TIME_WIDTH / BINS, (end - start) * TIME_WIDTH / BINS
            opacity = 0.15 + 0.85 * step / STEPS
            self.drawing.rect(x, self.y + 1, width, LANE - 2, fill, opacity=opacity)
        x = self.left + TIME_WIDTH + 8
        self.drawing.text(x, self.y + LANE - 4, note, size=10, fill="#555")
        self.y += LANE


def _step(seconds: float) -> float:
    """A round distance between ticks: some six of them."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if seconds / (step * factor) <= 7:
                return step * factor
        step *= 10


def _darkness(count: int, most: int) -> int:
    return max(1, round(STEPS * log2(1 + count) / log2(1 + most))) if count else 0


def _runs(lane: Lane, most: int) -> list[tuple[int, int, int]]:
    """Neighbouring bins of one darkness, as (first, end, darkness)."""
    runs: list[tuple[int, int, int]] = []
    for place in sorted(lane):
        step = _darkness(lane[place], most)
        if runs and runs[-1][1] == place and runs[-1][2] == step:
            runs[-1] = (runs[-1][0], place + 1, step)
        else:
            runs.append((place, place + 1, step))
    return runs


def kind_of(name: str) -> str:
    """The device of an exit called `name`; what is no access is a kind of its own."""
    words = name.split(" ", 2)
    if words[0] in ("in", "out", "read", "write") and len(words) > 1:
        return words[2] if len(words) > 2 else "nothing there"
    return name


def plot(trace: Trace) -> str:
    """The picture, an SVG document."""
    drawing = Drawing(WIDTH)
    machine = trace.machine
    kernel = str(machine.get("kernel", trace.path)).rpartition("/")[2]
    drawing.text(MARGIN, 26, kernel, size=16, bold=True)
    cmdline = str(machine.get("cmdline", ""))
    drawing.text(MARGIN, 42, cmdline[:150], size=10, fill="#666", mono=True)
    timeline = Timeline(drawing, trace, 60)
    timeline.draw_phases(phases(trace))
    shown = _draw_lanes(timeline)
    _draw_costs(timeline, shown)
    if machine:
        blocks = MemoryMap.of_trace(machine)
        draw_memory(drawing, WIDTH - MARGIN - MAP_WIDTH, 64, MAP_WIDTH, blocks)
    return str(drawing)


def _colour(kind: str, shown: list[str]) -> str:
    return COLOURS[shown.index(kind) % len(COLOURS)] if kind in shown else "#888"


def _draw_lanes(timeline: Timeline) -> list[str]:
    """Exits by vCPU and kind, then what happens without exits; returns the kinds with lanes."""
    trace = timeline.trace
    lanes: dict[int, dict[str, Lane]] = {vcpu: {} for vcpu in sorted(trace.vcpus)[:VCPUS_MAX]}
    for event in trace.exits():
        if event.vcpu in lanes and event.kind != "kick":
            kind = SAMPLES if event.kind == "sample" else kind_of(event.name)
            lanes[event.vcpu].setdefault(kind, Counter())[timeline.bin(event.time)] += 1
    totals: Counter[str] = Counter()
    for kinds in lanes.values():
        totals.update({kind: lane.total() for kind, lane in kinds.items() if kind != SAMPLES})
    shown = [kind for kind, _ in totals.most_common(KINDS_MAX)]
    bottom = timeline.y + _height(lanes, shown) + _height_of_events(trace)
    timeline.draw_axis(bottom)
    for vcpu, kinds in lanes.items():
        timeline.drawing.text(MARGIN, timeline.y + LANE - 2, f"vCPU {vcpu}", bold=True)
        exits = sum(lane.total() for kind, lane in kinds.items() if kind != SAMPLES)
        x = timeline.left + TIME_WIDTH + 8
        timeline.drawing.text(x, timeline.y + LANE - 2, f"{exits:,} exits", bold=True, size=10)
        timeline.y += LANE + 3
        for kind, lane in _merged(kinds, shown):
            timeline.draw_lane(kind, lane, _colour(kind, shown), f"{lane.total():,}")
        timeline.y += 6
    for label, lane, fill in _events(timeline):
        timeline.draw_lane(label, lane, fill, f"{lane.total():,}")
    if len(trace.vcpus) > VCPUS_MAX:
        text = f"and {len(trace.vcpus) - VCPUS_MAX} vCPUs more"
        timeline.drawing.text(timeline.left, timeline.y + 34, text, size=10)
    return shown


def _merged(kinds: dict[str, Lane], shown: list[str]) -> list[tuple[str, Lane]]:
    """The lanes of a vCPU in the order of `shown`, then the others together, then the samples."""
    others: Lane = Counter()
    for kind, lane in kinds.items():
        if kind not in shown and kind != SAMPLES:
            others.update(lane)
    found = [(kind, kinds[kind]) for kind in shown if kind in kinds]
    if others:
        found.append((OTHERS, others))
    return [*found, (SAMPLES, kinds[SAMPLES])] if SAMPLES in kinds else found


def _height(lanes: dict[int, dict[str, Lane]], shown: list[str]) -> float:
    return sum(LANE + 9 + LANE * len(_merged(kinds, shown)) for kinds in lanes.values())


def _draw_costs(timeline: Timeline, shown: list[str]) -> None:
    """Bars: what the exits of each device cost, all vCPUs together."""
    found = Findings(timeline.trace, None)
    costs: Counter[str] = Counter()
    for (name, _), exits in found.by_place.items():
        costs[kind_of(name)] += round(exits.cost(found.floor))
    if not costs:
        return
    drawing, most = timeline.drawing, max(costs.values())
    timeline.y += 48
    drawing.text(timeline.left, timeline.y, "what they cost", bold=True)
    note = f"serving them, and {duration(found.floor * 1e3)} each for the way out and back"
    x = timeline.left + TIME_WIDTH
    drawing.text(x, timeline.y, note, anchor="end", size=9, fill="#777")
    timeline.y += 6
    for kind, cost in costs.most_common(KINDS_MAX):
        drawing.text(timeline.left - 8, timeline.y + LANE - 4, kind[:24], anchor="end", size=10)
        width = max(TIME_WIDTH * cost / max(most, 1), 1)
        drawing.rect(timeline.left, timeline.y + 2, width, LANE - 4, _colour(kind, shown))
        share = f"{duration(cost * 1e3)}, {found.share(cost):.1%}"
        drawing.text(timeline.left + TIME_WIDTH + 8, timeline.y + LANE - 4, share, size=10)
        timeline.y += LANE


EVENTS: Final = (
    ("console lines", ("console",), "#444444"),
    ("interrupts", ("line", "interrupt"), "#d55e00"),
    ("virtqueue kicks", ("queue-kick",), "#0072b2"),
    ("virtqueue answers", ("queue-used",), "#009e73"),
)


def _height_of_events(trace: Trace) -> float:
    kinds = {mark.kind for mark in trace.marks}
    return LANE * sum(1 for _, wanted, _ in EVENTS if kinds.intersection(wanted))


def _events(timeline: Timeline) -> list[tuple[str, Lane, str]]:
    """The lanes of what happens without an exit."""
    found = []
    for label, kinds, fill in EVENTS:
        lane = Counter(timeline.bin(m.time) for m in timeline.trace.marks if m.kind in kinds)
        if lane:
            found.append((label, lane, fill))
    return found

"""What a run's exits were and what they cost: counted by reason and address, beside KVM's counters.

Reached from `trace` (csrc/trace_stats.c counts) and from ``pykvm boot --stats``. An exit's time is
that from KVM_RUN's return to the next KVM_RUN: what pykvm itself took. What the way out of the
guest and back costs is part of the time in KVM_RUN; bench/exits.py measures it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pykvm._core import ffi, lib
from pykvm.debug.kvmstats import StatsFile
from pykvm.errors import KvmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.debug.names import DeviceName
    from pykvm.machine import Machine

ROWS_MAX: Final = 24  # of the table; the rest in one line
KICKS: Final = {
    lib.PK_TRACE_KICK: "kick by pykvm",
    lib.PK_TRACE_SAMPLE: "sample by pykvm",
}
SPACES: Final = {"IO": lib.PK_PIO, "MMIO": lib.PK_MMIO}


class KvmCounters:
    """KVM's counters of a machine: what they grew by since this was made. Empty where it has none.

    `total` has the sums over all vCPUs, and the VM's own.
    """

    def __init__(self, machine: Machine) -> None:
        self._files: list[StatsFile] = []
        self.total: dict[str, int] = {}
        try:
            fds = [machine.vm.fd, *(vcpu.fd for vcpu in machine.vcpus)]
            self._files = [StatsFile.of(fd) for fd in fds]
        except KvmError:
            self.close()
        self._cumulative = {
            s.name for file in self._files for s in file.statistics if s.type == "cumulative"
        }
        self._before = self._read()

    def _read(self) -> dict[str, int]:
        sums: dict[str, int] = {}
        for file in self._files:
            for name, value in file.read().items():
                if name in self._cumulative:
                    sums[name] = sums.get(name, 0) + value
        return sums

    def update(self) -> None:
        """Read them anew, while the machine is there."""
        self.total = {n: value - self._before[n] for n, value in self._read().items()}

    def close(self) -> None:
        """Close the files; `total` stays. Safe to call twice."""
        for file in self._files:
            file.close()
        self._files = []


class Row(NamedTuple):
    """One kind of exit."""

    reason: str  # "IO", "MMIO", "HLT" …, or whose kick it was
    write: bool
    addr: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    in_c: int
    handler_ns: int
    guest_ns: int
    max_ns: int
    histogram: tuple[int, ...]

    @property
    def is_exit(self) -> bool:
        """Whether the guest left by itself."""
        return self.reason not in KICKS.values()

    def percentile(self, fraction: float) -> int:
        """Nanoseconds that `fraction` of these exits took at most, to 1/8 of it."""
        return min(percentile(self.histogram, fraction), self.max_ns)

    def what(self, names: Sequence[DeviceName]) -> str:
        """As the trace calls it: ``out 0x3f8 serial``."""
        space = SPACES.get(self.reason)
        if space is None:
            return self.reason
        verbs = ("in", "out") if space == lib.PK_PIO else ("read", "write")
        found = [n.name for n in names if n.space == space and n.base <= self.addr < n.end]
        return " ".join([verbs[self.write], f"{self.addr:#x}", *(found or ["(nothing there)"])])


def percentile(histogram: Sequence[int], fraction: float) -> int:
    """The middle of the bucket that `fraction` of all lie in or below, ns; 0 of nothing."""
    wanted, seen = fraction * sum(histogram), 0
    for bucket, count in enumerate(histogram):
        seen += count
        if count and seen >= wanted:
            start, end = lib.pk_stats_bucket_start(bucket), lib.pk_stats_bucket_start(bucket + 1)
            return int(start + end) // 2
    return 0


class ExitStats(NamedTuple):
    """The exits of a run; as text, a table."""

    rows: list[Row]  # the most time first
    names: list[DeviceName]
    kvm: dict[str, int]
    seconds: float  # the run's
    vcpus: int

    @classmethod
    def of(
        cls, traces: Iterable[Any], names: list[DeviceName], kvm: KvmCounters, seconds: float
    ) -> ExitStats:
        """The sums over `traces`, each a `struct pk_trace *` that counts."""
        traces = list(traces)
        merged: dict[tuple[Any, ...], Row] = {}
        for row in (row for trace in traces for row in _rows(trace)):
            key = row[:3]
            merged[key] = _sum(merged[key], row) if key in merged else row
        rows = sorted(merged.values(), key=lambda row: -row.handler_ns)
        return cls(rows, names, kvm.total, seconds, len(traces))

    @property
    def exits(self) -> int:
        """How often a guest left by itself for pykvm: KVM_RUN returned, and nobody had kicked."""
        return sum(row.count for row in self.rows if row.is_exit)

    def share(self, ns: float) -> float:
        """`ns` as a part of the time that all vCPUs had."""
        return ns / 1e9 / max(self.seconds * self.vcpus, 1e-9)

    def __repr__(self) -> str:
        return "\n".join([*self._head(), *self._table(), *self._kvm_lines()])

    def _head(self) -> list[str]:
        handler = sum(row.handler_ns for row in self.rows)
        in_c = sum(row.in_c for row in self.rows if row.is_exit)
        vcpus = "1 vCPU" if self.vcpus == 1 else f"{self.vcpus} vCPUs"
        return [
            f"{self.exits:,} exits in {self.seconds:.2f} s of {vcpus}, {in_c:,} served in C; "
            f"{self.share(handler):.1%} of the time in pykvm, the rest in KVM_RUN"
        ]

    def _table(self) -> list[str]:
        if not self.rows:
            return []
        texts: list[tuple[str, ...]] = [("exit", "count", "share", "median", "p99", "longest")]
        texts += [self._line(row) for row in self.rows[:ROWS_MAX]]
        if rest := self.rows[ROWS_MAX:]:
            count, time = sum(r.count for r in rest), sum(r.handler_ns for r in rest)
            more = f"{len(rest)} more kinds"
            texts.append((more, f"{count:,}", f"{self.share(time):.1%}", "", "", ""))
        width = max(len(text[0]) for text in texts)
        return [
            f"{what:{width}} {count:>9} {share:>6} {median:>9} {p99:>9} {longest:>9}"
            for what, count, share, median, p99, longest in texts
        ]

    def _line(self, row: Row) -> tuple[str, ...]:
        times = (row.percentile(0.5), row.percentile(0.99), row.max_ns)
        count, share = f"{row.count:,}", f"{self.share(row.handler_ns):.1%}"
        return (row.what(self.names), count, share, *map(duration, times))

    def _kvm_lines(self) -> list[str]:
        """KVM's counters; those that count what the table counts, beside it."""
        if not self.kvm:
            return ["KVM has no counters here (KVM_GET_STATS_FD, Linux 5.14)"]
        ours = {
            "io_exits": sum(row.count for row in self.rows if row.reason == "IO"),
            "mmio_exits": sum(row.count for row in self.rows if row.reason == "MMIO"),
        }
        lines = ["KVM's own counters; in brackets what reached pykvm of them:"]
        shown = []
        for name, value in sorted(self.kvm.items(), key=lambda item: -item[1]):
            if name.endswith("_ns") and value:
                shown.append(f"{name[:-3]} {duration(value)}")
            elif value:
                shown.append(f"{name} {value:,}" + (f" ({ours[name]:,})" if name in ours else ""))
        import textwrap

        text = "; ".join(shown) or "all are 0"
        return lines + textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  ")


def duration(ns: float) -> str:
    """`ns` nanoseconds for people: three digits and a unit."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}" if ns < 999.5 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.0f} ns"


def _rows(trace: Any) -> Iterable[Row]:
    entry = ffi.new("struct pk_exit_stats *")
    for index in range(lib.PK_STATS_MAX + 1):
        if lib.pk_trace_stats(trace, index, entry) <= 0:
            continue
        reason = KICKS.get(entry.kind) or ffi.string(lib.pk_trace_reason(entry.reason)).decode()
        yield Row(
            reason if entry.kind else "other addresses",
            bool(entry.is_write),
            int(entry.addr),
            int(entry.count),
            int(entry.in_c),
            int(entry.handler_ns),
            int(entry.guest_ns),
            int(entry.max_ns),
            tuple(entry.histogram),
        )


def _sum(a: Row, b: Row) -> Row:
    return Row(
        *a[:3],
        a.count + b.count,
        a.in_c + b.in_c,
        a.handler_ns + b.handler_ns,
        a.guest_ns + b.guest_ns,
        max(a.max_ns, b.max_ns),
        tuple(map(sum, zip(a.histogram, b.histogram, strict=True))),
    )

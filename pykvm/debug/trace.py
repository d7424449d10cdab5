"""Recording what a machine does: every exit, interrupt, kick and console line, with its time.

Reached from `Machine.run(tracer=…)` and ``pykvm boot --trace``::

    with Tracer("boot.json") as tracer, Machine(config) as vm:
        outcome = vm.run(tracer=tracer)

The vCPUs write records into rings (csrc/trace.c); the watcher's thread calls `tick`, which has C
turn them into text (csrc/trace_text.c) and writes that to the file. Read `tracefile` for the file,
`stats` for the sums, `explain` for what reads it all.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from pykvm._core import ffi, lib
from pykvm.debug.names import device_names, gsi_names
from pykvm.debug.stats import ExitStats, KvmCounters
from pykvm.debug.tracefile import CONSOLE, MACHINE, TraceFile
from pykvm.errors import ConfigError, check

if TYPE_CHECKING:
    from typing import Self

    from pykvm.debug.live import Live
    from pykvm.machine import Machine

RING: Final = 1 << 14  # records of a vCPU: 1 MiB; a tenth of a second of nothing but exits
EVENTS: Final = 1 << 12  # records of the machine's ring
PIECE: Final = 1 << 10  # records turned into text at a time
NEVER_S: Final = 3600.0
DRAIN_S: Final = 0.25  # a ring that fills sooner says so by its eventfd
SAMPLES_HZ: Final = 100
HZ_MAX: Final = 10_000  # beyond, a guest would do little else
LINE_MAX: Final = 1000  # characters of a console line that are kept


class Tracer:
    """Follows one machine. Owned by the thread that calls `Machine.run`.

    `path`: the trace, .json (Chrome's trace events) or .csv; or the descriptor of an open file; or
    None. `stats`: count, too, see `stats()`. `hz`: how often a vCPU in the guest is made to leave
    it, so that a guest without exits is seen. Raises `ConfigError` when the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | int | None = None,
        *,
        stats: bool = False,
        hz: int = SAMPLES_HZ,
    ) -> None:
        if not 0 <= hz <= HZ_MAX:
            raise ConfigError(f"--trace-hz: {hz} is not between 0 and {HZ_MAX}; try 100")
        self.origin = time.monotonic_ns()
        self.lost = 0  # records that found a ring full
        self.live: Live | None = None  # shows the counts while they grow
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._hz = hz
        self._stats_wanted = stats
        self._machine: Machine | None = None
        self._vcpus: list[Any] = []  # struct pk_trace *
        self._events: Any = None
        self._line = bytearray()  # of the console, unfinished
        self._at_line_start = True
        self._line_at = 0
        self._drain_at = 0.0
        self._started = self._seconds = 0.0
        self._file: TraceFile | None = None
        try:
            if path is not None:
                name = path if isinstance(path, int) else os.fspath(path)
                self._file = TraceFile(name, self.origin)
        except BaseException:
            self.close()
            raise
        self._records = ffi.new("struct pk_trace_record[]", PIECE)
        self._text = ffi.new("char[]", PIECE * lib.PK_TRACE_TEXT_MAX)

    # ── for Machine.run ──────────────────────────────────────────────────────────────────────

    def start(self, machine: Machine) -> None:
        """Follow `machine` from now on; its vCPUs do not run yet."""
        first = self._machine is None
        self._machine = machine
        self._started = time.monotonic()
        if first:
            self._begin(machine)
        for vcpu, trace in zip(machine.vcpus, self._vcpus, strict=True):
            vcpu.handle.trace = trace
        if self._events is not None:
            lib.pk_trace_watch(self._events, machine.vm.fd)

    def _begin(self, machine: Machine) -> None:
        """What is done once: the rings, and the file's description of the machine."""
        devices = device_names(machine)
        self.names = {(space, base): name for space, base, _, name in devices}
        self.devices = devices
        self.kvm = KvmCounters(machine)
        ring = RING if self._file else 0
        for vcpu in machine.vcpus:
            self._vcpus.append(self._new_trace(ring, self._hz if ring else 0, vcpu.id))
        if self._file is None:
            return
        self._events = self._new_trace(EVENTS, 0, 0)
        self._format = self._file.format(devices + gsi_names(machine))
        self._file.describe(machine, devices)

    def _new_trace(self, ring: int, hz: int, source: int) -> Any:
        config = ffi.new("struct pk_trace_config *")
        config.num, config.hz, config.stats = ring, hz, self._stats_wanted
        config.source, config.event_fd = source, self.event_fd
        out = ffi.new("struct pk_trace **")
        check(lib.pk_trace_create(config, out), "memory for a trace")
        return out[0]

    def stop(self) -> None:
        """Follow it no longer: its vCPU threads have ended. A later `start` goes on."""
        machine = self._machine
        assert machine is not None
        self._seconds += time.monotonic() - self._started
        for vcpu, trace in zip(machine.vcpus, self._vcpus, strict=True):
            vcpu.handle.trace = ffi.NULL
            lib.pk_trace_finish(trace)
        if self._events is not None:
            lib.pk_trace_watch(self._events, -1)
        self.kvm.update()
        self._drain()
        if self._file is not None:
            self._file.event(MACHINE, "end", "the run ends", **self._summary(machine))

    def _summary(self, machine: Machine) -> dict[str, Any]:
        return {
            "seconds": round(self._seconds, 6),
            "exits": [vcpu.exits for vcpu in machine.vcpus],
            "lost": self.lost,
            "kvm": self.kvm.total,
        }

    def tick(self, now: float) -> float:
        """Write and show what has gathered, if it is time; returns when to come again."""
        due = self._write_out(now)
        if self.live is None:
            return due
        if now >= self.live.due:
            self.kvm.update()
            self.live.show(now, self.stats(), at_line_start=self._at_line_start)
        return min(due, self.live.due)

    def _write_out(self, now: float) -> float:
        """Drain the rings, if it is time or one of them asks for it."""
        if self._file is None:
            return now + NEVER_S
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            if now < self._drain_at:
                return self._drain_at
        self._drain()
        self._drain_at = now + DRAIN_S
        return self._drain_at

    def console(self, data: bytes) -> None:
        """The guest has said something: note each line with the time of its first byte."""
        self._at_line_start = data.endswith(b"\n")
        if self._file is None:
            return
        now = time.monotonic_ns()
        for piece in data.splitlines(keepends=True):
            if not self._line:
                self._line_at = now
            self._line += piece
            if piece.endswith((b"\n", b"\r")) or len(self._line) >= LINE_MAX:
                self._console_line()

    def _console_line(self) -> None:
        assert self._file is not None
        text = bytes(self._line).decode(errors="replace").strip("\r\n")
        self._line.clear()
        if text:
            self._file.event(CONSOLE, "console", text[:LINE_MAX], at=self._line_at)

    def _drain(self) -> None:
        if self._file is None:
            return
        for trace in (*self._vcpus, self._events):
            while count := lib.pk_trace_take(trace, self._records, PIECE):
                text, size = self._format.text, len(self._text)
                used = lib.pk_trace_format(text, self._records, count, self._text, size)
                self._file.write(ffi.buffer(self._text, used))
        self.lost = sum(int(lib.pk_trace_lost(t)) for t in (*self._vcpus, self._events))

    # ── what was found ───────────────────────────────────────────────────────────────────────

    def stats(self) -> ExitStats:
        """The exits so far, by reason and address, with KVM's own counters. Any time."""
        running = time.monotonic() - self._started if self._running else 0.0
        return ExitStats.of(self._vcpus, self.devices, self.kvm, self._seconds + running)

    @property
    def _running(self) -> bool:
        return any(v.handle.trace for v in self._machine.vcpus) if self._machine else False

    @property
    def problem(self) -> str | None:
        """What is wrong with the trace: why the file ends early, or that records are missing."""
        if self._file is not None and self._file.problem:
            return self._file.problem
        if self.lost:
            return f"{self.lost} records were lost: they came faster than they could be written"
        return None

    def close(self) -> None:
        """Complete the file. The machine does not run any more. Safe to call twice."""
        for trace in (*self._vcpus, self._events):
            if trace is not None:
                lib.pk_trace_destroy(trace)
        self._vcpus, self._events = [], None
        if self._file is not None:
            self._console_line()
            self._file.close(keep=self._machine is not None)
        if self._machine is not None:
            self.kvm.close()
        if self.event_fd >= 0:
            os.close(self.event_fd)
            self.event_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

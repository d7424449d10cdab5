"""The trace's file: Chrome's trace events as a JSON array, or comma-separated values.

Reached from `trace`, which writes it as it goes, and from `traceread`. The array format, because a
reader must accept one whose end is missing: so a trace is of use also when pykvm was killed. Every
event is a line. Source: "Trace Event Format", Google: "JSON Array Format", "Event Descriptions".
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from pykvm._core import ffi, lib
from pykvm.console import create
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.debug.names import DeviceName
    from pykvm.machine import Machine

# Tracks, beside those of csrc/api.h.
MACHINE: Final = 9000  # pykvm itself: making the machine, the end
CONSOLE: Final = 9001

# The columns of a .csv; csrc/trace_text.c writes the same.
COLUMNS: Final = (
    *("time_us", "track", "kind", "reason", "address", "size", "write", "value", "rip"),
    *("guest_us", "handler_us", "count", "by", "name"),
)


class TraceFile:
    """A trace that is being written. Raises `ConfigError`, naming --trace, when it cannot be."""

    def __init__(self, path: str | int, origin: int) -> None:
        """`path`: a file of that name, or one that is open already, for JSON."""
        self.path = path
        self.origin = origin  # ns of CLOCK_MONOTONIC: the file's time 0
        self.problem: str | None = None  # why nothing is written any more
        self.csv = isinstance(path, str) and path.endswith(".csv")
        self._fd = os.dup(path) if isinstance(path, int) else _create(path)
        self._size = 0  # bytes written whole
        if self.csv:
            self.write((",".join(COLUMNS) + "\n").encode())
        else:
            name = self._json({"ph": "M", "name": "process_name", "args": {"name": "pykvm"}})
            self.write(b"[\n" + name)

    def write(self, data: Any) -> None:
        """Write whole lines; when that fails, cut off what is not whole and write no more."""
        if self.problem is not None:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}; the trace ends there"
            try:
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            except OSError:
                pass  # a pipe: what is written is written
            return
        self._size += len(memoryview(data))

    def event(self, track: int, kind: str, name: str, at: int | None = None, **args: Any) -> None:
        """A mark on `track`, `at` a time of `time.monotonic_ns` (default: now)."""
        us = ((time.monotonic_ns() if at is None else at) - self.origin) / 1000
        if self.csv:
            self._row(us, track, kind, name, args)
            return
        event = {"ph": "i", "s": "t", "tid": track, "ts": round(us, 3), "cat": kind, "name": name}
        self.write(b",\n" + self._json({**event, "args": args}))

    def span(self, track: int, kind: str, name: str, start: int, end: int) -> None:
        """A slice on `track`; times as `time.monotonic_ns` has them."""
        us, duration = (start - self.origin) / 1000, (end - start) / 1000
        if self.csv:
            self._row(us, track, kind, name, {}, duration)
            return
        event = {"ph": "X", "tid": track, "ts": us, "dur": duration, "cat": kind, "name": name}
        self.write(b",\n" + self._json({**event, "args": {}}))

    def _row(
        self, us: float, track: int, kind: str, name: str, args: Any, duration: float | None = None
    ) -> None:
        row = {"time_us": f"{us:.3f}", "track": track, "kind": kind, "name": name}
        if duration is not None:
            row["handler_us"] = f"{duration:.3f}"
        if args:
            row["name"] = json.dumps(args)
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(row)
        self.write(line.getvalue().encode(errors="replace"))

    def _json(self, event: dict[str, Any]) -> bytes:
        return json.dumps({"pid": os.getpid(), **event}, separators=(",", ":")).encode()

    def describe(self, machine: Machine, devices: list[DeviceName]) -> None:
        """Name the tracks; note what the machine is, where everything lies, what making it took."""
        if not self.csv:
            for track, name in self._tracks(machine):
                for key, args in (
                    ("thread_name", {"name": name}),
                    ("thread_sort_index", {"sort_index": track}),
                ):
                    event = {"ph": "M", "tid": track, "name": key, "args": args}
                    self.write(b",\n" + self._json(event))
        self.span(MACHINE, "make", "make the machine", self.origin, time.monotonic_ns())
        config = machine.config
        kernel = config.kernel
        self.event(
            MACHINE,
            "machine",
            "the machine",
            kernel="image" if isinstance(kernel, bytes) else os.fspath(kernel),
            cmdline=config.cmdline,
            protocol=machine.entry.protocol,
            cpus=config.cpus,
            regions=[[r.gpa, r.end] for r in machine.memory.regions],
            placed=[list(row) for row in machine.memory.placed],
            devices=[list(row) for row in devices],
        )

    def _tracks(self, machine: Machine) -> list[tuple[int, str]]:
        from pykvm.debug.names import gsi_names

        tracks = [(MACHINE, "pykvm"), (CONSOLE, "console")]
        tracks += [(lib.PK_TRACK_VCPUS + vcpu.id, f"vCPU {vcpu.id}") for vcpu in machine.vcpus]
        tracks.append((lib.PK_TRACK_INTERRUPTS, "interrupts that pykvm injects"))
        for _, gsi, _, name in gsi_names(machine):
            if name.startswith("virtio"):
                tracks.append((lib.PK_TRACK_QUEUES + gsi, f"queues of {name}"))
        return tracks

    def format(self, names: list[DeviceName]) -> TextFormat:
        """What csrc/trace_text.c is told of this file."""
        return TextFormat(names, self.origin, csv=self.csv)

    def close(self, *, keep: bool = True) -> None:
        """Write the array's end; or remove a file that nothing came of. Safe to call twice."""
        if self._fd < 0:
            return
        if not keep and isinstance(self.path, str) and os.path.isfile(self.path):
            os.unlink(self.path)
        if not self.csv and self._size:
            self.problem, before = None, self.problem
            self.write(b"\n]\n")
            self.problem = before or self.problem
        os.close(self._fd)
        self._fd = -1


class TextFormat:
    """How csrc/trace_text.c writes records: `text` is its `struct pk_trace_text *`."""

    def __init__(self, names: list[DeviceName], origin: int, *, csv: bool) -> None:
        self._names = ffi.new("struct pk_trace_name[]", len(names))
        for entry, (space, base, end, name) in zip(self._names, names, strict=True):
            entry.space, entry.base, entry.len = space, base, end - base
            entry.name = b" " + name.encode("ascii", "replace")[: len(entry.name) - 2]
        self.text = ffi.new("struct pk_trace_text *")
        self.text.origin, self.text.pid, self.text.csv = origin, os.getpid(), csv
        self.text.names, self.text.num_names = self._names, len(names)


def check_name(path: str) -> None:
    """Raise `ConfigError` for a name that does not say which kind of file it is to be."""
    if not path.endswith((".json", ".csv")):
        raise ConfigError(
            f"--trace: {path!r} is neither .json (for ui.perfetto.dev) nor .csv; "
            "give it one of these endings"
        )


def _create(path: str) -> int:
    check_name(path)
    try:
        return create(path)
    except OSError as error:
        raise ConfigError(
            f"--trace: {path}: {error.strerror}; name a file that can be written"
        ) from None

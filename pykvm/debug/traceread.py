"""Reading a trace back: exits one at a time, marks as a list.

Reached from `explain` and `plot`. A trace may be larger than memory, so the file is read anew for
every look at its exits. Its end may be missing: pykvm was killed, or still runs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pykvm._core import lib
from pykvm.debug.tracefile import COLUMNS, CONSOLE
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from typing import TextIO

EXITS: Final = ("exit", "kick", "sample")


class Exit(NamedTuple):
    """An exit, or a kick of pykvm's. Times in microseconds, of the trace's own clock."""

    time: float
    vcpu: int
    kind: str  # one of EXITS
    name: str
    reason: str
    addr: int
    rip: int
    guest: float  # in KVM_RUN, before
    handler: float
    in_c: bool

    @property
    def end(self) -> float:
        return self.time + self.handler


class Mark(NamedTuple):
    """Whatever else there is in a trace."""

    time: float
    track: int
    kind: str
    name: str
    args: dict[str, Any]
    duration: float = 0.0


class Trace:
    """A trace on disk. Raises `ConfigError` when there is none at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.marks: list[Mark] = []
        self.vcpus: set[int] = set()
        self.count = 0  # exits, kicks and samples
        self.start = self.end = 0.0  # of the vCPUs' first entry, and of the last thing known
        for event in self._events():
            self._note(event)
        if not self.count and not self.marks:
            raise ConfigError(f"TRACE: {path}: there is nothing of pykvm's in it; see --trace")

    def _note(self, event: Exit | Mark) -> None:
        if isinstance(event, Mark):
            self.marks.append(event)
            self.end = max(self.end, event.time + event.duration)
            return
        entered = event.time - event.guest
        self.start = min(self.start, entered) if self.count else entered
        self.vcpus.add(event.vcpu)
        self.count += 1
        self.end = max(self.end, event.end)

    def exits(self) -> Iterator[Exit]:
        """All exits, kicks and samples; those of one vCPU are in order."""
        return (event for event in self._events() if isinstance(event, Exit))

    def find(self, kind: str) -> list[Mark]:
        """The marks of one kind, in order."""
        return sorted(mark for mark in self.marks if mark.kind == kind)

    @property
    def console(self) -> list[Mark]:
        """The console's lines."""
        return [mark for mark in self.find("console") if mark.track == CONSOLE]

    @property
    def machine(self) -> dict[str, Any]:
        """What the trace says of the machine; empty when it does not."""
        return next((mark.args for mark in self.find("machine")), {})

    @property
    def summary(self) -> dict[str, Any]:
        """What was known at the end; empty when the end is missing."""
        return next((mark.args for mark in reversed(self.find("end"))), {})

    # ── the two forms ────────────────────────────────────────────────────────────────────────

    def _events(self) -> Iterator[Exit | Mark]:
        try:
            with open(self.path, encoding="utf-8", errors="replace", newline="") as file:
                first = file.readline()
                if first.strip().split(",") == list(COLUMNS):
                    yield from map(_from_row, csv.DictReader(file, COLUMNS))
                else:
                    for event in _json_events(first, file):
                        if (found := _from_event(event)) is not None:
                            yield found
        except OSError as error:
            raise ConfigError(f"TRACE: {self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"TRACE: {self.path}: not a trace of pykvm's ({error!r})") from None


def _json_events(first: str, file: TextIO) -> Iterator[Any]:
    """The objects of a JSON array: a line each, as we write them, or in any other form."""
    if first.strip() != "[":
        yield from _whole(first + file.read())
        return
    start = file.tell()
    for line in iter(file.readline, ""):
        text = line.strip().rstrip(",")
        if text in ("", "]"):
            continue
        try:
            event = json.loads(text)
        except json.JSONDecodeError:
            if file.read(1):  # in the middle: somebody laid the file out anew
                file.seek(start)
                yield from _whole("[" + file.read())
            return  # else the line that was being written
        yield event


def _whole(text: str) -> list[Any]:
    events = json.loads(text)
    return list(events["traceEvents"] if isinstance(events, dict) else events)


def _from_event(event: Any) -> Exit | Mark | None:
    if event["ph"] not in ("X", "i"):
        return None
    args, kind, track = event["args"], event["cat"], event["tid"]
    if kind not in EXITS:
        return Mark(event["ts"], track, kind, event["name"], args, event.get("dur", 0.0))
    addr, rip = int(args.get("address", "0"), 16), int(args["rip"], 16)
    return Exit(
        *(event["ts"], track - lib.PK_TRACK_VCPUS, kind, event["name"], args["reason"], addr, rip),
        *(args["guest_us"], event["dur"], args["by"] == "C"),
    )


def _from_row(row: dict[str, str]) -> Exit | Mark:
    time, track, kind, name = float(row["time_us"]), int(row["track"]), row["kind"], row["name"]
    if kind in EXITS:
        addr, rip = int(row["address"], 16), int(row["rip"], 16)
        return Exit(
            *(time, track - lib.PK_TRACK_VCPUS, kind, name, row["reason"], addr, rip),
            *(float(row["guest_us"]), float(row["handler_us"]), row["by"] == "C"),
        )
    args: dict[str, Any] = {}
    if kind in ("machine", "end"):
        args = json.loads(name)
    elif row["address"]:
        args = {"gsi": int(row["address"]), "value": int(row["value"]), "count": int(row["count"])}
    return Mark(time, track, kind, name, args, float(row["handler_us"] or 0))

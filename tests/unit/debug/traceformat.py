"""A strict reader of Chrome's trace events; what it does not know it refuses.

Source: "Trace Event Format", Google: "JSON Array Format", "Complete Events", "Instant Events",
"Metadata Events".
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

KEYS = {
    "X": {"ph", "pid", "tid", "ts", "dur", "cat", "name", "args"},
    "i": {"ph", "pid", "tid", "ts", "s", "cat", "name", "args"},
    "M": {"ph", "pid", "tid", "name", "args"},
}
METADATA = {
    "process_name": {"name": str},
    "thread_name": {"name": str},
    "thread_sort_index": {"sort_index": int},
}
ROUNDING_US = 0.0015  # times are rounded to a nanosecond


def events_of(text: str, *, cut: bool = False) -> list[dict[str, Any]]:
    """The events of a trace, checked. `cut`: its end is missing, as it may be."""
    if cut:
        # What a reader does: it takes the events that are whole.
        assert text.startswith("[")
        *whole, last = text.rstrip("\n]").split("\n")
        with contextlib.suppress(json.JSONDecodeError):
            json.loads(last)
            whole.append(last)
        text = "\n".join(whole).rstrip(",") + "]"
    events = json.loads(text, parse_constant=_refuse)
    assert isinstance(events, list)
    for event in events:
        _check(event)
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    assert {e["tid"] for e in events if e["ph"] != "M"} <= named
    _check_nesting(events)
    return events


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _check(event: dict[str, Any]) -> None:
    kind = event["ph"]
    assert kind in KEYS, event
    assert set(event) <= KEYS[kind], event
    assert isinstance(event["pid"], int), event
    assert isinstance(event["name"], str), event
    assert event["name"], event
    assert isinstance(event["args"], dict), event
    if kind == "M":
        wanted = METADATA[event["name"]]
        assert {key: type(value) for key, value in event["args"].items()} == wanted, event
        return
    assert KEYS[kind] == set(event), event
    assert isinstance(event["tid"], int), event
    assert isinstance(event["ts"], int | float), event
    assert event["ts"] >= 0, event
    assert event["cat"], event
    if kind == "i":
        assert event["s"] in ("g", "p", "t"), event
    else:
        assert event["dur"] >= 0, event


def _check_nesting(events: list[dict[str, Any]]) -> None:
    """Slices of one track follow one another: ours do not nest, and must not overlap."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["tid"]].append((event["ts"], event["dur"]))
    for slices in tracks.values():
        for (start, duration), (after, _) in pairwise(sorted(slices)):
            assert start + duration <= after + ROUNDING_US, (start, duration, after)


def exits(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exits that the guest made by itself."""
    return [event for event in events if event.get("cat") == "exit"]


def marks(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The marks of a kind: console, machine, end …"""
    return [event for event in events if event.get("cat") == kind]

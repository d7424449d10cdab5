"""What tracing costs an exit: off, counting (--stats), recording (--trace), both.

    python bench/trace.py [--rounds N] [--json FILE]

The guest and its devices are those of exits.py. A sample is the fastest lap, and the bars compare
the fastest of all: what tracing adds is in every lap, what a busy neighbour adds is not. `raw` is
the C loop: what an exit costs where there is nothing to switch on. The trace goes to a file in
memory, so that no disk is measured; turning records into text happens on another thread, and is
measured by itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

from exits import ACCESSES, COUNT, MEMORY, PORT, SCRATCH, pykvm_us, raw_us
from measure import Bar, Samples, compiled, interleaved, main, options, table

from pykvm._core import ffi, lib
from pykvm.debug.trace import SAMPLES_HZ, Tracer

RECORDS = 1 << 10
WAYS = {
    "off": None,
    "--stats": {"stats": True},
    "--trace": {"path": True},
    "both": {"stats": True, "path": True},
}


def traced_us(guest: bytes, way: dict[str, bool] | None) -> tuple[float]:
    """As `pykvm_us`, with a tracer made in this way."""
    if way is None:
        return pykvm_us(guest, pick=min)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(suffix=".json", dir=memory) as file:
        path = file.name if "path" in way else None
        with Tracer(path, stats="stats" in way, hz=SAMPLES_HZ) as tracer:
            figure = pykvm_us(guest, tracer, pick=min)
            if tracer.problem:
                print(tracer.problem)
    return figure


def text_us() -> tuple[float]:
    """Microseconds to turn one record into JSON."""
    records = ffi.new("struct pk_trace_record[]", RECORDS)
    for record in records:
        record.kind, record.reason, record.size = lib.PK_TRACE_EXIT, lib.KVM_EXIT_IO, 1
        record.time, record.rip = 123_456_789, 0xFFFF_FFFF_8100_0000
    text = ffi.new("struct pk_trace_text *")
    buffer = ffi.new("char[]", RECORDS * lib.PK_TRACE_TEXT_MAX)
    started = time.perf_counter()
    lib.pk_trace_format(text, records, RECORDS, buffer, len(buffer))
    return ((time.perf_counter() - started) / RECORDS * 1e6,)


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """A table for exits answered in C, one for those answered in Python, one for the text."""
    floor = compiled("floor.c", "program")
    access, _ = ACCESSES["port write"]
    tables: dict[str, Samples] = {}
    bars = []
    for where, port in (("C", SCRATCH), ("Python", PORT)):
        guest = compiled("exits.S", "flat", COUNT=COUNT, ACCESS=access, ADDRESS=port)
        image = Path(guest).read_bytes()
        command = [str(floor), "exits", str(guest), str(MEMORY)]
        rivals = {"raw": partial(raw_us, command, pick=min)}
        rivals |= {name: partial(traced_us, image, way) for name, way in WAYS.items()}
        (found,) = interleaved(rivals, args.rounds)
        title = f"answered in {where}, µs"
        tables[title] = found
        table(title, found, "off")
        if where == "C":
            bars.append(Bar("off / raw", min(found["off"]) / min(found["raw"]), 1.1))
        for name in (name for name in WAYS if name != "off"):
            added = min(found[name]) - min(found["off"])
            bars.append(Bar(f"{name} - off, answered in {where}", added, 1, "µs"))
    (found,) = interleaved({"text": text_us}, args.rounds)
    tables["a record as JSON, µs"] = found
    table("a record as JSON, µs", found, "text")
    return tables, bars


if __name__ == "__main__":
    main(options("What tracing costs an exit.", rounds=15), run)

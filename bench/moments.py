"""What it costs to keep a moment of a machine (snapshots, checkpoints), and to go back to one.

    python bench/moments.py [--rounds N] [--json FILE]

Keeping: a machine that was restored and has run a lap, which writes to 256 pages (floor/touch.S),
is kept in three ways, at two sizes of memory, an eighth of which is not zeros. Differential
snapshots and checkpoints must not depend on that size. Both snapshots go to the disk (fsync), and
wait for the clock that files are stamped with, some 20 ms. Going back: from a full snapshot and
from the end of a chain, to the next lap's end.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from create import MARK, FirstExit
from measure import Bar, Samples, interleaved, main, options, ratio, table
from snapshot import MIB, captured, go_on_ms

from pykvm import Machine

PAGES = 256  # written in a lap
SMALL, LARGE = 64 * MIB, 1024 * MIB
CHAIN = 8


def save_base(folder: Path, memory: int) -> Path:
    """A snapshot of a machine, of whose memory an eighth is random."""
    with captured(PAGES, memory) as machine:
        for at in range(memory // 2, memory // 2 + memory // 8, MIB):
            machine.memory.write(at, os.urandom(MIB))
        machine.snapshot(folder / "base")
    return folder / "base"


def restored(folder: Path) -> Machine:
    machine = Machine.restore(folder)
    machine.pio(MARK)(FirstExit(machine))
    return machine


def keep_ms(machine: Machine, keep: Callable[[], object]) -> tuple[float]:
    """Milliseconds to keep a machine that has run a lap."""
    machine.run()
    started = time.perf_counter()
    keep()
    return ((time.perf_counter() - started) * 1e3,)


def keeping(args: Namespace, folder: Path) -> tuple[dict[str, Samples], list[Bar]]:
    """Both sizes in turn: what disturbs the one disturbs the other."""
    rivals: dict[str, Callable[[], tuple[float]]] = {}
    with ExitStack() as opened:
        for memory in (SMALL, LARGE):
            place = folder / str(memory)
            place.mkdir()
            base = save_base(place, memory)
            one, other = (opened.enter_context(restored(base)) for _ in range(2))
            points = other.checkpoints()
            size = f"{memory // MIB} MiB"
            diff = partial(one.snapshot, place / "diff", base=base)
            rivals |= {
                f"snapshot, {size}": partial(keep_ms, one, partial(one.snapshot, place / "full")),
                f"differential, {size}": partial(keep_ms, one, diff),
                f"checkpoint, {size}": partial(keep_ms, other, points.take),
            }
        (values,) = interleaved(rivals, args.rounds)
    title = f"keep {PAGES} pages, ms"
    table(title, values, f"snapshot, {SMALL // MIB} MiB")
    bars = [
        Bar(
            f"{name}, {LARGE // MIB} / {SMALL // MIB} MiB",
            ratio(values, f"{name}, {LARGE // MIB} MiB", f"{name}, {SMALL // MIB} MiB"),
            1.5,
        )
        for name in ("differential", "checkpoint")
    ]
    return {title: values}, bars


def going_back(args: Namespace, folder: Path) -> dict[str, Samples]:
    """No bar: what each snapshot of a chain adds."""
    base = save_base(folder, SMALL)
    with restored(base) as machine:
        for number in range(CHAIN):
            machine.run()
            machine.memory.write(SMALL // 4 + number * MIB, os.urandom(MIB // 2))
            machine.snapshot(folder / str(number), base=base)
            base = folder / str(number)
    rivals = {
        "full": partial(go_on_ms, partial(Machine.restore, folder / "base")),
        f"on {CHAIN} others": partial(go_on_ms, partial(Machine.restore, base)),
    }
    back, _ = interleaved(rivals, 4 * args.rounds)
    table("restore to the first exit, ms", back, "full")
    return {"restore to the first exit, ms": back}


def measure(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        kept, bars = keeping(args, Path(one))
        return kept | going_back(args, Path(other)), bars


if __name__ == "__main__":
    main(options(__doc__.splitlines()[0], 9), measure)

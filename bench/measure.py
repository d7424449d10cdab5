"""What the benchmarks share: rounds that interleave the rivals, a table, bars, the C floor.

Reached from every script of bench/. A machine is never quiet, so only figures of one run are
compared: each round takes every rival once, in turn, and a ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

FLOOR = Path(__file__).resolve().parent / "floor"
BUILD = Path(tempfile.mkdtemp(prefix="pykvm-bench-"))  # removed by main()

CFLAGS = {
    "program": ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
    "flat": ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--oformat=binary,-Ttext=0x100000"],
    "flat-c": [
        *(
            "-m32",
            "-ffreestanding",
            "-O2",
            "-fno-pic",
            "-fno-stack-protector",
            "-mgeneral-regs-only",
        ),
        *("-nostdlib", "-static", "-no-pie", "-Wall", "-Wextra"),
        "-Wl,--oformat=binary,-Ttext=0x100000,--build-id=none",
    ],
    "elf": ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-Ttext=0x100000"],
    "rom": ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--oformat=binary,-Ttext=0"],
}

Samples = dict[str, list[float]]


class Bar(NamedTuple):
    """A figure that was promised: at most `limit`."""

    what: str
    value: float
    limit: float
    unit: str = "times"

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return (
            f"{self.what}: {self.value:.2f} {self.unit}, bar {self.limit:g} {self.unit}: {verdict}"
        )


def compiled(source: str, kind: str, **defines: object) -> Path:
    """Compile a file of bench/floor as one of `CFLAGS`; returns the program's path."""
    options = [f"-D{name}={value}" for name, value in defines.items()]
    with tempfile.NamedTemporaryFile(dir=BUILD, delete=False) as file:
        program = Path(file.name)
    program.unlink()
    command = ["gcc", *CFLAGS[kind], *options, "-o", str(program), str(FLOOR / source)]
    subprocess.run(command, check=True)
    return program


def interleaved(
    rivals: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int, *, warm: bool = True
) -> tuple[Samples, ...]:
    """Measure every rival once a round, in turn; with `warm`, a first round only warms caches.

    A measurement has one figure or several, such as creating and destroying; each has its samples.
    """
    values: dict[str, list[tuple[float, ...]]] = {name: [] for name in rivals}
    for number in range(0 if warm else 1, rounds + 1):
        for name, measure in rivals.items():
            figures = measure()
            if number > 0:
                values[name].append(figures)
        if sys.stderr.isatty():
            print(f"\rround {number}/{rounds} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(end="\r\033[K", file=sys.stderr)
    count = len(next(iter(values.values()))[0])
    return tuple(
        {name: [row[i] for row in rows] for name, rows in values.items()} for i in range(count)
    )


def ratio(samples: Samples, one: str, other: str) -> float:
    """How many times `other` `one` is."""
    return median(samples[one]) / median(samples[other])


def quiet(values: list[float]) -> float:
    """The lower quartile: for figures so short that a busy neighbour alone makes the median."""
    return quantiles(values, n=4)[0] if len(values) > 1 else values[0]


def table(title: str, samples: Samples, reference: str) -> None:
    """Print median, quartiles, extremes and the ratio to `reference`, a line for each rival."""
    width = max(map(len, (title, *samples)))
    print(f"{title:{width}} {'median':>9} {'quartiles':>19} {'extremes':>19} {'ratio':>7}")
    for name, values in samples.items():
        low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        print(
            f"{name:{width}} {median(values):9.2f} {low:9.2f} {high:9.2f} "
            f"{min(values):9.2f} {max(values):9.2f} {ratio(samples, name, reference):7.2f}"
        )
    print()


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--json", metavar="FILE", help="write samples and bars there")
    return parser


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], tuple[dict[str, Samples], list[Bar]]],
) -> None:
    """Measure, print the bars, write --json; exit with 1 when a bar is missed.

    `run` gets the options, prints its tables and returns what they hold, by title, and the bars.
    """
    args = parser.parse_args()
    try:
        samples, bars = run(args)
    finally:
        for program in BUILD.iterdir():
            program.unlink()
        BUILD.rmdir()
    print(*bars, sep="\n")
    if args.json:
        result = {
            "samples": samples,
            "bars": [{**bar._asdict(), "met": bar.met} for bar in bars],
        }
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not all(bar.met for bar in bars))

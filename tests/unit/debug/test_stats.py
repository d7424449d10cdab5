from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._core import lib
from pykvm.debug.live import Live
from pykvm.debug.names import DeviceName
from pykvm.debug.stats import ExitStats, Row, duration, percentile

NAMES = [DeviceName(lib.PK_PIO, 0x3F8, 0x400, "serial")]


def histogram(values: list[int]) -> list[int]:
    counts = [0] * lib.PK_STATS_BUCKETS
    for value in values:
        counts[lib.pk_stats_bucket(value)] += 1
    return counts


@given(st.lists(st.integers(0, 1 << 35), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_an_eighth_off_at_most(values: list[int], fraction: float) -> None:
    ordered = sorted(values)
    exact = ordered[max(0, -(-len(values) * round(fraction * 100) // 100) - 1)]
    assert abs(percentile(histogram(values), fraction) - exact) <= exact / 8 + 1


def test_nothing_has_no_percentile() -> None:
    assert percentile(histogram([]), 0.5) == 0


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1 µs"), (999_600, "1000 µs"), (2_500_000, "2.5 ms")],
)
def test_durations_have_three_digits(ns: int, text: str) -> None:
    assert duration(ns) == text


def row(reason: str, addr: int, count: int, ns: int, *, write: bool = True) -> Row:
    values = histogram([ns] * count)
    return Row(reason, write, addr, count, count, count * ns, 0, ns, tuple(values))


@pytest.fixture
def stats() -> ExitStats:
    rows = [row("IO", 0x3F8, 1000, 2000), row("MMIO", 0xD0000000, 10, 5000, write=False)]
    rows.append(row("kick by pykvm", 0, 3, 100))
    return ExitStats(rows, NAMES, {"io_exits": 1200, "halt_wait_ns": 5_000_000}, 2.0, 1)


def test_the_table_names_devices_and_leaves_kicks_out_of_the_exits(stats: ExitStats) -> None:
    text = str(stats)
    assert stats.exits == 1010
    assert "out 0x3f8 serial" in text
    assert "read 0xd0000000 (nothing there)" in text
    assert "io_exits 1,200 (1,000)" in text
    assert "halt_wait 5 ms" in text


def test_a_repl_shows_the_table(stats: ExitStats) -> None:
    assert repr(stats) == str(stats)
    assert "io_exits" in repr(stats)


def test_many_kinds_of_exits_end_in_one_line(stats: ExitStats) -> None:
    rows = [row("IO", port, 1, 100) for port in range(100)]
    assert "76 more kinds" in str(stats._replace(rows=rows))


def test_a_run_without_exits_has_a_table_too() -> None:
    assert "0 exits" in str(ExitStats([], NAMES, {}, 0.0, 1))


def test_a_live_line_tells_rates_since_the_last_look(
    stats: ExitStats, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live(shared=False)
    live.show(1.0, stats, at_line_start=True)
    rows = [stats.rows[0]._replace(count=1500), *stats.rows[1:]]
    live.show(2.0, stats._replace(rows=rows, seconds=3.0), at_line_start=True)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("pykvm: 2 s, 505 exits/s: out 0x3f8 serial 500/s")
    assert second == "pykvm: 3 s, 500 exits/s: out 0x3f8 serial 500/s"


def test_a_shared_output_gets_no_line_within_one_of_the_guests(
    stats: ExitStats, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live(shared=True)
    live.show(1.0, stats, at_line_start=False)
    assert capsys.readouterr().err == ""
    live.show(2.0, stats, at_line_start=True)
    assert capsys.readouterr().err.startswith("pykvm: 2 s")


@pytest.mark.parametrize(
    ("stderr", "shared"), [(subprocess.STDOUT, True), (subprocess.DEVNULL, False)]
)
def test_a_console_and_messages_in_one_pipe_share_it(stderr: int, shared: bool) -> None:
    asked = "from pykvm.debug.live import shares_output as f; print(f('stdio'), f('null'))"
    said = subprocess.run(
        [sys.executable, "-c", asked], stdout=subprocess.PIPE, stderr=stderr, check=True
    )
    assert said.stdout.decode().split() == [str(shared), "False"]

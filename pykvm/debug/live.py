"""``--stats=live``: what a machine does, about once a second, on standard error.

Reached from `trace`, on the watcher's thread. Where standard error is a terminal of its own, a
table is drawn over the one before. Where the guest's console goes to the same terminal that would
garble it: there, and in a file or a pipe, it is a line a second, and never within one of the
guest's lines.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pykvm.debug.stats import ExitStats, Row

PERIOD_S: Final = 1.0
BUSIEST: Final = 3  # kinds of exits in the one line
UP_AND_CLEAR: Final = "\x1b[{lines}A\x1b[J"  # ECMA-48 CUU, ED


def shares_output(serial: str) -> bool:
    """Whether the console that `serial` asks for goes where standard error goes: to the same
    terminal, file or pipe."""
    try:
        return serial == "stdio" and os.path.sameopenfile(1, 2)
    except OSError:  # one of them is closed
        return False


class Live:
    """The display. `shared`: the guest's console goes the same way."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.in_place = not shared and sys.stderr.isatty()
        self.due = 0.0
        self._lines = 0  # of the table on the screen
        self._before: dict[tuple[object, ...], int] = {}  # counts at the last look
        self._seconds = 0.0  # of the run, then

    def show(self, now: float, stats: ExitStats, *, at_line_start: bool) -> None:
        """Draw, or print a line. `at_line_start`: the guest has ended its line."""
        self.due = now + PERIOD_S
        if self.in_place:
            self._draw(str(stats))
        elif at_line_start or not self.shared:
            self._write(f"pykvm: {self._line(stats)}\n")

    def _draw(self, text: str) -> None:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in text.split("\n")][: size.lines - 1]
        self.clear()
        self._write("".join(f"{line}\n" for line in lines))
        self._lines = len(lines)

    def clear(self) -> None:
        """Take the table off the screen."""
        if self._lines:
            self._write(UP_AND_CLEAR.format(lines=self._lines))
        self._lines = 0

    def _line(self, stats: ExitStats) -> str:
        """What happened since the last look."""
        period = max(stats.seconds - self._seconds, 1e-3)
        rates = [(self._rate(row, period), row) for row in stats.rows]
        self._seconds = stats.seconds
        self._before = {row[:3]: row.count for row in stats.rows}
        total = sum(rate for rate, row in rates if row.is_exit)
        busiest = sorted(rates, key=lambda pair: -pair[0])[:BUSIEST]
        parts = [f"{row.what(stats.names)} {rate:,.0f}/s" for rate, row in busiest if rate >= 1]
        head = f"{stats.seconds:.0f} s, {total:,.0f} exits/s"
        return ": ".join([head, ", ".join(parts)]) if parts else head

    def _rate(self, row: Row, period: float) -> float:
        return (row.count - self._before.get(row[:3], 0)) / period

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

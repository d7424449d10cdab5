"""Plays a lesson: its words on the terminal, its Python carried out, its promises checked.

Reached from `cli_lesson` and the tests. Read `page` for what a page is made of.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import sys
from collections.abc import Callable
from typing import Any

from pykvm.lessons import Lesson
from pykvm.lessons.page import Block, matches, read

Show = Callable[[Block], None]


class BrokenPromiseError(Exception):
    """A block of a page printed something else than the page says."""

    def __init__(self, lesson: Lesson, printed: str, promised: str) -> None:
        super().__init__(
            f"lesson {lesson.number} promises\n{promised}\nbut this was printed\n{printed}"
        )


def play(lesson: Lesson, show: Show, pause: Callable[[], None] = lambda: None) -> None:
    """Go through `lesson`: `show` each block, call `pause` before each new step.

    What the Python blocks print is shown as it comes. Raises `BrokenPromiseError`, and whatever the
    blocks raise.
    """
    namespace: dict[str, Any] = {"__name__": f"lesson_{lesson.number}"}
    printed = ""
    for number, block in enumerate(read(lesson.text)):
        if block.kind == "output":
            if not matches(printed, block.text):
                raise BrokenPromiseError(lesson, printed, block.text)
            continue  # it was shown when it was printed
        if block.kind == "heading":
            pause()
        show(block)
        if block.kind == "python":
            printed = _carry_out(block.text, f"<lesson {lesson.number}, block {number}>", namespace)


def _carry_out(source: str, name: str, namespace: dict[str, Any]) -> str:
    """Execute `source`; returns what it printed."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # for tracebacks
    with contextlib.redirect_stdout(_Tee(sys.stdout)) as tee:
        exec(compile(source, name, "exec"), namespace)
    return tee.getvalue()


class _Tee(io.StringIO):
    """Keeps what is written, and passes it on, after a word about what it is."""

    def __init__(self, onward: Any) -> None:
        super().__init__()
        self._onward = onward

    def write(self, text: str) -> int:
        if not self.tell():
            self._onward.write("  it prints:\n")
        self._onward.write(text)
        return super().write(text)

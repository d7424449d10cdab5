"""Reads a lesson's page: Markdown whose fenced blocks have meanings.

Reached from `play` and the tests::

    ```python      the host side: carried out, block after block, in one namespace
    ```text        right behind a Python block: what that prints; "…" stands for anything
    ```LANGUAGE    anything else is only shown; with title="PATH" it stands in that file

The Python blocks together are `host.py` of the lesson's folder, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?$")


class Block(NamedTuple):
    """A piece of a page."""

    kind: str  # "text", "heading", "python", "output" or "shown"
    text: str  # without the fences
    language: str = ""
    title: str = ""  # the file that the text is from, relative to the repository


def read(page: str) -> list[Block]:
    """The blocks of `page`, in order. Headings of the second level begin a new step."""
    return list(_blocks(page.splitlines()))


def host_side(page: str) -> str:
    """The Python blocks of `page`, as one file."""
    return "\n".join(block.text for block in read(page) if block.kind == "python")


def _blocks(lines: list[str]) -> Iterator[Block]:
    text: list[str] = []
    rest = iter(lines)
    after_python = False
    for line in rest:
        fence = FENCE.match(line)
        if fence or line.startswith("## "):
            if "".join(text).strip():
                yield Block("text", "\n".join(text).strip() + "\n")
                after_python = False
            text = []
        if line.startswith("## "):
            yield Block("heading", line.removeprefix("## "))
            after_python = False
        elif fence:
            language, title = fence[1], fence[2] or ""
            body = "".join(f"{inner}\n" for inner in iter(rest.__next__, "```"))
            kind = "shown"
            if language == "python":
                kind = "python"
            elif language == "text" and after_python:
                kind = "output"
            yield Block(kind, body, language, title)
            after_python = kind == "python"
        else:
            text.append(line)
    if "".join(text).strip():
        yield Block("text", "\n".join(text).strip() + "\n")


def matches(printed: str, promised: str) -> bool:
    """Whether `printed` is what the page promises; "…" in it stands for any text on one line.

    Space at the end of a line does not count.
    """
    lines = "\n".join(map(str.rstrip, printed.rstrip().splitlines()))
    pattern = "[^\n]*".join(map(re.escape, promised.rstrip().split("…")))
    return re.fullmatch(pattern, lines) is not None

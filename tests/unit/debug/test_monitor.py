"""gdb's monitor commands, where they need no machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.debug import monitor, symbols

LINKED = 0xFFFF_FFFF_8100_0000


def ask(monkeypatch: pytest.MonkeyPatch, running: dict[str, int], linked: int | None) -> str:
    """What ``monitor kaslr`` says of a kernel in whose image _text is at `linked`."""
    found = [(linked, "T", "_text")] if linked else []
    monkeypatch.setattr(symbols, "read_kernel", lambda image: found)
    machine: Any = SimpleNamespace(config=SimpleNamespace(kernel=b"an image"), symbols=running)
    control: Any = None
    return monitor.answer(machine, control, 0, "kaslr")


def test_kaslr_tells_what_gdb_has_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ask(monkeypatch, {"_text": LINKED + 0x1C00_0000}, LINKED)
    assert said.endswith("symbol-file -o 0x1c000000 FILE\n")


@pytest.mark.parametrize(
    ("running", "linked", "answer"),
    [
        ({"_text": LINKED}, LINKED, "where it is linked"),
        ({}, LINKED, "not in memory yet"),
        ({"main": 1}, None, "no Linux kernel"),
    ],
)
def test_kaslr_says_why_there_is_nothing_to_tell(
    monkeypatch: pytest.MonkeyPatch, running: dict[str, int], linked: int | None, answer: str
) -> None:
    assert answer in ask(monkeypatch, running, linked)

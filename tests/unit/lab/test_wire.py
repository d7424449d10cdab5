"""Frames: whole however they arrive, and the same in Python and in C."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.lab import wire
from pykvm.lab.wire import ExecFlags, Frame, Kind, Reader, pack, pack_exec

AGENT = Path(__file__).parents[3] / "guests" / "lab-agent" / "agent.h"

frames = st.builds(
    Frame,
    st.integers(0, wire.COMMANDS_MAX - 1),
    st.sampled_from(list(Kind)),
    st.integers(0, 255),
    st.binary(max_size=50),
)


@given(st.lists(frames), st.lists(st.integers(0, 200)))
def test_reader_gives_the_frames_however_the_stream_is_cut(
    sent: list[Frame], cuts: list[int]
) -> None:
    stream = b"".join(pack(Kind(f.kind), f.arg, f.data, f.command) for f in sent)
    places = [0, *sorted(cuts), len(stream)]
    reader = Reader()
    received: list[Frame] = []
    for start, end in pairwise(places):
        received += reader.feed(stream[start:end])
    assert received == sent


def test_exec_holds_what_the_agent_takes_apart() -> None:
    (frame,) = Reader().feed(
        pack_exec(["sh", "-c", ""], {"A": "b=c"}, "/tmp", ["/x"], ExecFlags.TTY, (24, 80), 0o077)
    )
    head, strings = frame.data[: wire.EXEC.size], frame.data[wire.EXEC.size :]
    assert wire.EXEC.unpack(head) == (ExecFlags.TTY, 24, 80, 0o077, 1, 3, 1)
    assert strings == b"/tmp\0/x\0sh\0-c\0\0A=b=c\0"


@pytest.mark.parametrize(("name", "python"), [("kind", Kind), ("exec_flags", ExecFlags)])
def test_agent_has_the_same_numbers(name: str, python: type[Kind] | type[ExecFlags]) -> None:
    body = re.search(rf"enum {name} {{(.*?)}};", AGENT.read_text(), re.DOTALL)
    assert body
    numbers = {key: int(value) for key, value in re.findall(r"(\w+)\s*= (\d+),", body[1])}
    assert numbers
    assert numbers.items() <= {member.name: int(member) for member in python}.items()


def test_agent_has_the_same_limits() -> None:
    text = AGENT.read_text()
    assert f"#define COMMANDS_MAX {wire.COMMANDS_MAX}\n" in text
    window = re.search(r"#define WINDOW +\((\d+) \* 1024\)", text)
    assert window
    assert int(window[1]) * 1024 == wire.WINDOW

"""Frames between us and a guest's init: what we send, and whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.agent import wire
from pykvm.agent.wire import FromGuest, ProtocolError, ToGuest
from pykvm.errors import ConfigError

FRAMES = st.one_of(
    st.tuples(st.sampled_from([FromGuest.OUTPUT, FromGuest.ERROR]), st.binary(min_size=1)),
    st.just((FromGuest.TAKEN, b"")),
    st.tuples(st.just(FromGuest.END), st.binary(min_size=4, max_size=4)),
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


@given(st.lists(FRAMES), st.lists(st.integers(0, 9)))
def test_frames_come_out_whole_however_they_are_cut(
    frames: list[tuple[FromGuest, bytes]], sizes: list[int]
) -> None:
    data = b"".join(wire.HEAD.pack(kind, len(payload)) + payload for kind, payload in frames)
    decoder = wire.Decoder()
    assert [frame for piece in cut(data, sizes) for frame in decoder.feed(piece)] == frames


@given(st.binary(max_size=100), st.lists(st.integers(0, 20)))
def test_any_bytes_are_frames_or_refused_and_never_kept_for_long(
    data: bytes, sizes: list[int]
) -> None:
    decoder = wire.Decoder()
    try:
        for piece in cut(data, sizes):
            for kind, payload in decoder.feed(piece):
                least, most = wire.SIZES[kind]
                assert least <= len(payload) <= most
    except ProtocolError:
        pass
    assert len(decoder._rest) <= max(len(data), wire.HEAD.size + wire.PIECE)


@pytest.mark.parametrize(("kind", "size"), [(4, 0), (255, 4), (0, 3), (0, 5), (3, 1), (1, 0)])
def test_frame_of_a_wrong_kind_or_size_is_refused(kind: int, size: int) -> None:
    with pytest.raises(ProtocolError, match=f"kind {kind} with {size} bytes"):
        list(wire.Decoder().feed(wire.HEAD.pack(kind, size)))


def test_size_is_refused_before_its_bytes_have_come() -> None:
    with pytest.raises(ProtocolError):
        list(wire.Decoder().feed(wire.HEAD.pack(FromGuest.OUTPUT, wire.PIECE + 1)))


def test_command_is_folder_environment_and_words() -> None:
    request = wire.command(["echo", ""], "/tmp", {"A": "1", "B": ""})
    assert request == wire.frame(ToGuest.RUN, b"/tmp\0A=1\0B=\0\0echo\0\0")


def test_names_that_are_not_utf8_pass_unchanged() -> None:
    assert wire.read("/\udcff") == wire.frame(ToGuest.READ, b"/\xff\0")


@pytest.mark.parametrize(
    ("words", "cwd", "env"),
    [
        ([], "/", {}),
        ([""], "/", {}),
        (["a\0b"], "/", {}),
        (["a"], "/\0", {}),
        (["a"], "/", {"": "x"}),
        (["a"], "/", {"A=B": "x"}),
        (["a"], "/", {"A": "\0"}),
        (["a"] * (wire.WORDS_MAX + 1), "/", {}),
        (["a" * wire.REQUEST_MAX], "/", {}),
    ],
)
def test_what_init_could_not_take_is_refused(
    words: list[str], cwd: str, env: dict[str, str]
) -> None:
    with pytest.raises(ConfigError):
        wire.command(words, cwd, env)


@given(st.binary(max_size=100_000))
def test_input_is_cut_into_pieces_and_ends(data: bytes) -> None:
    frames = list(wire.pieces(data))
    assert b"".join(frame[wire.HEAD.size :] for frame in frames) == data
    assert frames[-1] == wire.frame(ToGuest.INPUT)
    assert all(len(frame) <= wire.HEAD.size + wire.PIECE for frame in frames)

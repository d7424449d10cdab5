"""Packets of the remote protocol: framed, escaped, and as broken as a wire can make them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.debug.rsp import PACKET_SIZE, Event, Framer, Kind, escape, frame, unescape


@given(st.binary())
def test_what_is_escaped_comes_back(data: bytes) -> None:
    assert unescape(escape(data)) == data


@given(st.lists(st.binary(max_size=50), max_size=8), st.data())
def test_packets_come_out_whole_however_the_stream_is_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(b"+" + frame(escape(payload)) for payload in payloads)
    framer, events = Framer(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        events += framer.feed(stream[:cut])
        stream = stream[cut:]
    assert [e.payload for e in events if e.kind is Kind.PACKET] == payloads
    assert sum(e.kind is Kind.ACK for e in events) == len(payloads)


@given(st.binary())
def test_any_bytes_end_in_events_and_leave_the_framer_usable(noise: bytes) -> None:
    framer = Framer()
    list(framer.feed(noise))
    # An open packet is ended by "#" and two more; then the next one is understood.
    events = list(framer.feed(b"#00" + frame(b"?")))
    assert events[-1] == Event(Kind.PACKET, b"?")


def test_wrong_checksum_is_told() -> None:
    assert [e.kind for e in Framer().feed(b"$g#00")] == [Kind.BAD]


def test_ctrl_c_is_found_between_packets() -> None:
    kinds = [event.kind for event in Framer().feed(b"+\x03$?#3f-")]
    assert kinds == [Kind.ACK, Kind.INTERRUPT, Kind.PACKET, Kind.NAK]


def test_a_packet_without_end_is_dropped_and_takes_no_memory() -> None:
    framer = Framer()
    events = list(framer.feed(b"$" + b"a" * (4 * PACKET_SIZE)))
    assert [event.kind for event in events] == [Kind.BAD]
    assert [event.kind for event in framer.feed(frame(b"g"))] == [Kind.PACKET]

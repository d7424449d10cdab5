"""Our end of the agent's port, before guests that answer as they should not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pykvm.agent import CommandTimeoutError, OutputError, link, wire
from pykvm.agent.link import Link, LinkError
from pykvm.agent.wire import FromGuest, ToGuest

LIMIT_S = 60.0


class Guest(Link):
    """A link, and what the guest says, which it has said before it is asked."""

    @property
    def port_socket(self) -> socket.socket:
        return self._guest

    def says(self, kind: FromGuest, payload: bytes = b"") -> None:
        self.port_socket.sendall(wire.HEAD.pack(kind, len(payload)) + payload)

    def heard(self) -> bytes:
        return self.port_socket.recv(1 << 20)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def end(code: int) -> bytes:
    return wire.CODE.pack(code)


def test_answer_has_code_and_both_streams(guest: Guest) -> None:
    guest.says(FromGuest.OUTPUT, b"o")
    guest.says(FromGuest.ERROR, b"e")
    guest.says(FromGuest.OUTPUT, b"ut")
    guest.says(FromGuest.END, end(300))
    assert guest.ask(b"request", b"", LIMIT_S) == (300, b"out", b"e")
    assert guest.heard() == b"request" + wire.frame(ToGuest.INPUT)


def test_input_waits_until_it_is_taken(guest: Guest) -> None:
    guest.says(FromGuest.TAKEN)
    guest.says(FromGuest.END, end(0))
    guest.ask(b"", bytes(3 * wire.PIECE), LIMIT_S)
    assert len(guest.heard()) == wire.HEAD.size + wire.PIECE  # the second was not sent any more


@pytest.mark.parametrize("said", [b"GET / HTTP/1.0\r\n", b"\xff" * 5, b"\1\xff\xff\xff\xff"])
def test_guest_that_speaks_another_language_is_left(guest: Guest, said: bytes) -> None:
    guest.port_socket.sendall(said)
    with pytest.raises(LinkError, match="its init sent a frame"):
        guest.ask(b"", b"", LIMIT_S)


def test_guest_that_speaks_after_the_end_is_left(guest: Guest) -> None:
    guest.says(FromGuest.END, end(0))
    guest.says(FromGuest.TAKEN)
    with pytest.raises(LinkError, match="something after the end"):
        guest.ask(b"", b"", LIMIT_S)


def test_guest_that_is_gone_is_told(guest: Guest) -> None:
    guest.says(FromGuest.OUTPUT, b"last words")
    guest.port_socket.close()
    with pytest.raises(LinkError):
        guest.ask(b"", b"", LIMIT_S)


def test_hang_up_ends_a_wait(guest: Guest) -> None:
    guest.hang_up()
    with pytest.raises(LinkError):
        guest.ask(b"", b"", LIMIT_S)


def test_command_out_of_time_is_killed(guest: Guest) -> None:
    guest.says(FromGuest.OUTPUT, b"begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link._Exchange, "_kill", _kill_that_succeeds(guest))
        with pytest.raises(CommandTimeoutError, match="within 0 s and was killed") as caught:
            guest.ask(b"", b"", 0)
    assert caught.value.completed == (137, b"begun", b"")
    assert isinstance(caught.value, TimeoutError)
    assert guest.heard().endswith(wire.frame(ToGuest.KILL))


def _kill_that_succeeds(guest: Guest) -> object:
    kill = link._Exchange._kill

    def then_it_ends(exchange: link._Exchange, why: str) -> None:
        kill(exchange, why)
        guest.says(FromGuest.END, end(137))

    return then_it_ends


def test_guest_that_cannot_be_killed_is_left(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "KILL_S", 0)
    with pytest.raises(LinkError, match="does not answer"):
        guest.ask(b"", b"", 0)


def test_what_is_beyond_the_limit_is_not_kept(guest: Guest) -> None:
    for _ in range(3):
        guest.says(FromGuest.OUTPUT, bytes(10))
    guest.says(FromGuest.END, end(137))
    with pytest.raises(OutputError, match="more than 20 bytes") as caught:
        guest.ask(b"", b"", LIMIT_S, output_max=20)
    assert caught.value.completed.stdout == bytes(20)


def test_guest_that_does_not_greet_is_left_at_once(guest: Guest) -> None:
    with pytest.raises(LinkError, match="does not answer"):
        guest.greet(0)

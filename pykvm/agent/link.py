"""One request after the other, over the port that leads to a guest's init.

Reached from `guest`. The port is one end of a socket pair, so nothing of it has a name on the host.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

from pykvm.agent import wire
from pykvm.agent.errors import CommandTimeoutError, OutputError
from pykvm.agent.wire import FromGuest, ProtocolError, ToGuest

KILL_S: Final = 30.0  # for init to answer when a command is killed; slow on an emulated processor
LOOK_S: Final = 60.0  # poll(2) takes no infinite number
RECEIVE: Final = 1 << 18  # bytes at a time
OUTPUT_MAX: Final = 1 << 30  # bytes that a command may write

Text = TypeVar("Text", str, bytes)


class Completed(NamedTuple, Generic[Text]):
    """How a command ended, and what it wrote."""

    code: int  # 128 + n when signal n ended it; 127 when there is no such program, 126 no such cwd
    stdout: Text
    stderr: Text


class LinkError(Exception):
    """Nobody answers. The message is half a sentence."""


class Link:
    """Our end. Owned by one thread at a time."""

    def __init__(self) -> None:
        self._socket, self._guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._guest.setblocking(False)
        self._decoder = wire.Decoder()

    @property
    def port(self) -> str:
        """Where a `PortConfig` of the machine is to lead."""
        return f"fd:{self._guest.fileno()}"

    def connected(self) -> None:
        """The machine has a descriptor of its own now."""
        self._guest.close()

    def greet(self, timeout: float) -> None:
        """Wait until init is there. Raises `LinkError`."""
        exchange = _Exchange(wire.greeting(), b"", timeout, 0)
        exchange.killed = "in vain"
        self._talk(exchange)

    def ask(
        self,
        request: bytes,
        input: bytes = b"",
        timeout: float | None = None,
        output_max: int = OUTPUT_MAX,
    ) -> Completed[bytes]:
        """Have `request` done, with `input` as its standard input.

        Raises `LinkError`; and `CommandTimeoutError` and `OutputError`, when it was killed.
        """
        exchange = _Exchange(request, input, timeout, output_max)
        code = self._talk(exchange)
        done = Completed(code, bytes(exchange.output), bytes(exchange.error))
        if exchange.killed == "timeout":
            raise CommandTimeoutError(f"it did not end within {timeout:g} s and was killed", done)
        if exchange.killed:
            raise OutputError(f"it wrote more than {output_max} bytes and was killed", done)
        return done

    def _talk(self, exchange: _Exchange) -> int:
        """Until it has ended; returns the code."""
        poll = select.poll()
        while exchange.code is None:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if exchange.unsent else 0))
            poll.poll(exchange.look_at_time() * 1000)
            try:
                self._send(exchange)
                self._receive(exchange)
            except ProtocolError as error:
                raise LinkError(f"its init sent {error}") from None
            except OSError as error:
                raise LinkError(f"its port: {error.strerror}") from None
        return exchange.code

    def _send(self, exchange: _Exchange) -> None:
        with contextlib.suppress(BlockingIOError):
            while exchange.unsent:
                del exchange.unsent[: self._socket.send(exchange.unsent)]

    def _receive(self, exchange: _Exchange) -> None:
        try:
            data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            return
        if not data:
            raise LinkError("the guest ended")
        for kind, payload in self._decoder.feed(data):
            if exchange.code is not None:
                raise ProtocolError("something after the end")
            exchange.hear(kind, payload)

    def hang_up(self) -> None:
        """Make `ask` fail once it has read what is there. Any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Safe to call twice."""
        self._socket.close()
        self._guest.close()


class _Exchange:
    """What was said so far."""

    def __init__(
        self, request: bytes, input: bytes, timeout: float | None, output_max: int
    ) -> None:
        self.unsent = bytearray(request)
        self._deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        self.code: int | None = None
        self.output, self.error = bytearray(), bytearray()
        self.killed = ""  # why
        self._room = output_max
        self._input: Iterator[bytes] = wire.pieces(input)
        self._give()

    def _give(self) -> None:
        self.unsent += next(self._input, b"")

    def hear(self, kind: FromGuest, payload: bytes) -> None:
        """Something from the guest."""
        if kind is FromGuest.END:
            (self.code,) = wire.CODE.unpack(payload)
        elif kind is FromGuest.TAKEN:
            self._give()
        else:
            self._room -= len(payload)
            if self._room >= 0:
                (self.output if kind is FromGuest.OUTPUT else self.error).extend(payload)
            elif not self.killed:
                self._kill("output")

    def look_at_time(self) -> float:
        """Kill what takes too long; returns for how many seconds not to look again. Raises
        `LinkError` when it was in vain."""
        left = self._deadline - time.monotonic()
        if left <= 0 and self.killed:
            raise LinkError("its init does not answer")
        if left <= 0:
            self._kill("timeout")
        return min(max(0.0, left), LOOK_S)

    def _kill(self, why: str) -> None:
        self.killed = why
        self._deadline = time.monotonic() + KILL_S
        self._input = iter(())
        self.unsent += wire.frame(ToGuest.KILL)

"""The socket that gdb connects to: ``--gdb [HOST:]PORT|unix:PATH``.

Reached from `machine`, which makes a `Server`, and from `watch`, which polls its descriptors on the
thread that called `Machine.run` and lets it serve them: no thread of its own, and what it does to
vCPUs happens where pausing is allowed. One gdb at a time; without one it is a descriptor to poll.
When gdb goes away, in whatever way, breakpoints are taken away and the guest goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pykvm.debug.control import RunControl, Stop
from pykvm.debug.gdbstub import Stub
from pykvm.debug.rsp import Framer, Kind, frame
from pykvm.debug.target import MachineTarget
from pykvm.errors import ConfigError, KvmError
from pykvm.snapshot.template import template_of
from pykvm.unixsocket import UnixListener

if TYPE_CHECKING:
    from pykvm.machine import Machine

READ_SIZE: Final = 1 << 16
UNSENT_MAX: Final = 1 << 20  # bytes; from a client that has so many to read, no more is read
MOMENT_MS: Final = 20  # how long gdb may think between two questions without losing its turn
TURN_S: Final = 0.5  # how long the console and all else wait for a gdb that does not stop asking
LAST_WORDS_S: Final = 1.0  # how long the end of the machine waits for gdb to take the news


class Address:
    """Where to listen. Raises `ConfigError` for what is no address."""

    def __init__(self, spec: str) -> None:
        self.path = spec.removeprefix("unix:") if spec.startswith("unix:") else None
        self.host, self.port = "127.0.0.1", 0
        if self.path == "":
            raise ConfigError("--gdb: unix: needs a path; try --gdb unix:/tmp/gdb.sock")
        if self.path is not None:
            return
        host, colon, port = spec.removeprefix("tcp:").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not port.isascii() or not port.isdigit() or int(port) > 65535 or (colon and " " in host):
            raise ConfigError(
                f"--gdb: {spec!r} is no address; write PORT, HOST:PORT or unix:PATH, as in "
                "--gdb 1234"
            )
        self.port = int(port)
        if host:
            self.host = host

    def listen(self, resources: ExitStack) -> socket.socket:
        """A socket that listens there, closed with `resources`. Raises `ConfigError` when that is
        not possible."""
        if self.path is not None:
            listener = UnixListener(self.path, "--gdb")
            resources.callback(listener.close)
            return listener.socket
        try:
            return resources.enter_context(self._tcp())
        except OSError as error:
            place = f"{self.host}:{self.port}"
            reason = error.strerror or str(error)
            raise ConfigError(
                f"--gdb: cannot listen at {place}: {reason}; choose another, or port 0 for a "
                "free one"
            ) from None

    def _tcp(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
        except OSError:
            listener.close()
            raise
        return listener


class Server:
    """Serves one machine to one gdb at a time. A context manager; owned by the machine's thread."""

    def __init__(self, machine: Machine, control: RunControl, spec: str) -> None:
        self._machine = machine
        self._control = control
        self._address = Address(spec)
        self._resources = ExitStack()
        self._listener = self._address.listen(self._resources)
        self._listener.setblocking(False)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # a vCPU has stopped
        control.notify = self._ring
        self._client: Client | None = None

    @property
    def where(self) -> str:
        """The address as gdb's ``target remote`` wants it."""
        if self._address.path is not None:
            return self._address.path
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def stopped(self) -> bool:
        """Whether the guest stands still for gdb: then time does not count."""
        return self._control.stopped

    @property
    def connected(self) -> bool:
        """Whether a gdb is there."""
        return self._client is not None

    def give_up(self, text: str) -> None:
        """The machine is dead, but somebody is looking."""
        self._control.give_up(text)

    def begin(self) -> None:
        """The machine is about to run: keep how it is, for ``monitor reset``, and with --wait-gdb
        stop it before its first instruction."""
        if self._machine.template is None:
            # What other programs serve cannot be taken back: the monitor says so when asked.
            with contextlib.suppress(ConfigError, KvmError):
                template_of(self._machine)
        if self._machine.config.wait_gdb:
            self._control.interrupt()
            self._control.collect()

    # ── on the watching thread ───────────────────────────────────────────────────────────────

    def polls(self) -> list[tuple[int, int]]:
        """What to poll: descriptors and events."""
        polls = [(self._listener.fileno(), select.POLLIN), (self._bell, select.POLLIN)]
        return [*polls, self._client.poll()] if self._client else polls

    def serve(self, ready: set[int]) -> None:
        """Do what can be done, `ready` being the descriptors with events."""
        end = time.monotonic() + TURN_S
        while ready:
            self._serve(ready)
            ready = self._soon() if time.monotonic() < end else set()

    def _soon(self) -> set[int]:
        """Descriptors with events within a moment: gdb asks one question after another, and a step
        is over soon. To look after everything else in between takes as long as the answers do."""
        if self._client is None or self._machine.ended:
            return set()
        wake_fd = self._machine.requests.wake_fd
        poll = select.poll()
        for fd, events in (self._client.poll(), (self._bell, select.POLLIN)):
            poll.register(fd, events)
        poll.register(wake_fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(MOMENT_MS)}
        return set() if wake_fd in ready else ready

    def _serve(self, ready: set[int]) -> None:
        if self._bell in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
        if self._client and self._client.socket.fileno() in ready:
            self._client.serve()
        if self._listener.fileno() in ready:
            self._accept()
        # A stop may have come just now, without another bell.
        stop = self._control.collect()
        if stop is not None and self._client:
            self._client.tell(stop)
        if self._client and self._client.gone:
            self._drop()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away meanwhile
            return
        if self._client:
            connection.close()  # one at a time
            return
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._control.stopped:
            self._control.interrupt()
            while (stop := self._control.collect()) is None:
                pass
        else:
            stop = None
        target = MachineTarget(self._machine, self._control)
        if stop is not None:
            target.note(stop)
        self._client = Client(connection, target)

    def _drop(self) -> None:
        """gdb is gone: the guest goes on without it."""
        assert self._client is not None
        self._client.socket.close()
        finished, self._client = self._client.stub.finished, None
        if finished or self._machine.ended:
            return
        if not self._control.stopped:
            self._control.interrupt()
            while not self._control.stopped:
                self._control.collect()
        self._control.disarm()
        self._control.resume(dict.fromkeys(range(len(self._machine.vcpus)), False))

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def let_go(self) -> None:
        """The run is over: leave nothing of the debugger's in the machine."""
        self._control.disarm()
        self._control.stopped = False
        self._machine.parking.release(range(len(self._machine.vcpus)))

    def say_goodbye(self, code: int) -> None:
        """The run is over, with this exit code: tell gdb, and hang up."""
        if self._client:
            self._client.end(code)
            self._client.socket.close()
            self._client = None

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        if self._client:
            self._client.socket.close()
            self._client = None
        if self._listener.fileno() >= 0:
            self._resources.close()
            os.close(self._bell)
            self._control.notify = lambda: None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A connected gdb: bytes in, packets to the stub, replies out."""

    def __init__(self, connection: socket.socket, target: MachineTarget) -> None:
        self.socket = connection
        self.target = target
        self.stub = Stub(target)
        self.gone = False
        self._framer = Framer()
        self._unsent = bytearray()
        self._last = b""  # packet sent: a NAK asks for it again

    def poll(self) -> tuple[int, int]:
        """The descriptor and the events that matter now."""
        events = select.POLLIN if len(self._unsent) < UNSENT_MAX else 0
        return self.socket.fileno(), events | (select.POLLOUT if self._unsent else 0)

    def serve(self) -> None:
        """Read what is there and answer it."""
        try:
            data = self.socket.recv(READ_SIZE) if len(self._unsent) < UNSENT_MAX else None
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self.gone = True
            return
        for event in self._framer.feed(data or b""):
            self._take(event.kind, event.payload)
            if self.stub.finished:
                self._flush()
                self.gone = True
                return
        self._flush()

    def _take(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.PACKET:
                acknowledge = not self.stub.no_ack
                if acknowledge:
                    self._unsent += b"+"
                reply = self.stub.handle(payload)
                if reply is not None:
                    self._send(reply)
            case Kind.BAD if not self.stub.no_ack:
                self._unsent += b"-"
            case Kind.NAK if not self.stub.no_ack:
                self._unsent += self._last
            case Kind.INTERRUPT:
                self.stub.interrupt()

    def tell(self, stop: Stop) -> None:
        """The machine has stopped: the reply gdb waits for."""
        self.target.note(stop)
        self.stub.choose(stop.vcpu + 1)
        if self.stub.running:
            if stop.text:  # gdb prints it
                self._send(b"O" + f"pykvm: {stop.text}\n".encode().hex().encode())
            self._send(self.stub.tell())
            self._flush()

    def end(self, code: int) -> None:
        """The machine has ended: the last reply."""
        if self.stub.running:
            self._send(b"W%02x" % (code & 0xFF))
        self.socket.settimeout(LAST_WORDS_S)
        with contextlib.suppress(OSError):
            self.socket.sendall(bytes(self._unsent))
        self._unsent.clear()

    def _send(self, payload: bytes) -> None:
        self._last = frame(payload)
        self._unsent += self._last

    def _flush(self) -> None:
        try:
            sent = self.socket.send(self._unsent) if self._unsent else 0
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True

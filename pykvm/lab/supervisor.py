"""The process that owns a lab: starts its machine, passes frames on, ends it when nobody needs it.

Reached from `client`, which starts it as ``python -m pykvm.lab.supervisor``; they talk in the
frames of `wire`. It is a process of its own so that a lab ends properly however its user ends,
SIGKILL included, and so that a kept lab outlives the command that started it. It ends when

- its control socket closes: the one user of a private lab is gone;
- a kept lab has had no client for `idle_s` seconds, or was told to STOP, or gets SIGTERM;
- the machine ends, or has not come up in `BOOT_TIMEOUT_S` seconds.

One thread, one selector, no blocking: `Link` keeps what a socket does not take at once.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, time_ns
from typing import Final

from pykvm.lab.machine import Machine, Plan
from pykvm.lab.wire import COMMANDS_MAX, FRAME, U64, Frame, Kind, Reader, pack

BOOT_TIMEOUT_S: Final = 120
CONSOLE_LINES: Final = 60  # shown when a lab fails: a panic has some fifty
CONSOLE_SIZE: Final = 16 << 10
CHUNK: Final = 256 << 10


class Link:
    """A socket that frames come and go through: a client's, or the lab's port."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        sock: socket.socket,
        on_frame: Callable[[Link, Frame], None],
        on_end: Callable[[Link], None],
    ) -> None:
        self.socket = sock
        self.command: int | None = None  # a client's number in the lab, while its command runs
        self._selector = selector
        self._on_frame = on_frame
        self._on_end = on_end
        self._reader = Reader()
        self._unsent = bytearray()
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, self._on_event)

    def send(self, data: bytes) -> None:
        """Send `data`, now or when the socket takes it."""
        self._unsent += data
        self._flush()

    def close(self) -> None:
        """Forget the socket. Nothing more comes from it."""
        self._selector.unregister(self.socket)
        self.socket.close()

    def _flush(self) -> None:
        # An error here shows up again where it is dealt with: in the next read.
        with suppress(OSError):
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        write = selectors.EVENT_WRITE if self._unsent else 0
        self._selector.modify(self.socket, selectors.EVENT_READ | write, self._on_event)

    def _on_event(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ:
            try:
                data = self.socket.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._on_end(self)
            for frame in self._reader.feed(data):
                self._on_frame(self, frame)


class Supervisor:
    """A lab and its clients."""

    def __init__(self, control: socket.socket, machine: Machine, idle_s: float | None) -> None:
        self._control = control
        self._idle_s = idle_s  # None: a private lab, which ends with its control socket
        self._machine = machine
        self._console = bytearray()  # its last bytes
        self._clients: set[Link] = set()
        self._commands: dict[int, Link | None] = {}  # None: its client is gone
        self._ready = False
        self._end = ""  # why the lab ends; empty while it does not
        self._boot_end = monotonic() + BOOT_TIMEOUT_S
        self._idle_since = monotonic()
        self._selector = selectors.DefaultSelector()
        self._port = Link(self._selector, machine.port, self._from_lab, self._machine_ended)
        for file, act in ((control, self._accept), (machine.console, self._read_console)):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, act)

    def run(self) -> None:
        """Serve until the lab ends, then tell the clients why it did."""
        while not self._end:
            wait = self._deadline() - monotonic()
            if wait <= 0:
                self._end = "idle" if self._ready else f"it did not start in {BOOT_TIMEOUT_S} s"
            for key, events in self._selector.select(wait):
                key.data(events)
        self._machine.close()
        self._read_console()
        while self._accept():
            pass  # those on their way are to hear it, too
        lines = self._console.decode(errors="replace").splitlines()
        # What virtiofsd says whenever QEMU leaves it is no news.
        console = [line for line in lines if not line.startswith("virtio_loop:")][-CONSOLE_LINES:]
        text = "\n".join([self._end, *(["its console's last lines:", *console] if console else [])])
        for client in self._clients:
            client.send(pack(Kind.FAIL, 0, text.encode()))

    def _deadline(self) -> float:
        if not self._ready:
            return self._boot_end
        if self._idle_s is None or self._clients:
            return monotonic() + 3600
        return self._idle_since + self._idle_s

    def _accept(self, _events: int = 0) -> bool:
        """Take a new client, if there is one.

        It connects to a kept lab's control socket; a private lab's brings the client's socket.
        """
        try:
            if self._idle_s is not None:
                sock = self._control.accept()[0]
            else:
                data, fds, _, _ = socket.recv_fds(self._control, 1, 1)
                if not data:
                    self._end = self._end or "its user ended"
                    return False
                sock = socket.socket(fileno=fds[0])
        except BlockingIOError:
            return False
        client = Link(self._selector, sock, self._from_client, self._client_ended)
        self._clients.add(client)
        if self._ready:
            client.send(pack(Kind.READY))
        return True

    def _from_client(self, client: Link, frame: Frame) -> None:
        if frame.kind == Kind.STOP:
            self._end = "it was stopped"
        elif frame.kind == Kind.EXEC and client.command is None:
            free = set(range(COMMANDS_MAX)) - self._commands.keys()
            if not free:
                client.send(pack(Kind.FAIL, 0, b"it runs as many commands as it can"))
                return
            client.command = min(free)
            self._commands[client.command] = client
        if client.command is not None:
            self._to_lab(frame._replace(command=client.command))

    def _from_lab(self, _port: Link, frame: Frame) -> None:
        if frame.kind == Kind.READY:
            self._ready = True
            self._port.send(pack(Kind.CLOCK, 0, U64.pack(time_ns())))
            for each in self._clients:
                each.send(pack(Kind.READY))
            return
        client = self._commands.get(frame.command)
        if client is not None:
            client.send(_bytes(frame))
        if frame.kind == Kind.EXIT:
            del self._commands[frame.command]
            if client is not None:
                client.command = None

    def _client_ended(self, client: Link) -> None:
        if client.command is not None:
            self._commands[client.command] = None  # until its EXIT
            self._to_lab(Frame(client.command, Kind.SIGNAL, signal.SIGKILL, b""))
        client.close()
        self._clients.remove(client)
        self._idle_since = monotonic()

    def _to_lab(self, frame: Frame) -> None:
        self._port.send(_bytes(frame))

    def _machine_ended(self, _port: Link) -> None:
        self._end = "its machine ended"

    def _read_console(self, _events: int = 0) -> None:
        while data := self._machine.console.read(CHUNK):
            self._console += data
        del self._console[:-CONSOLE_SIZE]


def _bytes(frame: Frame) -> bytes:
    return FRAME.pack(frame.command, frame.kind, frame.arg, len(frame.data)) + frame.data


def main() -> None:
    """Own the lab that the arguments describe: CONTROL_FD, IDLE_S or nothing, the `Plan`."""
    control_fd, idle, plan = sys.argv[1:]
    with socket.socket(fileno=int(control_fd)) as control:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            with Machine(Plan.loads(plan)) as machine:
                Supervisor(control, machine, float(idle) if idle else None).run()
        finally:
            if idle:
                os.unlink(control.getsockname())


if __name__ == "__main__":
    main()

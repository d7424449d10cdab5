"""The console device: its ports, and what the control queues say of them. The bytes move in
csrc/virtio_console.c.

Reached from `attach` (``--port``, ``--pipe``). Ports are named byte channels, /dev/vport0p1 and on;
port 0, a console of the kernel's, is never added: `hvc` is a device of its own. Source: virtio 1.2
§5.3 Console Device.

::

    device  PORT_ADD ──>                    driver      for each port, after DEVICE_READY
            <── PORT_READY
            PORT_OPEN, PORT_NAME ──>                    a name in the guest: it can be used
            <── PORT_OPEN                               a program has opened it: bytes may go
            PORT_OPEN 0 ──>                             the host's end: end of file
"""

from __future__ import annotations

import enum
import struct
import threading
from collections import deque

from pykvm._core import lib
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.consoledevice import CONFIG, ConsoleDevice, ConsoleFeature
from pykvm.virtio.ports import NOTHING, PortFiles
from pykvm.virtio.queueserver import QueueServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.config.console import PortConfig
    from pykvm.virtio.queue import Chain

CONTROL_RX: Final = 2  # §5.3.2 Virtqueues: port 0 has 0 and 1, port n 2n + 2 and 2n + 3
CONTROL_TX: Final = 3

CONTROL: Final = struct.Struct("<IHH")  # §5.3.6.2 Multiport Device Operation: id, event, value
STATE: Final = struct.Struct("<HI")  # bytes for the ports, a byte each; bytes of messages
PENDING_MAX: Final = 64  # messages that wait for the driver's buffers, before we listen again


class Event(enum.IntEnum):
    """§5.3.6.2 Multiport Device Operation."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class Port:
    """What the driver and we have told one another of a port."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.forget()

    def forget(self) -> None:
        """As at power-on."""
        self.ready = False  # the driver knows it
        self.guest_open = False  # a program of the guest's has it open
        self.told = False  # the driver believes that somebody is connected on the host

    @property
    def rx_queue(self) -> int:
        return 2 + 2 * self.number


class VirtioConsole(ConsoleDevice):
    """A console device. Raises `ConfigError` when what a port leads to cannot be opened."""

    name = "console"
    features = ConsoleFeature.MULTIPORT

    def __init__(self, memory: GuestMemory, ports: Sequence[PortConfig]) -> None:
        self.ports = [Port(number, port.name) for number, port in enumerate(ports, 1)]
        self.queue_count = 4 + 2 * len(ports)
        self._control = threading.Lock()  # the messages, and what has been told in them
        self._pending: deque[bytes] = deque()
        self._to_driver = QueueServer(self, "console-tell", self._give, self._has_news)
        self._from_driver = QueueServer(self, "console-hear", self._take, self._has_room)
        self._files = PortFiles()
        try:
            self._open(ports)
        except BaseException:
            self._close_host()
            raise
        super().__init__(memory)

    def _open(self, ports: Sequence[PortConfig]) -> None:
        files = [NOTHING, *(self._files.open(port) for port in ports)]
        self._create(files, self._to_driver.wake_fd)
        self._files.close_copies()

    def read_config(self) -> bytes:
        return CONFIG.pack(0, 0, 1 + len(self.ports), 0)

    # ── the data plane ───────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        for number in (CONTROL_RX, CONTROL_TX):
            self.c_queues[number].kick_fd = -1  # ours, not C's
        super().start()
        self._to_driver.start(CONTROL_RX)
        self._from_driver.start(CONTROL_TX)

    def stop(self) -> None:
        self._from_driver.stop()
        self._to_driver.stop()
        super().stop()

    def reset(self) -> None:
        super().reset()
        for port in self.ports:
            port.forget()
            lib.pk_console_open(self._handle, port.number, False)
        self._pending.clear()

    # ── the control queues, each on a thread of its own ──────────────────────────────────────

    def _has_room(self) -> bool:
        return len(self._pending) < PENDING_MAX

    def _take(self, chain: Chain) -> int:
        """A message of the driver's."""
        message = b"".join(
            self.memory.read(gpa, min(size, CONTROL.size)) for gpa, size in chain.out
        )
        if len(message) >= CONTROL.size:
            with self._control:
                self._hear(*CONTROL.unpack_from(message))
            self._to_driver.wake()
        return 0

    def _has_news(self) -> bool:
        """Whether there is a message for the driver. What changed on the host makes one."""
        with self._control:
            for port in self.ports:
                self._tell_open(port)
            return bool(self._pending)

    def _give(self, chain: Chain) -> int:
        """The next message, into the driver's buffer."""
        data = self._pending.popleft()
        self._from_driver.wake()  # it may have waited for room
        written = 0
        for gpa, size in chain.in_:
            piece = data[written : written + size]
            self.memory.write(gpa, piece)
            written += len(piece)
        return written

    def _post(self, port: Port, event: Event, value: int = 0, data: bytes = b"") -> None:
        self._pending.append(CONTROL.pack(port.number, event, value) + data)

    def _hear(self, number: int, event: int, value: int) -> None:
        if event == Event.DEVICE_READY:
            for port in self.ports if value else ():
                self._post(port, Event.PORT_ADD)
        elif 1 <= number <= len(self.ports):
            port = self.ports[number - 1]
            if event == Event.PORT_READY:
                port.ready = bool(value)
                if port.ready:
                    self._introduce(port)
            elif event == Event.PORT_OPEN:
                self._set_guest_open(port, bool(value))

    def _introduce(self, port: Port) -> None:
        """Its name after its state, so that a port with a name is not at its end already."""
        self._tell_open(port)
        self._post(port, Event.PORT_NAME, 1, port.name.encode())

    def _set_guest_open(self, port: Port, value: bool) -> None:
        port.guest_open = value
        lib.pk_console_open(self._handle, port.number, value)
        self.kick(port.rx_queue)  # the host may have bytes

    def _tell_open(self, port: Port) -> None:
        """Say whether somebody is connected on the host, if the driver does not know."""
        connected = bool(lib.pk_console_host(self._handle, port.number) & 1)
        if port.ready and connected != port.told and self._has_room():
            port.told = connected
            self._post(port, Event.PORT_OPEN, connected)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────

    def state(self) -> bytes:
        with self.lock:
            running = self._running
            if running:  # else it may be frozen, and is to start when it is thawed
                self._stop()
            ports = bytes(p.ready | p.guest_open << 1 | p.told << 2 for p in self.ports)
            pending = b"".join(bytes([len(message)]) + message for message in self._pending)
            rest = super().state()
            if running:
                self._start()
        return STATE.pack(len(ports), len(pending)) + ports + pending + rest

    def restore(self, state: bytes) -> None:
        """As `VirtioDevice.restore`. Who was connected on the host then is not now: the driver is
        told, where it makes a difference."""
        count, size = STATE.unpack_from(state)
        at = STATE.size + count
        end = at + size
        with self.lock:
            super().restore(state[end:])
            with self._control:
                while at < end:
                    following = at + 1 + state[at]
                    self._pending.append(state[at + 1 : following])
                    at = following
                for port, bits in zip(self.ports, state[STATE.size :], strict=False):
                    port.ready, port.told = bool(bits & 1), bool(bits & 4)
                    self._set_guest_open(port, bool(bits & 2))
            self._to_driver.wake()

    def close(self) -> None:
        super().close()
        self._close_host()

    def _close_host(self) -> None:
        self._destroy()
        self._to_driver.close()
        self._from_driver.close()
        self._files.close()

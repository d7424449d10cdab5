"""What --port and --pipe mean, and what a driver is told by the control queues."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import start

from pykvm import cli_devices, cli_options
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.config.console import NAME_MAX, PIPE, PORTS_MAX, PortConfig, parse_port
from pykvm.virtio.console import CONTROL_RX, CONTROL_TX, Event, VirtioConsole
from pykvm.virtio.consoledevice import ConsoleFeature
from pykvm.virtio.interrupt import Interrupt

SIZE = 16  # of each ring
WAIT_MS = 60_000
BUFFER = 64  # bytes of each
RX_BUFFERS, TX_BUFFERS = 0x40000, 0x50000  # gpa
PORT_RX, PORT_TX = 4, 5  # of port 1


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


class Driver:
    """The guest's side of the control queues, and of port 1's: rings at 0x1000, 0x2000, …"""

    def __init__(self, memory: GuestMemory, device: VirtioConsole) -> None:
        self.memory, self.device = memory, device
        self.told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.sent = [0] * device.queue_count
        self.seen = 0
        self.given = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        device.interrupt = Interrupt()
        device.interrupt.set_fd(1 + CONTROL_RX, self.told)
        device.interrupt.set_fd(1 + PORT_RX, self.given)

    def start(self) -> None:
        start(self.device, SIZE, ConsoleFeature.MULTIPORT)

    def offer(self, number: int, gpa: int, size: int, *, writable: bool) -> None:
        base, index = 0x1000 * (number + 1), self.sent[number] % SIZE
        self.memory.write(base + 16 * index, struct.pack("<QIHH", gpa, size, 2 * writable, 0))
        self.memory.write(base + 0x404 + 2 * index, struct.pack("<H", index))
        self.sent[number] += 1
        self.memory.write(base + 0x402, struct.pack("<H", self.sent[number]))
        self.device.kick(number)

    def offer_buffers(self) -> None:
        for index in range(SIZE):
            self.offer(CONTROL_RX, RX_BUFFERS + BUFFER * index, BUFFER, writable=True)

    def say(self, port: int, event: Event, value: int) -> None:
        gpa = TX_BUFFERS + BUFFER * (self.sent[CONTROL_TX] % SIZE)
        self.memory.write(gpa, struct.pack("<IHH", port, event, value))
        self.offer(CONTROL_TX, gpa, 8, writable=False)

    def hear(self) -> tuple[int, int, int, bytes]:
        """The next message; waits for it."""
        used = 0x1000 * (CONTROL_RX + 1) + 0x800
        poll = select.poll()
        poll.register(self.told, select.POLLIN)
        while struct.unpack("<H", self.memory.read(used + 2, 2))[0] == self.seen:
            assert poll.poll(WAIT_MS)
            os.eventfd_read(self.told)
        head, size = struct.unpack("<II", self.memory.read(used + 4 + 8 * (self.seen % SIZE), 8))
        self.seen += 1
        message = self.memory.read(RX_BUFFERS + BUFFER * head, size)
        return (*struct.unpack_from("<IHH", message), message[8:])

    def open_port(self) -> None:
        """A program in the guest opens port 1, and is ready to read; returns when that is known."""
        self.offer(PORT_RX, 0x60000, BUFFER, writable=True)
        self.say(1, Event.PORT_READY, 1)
        self.say(1, Event.PORT_OPEN, 1)
        self.say(0, Event.DEVICE_READY, 1)  # when that is answered, the others are heard
        while self.hear()[1] != Event.PORT_ADD:
            pass

    def read_port(self) -> bytes:
        """What port 1 has given; waits for it."""
        poll = select.poll()
        poll.register(self.given, select.POLLIN)
        used = 0x1000 * (PORT_RX + 1) + 0x800
        while struct.unpack("<H", self.memory.read(used + 2, 2))[0] == 0:
            assert poll.poll(WAIT_MS)
            os.eventfd_read(self.given)
        return self.memory.read(0x60000, struct.unpack("<I", self.memory.read(used + 8, 4))[0])

    def write_port(self, data: bytes) -> None:
        """Write to port 1; returns when the host has it."""
        self.memory.write(0x70000, data)
        self.offer(PORT_TX, 0x70000, len(data), writable=False)
        never = os.eventfd(0, os.EFD_CLOEXEC)
        self.device.flush(never)
        os.close(never)

    def close(self) -> None:
        self.device.close()
        os.close(self.told)
        os.close(self.given)


def test_a_port_is_a_name_and_where_it_leads() -> None:
    assert parse_port("log=file:/tmp/a=b") == PortConfig("log", "file:/tmp/a=b")
    assert parse_port("agent=unix:a").path == "a"
    assert [port.where for port in PIPE] == ["stdin", "stdout", "stderr"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log",
        "=stdio",
        "log=",
        "log=file:",
        "log=tcp:1",
        "log=fd:",
        "log=fd:x",
        "log=fd:-1",
        "a/b=stdio",
        "x" * (NAME_MAX + 1) + "=stdio",
    ],
)
def test_wrong_ports_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--port"):
        parse_port(text)


@pytest.mark.parametrize(
    "ports",
    [
        [PortConfig("a", "file:a"), PortConfig("a", "file:b")],
        [PortConfig("a", "stdio"), PortConfig("b", "stdin")],
        [PortConfig(f"port{number}", "file:a") for number in range(PORTS_MAX + 1)],
    ],
)
def test_ports_that_exclude_each_other_are_refused(ports: list[PortConfig]) -> None:
    with pytest.raises(ConfigError, match="--port"):
        MachineConfig(kernel=b"", ports=tuple(ports))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--pipe"], "--pipe"),
        (["--pipe", "--serial", "stdio", "--", "true"], "--serial"),
        (["--port", "a=stdin"], "--serial"),
    ],
)
def test_a_stream_has_one_use(words: list[str], named: str) -> None:
    from pykvm.options import parse

    options, _, command = (*" ".join(words).partition(" -- "),)
    args = parse(options.split(), cli_options.BOOT)
    args.command = command.split()
    with pytest.raises(ConfigError, match=named):
        cli_devices.ports_of(args)


def test_a_file_that_cannot_be_written_is_refused_by_name(
    memory: GuestMemory, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--port log"):
        VirtioConsole(memory, [PortConfig("log", f"file:{tmp_path}/none/log")])


@pytest.mark.parametrize("number", [9999, 1 << 40])
def test_a_descriptor_that_is_not_open_is_refused_by_name(memory: GuestMemory, number: int) -> None:
    with pytest.raises(ConfigError, match=f"--port a: {number} is no open descriptor"):
        VirtioConsole(memory, [PortConfig("a", f"fd:{number}")])


def test_an_inherited_descriptor_moves_bytes_both_ways(memory: GuestMemory) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    device = VirtioConsole(memory, [PortConfig("a", f"fd:{theirs.fileno()}")])
    theirs.close()  # the device has its own
    driver = Driver(memory, device)
    driver.start()
    driver.offer_buffers()
    driver.say(1, Event.PORT_READY, 1)
    assert driver.hear() == (1, Event.PORT_OPEN, 1, b"")  # somebody is there from the start
    driver.say(1, Event.PORT_OPEN, 1)
    memory.write(0x60000, b"up")
    driver.offer(5, 0x60000, 2, writable=False)
    assert ours.recv(9) == b"up"
    driver.offer(4, 0x61000, 9, writable=True)
    ours.sendall(b"down")
    while memory.read(0x61000, 4) != b"down":
        pass
    driver.close()
    ours.close()


def test_a_port_is_announced_named_and_written(memory: GuestMemory, tmp_path: Path) -> None:
    device = VirtioConsole(memory, [PortConfig("log", f"file:{tmp_path}/log")])
    driver = Driver(memory, device)
    driver.start()
    driver.say(0, Event.DEVICE_READY, 1)  # before there is a buffer for the answer
    driver.offer_buffers()
    assert driver.hear() == (1, Event.PORT_ADD, 0, b"")
    driver.say(1, Event.PORT_READY, 1)
    assert driver.hear() == (1, Event.PORT_OPEN, 1, b"")
    assert driver.hear() == (1, Event.PORT_NAME, 1, b"log")
    driver.say(1, Event.PORT_OPEN, 1)
    driver.write_port(b"\0words\n\xff")
    assert (tmp_path / "log").read_bytes() == b"\0words\n\xff"
    driver.close()


def test_messages_without_sense_are_passed_over(memory: GuestMemory, tmp_path: Path) -> None:
    driver = Driver(memory, VirtioConsole(memory, [PortConfig("log", f"file:{tmp_path}/log")]))
    driver.start()
    driver.offer_buffers()
    driver.say(0, Event.PORT_READY, 1)
    driver.say(99, Event.PORT_OPEN, 1)
    driver.offer(CONTROL_TX, TX_BUFFERS, 3, writable=False)
    driver.say(0, Event.DEVICE_READY, 1)
    assert driver.hear() == (1, Event.PORT_ADD, 0, b"")
    assert driver.device.faults() == {}
    driver.close()


def test_a_restored_device_remembers_what_it_has_told(memory: GuestMemory, tmp_path: Path) -> None:
    ports = [PortConfig("log", f"file:{tmp_path}/log")]
    first = Driver(memory, VirtioConsole(memory, ports))
    first.start()
    first.offer_buffers()
    first.say(1, Event.PORT_READY, 1)
    assert first.hear() == (1, Event.PORT_OPEN, 1, b"")
    assert first.hear() == (1, Event.PORT_NAME, 1, b"log")
    state = first.device.state()
    first.close()

    second = Driver(memory, VirtioConsole(memory, ports))
    second.sent, second.seen = first.sent, first.seen
    second.device.restore(state)
    second.say(0, Event.DEVICE_READY, 1)
    assert second.hear() == (1, Event.PORT_ADD, 0, b"")
    second.close()


def test_a_client_that_comes_when_the_guest_has_the_port_open_is_heard(
    memory: GuestMemory, tmp_path: Path
) -> None:
    driver = Driver(memory, VirtioConsole(memory, [PortConfig("a", f"unix:{tmp_path}/socket")]))
    driver.start()
    driver.offer_buffers()
    driver.open_port()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        assert driver.hear() == (1, Event.PORT_OPEN, 1, b"")  # accepted, and nothing to read yet
        client.sendall(b"late")
        assert driver.read_port() == b"late"
    driver.close()


def test_a_port_goes_on_after_it_was_frozen_and_described(
    memory: GuestMemory, tmp_path: Path
) -> None:
    """As a snapshot and a fork do with the machine that goes on."""
    driver = Driver(memory, VirtioConsole(memory, [PortConfig("log", f"file:{tmp_path}/log")]))
    driver.start()
    driver.write_port(b"before")
    driver.device.freeze()
    driver.device.state()
    driver.device.thaw()
    driver.write_port(b" and after")
    assert (tmp_path / "log").read_bytes() == b"before and after"
    driver.close()

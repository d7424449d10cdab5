"""What --vsock means, whose its socket is, and what a restored guest is told."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import start

from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.config.vsock import PATH_MAX, VsockConfig, parse_vsock
from pykvm.virtio.interrupt import Interrupt
from pykvm.virtio.vsock import EVENT_QUEUE, Vsock

SIZE = 4  # of each ring
RX_QUEUE = 0
TRANSPORT_RESET = 0
WAIT_MS = 60_000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


def make(memory: GuestMemory, path: Path) -> Vsock:
    device = Vsock(memory, VsockConfig(str(path)))
    device.interrupt = Interrupt()
    return device


def test_a_socket_device_is_a_path_and_an_address() -> None:
    assert parse_vsock("/run/v") == VsockConfig("/run/v", cid=None)
    assert parse_vsock("v,,1,cid=77") == VsockConfig("v,1", cid=77)


@pytest.mark.parametrize(
    "text",
    ["", ",cid=3", "v,cid=2", "v,cid=4294967295", "v,cid=x", "v,port=1", "x" * PATH_MAX + "x"],
)
def test_wrong_options_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--vsock"):
        parse_vsock(text)


def test_the_driver_learns_its_address(memory: GuestMemory, tmp_path: Path) -> None:
    device = Vsock(memory, VsockConfig(str(tmp_path / "v"), cid=0x1234))
    assert device.read_config() == struct.pack("<Q", 0x1234)
    device.close()


def test_an_address_that_nobody_chose_is_the_first_or_a_copys_own(
    memory: GuestMemory, tmp_path: Path
) -> None:
    config = VsockConfig(str(tmp_path / "v"))
    cids = []
    for identity in (b"", b"1" * 16, b"2" * 16):
        device = Vsock(memory, config, identity)
        cids.append(struct.unpack("<Q", device.read_config())[0])
        device.close()
    assert cids[0] == 3
    assert len(set(cids)) == 3
    assert all(3 <= cid < 0xFFFF_FFFF for cid in cids)
    device = Vsock(memory, config._replace(cid=7), b"1" * 16)
    assert device.read_config() == struct.pack("<Q", 7)
    device.close()


def test_the_socket_is_there_as_long_as_the_device(memory: GuestMemory, tmp_path: Path) -> None:
    device = make(memory, tmp_path / "v")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "v"))  # and waits for a driver
    device.close()
    device.close()
    assert list(tmp_path.iterdir()) == []


def make_buffer(memory: GuestMemory, number: int, size: int) -> None:
    """One buffer at 0x8000 for the device to write, in the ring of queue `number`."""
    base = 0x1000 * (number + 1)
    memory.write(base, struct.pack("<QIHH", 0x8000, size, 2, 0))
    memory.write(base + 0x400, struct.pack("<HHH", 0, 1, 0))
    memory.write(0x8000, b"\xff" * size)


def wait_for_interrupt(device: Vsock, cause: int) -> None:
    told = os.eventfd(0, os.EFD_CLOEXEC)
    device.interrupt.set_fd(cause, told)
    poll = select.poll()
    poll.register(told, select.POLLIN)
    if not device.interrupt.pending:
        assert poll.poll(WAIT_MS)
    device.interrupt.set_fd(cause, -1)
    os.close(told)


def test_a_driver_that_resets_its_device_hangs_up(memory: GuestMemory, tmp_path: Path) -> None:
    device = make(memory, tmp_path / "v")
    make_buffer(memory, RX_QUEUE, 64)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_MS / 1000)
        client.connect(str(tmp_path / "v"))
        client.sendall(b"CONNECT 1\n")
        start(device, SIZE)
        wait_for_interrupt(device, 1 + RX_QUEUE)  # the guest is asked
        device.state()  # stops and starts: the connection is still there
        device.set_status(0)
        assert client.recv(1) == b""
    device.close()


def test_a_restored_guest_is_told_that_its_connections_are_gone(
    memory: GuestMemory, tmp_path: Path
) -> None:
    first = make(memory, tmp_path / "a")
    start(first, SIZE)
    state = first.state()
    first.close()

    make_buffer(memory, EVENT_QUEUE, 4)
    second = make(memory, tmp_path / "b")
    second.restore(state)
    wait_for_interrupt(second, 1 + EVENT_QUEUE)
    assert memory.read(0x8000, 4) == struct.pack("<I", TRANSPORT_RESET)
    assert second.status == first.status
    second.close()


def test_a_copy_takes_its_origins_address_over_when_it_is_to(
    memory: GuestMemory, tmp_path: Path
) -> None:
    first = Vsock(memory, VsockConfig(str(tmp_path / "a")), b"1" * 16)
    first.interrupt = Interrupt()
    for identity, taken in ((None, True), (b"2" * 16, False)):
        second = Vsock(memory, VsockConfig(str(tmp_path / "b")), identity)
        second.interrupt = Interrupt()
        second.restore(first.state())
        assert (second.read_config() == first.read_config()) is taken
        second.close()
    first.close()

"""What the kernel's virtio console tells its driver, and how bytes pass it."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator

import pytest
from fakes import start

from pykvm.memory import GuestMemory
from pykvm.virtio.consoledevice import ConsoleFeature
from pykvm.virtio.hvc import INPUT_AHEAD, Hvc
from pykvm.virtio.interrupt import CONFIG_CAUSE, Interrupt

SIZE = 8  # of each ring
WAIT_MS = 60_000
RX, TX = 0, 1
BYTES = 0x40000  # gpa


@pytest.fixture
def hvc() -> Iterator[Hvc]:
    with GuestMemory(1 << 20) as memory:
        device = Hvc(memory)
        device.interrupt = Interrupt()
        yield device
        device.close()


def offer(device: Hvc, number: int, size: int, *, writable: bool) -> None:
    """The driver's first buffer in a queue: `size` bytes at `BYTES`."""
    base = 0x1000 * (number + 1)
    device.memory.write(base, struct.pack("<QIHH", BYTES, size, 2 * writable, 0))
    device.memory.write(base + 0x404, struct.pack("<H", 0))
    device.memory.write(base + 0x402, struct.pack("<H", 1))
    device.kick(number)


def wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(WAIT_MS)


def test_what_the_guest_writes_can_be_taken(hvc: Hvc) -> None:
    assert hvc.take() == b""
    start(hvc, SIZE)
    hvc.memory.write(BYTES, b"hello\n")
    offer(hvc, TX, 6, writable=False)
    wait(hvc.output_fd)
    assert hvc.take() == b"hello\n"
    assert hvc.take() == b""


def given_to(hvc: Hvc, sign: Callable[[], object]) -> bytes:
    """What a driver has got once it has given `sign` that it is ready; nothing before."""
    given = os.eventfd(0)
    hvc.interrupt.set_fd(1 + RX, given)
    offer(hvc, RX, 64, writable=True)
    assert hvc.memory.read(0x1802, 2) == bytes(2)
    sign()
    wait(given)
    os.close(given)
    return hvc.memory.read(BYTES, struct.unpack("<I", hvc.memory.read(0x1808, 4))[0])


def test_what_was_typed_waits_until_the_driver_looks_at_the_window(hvc: Hvc) -> None:
    assert hvc.give(b"typed") == 5
    hvc.read_config()  # no driver yet
    start(hvc, SIZE, ConsoleFeature.SIZE)
    assert given_to(hvc, hvc.read_config) == b"typed"


def test_what_was_typed_waits_until_the_driver_has_something_to_say(hvc: Hvc) -> None:
    assert hvc.give(b"typed") == 5
    start(hvc, SIZE, ConsoleFeature.SIZE)

    def say() -> None:
        offer(hvc, TX, 1, writable=False)
        wait(hvc.output_fd)
        hvc.take()

    assert given_to(hvc, say) == b"typed"


def test_a_driver_that_knows_no_window_gets_its_input_at_once(hvc: Hvc) -> None:
    start(hvc, SIZE)
    assert given_to(hvc, lambda: hvc.give(b"typed")) == b"typed"


def test_input_that_no_driver_takes_is_refused_before_it_grows(hvc: Hvc) -> None:
    assert hvc.give(b"x" * 10 * INPUT_AHEAD) == INPUT_AHEAD
    assert hvc.give(b"x") == 0


def test_a_flush_takes_more_than_the_pipe_holds(hvc: Hvc) -> None:
    start(hvc, SIZE)
    hvc.memory.write(BYTES, b"y" * 300_000)
    offer(hvc, TX, 300_000, writable=False)
    never = os.eventfd(0)
    taken = bytearray()
    hvc.flush(never, lambda: taken.extend(hvc.take()))
    while data := hvc.take():
        taken += data
    assert taken == b"y" * 300_000
    os.close(never)


def test_the_window_is_in_the_configuration_and_a_change_interrupts_once(hvc: Hvc) -> None:
    told = os.eventfd(0, os.EFD_NONBLOCK)
    hvc.interrupt.set_fd(CONFIG_CAUSE, told)
    hvc.resize((80, 24))  # before there is a driver
    start(hvc, SIZE, ConsoleFeature.SIZE)
    assert os.eventfd_read(told) == 1
    assert hvc.read_config()[:4] == struct.pack("<HH", 80, 24)
    generation = hvc.config_generation
    hvc.resize((80, 24))
    with pytest.raises(BlockingIOError):
        os.eventfd_read(told)
    hvc.resize((132, 43))
    assert os.eventfd_read(told) == 1
    assert hvc.config_generation != generation
    assert hvc.read_config()[:4] == struct.pack("<HH", 132, 43)
    os.close(told)


def test_a_restored_driver_is_told_a_window_that_is_new(hvc: Hvc) -> None:
    hvc.resize((80, 24))
    start(hvc, SIZE, ConsoleFeature.SIZE)
    hvc.read_config()
    state = hvc.state()
    other = Hvc(hvc.memory)
    told = os.eventfd(0, os.EFD_NONBLOCK)
    other.interrupt = Interrupt()
    other.interrupt.set_fd(CONFIG_CAUSE, told)
    other.restore(state)
    os.eventfd_read(told)
    assert other.window == (80, 24)
    other.resize((100, 30))
    assert os.eventfd_read(told) == 1
    other.resize((80, 24))
    assert other.state() == state  # it takes input, too
    other.close()
    os.close(told)

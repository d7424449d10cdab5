"""A device that another process serves, and what becomes of it when that process ends."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from fake_backend import FakeBackend
from fakes import FakeVm
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio import abandoned
from pykvm.virtio.backend import Backend
from pykvm.virtio.device import Feature, Status
from pykvm.virtio.mmio import MmioTransport, Register
from pykvm.virtio.queue import DESCRIPTOR, USED_ELEMENT, Chain, Queue, Ring
from pykvm.virtio.vhost import VhostDevice
from pykvm.virtio.vhostuser import BackendError, Frontend, Request

READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
DESC, AVAIL, USED, BUFFERS = 0x1000, 0x2000, 0x3000, 0x4000
SIZE = 8
WAITING, DONE, ERROR = b"w", b"d", b"e"
LIMIT_S = 20.0


class Device(VhostDevice):
    """Two queues; a request is one byte that says whether it waits, and one for the answer."""

    device_id = 42
    name = "vhost"

    def learn(self, frontend: Frontend) -> None:
        self.queue_count = 2

    def is_waiting(self, chain: Chain) -> bool:
        return self.memory.read(*chain.out[0]) == WAITING

    def fail(self, chain: Chain) -> int:
        self.memory.write(chain.in_[0][0], ERROR)
        return 1


class Driver:
    """Sets the device up, and makes requests of queue 0 that the fake back end leaves alone."""

    def __init__(self, memory: GuestMemory, reconnect_s: int = 0) -> None:
        self.memory = memory
        self.backends: list[FakeBackend] = []
        self.vm = FakeVm()
        self.device = Device(memory, "--fake", self._launch, reconnect_s)
        self.transport = MmioTransport(self.device, self.vm, self.vm.c_bus, 0xD000_0000, 16)  # type: ignore[arg-type]
        self.avail_idx = 0

    @property
    def backend(self) -> FakeBackend:
        return self.backends[-1]

    def _launch(self) -> Backend:
        self.backends.append(FakeBackend())
        return self.backends[-1]

    def __getitem__(self, register: int) -> int:
        return self.transport.read(register, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def start(self, features: int = Feature.VERSION_1, size: int = SIZE) -> None:
        self[Register.STATUS] = 0
        self[Register.STATUS] = Status.ACKNOWLEDGE | Status.DRIVER
        for half in (0, 1):
            self[Register.DRIVER_FEATURES_SEL] = half
            self[Register.DRIVER_FEATURES] = features >> 32 * half & 0xFFFF_FFFF
        self[Register.STATUS] = READY
        places = (Register.QUEUE_DESC, DESC), (Register.QUEUE_DRIVER, AVAIL)
        for register, gpa in (*places, (Register.QUEUE_DEVICE, USED)):
            self[register] = gpa
        self[Register.QUEUE_NUM] = size
        self[Register.QUEUE_READY] = 1
        self.memory.write(AVAIL, bytes(0x2000))
        self.avail_idx = 0
        self[Register.STATUS] = READY | Status.DRIVER_OK

    def reset_without_back_end(self) -> None:
        """Start, lose the back end, and start anew: another one is launched."""
        self.start()
        self.backend.die()
        wait_until(lambda: self.device._frontend is None)
        self.start()
        wait_until(lambda: len(self.backends) == 2)

    def request(self, head: int) -> None:
        place_request(self.memory, head)
        make_available(self.memory, self.avail_idx, head)
        self.avail_idx += 1
        os.eventfd_write(self.device.kick_fds[0], 1)

    def answers(self, *heads: int) -> list[bytes]:
        return [self.memory.read(BUFFERS + 16 * head + 1, 1) for head in heads]

    def used_idx(self) -> int:
        return int.from_bytes(self.memory.read(USED + 2, 2), "little")


def place_request(memory: GuestMemory, head: int) -> None:
    """Descriptors `head` and `head` + 1: a byte to read, a byte to write."""
    gpa = BUFFERS + 16 * head
    memory.write(gpa, WAITING + b"?")
    memory.write(DESC + 16 * head, DESCRIPTOR.pack(gpa, 1, 1, head + 1))
    memory.write(DESC + 16 * (head + 1), DESCRIPTOR.pack(gpa + 1, 1, 2, 0))


def make_available(memory: GuestMemory, idx: int, head: int) -> None:
    memory.write(AVAIL + 4 + 2 * (idx % SIZE), struct.pack("<H", head))
    memory.write(AVAIL + 2, struct.pack("<H", idx + 1 & 0xFFFF))


def use(memory: GuestMemory, idx: int, head: int) -> None:
    memory.write(USED + 4 + 8 * (idx % SIZE), USED_ELEMENT.pack(head, 1))
    memory.write(USED + 2, struct.pack("<H", idx + 1 & 0xFFFF))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Its parameter is `reconnect_s`."""
    with GuestMemory(1 << 16) as memory:
        driver = Driver(memory, getattr(request, "param", 0))
        yield driver
        driver.transport.close()
        for backend in driver.backends:
            backend.close()


def test_the_back_end_gets_the_queues_that_are_ready(driver: Driver) -> None:
    driver.start()
    assert driver.backend.requests().count(Request.SET_VRING_KICK) == 1
    driver.request(0)
    kick_fd = driver.backend.fds[Request.SET_VRING_KICK, 0]
    assert os.eventfd_read(kick_fd) == 2  # one when it started, one of ours


def test_what_the_back_end_signals_sets_the_interrupt_status(driver: Driver) -> None:
    driver.start()
    os.eventfd_write(driver.backend.fds[Request.SET_VRING_CALL, 0], 1)
    wait_until(lambda: driver[Register.INTERRUPT_STATUS] == 1)


def test_features_are_the_back_ends(driver: Driver) -> None:
    assert driver.device.device_features == driver.backend.features & ~(1 << 30)


def test_a_reset_takes_the_queues_back(driver: Driver) -> None:
    driver.start()
    driver[Register.STATUS] = 0
    assert driver.backend.requests()[-1] == Request.GET_VRING_BASE
    driver.start()
    assert driver.backend.requests().count(Request.SET_VRING_KICK) == 2


def test_what_is_in_flight_is_finished_before_the_queues_are_ours(driver: Driver) -> None:
    driver.start()
    driver.request(0)
    driver.backend.bases[0] = 1  # it has taken the request, and gives it back after that
    use(driver.memory, 0, 0)
    state = driver.device.state()
    assert driver.device.c_queues[0].virtq.avail_idx == 1
    assert struct.pack("<II", 0, 1) in [
        payload for request, payload in driver.backend.messages if request == 10
    ]
    driver[Register.STATUS] = 0
    driver.device.restore(state)
    assert driver[Register.STATUS] == READY | Status.DRIVER_OK


def test_a_back_end_that_ends_leaves_errors(
    driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.start()
    driver.request(0)
    driver.request(2)
    driver.backend.die()
    wait_until(lambda: driver.used_idx() == 2)
    assert driver.answers(0, 2) == [ERROR, ERROR]
    assert driver[Register.INTERRUPT_STATUS] & 1
    driver.request(4)
    wait_until(lambda: driver.used_idx() == 3)
    assert driver.answers(4) == [ERROR]
    assert "vhost: fake: " in capsys.readouterr().err


def test_a_driver_that_resets_gets_another_back_end(driver: Driver) -> None:
    driver.reset_without_back_end()
    wait_until(lambda: Request.SET_VRING_KICK in driver.backend.requests())
    assert driver.backend.requests().count(Request.SET_VRING_KICK) == 1


def test_the_thread_that_starts_a_back_end_does_not_end_before_it(driver: Driver) -> None:
    """PR_SET_PDEATHSIG kills a program with the thread that started it, whatever it holds."""
    driver.reset_without_back_end()
    wait_until(lambda: driver.device._frontend is not None)
    alive, end = [], driver.backend.close

    def close() -> None:
        alive.append(driver.device._thread.is_alive())
        end()

    driver.backend.close = close  # type: ignore[method-assign]
    driver.transport.close()
    assert alive == [True]


@pytest.mark.parametrize("driver", [1], indirect=True)
def test_a_successor_goes_on_where_the_back_end_stopped(driver: Driver) -> None:
    driver.start()
    for head in (0, 2, 4):
        driver.request(head)
    use(driver.memory, 0, 0)
    driver.memory.write(BUFFERS, DONE)
    driver.backend.die()
    wait_until(lambda: len(driver.backends) == 2)
    wait_until(lambda: Request.SET_VRING_KICK in driver.backend.requests())
    assert (Request.SET_VRING_BASE, struct.pack("<II", 0, 1)) in driver.backend.messages
    assert driver.used_idx() == 1  # nothing was answered with an error
    driver.backend.bases[0] = 1


@pytest.mark.parametrize("driver", [1], indirect=True)
def test_a_successor_does_not_get_what_was_answered_out_of_order(driver: Driver) -> None:
    driver.start()
    for head in (0, 2, 4):
        driver.request(head)
    use(driver.memory, 0, 4)
    driver.memory.write(BUFFERS + 16 * 4, DONE)
    driver.backend.die()
    wait_until(lambda: len(driver.backends) == 2)
    wait_until(lambda: Request.SET_VRING_KICK in driver.backend.requests())
    assert driver.answers(0, 2) == [ERROR, ERROR]
    assert (Request.SET_VRING_BASE, struct.pack("<II", 0, 3)) in driver.backend.messages
    driver.backend.bases[0] = 3


def test_a_ring_the_driver_breaks_is_not_handed_over(driver: Driver) -> None:
    driver.start(size=7)
    assert driver[Register.STATUS] & Status.NEEDS_RESET
    assert Request.SET_VRING_KICK not in driver.backend.requests()


@pytest.mark.parametrize("features", [0, 1 << 29 | 1 << 30])
def test_a_back_end_without_virtio_1_is_refused(features: int) -> None:
    with GuestMemory(1 << 16) as memory, pytest.raises(ConfigError, match="--fake: fake: lacks"):
        Device(memory, "--fake", lambda: FakeBackend(features))


def test_a_back_end_that_cannot_start_is_named() -> None:
    def launch() -> Backend:
        raise BackendError("no such thing")

    with GuestMemory(1 << 16) as memory, pytest.raises(ConfigError, match="--fake: no such thing"):
        Device(memory, "--fake", launch)


# ── what was taken and not given back ────────────────────────────────────────────────────────────

steps = st.lists(st.integers(0, 2 * SIZE - 1), max_size=60)


@given(steps, st.integers(0, 0xFFFF))
def test_what_a_back_end_kept_is_found(steps: list[int], start: int) -> None:
    """A driver makes requests and takes answers, in any order; an answered one is overwritten."""
    with GuestMemory(1 << 16) as memory:
        queue = Queue(memory, Ring(SIZE, DESC, AVAIL, USED))
        for gpa in (AVAIL, USED):
            memory.write(gpa + 2, struct.pack("<H", start))
        free, flying = list(range(0, SIZE, 2)), dict[int, int]()  # head: where it became available
        avail = used = start
        for step in steps:
            if step < SIZE and free:
                head = free.pop(step % len(free))
                place_request(memory, head)
                make_available(memory, avail, head)
                flying[head], avail = avail, avail + 1
            elif flying:
                head = list(flying)[step % len(flying)]
                if avail - min(flying.values()) == SIZE and flying[head] != min(flying.values()):
                    continue  # the ring does not keep older entries
                del flying[head]
                use(memory, used, head)
                memory.write(BUFFERS + 16 * head, DONE)
                free.append(head)
                used += 1
        queue.used_idx = queue.load_used_idx()
        found = abandoned.find(queue, lambda chain: memory.read(*chain.out[0]) == WAITING)
        if all(avail - at <= SIZE for at in flying.values()):
            assert found == sorted(flying, key=lambda head: flying[head])
        else:
            assert set(found) <= set(flying)

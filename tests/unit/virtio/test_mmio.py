"""virtio-mmio's registers, as a driver uses and abuses them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fakes import FakeVm, IdleDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.memory import GuestMemory
from pykvm.virtio.device import COMMON, Feature, Status
from pykvm.virtio.mmio import MAGIC, MmioTransport, Register
from pykvm.virtio.queue import SIZE_MAX, Fault

GPA, GSI = 0xD000_0000, 16
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


class Driver:
    """Reads and writes registers as a kernel's driver does."""

    def __init__(self, memory: GuestMemory) -> None:
        self.vm = FakeVm()
        self.device = IdleDevice(memory)
        self.transport = MmioTransport(self.device, self.vm, self.vm.c_bus, GPA, GSI)  # type: ignore[arg-type]

    def __getitem__(self, register: int) -> int:
        return self.transport.read(register, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def negotiate(self, features: int = Feature.VERSION_1) -> None:
        self[Register.STATUS] = 0
        self[Register.STATUS] = Status.ACKNOWLEDGE | Status.DRIVER
        for half in (0, 1):
            self[Register.DRIVER_FEATURES_SEL] = half
            self[Register.DRIVER_FEATURES] = features >> 32 * half & 0xFFFF_FFFF
        self[Register.STATUS] = READY

    def place_queue(self, number: int, size: int = 8, desc: int = 0) -> None:
        self[Register.QUEUE_SEL] = number
        self[Register.QUEUE_NUM] = size
        self[Register.QUEUE_DESC] = desc
        self[Register.QUEUE_DRIVER] = 0x1000
        self[Register.QUEUE_DEVICE] = 0x2000
        self[Register.QUEUE_READY] = 1

    def start(self) -> None:
        self.negotiate()
        self.place_queue(0)
        self.place_queue(1)
        self[Register.STATUS] = READY | Status.DRIVER_OK


@pytest.fixture
def driver() -> Iterator[Driver]:
    with GuestMemory(1 << 16) as memory:
        driver = Driver(memory)
        yield driver
        driver.transport.close()


def test_the_device_is_named(driver: Driver) -> None:
    assert driver[Register.MAGIC] == MAGIC
    assert driver[Register.VERSION] == 2
    assert driver[Register.DEVICE_ID] == IdleDevice.device_id


def test_features_come_in_two_halves(driver: Driver) -> None:
    halves = []
    for half in (0, 1, 2):
        driver[Register.DEVICE_FEATURES_SEL] = half
        halves.append(driver[Register.DEVICE_FEATURES])
    assert halves[0] | halves[1] << 32 == COMMON | IdleDevice.features
    assert halves[2] == 0


def test_features_that_were_not_offered_are_refused(driver: Driver) -> None:
    driver.negotiate(Feature.VERSION_1 | 1 << 6)
    assert not driver[Register.STATUS] & Status.FEATURES_OK


def test_a_legacy_driver_is_refused(driver: Driver) -> None:
    driver.negotiate(IdleDevice.features)
    assert not driver[Register.STATUS] & Status.FEATURES_OK


def test_accepted_features_stay(driver: Driver) -> None:
    driver.negotiate(Feature.VERSION_1 | IdleDevice.features)
    driver[Register.DRIVER_FEATURES_SEL] = 0
    driver[Register.DRIVER_FEATURES] = 0
    assert driver.device.driver_features == Feature.VERSION_1 | IdleDevice.features


def test_the_data_plane_starts_once_the_driver_is_ready(driver: Driver) -> None:
    driver.start()
    driver[Register.STATUS] = READY | Status.DRIVER_OK
    assert driver.device.starts == 1
    assert driver.device.faults() == {}
    assert driver.device.c_queues[1].virtq.used_gpa == 0x2000


def test_a_reset_stops_it_and_forgets_everything(driver: Driver) -> None:
    driver.start()
    driver.device.interrupt.notify(1)
    driver[Register.STATUS] = 0
    assert (driver.device.starts, driver.device.stops) == (1, 1)
    assert driver[Register.STATUS] == driver[Register.INTERRUPT_STATUS] == 0
    for number in (0, 1):
        driver[Register.QUEUE_SEL] = number
        assert (driver[Register.QUEUE_READY], driver[Register.QUEUE_NUM_MAX]) == (0, SIZE_MAX)


def test_a_driver_that_is_ready_too_early_must_reset(driver: Driver) -> None:
    driver[Register.STATUS] = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK
    assert driver[Register.STATUS] & Status.NEEDS_RESET
    assert driver.device.starts == 0


def test_a_driver_cannot_fill_the_log(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(30):
        driver.negotiate()
        driver.place_queue(0, size=3)
        driver[Register.STATUS] = READY | Status.DRIVER_OK
        assert driver[Register.STATUS] & Status.NEEDS_RESET
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert "queue 0: BAD_SIZE" in lines[0]
    assert "later ones are not reported" in lines[-1]


@pytest.mark.parametrize("size", [0, 3, 512, 32768])
def test_a_bad_queue_asks_for_a_reset_and_the_other_goes_on(driver: Driver, size: int) -> None:
    driver.negotiate()
    driver.place_queue(0, size=size)
    driver.place_queue(1)
    driver[Register.STATUS] = READY | Status.DRIVER_OK
    assert driver[Register.STATUS] & Status.NEEDS_RESET
    assert driver.device.faults() == {0: Fault.BAD_SIZE}
    assert driver[Register.INTERRUPT_STATUS] == 2
    assert os.eventfd_read(next(iter(driver.vm.irqfds))) == 1


def test_a_ready_queue_does_not_move(driver: Driver) -> None:
    driver.start()
    driver[Register.QUEUE_SEL] = 0
    driver[Register.QUEUE_DESC] = 0x8000
    driver[Register.QUEUE_NUM] = 4
    assert (driver.device.queues[0].desc, driver.device.queues[0].size) == (0, 8)


def test_a_queue_that_is_not_there_has_size_zero(driver: Driver) -> None:
    driver[Register.QUEUE_SEL] = 2
    assert driver[Register.QUEUE_NUM_MAX] == driver[Register.QUEUE_READY] == 0
    driver[Register.QUEUE_READY] = 1
    assert not any(queue.ready for queue in driver.device.queues)


def test_a_queue_can_be_switched_off(driver: Driver) -> None:
    driver.start()
    driver[Register.QUEUE_SEL] = 1
    driver[Register.QUEUE_READY] = 0
    assert driver[Register.QUEUE_READY] == 0
    assert driver.device.faults() == {}
    assert driver.device.c_queues[1].virtq.fault


def test_kicks_are_ioeventfds_by_queue(driver: Driver) -> None:
    notify = GPA + Register.QUEUE_NOTIFY
    assert driver.vm.ioeventfds == {
        (notify, number): fd for number, fd in enumerate(driver.device.kick_fds)
    }
    driver[Register.QUEUE_NOTIFY] = 1  # when KVM leaves it to us
    assert os.eventfd_read(driver.device.kick_fds[1]) == 1
    driver[Register.QUEUE_NOTIFY] = 7


def test_interrupts_are_acknowledged_bit_by_bit(driver: Driver) -> None:
    driver.device.interrupt.notify(0)
    driver.device.interrupt.notify(2)
    assert driver[Register.INTERRUPT_STATUS] == 3
    driver[Register.INTERRUPT_ACK] = 1
    assert driver[Register.INTERRUPT_STATUS] == 2


def test_configuration_is_read_and_written_at_any_width(driver: Driver) -> None:
    assert driver.transport.read(Register.CONFIG + 2, 2) == int.from_bytes(b"34", "little")
    driver.transport.write(Register.CONFIG + 7, 1, ord("x"))
    assert driver.device.config == b"1234567x"
    assert driver.transport.read(Register.CONFIG + 8, 4) == 0


def test_a_saved_device_is_restored(driver: Driver) -> None:
    driver.start()
    driver.device.c_queues[1].virtq.avail_idx = 77
    state = driver.transport.state()
    assert driver.device.starts == 2  # it went on
    driver[Register.STATUS] = 0
    driver.transport.restore(state)
    assert driver[Register.STATUS] == READY | Status.DRIVER_OK
    assert driver.device.c_queues[1].virtq.avail_idx == 77
    assert driver.transport.state() == state


accesses = st.tuples(
    st.booleans(),
    st.integers(0, 0x110) | st.sampled_from(list(Register)),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 16) | st.integers(0, (1 << 64) - 1),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(accesses, max_size=40))
def test_no_access_raises(driver: Driver, sequence: list[tuple[bool, int, int, int]]) -> None:
    for is_write, offset, size, value in sequence:
        if is_write:
            driver.transport.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= driver.transport.read(offset, size) < 1 << 8 * size

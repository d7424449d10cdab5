"""virtio-pci and the PCI bus, as a driver uses and abuses them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from fakes import FakeVm, IdleDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import layout, pci
from pykvm.devices.reset import ResetControl
from pykvm.memory import GuestMemory
from pykvm.virtio.device import COMMON as COMMON_FEATURES
from pykvm.virtio.device import Feature, Status
from pykvm.virtio.msix import MASKED, NO_VECTOR, Messages
from pykvm.virtio.pci import COMMON, DEVICE, ISR, NOTIFY, PENDING, TABLE, Field, PciTransport

FIRST_GSI = layout.GSI_MESSAGES
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


class Driver:
    """Finds the function in slot 1 and uses it by ports and memory, as a kernel does."""

    def __init__(self, memory: GuestMemory) -> None:
        self.vm = FakeVm()
        self.resets = 0
        self.bus = pci.PciBus(ResetControl(self._on_reset))
        self.device = IdleDevice(memory)
        messages = Messages(self.vm, FIRST_GSI)  # type: ignore[arg-type]
        self.function = PciTransport(self.device, messages, 16)
        self.slot = self.bus.add(self.function)

    def _on_reset(self) -> None:
        self.resets += 1

    def _select(self, offset: int, slot: int) -> None:
        self.bus.ports.write(0, 4, 1 << 31 | slot << 11 | offset & 0xFC)

    def read_config(self, offset: int, size: int, slot: int = 1) -> int:
        self._select(offset, slot)
        return self.bus.ports.read(4 + offset % 4, size)

    def write_config(self, offset: int, size: int, value: int, slot: int = 1) -> None:
        self._select(offset, slot)
        self.bus.ports.write(4 + offset % 4, size, value)

    @property
    def bar(self) -> int:
        return self.read_config(pci.BAR0, 4) & ~0xF

    def enable(self) -> None:
        self.write_config(pci.COMMAND, 2, pci.MEMORY_ENABLE | pci.BUS_MASTER)

    def read(self, offset: int, size: int) -> int:
        return self.bus.window.read(self.bar - layout.PCI_MMIO + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bus.window.write(self.bar - layout.PCI_MMIO + offset, size, value)

    def capabilities(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) of each."""
        found = []
        at = self.read_config(pci.CAPABILITIES, 1)
        while at:
            data = bytes(self.read_config(at + n, 1) for n in range(20))
            found.append((at, data))
            at = data[1]
        return found

    def msix(self) -> int:
        return next(at for at, data in self.capabilities() if data[0] == 0x11)

    def negotiate(self) -> None:
        self.write(Field.STATUS, 1, 0)
        self.write(Field.STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER)
        self.write(Field.DRIVER_FEATURE_SELECT, 4, 1)
        self.write(Field.DRIVER_FEATURE, 4, Feature.VERSION_1 >> 32)
        self.write(Field.STATUS, 1, READY)

    def start(self) -> None:
        self.negotiate()
        for number in (0, 1):
            self.write(Field.QUEUE_SELECT, 2, number)
            self.write(Field.QUEUE_SIZE, 2, 8)
            self.write(Field.QUEUE_DESC, 4, 0x3000)
            self.write(Field.QUEUE_DRIVER, 8, 0x1000)
            self.write(Field.QUEUE_DEVICE, 4, 0x2000)
            self.write(Field.QUEUE_DEVICE + 4, 4, 0)
            self.write(Field.QUEUE_ENABLE, 2, 1)
        self.write(Field.STATUS, 1, READY | Status.DRIVER_OK)

    def use_vector(self, vector: int, control: int = 0) -> None:
        """Queue 0 by `vector`, whose message is (0xfee00000, 0x40 + vector)."""
        self.write(Field.QUEUE_SELECT, 2, 0)
        self.write(Field.QUEUE_VECTOR, 2, vector)
        entry = struct.pack("<QII", 0xFEE0_0000, 0x40 + vector, control)
        for at in range(0, 16, 4):
            word = int.from_bytes(entry[at : at + 4], "little")
            self.write(TABLE + 16 * vector + at, 4, word)
        self.write_config(self.msix() + 2, 2, 0x8000)


@pytest.fixture
def driver() -> Iterator[Driver]:
    with GuestMemory(1 << 16) as memory:
        driver = Driver(memory)
        driver.enable()
        yield driver
        driver.function.close()


# ── the bus ──────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_finds_a_host_bridge_and_the_device(driver: Driver) -> None:
    assert driver.read_config(0x0A, 2, slot=0) == 0x0600
    assert driver.read_config(0, 4) == 0x1AF4 | (0x1040 + IdleDevice.device_id) << 16
    assert driver.read_config(0, 4, slot=2) == 0xFFFF_FFFF
    driver.bus.ports.write(0, 4, 1 << 31 | 1 << 16)
    assert driver.bus.ports.read(4, 2) == 0xFFFF


def test_configuration_space_is_in_memory_too(driver: Driver) -> None:
    ecam = driver.bus.ecam
    assert ecam.read(1 << 15, 4) == driver.read_config(0, 4)
    ecam.write(1 << 15 | pci.COMMAND, 2, 0)
    assert driver.read_config(pci.COMMAND, 2) == 0
    for offset, size in ((1 << 15 | 0x100, 4), (1 << 15 | 1, 4), (1 << 15, 8), (3 << 15, 4)):
        assert ecam.read(offset, size) == (1 << 8 * size) - 1


def test_port_cf9_still_resets(driver: Driver) -> None:
    driver.bus.ports.write(0, 4, 1 << 31)
    driver.bus.ports.write(1, 1, 6)
    assert driver.resets == 1
    assert driver.bus.ports.read(0, 4) == 1 << 31


def test_the_address_is_latched_by_whole_words_alone(driver: Driver) -> None:
    driver.bus.ports.write(0, 4, 0xFFFF_FFFF)
    assert driver.bus.ports.read(0, 4) == 0x80FF_FFFC
    driver.bus.ports.write(3, 1, 1)
    assert driver.bus.ports.read(0, 4) == 0x80FF_FFFC
    driver.bus.ports.write(0, 4, 0)
    assert driver.bus.ports.read(4, 4) == 0xFFFF_FFFF


def test_all_ones_written_to_a_bar_tell_its_size(driver: Driver) -> None:
    before = driver.read_config(pci.BAR0, 4)
    driver.write_config(pci.BAR0, 4, 0xFFFF_FFFF)
    assert -driver.read_config(pci.BAR0, 4) & 0xFFFF_FFFF == PciTransport.bar_size
    driver.write_config(pci.BAR0, 4, before)
    assert driver.read(Field.STATUS, 1) == 0


def test_read_only_configuration_stays(driver: Driver) -> None:
    before = [driver.read_config(at, 4) for at in range(0, 64, 4)]
    for at in range(0, 64, 4):
        if at not in (pci.COMMAND, pci.BAR0, pci.INTERRUPT_LINE):
            driver.write_config(at, 4, 0x5A5A_5A5A)
    assert [driver.read_config(at, 4) for at in range(0, 64, 4)] == before


def test_a_bar_that_is_off_is_not_there(driver: Driver) -> None:
    driver.write_config(pci.COMMAND, 2, 0)
    assert driver.read(Field.STATUS, 1) == 0xFF
    assert driver.vm.ioeventfds == {}


def test_a_bar_can_be_moved_and_its_kicks_with_it(driver: Driver) -> None:
    driver.write_config(pci.BAR0, 4, layout.PCI_MMIO + 0x10_0000)
    assert driver.read(Field.DEVICE_FEATURE_SELECT, 4) == 0
    notify = layout.PCI_MMIO + 0x10_0000 + NOTIFY
    kicks = {(notify + 4 * n, None): fd for n, fd in enumerate(driver.device.kick_fds)}
    assert driver.vm.ioeventfds == kicks


def test_two_bars_at_one_address_are_the_guests_mistake(driver: Driver) -> None:
    other = PciTransport(driver.device, Messages(driver.vm, 40), 17)  # type: ignore[arg-type]
    driver.bus.add(other)
    driver.write_config(pci.BAR0, 4, driver.bar, slot=2)
    driver.write_config(pci.COMMAND, 2, pci.MEMORY_ENABLE, slot=2)
    driver.write_config(pci.COMMAND, 2, 0, slot=2)
    assert len(driver.vm.ioeventfds) == 2
    other.msix.close()


# ── the device ───────────────────────────────────────────────────────────────────────────────────


def test_the_capabilities_lead_to_every_structure(driver: Driver) -> None:
    kinds = {data[3]: data for _, data in driver.capabilities() if data[0] == 9}
    assert set(kinds) == {1, 2, 3, 4, 5}
    offsets = {kind: struct.unpack_from("<I", data, 8)[0] for kind, data in kinds.items()}
    assert offsets == {1: COMMON, 2: NOTIFY, 3: ISR, 4: DEVICE, 5: 0}
    assert struct.unpack_from("<I", kinds[2], 16) == (4,)


def test_features_are_negotiated_in_halves(driver: Driver) -> None:
    halves = []
    for half in (0, 1, 2):
        driver.write(Field.DEVICE_FEATURE_SELECT, 4, half)
        halves.append(driver.read(4, 4))
    assert halves == [*divmod(COMMON_FEATURES | IdleDevice.features, 1 << 32)[::-1], 0]
    driver.negotiate()
    assert driver.read(Field.STATUS, 1) == READY


def test_the_data_plane_gets_the_queues(driver: Driver) -> None:
    driver.start()
    assert driver.device.starts == 1
    virtq = driver.device.c_queues[1].virtq
    assert (virtq.desc_gpa, virtq.avail_gpa, virtq.used_gpa) == (0x3000, 0x1000, 0x2000)
    assert driver.device.faults() == {}


def test_queues_have_notify_registers_of_their_own(driver: Driver) -> None:
    for number in (0, 1):
        driver.write(Field.QUEUE_SELECT, 2, number)
        assert driver.read(0x1E, 2) == number
    driver.write(NOTIFY + 4, 2, 1)
    assert os.eventfd_read(driver.device.kick_fds[1]) == 1


def test_configuration_is_behind_the_common_part(driver: Driver) -> None:
    assert driver.read(DEVICE + 2, 4) == int.from_bytes(b"3456", "little")
    driver.write(DEVICE, 1, ord("x"))
    assert driver.device.config == b"x2345678"


def test_the_window_capability_reaches_the_bar(driver: Driver) -> None:
    at = next(at for at, data in driver.capabilities() if data[0] == 9 and data[3] == 5)
    driver.write_config(at + 8, 4, DEVICE + 4)
    driver.write_config(at + 12, 4, 2)
    assert driver.read_config(at + 16, 2) == int.from_bytes(b"56", "little")
    driver.write_config(at + 16, 2, int.from_bytes(b"yz", "little"))
    assert driver.device.config == b"1234yz78"
    driver.write_config(at + 12, 4, 0xFFFF)
    driver.write_config(at + 16, 4, 0)
    assert driver.device.config == b"1234yz78"


# ── interrupts ───────────────────────────────────────────────────────────────────────────────────


def test_without_msix_the_isr_tells_and_reading_clears_it(driver: Driver) -> None:
    driver.device.interrupt.notify(1)
    assert driver.read(ISR, 1) == 1
    assert driver.read(ISR, 1) == 0


def test_an_unmasked_vector_is_a_message_of_kvms(driver: Driver) -> None:
    driver.use_vector(1)
    gsi = FIRST_GSI + 1
    assert driver.vm.messages == {gsi: (0xFEE0_0000, 0x41)}
    driver.device.interrupt.notify(1)
    fd = next(fd for fd, at in driver.vm.irqfds.items() if at == gsi)
    assert os.eventfd_read(fd) == 1


def test_a_masked_vector_is_pending_until_it_is_unmasked(driver: Driver) -> None:
    driver.use_vector(1, control=MASKED)
    assert driver.vm.irqfds == {}
    assert driver.read(PENDING, 4) == 0
    driver.device.interrupt.notify(1)
    assert driver.read(PENDING, 4) == 0b10
    driver.write(TABLE + 16 + 12, 4, 0)
    assert driver.read(PENDING, 4) == 0
    (fd,) = driver.vm.irqfds
    assert os.eventfd_read(fd) == 1  # KVM would have taken it


def test_the_function_mask_masks_all(driver: Driver) -> None:
    driver.use_vector(2)
    driver.write_config(driver.msix() + 2, 2, 0xC000)
    assert driver.vm.irqfds == {}
    driver.write_config(driver.msix() + 2, 2, 0x8000)
    assert list(driver.vm.irqfds.values()) == [FIRST_GSI + 2]


def test_a_vector_that_is_not_there_is_no_vector(driver: Driver) -> None:
    driver.write(Field.CONFIG_VECTOR, 2, 3)
    assert driver.read(Field.CONFIG_VECTOR, 2) == NO_VECTOR
    driver.write(Field.CONFIG_VECTOR, 2, 2)
    assert driver.read(Field.CONFIG_VECTOR, 2) == 2


def test_a_reset_forgets_the_vectors(driver: Driver) -> None:
    driver.use_vector(1)
    driver.write(Field.STATUS, 1, 0)
    assert driver.read(Field.QUEUE_VECTOR, 2) == NO_VECTOR


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_function_is_restored(driver: Driver) -> None:
    driver.use_vector(1)
    driver.start()
    driver.device.c_queues[0].virtq.used_idx = 5
    state = driver.bus.window.state()
    driver.bus.window.reset()
    assert driver.vm.irqfds == driver.vm.ioeventfds == {}
    driver.bus.window.restore(state)
    assert driver.bus.window.state() == state
    assert driver.device.c_queues[0].virtq.used_idx == 5
    assert list(driver.vm.irqfds.values()) == [FIRST_GSI + 1]


sizes = st.sampled_from([1, 2, 4, 8])
values = st.integers(0, 16) | st.integers(0, (1 << 64) - 1)
in_bar = st.tuples(st.just("bar"), st.integers(0, 0x7FFF) | st.sampled_from(list(Field)))
in_config = st.tuples(st.just("config"), st.integers(0, 255))
in_ecam = st.tuples(st.just("ecam"), st.integers(0, layout.PCI_ECAM_SIZE - 1))
in_ports = st.tuples(st.just("port"), st.integers(0, 7))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(in_bar | in_config | in_ports | in_ecam, sizes, values), max_size=40))
def test_no_access_raises(driver: Driver, sequence: list[tuple[tuple[str, int], int, int]]) -> None:
    for (where, offset), size, value in sequence:
        value &= (1 << 8 * size) - 1
        match where:
            case "bar":
                driver.function.write_bar(offset, size, value)
                assert 0 <= driver.function.read_bar(offset, size) < 1 << 8 * size
            case "ecam":
                driver.bus.ecam.write(offset, size, value)
                assert 0 <= driver.bus.ecam.read(offset, size) < 1 << 8 * size
            case "port":
                driver.bus.ports.write(offset, size, value)
                assert 0 <= driver.bus.ports.read(offset, size) < 1 << 8 * size
            case "config":
                size = min(size, 4 - offset % 4)
                driver.write_config(offset, size, value & (1 << 8 * size) - 1)
                assert 0 <= driver.read_config(offset, size) < 1 << 8 * size

"""The configuration ports of a machine without PCI devices, as kernels probe them."""

from __future__ import annotations

import pytest

from pykvm.devices.pciconfig import ConfigPorts, EmptyBus
from pykvm.devices.reset import ResetControl
from pykvm.pci import PciBus

HOST_BRIDGE = 0x0600


@pytest.fixture
def ports() -> ConfigPorts:
    return EmptyBus(ResetControl(lambda: None)).ports


def config(ports: ConfigPorts, slot: int, register: int, size: int, function: int = 0) -> int:
    ports.write(0, 4, 1 << 31 | slot << 11 | function << 8 | register & ~3)
    return ports.read(4 + (register & 3), size)


def test_linux_finds_mechanism_1_and_a_host_bridge(ports: ConfigPorts) -> None:
    # arch/x86/pci/direct.c, pci_check_type1() and pci_sanity_check().
    ports.write(3, 1, 1)
    ports.write(0, 4, 0x8000_0000)
    assert ports.read(0, 4) == 0x8000_0000
    assert config(ports, 0, 0x0A, 2) == HOST_BRIDGE


def test_nothing_else_is_on_the_bus(ports: ConfigPorts) -> None:
    for slot in range(1, 32):
        assert config(ports, slot, 0, 4) == 0xFFFF_FFFF
    for function in range(1, 8):
        assert config(ports, 0, 0, 2, function) == 0xFFFF


def test_the_bridge_is_the_one_of_a_bus_with_devices(ports: ConfigPorts) -> None:
    bus = PciBus(ResetControl(lambda: None))
    for register in range(0, 256, 4):
        assert config(ports, 0, register, 4) == config(bus.ports, 0, register, 4), hex(register)


def test_a_disabled_address_reads_as_all_ones(ports: ConfigPorts) -> None:
    ports.write(0, 4, 0)
    assert ports.read(4, 4) == 0xFFFF_FFFF


def test_writes_to_the_bridge_change_nothing(ports: ConfigPorts) -> None:
    ports.write(0, 4, 0x8000_0000)
    before = ports.read(4, 4)
    ports.write(4, 4, 0)
    assert ports.read(4, 4) == before


def test_the_address_is_part_of_the_state(ports: ConfigPorts) -> None:
    ports.write(0, 4, 0x8000_0008)
    other = EmptyBus(ResetControl(lambda: None)).ports
    other.restore(ports.state())
    assert other.read(0, 4) == 0x8000_0008


def test_an_old_snapshot_has_the_reset_control_register_alone(ports: ConfigPorts) -> None:
    ports.restore(b"\x02")
    assert ports.read(1, 1) == 2
    assert ports.read(0, 4) == 0

"""Puts a machine's virtio devices onto their transport.

Reached from `machine`, only when a device was asked for. Read `mmio` and `pci` for what a transport
is; where devices sit and which GSI they have is in `layout`.
"""

from __future__ import annotations

from pykvm import layout
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.blk import Blk
from pykvm.virtio.rng import Rng

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from typing import Any

    from pykvm.machine import Machine
    from pykvm.pci import PciBus
    from pykvm.virtio.device import VirtioDevice

MmioPlace = tuple[int, int, int]  # gpa, size, GSI: what acpi.place() wants to know,
PciPlace = tuple[int, int]  # and slot, GSI


def devices_of(machine: Machine) -> Iterator[VirtioDevice]:
    """The devices that the configuration asks for, in the order the guest finds them."""
    for disk in machine.config.disks:
        if disk.is_vhost:
            from pykvm.virtio.vhostblk import VhostBlk

            yield VhostBlk(machine.memory, disk)
        else:
            yield Blk(machine.memory, disk)
    if machine.config.nets:
        from pykvm.boot.guestnetwork import FW_CFG, settings
        from pykvm.virtio.net import Net

        cards = []
        for number, net in enumerate(machine.config.nets):
            cards.append(Net(machine.memory, net, number, _identity(machine)))
            yield cards[-1]
        machine.fw_cfg.add_file(
            FW_CFG, lambda: settings(machine.config.nets, [card.mac for card in cards])
        )
    for share in machine.config.shares:
        from pykvm.virtio.fs import Fs

        yield Fs(machine.memory, share)
    if machine.config.rng:
        yield Rng(machine.memory)
    if machine.config.balloon is not None:
        from pykvm.virtio.balloon import Balloon

        machine.balloon = Balloon(machine.memory, machine.config.balloon)
        yield machine.balloon
    if machine.config.vsock:
        from pykvm.virtio.vsock import Vsock

        yield Vsock(machine.memory, machine.config.vsock, _identity(machine))
    if machine.config.console == "virtio":
        from pykvm.virtio.hvc import Hvc

        machine.hvc = Hvc(machine.memory)
        yield machine.hvc
    if machine.config.ports:
        from pykvm.virtio.console import VirtioConsole

        machine.virtio_console = VirtioConsole(machine.memory, machine.config.ports)
        yield machine.virtio_console


def _identity(machine: Machine) -> bytes | None:
    """What addresses are made of that the user did not give: nothing when a machine boots, so they
    are the same each time; its generation id in a copy; None to take over those of its origin."""
    if machine.keeps_identity:
        return None
    return machine.generation_id.value if machine.generation else b""


def attach(machine: Machine, c_bus: Any, resources: ExitStack) -> dict[str, Any]:
    """Add the devices asked for, to the PCI bus if there is one; `resources` close them with the
    machine. Returns what `acpi.place` is told."""
    bus = machine.pci
    if bus is None:
        return {"virtio_mmio": _attach_mmio(machine, c_bus, resources)}
    machine.mmio_bus.add(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, bus.ecam)
    machine.mmio_bus.add(layout.PCI_MMIO, layout.PCI_MMIO_SIZE, bus.window)
    return {"pci": _attach_pci(machine, resources, bus)}


def _attach_mmio(machine: Machine, c_bus: Any, resources: ExitStack) -> tuple[MmioPlace, ...]:
    """Put each device at an address of its own."""
    from pykvm.virtio.mmio import MmioTransport

    places = []
    for number, device in enumerate(devices_of(machine)):
        resources.callback(device.close)
        _check_count(number)
        gpa = layout.VIRTIO_MMIO + number * layout.VIRTIO_MMIO_SIZE
        gsi = layout.GSI_VIRTIO + number
        transport = MmioTransport(device, machine.vm, c_bus, gpa, gsi)
        resources.callback(transport.close)
        machine.mmio_bus.add(gpa, layout.VIRTIO_MMIO_SIZE, transport)
        machine.virtio.append(transport)
        places.append((gpa, layout.VIRTIO_MMIO_SIZE, gsi))
    return tuple(places)


def _attach_pci(machine: Machine, resources: ExitStack, bus: PciBus) -> tuple[PciPlace, ...]:
    """Put each device into a slot of its own."""
    from pykvm.virtio.msix import Messages
    from pykvm.virtio.pci import PciTransport

    messages = Messages(machine.vm, layout.GSI_MESSAGES)
    places = []
    for number, device in enumerate(devices_of(machine)):
        resources.callback(device.close)
        _check_count(number)
        transport = PciTransport(device, messages, layout.GSI_VIRTIO + number)
        resources.callback(transport.close)
        machine.virtio.append(transport)
        places.append((bus.add(transport), transport.gsi))
    return tuple(places)


def _check_count(number: int) -> None:
    if number >= layout.VIRTIO_COUNT:
        raise ConfigError(f"--disk: a machine has at most {layout.VIRTIO_COUNT} virtio devices")

"""The fixed devices of a machine, and those that its user adds, each at its place.

Reached from `machine`. Ports and interrupt lines are in `layout`, what a device does in `devices`;
virtio devices come with `virtio.attach`.
"""

from __future__ import annotations

from pykvm import layout
from pykvm._core import lib
from pykvm.bus import Bus
from pykvm.devices.base import Device, FunctionDevice
from pykvm.devices.cmos import Cmos
from pykvm.devices.debugexit import DebugExit, ExitCode
from pykvm.devices.fwcfg import FwCfg
from pykvm.devices.i8042 import I8042
from pykvm.devices.pciconfig import EmptyBus
from pykvm.devices.pm import GPE_NEW_ID, PowerManagement
from pykvm.devices.post import Post
from pykvm.devices.pvpanic import PanicEvent, PvPanic
from pykvm.devices.reset import ResetControl
from pykvm.devices.serial import Serial
from pykvm.devices.snapshotport import SnapshotPort
from pykvm.devices.vmgenid import GenerationId
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.outcome import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from pykvm.machine import Machine
    from pykvm.pci import PciBus


def add_fixed(machine: Machine, resources: ExitStack) -> None:
    """The devices that every machine has; `resources` close them with it."""
    machine.c_bus = lib.pk_bus_create()
    resources.callback(lib.pk_bus_destroy, machine.c_bus)
    machine.serial = Serial(machine.c_bus, layout.PORT_COM1, machine.vm.fd, layout.IRQ_COM1)
    resources.callback(machine.serial.close)

    def line(gsi: int) -> Callable[[int], None]:
        return lambda level: machine.vm.irq_line(gsi, level)

    def on_reset() -> None:
        machine.stop(Reason.REBOOT)

    def on_exit_code(code: int) -> None:
        machine.stop(Reason.EXIT, code)

    def on_panic_event(event: PanicEvent) -> None:
        if event & PanicEvent.PANICKED:
            machine.panic.seen = True

    def on_snapshot_request() -> None:
        # On a vCPU's thread: the guest asks, and goes no further until it was answered.
        answer = machine.on_snapshot_request
        if answer is not None:
            machine.requests.add(answer, pause=True)

    low = machine.memory.low_end
    clock = Cmos(low, line(layout.IRQ_RTC), high_memory_size=machine.memory.size - low)
    resources.callback(clock.close)
    machine.power = PowerManagement(
        on_poweroff=lambda: machine.stop(Reason.POWEROFF), irq=line(layout.IRQ_SCI)
    )
    machine.fw_cfg = FwCfg(machine.config.cpus, machine.memory.size)
    machine.pio_bus = Bus(
        "port",
        [
            (layout.PORT_I8042, 5, I8042(on_reset, line(layout.IRQ_KEYBOARD))),
            (layout.PORT_RTC, 2, clock),
            (layout.PORT_POST, 1, Post()),
            (layout.PORT_DEBUG_EXIT, 4, DebugExit(on_exit_code)),
            (layout.PORT_COM1, 8, machine.serial),
            (layout.PORT_PVPANIC, 1, PvPanic(on_panic_event)),
            (layout.PORT_FW_CFG, 2, machine.fw_cfg),
            (layout.PORT_EXIT_CODE, 1, ExitCode(on_exit_code)),
            (layout.PORT_SNAPSHOT, 1, SnapshotPort(on_snapshot_request, machine)),
            (layout.PORT_PM1A_EVENT, 8, machine.power),
        ],
    )
    machine.generation_id = GenerationId(
        machine.memory, lambda: machine.power.raise_event(GPE_NEW_ID)
    )


def add_virtio(machine: Machine, resources: ExitStack) -> dict[str, Any]:
    """The virtio devices asked for, and a PCI bus if they are on one; returns where they are, as
    `acpi.place` wants it."""
    reset = ResetControl(lambda: machine.stop(Reason.REBOOT))
    bus: EmptyBus | PciBus = EmptyBus(reset)
    if machine.config.has_virtio and machine.config.transport == "pci":
        from pykvm.pci import PciBus

        bus = machine.pci = PciBus(reset)
    machine.pio_bus.add(layout.PORT_PCI_CONFIG, 8, bus.ports)
    if not machine.config.has_virtio:
        return {}
    from pykvm.virtio.attach import attach

    return attach(machine, machine.c_bus, resources)


def add_bios(machine: Machine) -> None:
    """The BIOS that real-mode guests call and multiboot guests know to have been there, and what
    both take for granted of a display; multiboot guests have a test device, too."""
    from pykvm.boot.e820 import memory_map
    from pykvm.devices.bios import Bios
    from pykvm.devices.crtc import Crtc

    services = Bios(
        machine.memory,
        machine.serial,
        memory_map(machine.memory),
        on_end=lambda: machine.stop(Reason.HALTED),
        pci=machine.pci,
    )
    machine.pio_bus.add(layout.PORT_BIOS_CALL, 4, services)
    machine.pio_bus.add(layout.PORT_CRTC, 7, Crtc())
    if machine.entry.protocol == "multiboot":
        _add_test_device(machine)


def _add_test_device(machine: Machine) -> None:
    from pykvm.devices import testdev

    lines = testdev.Lines(machine.vm.irq_line)
    machine.pio_bus.add(layout.PORT_TEST, 12, testdev.Register())
    machine.pio_bus.add(layout.PORT_TEST_LINES, layout.GSI_MESSAGES, lines)
    machine.mmio_bus.add(layout.TEST_MEMORY, layout.TEST_MEMORY_SIZE, testdev.Memory())


# ── devices of the user's own: methods of `Machine` ──────────────────────────────────────────────


def pio(machine: Machine, port: int, size: int = 1) -> Callable[[Any], Any]:
    """``@vm.pio(0x510, size=2)``: the device below answers at `size` ports from `port`.

    It is a `Device`, a class of devices, or a function ``f(offset, size, value)`` (see
    `FunctionDevice`). It takes the place of what was there. Raises `ConfigError` for COM1's ports:
    those are C's, and no access to them gets this far.
    """
    if port < layout.PORT_COM1 + 8 and port + size > layout.PORT_COM1:
        raise ConfigError(
            f"port {port:#x}: COM1 is at {layout.PORT_COM1:#x}, and C answers for it; "
            "choose another port"
        )
    return lambda thing: _attach(machine, machine.pio_bus, port, size, thing)


def mmio(machine: Machine, gpa: int, size: int) -> Callable[[Any], Any]:
    """``@vm.mmio(0xd0000000, 0x1000)``: the device below answers in that range of memory.

    As `pio`. Raises `ConfigError` where guest memory is: KVM would never ask us.
    """
    for region in machine.memory.regions:
        if gpa < region.end and region.gpa < gpa + size:
            raise ConfigError(
                f"mmio {gpa:#x}: guest memory is there, up to {region.end:#x}; "
                f"choose an address from {layout.MMIO_HOLE:#x}"
            )
    return lambda thing: _attach(machine, machine.mmio_bus, gpa, size, thing)


def _attach(machine: Machine, bus: Bus, base: int, size: int, thing: Any) -> Any:
    device = thing() if isinstance(thing, type) else thing
    if not isinstance(device, Device):
        device = FunctionDevice(device)
    bus.replace(base, size, device)
    saved = machine.unclaimed.pop(f"{bus.space}/{base:#x}", None)
    if saved:
        device.restore(saved)
    return thing

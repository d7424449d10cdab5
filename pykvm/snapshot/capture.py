"""The order in which a machine comes to rest, and in which it is made to run again.

Reached from `template`, which keeps what is captured here, and from `reset`. Every part is bytes
with a name; the vCPUs' are those of `vcpu`.

::

    at rest:   vCPUs out of the guest, accesses completed     Machine.paused()
               console emptied; devices finish and stop       Device.freeze()
    captured:  devices, vCPUs, PICs and IOAPIC, PIT, clock    capture()
               memory                                         by the caller
    again:     memory                                         by the caller
               devices (they drive their lines, but do not
               start), PICs and IOAPIC, vCPUs with LAPICs,
               PIT, clock                                     apply()
               devices start, interrupts that may have been
               under way are raised again                     Device.thaw()

Devices come before the interrupt controllers, so that lines which change on the way leave no
interrupt behind; the PIT comes after the LAPICs, for its next tick must not be overwritten.
"""

from __future__ import annotations

import contextlib
import struct
import time

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.snapshot.calls import VM, Calls
from pykvm.snapshot.vcpu import PARTS, VcpuFormat, tsc_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from pykvm.devices.base import Device
    from pykvm.machine import Machine

Parts = dict[str, bytes]
Devices = list[tuple[str, "Device"]]

CHIPS: Final = {
    "vm/pic1": lib.KVM_IRQCHIP_PIC_MASTER,
    "vm/pic2": lib.KVM_IRQCHIP_PIC_SLAVE,
    "vm/ioapic": lib.KVM_IRQCHIP_IOAPIC,
}
CHIP_HEAD: Final = struct.Struct("<I4x")  # struct kvm_irqchip: chip_id, then its state
TIME: Final = struct.Struct("<QQI4x")  # kvmclock and wall clock in ns, the TSC's kHz
CLOCKS: Final = ("stay", "step")


@contextlib.contextmanager
def at_rest(machine: Machine) -> Iterator[None]:
    """The machine at rest: no vCPU runs, no device serves, nothing is under way."""
    bare = machine.control.breakpoints.lifted() if machine.control else contextlib.nullcontext()
    with machine.paused(), bare:
        for vcpu in machine.vcpus:
            vcpu.settle()
        machine.empty_console()
        devices = [device for _, device in devices_of(machine)]
        try:
            for device in devices:
                device.freeze()
            yield
        finally:
            for device in devices:
                device.thaw()
            tell_of_the_pause(machine)


def tell_of_the_pause(machine: Machine) -> None:
    """So that a guest's watchdogs do not bite for it; EINVAL from guests without kvmclock."""
    for vcpu in machine.vcpus:
        lib.pk_ioctl_val(vcpu.fd, lib.KVM_KVMCLOCK_CTRL, 0)


def devices_of(machine: Machine) -> Devices:
    """Every device once, with the name that its part has: its space and its first address."""
    found: dict[Device, str] = {}
    for bus in (machine.pio_bus, machine.mmio_bus):
        for base, _, device in bus:
            if device not in found:
                found[device] = f"{bus.space}/{base:#x}"
    return [(name, device) for device, name in found.items()]


def states_of(machine: Machine) -> Parts:
    """The devices' parts."""
    return {name: device.state() for name, device in devices_of(machine)}


# ── capturing ────────────────────────────────────────────────────────────────────────────────────


def capture(machine: Machine) -> Parts:
    """All but the memory of a machine at rest. Raises `ConfigError` when a part is not ours."""
    _refuse_back_ends(machine)
    parts = states_of(machine)
    form = format_of(machine)
    for vcpu in machine.vcpus:
        prefix = f"vcpu{vcpu.id}"
        parts[f"{prefix}/cpuid"] = vcpu.cpuid
        for name, data in form.capture(vcpu).items():
            parts[f"{prefix}/{name}"] = data
    for name, chip in CHIPS.items():
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        machine.vm.ioctl(lib.KVM_GET_IRQCHIP, state, "KVM_GET_IRQCHIP")
        parts[name] = bytes(ffi.buffer(state))
    pit = ffi.new("struct kvm_pit_state2 *")
    machine.vm.ioctl(lib.KVM_GET_PIT2, pit, "KVM_GET_PIT2")
    parts["vm/pit"] = bytes(ffi.buffer(pit))
    parts["vm/time"] = TIME.pack(machine.vm.get_clock().clock, time.time_ns(), _tsc_khz(machine))
    return parts


def _refuse_back_ends(machine: Machine) -> None:
    """A vhost-user back end knows things of its own of the guest, and maps the machine's first
    memory: it cannot follow a copy."""
    config = machine.config
    if config.shares or any(disk.is_vhost for disk in config.disks):
        raise ConfigError(
            "snapshot: --fs, and --disk with format= or vhost-user=, are served by other programs, "
            "which are not saved; use a raw disk"
        )


def format_of(machine: Machine) -> VcpuFormat:
    """How KVM describes its vCPUs; its copies' are alike."""
    if machine.vcpu_format is None:
        machine.vcpu_format = VcpuFormat(machine)
    return machine.vcpu_format


def _tsc_khz(machine: Machine) -> int:
    return max(0, int(lib.pk_ioctl_val(machine.vcpus[0].fd, lib.KVM_GET_TSC_KHZ, 0)))


# ── applying ─────────────────────────────────────────────────────────────────────────────────────


def settings(machine: Machine, parts: Parts, clock: str) -> Calls:
    """The ioctls that give `machine`, or another of its kind, the state in `parts`: all of it but
    the devices'.

    `clock` says what the guest sees of the time since: nothing ("stay"), or all of it ("step").
    """
    calls = Calls()
    for name in CHIPS:
        calls.add(VM, lib.KVM_SET_IRQCHIP, parts[name], "KVM_SET_IRQCHIP")
    clock_ns, away_ns = _clock(parts["vm/time"], clock)
    away_tsc = away_ns * _tsc_khz(machine) // 1_000_000
    form = format_of(machine)
    for number in range(len(machine.vcpus)):
        own = {name: parts[f"vcpu{number}/{name}"] for name in PARTS}
        for request, argument, call in form.settings(number, own, tsc_of(own) + away_tsc):
            calls.add(number + 1, request, argument, call)
    calls.add(VM, lib.KVM_SET_PIT2, parts["vm/pit"], "KVM_SET_PIT2")
    kvmclock = ffi.new("struct kvm_clock_data *", {"clock": clock_ns})
    calls.add(VM, lib.KVM_SET_CLOCK, bytes(ffi.buffer(kvmclock)), "KVM_SET_CLOCK")
    return calls


def apply(machine: Machine, devices: Devices, parts: Parts, calls: Calls) -> Parts:
    """Give a machine at rest, whose memory is in place, the state in `parts`, of which `settings`
    made `calls`.

    Returns the parts of devices that this machine does not have (yet). Raises `ConfigError` and
    `KvmError`; the machine is of no use then.
    """
    rest = {name: data for name, data in parts.items() if name.startswith(("port/", "mmio/"))}
    for name, device in devices:
        if name in rest:
            restore_device(device, name, rest.pop(name))
    calls.make(machine)
    return rest


def _clock(data: bytes, clock: str) -> tuple[int, int]:
    """The kvmclock to set, and how much of it is time spent at rest."""
    if clock not in CLOCKS:
        raise ConfigError(f"--clock: {clock!r} is unknown; write {' or '.join(CLOCKS)}")
    kvmclock_ns, wall_ns, _ = TIME.unpack(data)
    away_ns = max(0, time.time_ns() - wall_ns) if clock == "step" else 0
    return kvmclock_ns + away_ns, away_ns


def restore_device(device: Device, name: str, data: bytes) -> None:
    """Give a device its part. A device that cannot take it is another one than was captured."""
    if not data:
        return
    try:
        device.restore(data)
    except (ValueError, struct.error, LookupError) as error:
        raise ConfigError(
            f"the device at {name} ({device.name}) cannot take the state saved for it: {error}"
        ) from None

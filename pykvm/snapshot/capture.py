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
from typing import TYPE_CHECKING, Final

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError
from pykvm.snapshot.vcpu import PARTS, VcpuFormat, tsc_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.devices.base import Device
    from pykvm.machine import Machine

Parts = dict[str, bytes]

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
    with machine.paused():
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
            _tell_of_the_pause(machine)


def _tell_of_the_pause(machine: Machine) -> None:
    """So that a guest's watchdogs do not bite for it; EINVAL from guests without kvmclock."""
    for vcpu in machine.vcpus:
        lib.pk_ioctl_val(vcpu.fd, lib.KVM_KVMCLOCK_CTRL, 0)


def devices_of(machine: Machine) -> Iterator[tuple[str, Device]]:
    """Every device once, with the name that its part has: its space and its first address."""
    seen = set()
    for bus in (machine.pio_bus, machine.mmio_bus):
        for base, _, device in bus:
            if id(device) not in seen:
                seen.add(id(device))
                yield f"{bus.space}/{base:#x}", device


# ── capturing ────────────────────────────────────────────────────────────────────────────────────


def capture(machine: Machine) -> Parts:
    """All but the memory of a machine at rest. Raises `ConfigError` when a part is not ours."""
    _refuse_back_ends(machine)
    parts = {name: device.state() for name, device in devices_of(machine)}
    form = _format(machine)
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


def _format(machine: Machine) -> VcpuFormat:
    if machine.vcpu_format is None:
        machine.vcpu_format = VcpuFormat(machine)
    return machine.vcpu_format


def _tsc_khz(machine: Machine) -> int:
    return max(0, int(lib.pk_ioctl_val(machine.vcpus[0].fd, lib.KVM_GET_TSC_KHZ, 0)))


# ── applying ─────────────────────────────────────────────────────────────────────────────────────


def apply(machine: Machine, parts: Parts, clock: str = "stay") -> Parts:
    """Give a machine at rest, whose memory is in place, the state in `parts`.

    `clock` says what the guest sees of the time since: nothing ("stay"), or all of it ("step").
    Returns the parts of devices that this machine does not have (yet). Raises `ConfigError` and
    `KvmError`; the machine is of no use then.
    """
    rest = {name: data for name, data in parts.items() if name.startswith(("port/", "mmio/"))}
    for name, device in devices_of(machine):
        if name in rest:
            restore_device(device, name, rest.pop(name))
    for name in CHIPS:
        state = ffi.from_buffer(parts[name])
        machine.vm.ioctl(lib.KVM_SET_IRQCHIP, state, "KVM_SET_IRQCHIP")
    clock_ns, away_ns = _clock(parts["vm/time"], clock)
    away_tsc = away_ns * _tsc_khz(machine) // 1_000_000
    form = _format(machine)
    for vcpu in machine.vcpus:
        own = {name: parts[f"vcpu{vcpu.id}/{name}"] for name in PARTS}
        form.apply(vcpu, own, tsc_of(own) + away_tsc)
    machine.vm.ioctl(lib.KVM_SET_PIT2, ffi.from_buffer(parts["vm/pit"]), "KVM_SET_PIT2")
    machine.vm.set_clock(ffi.new("struct kvm_clock_data *", {"clock": clock_ns}))
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

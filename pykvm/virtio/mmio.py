"""virtio-mmio: a device's registers in 4 KiB of memory, without a bus to find it on.

Reached from the MMIO bus, one `MmioTransport` a device, at `layout.VIRTIO_MMIO`. A driver learns
of it from ACPI (`LNRO0005` in the DSDT). Once the driver is ready only QueueNotify, InterruptStatus
and InterruptACK are used: KVM answers the first (ioeventfd), csrc/interrupt.c the others.
Source: virtio 1.2 §4.2.2 MMIO Device Register Layout.
"""

from __future__ import annotations

import enum
import os

from pykvm.devices.base import Device, all_ones
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.interrupt import Interrupt
from pykvm.virtio.queue import SIZE_MAX

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.kvm import Vm
    from pykvm.virtio.device import VirtioDevice

MAGIC: Final = 0x7472_6976  # "virt"
VERSION: Final = 2  # 1 was the legacy interface
VENDOR: Final = int.from_bytes(b"PKVM", "little")
U32: Final = 0xFFFF_FFFF


class Register(enum.IntEnum):
    """Offsets (table 4.1)."""

    MAGIC = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010  # 32 bits of the device's features,
    DEVICE_FEATURES_SEL = 0x014  # the low or the high ones
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030  # which queue the next ones are about
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC = 0x080  # low half; the high one follows
    QUEUE_DRIVER = 0x090
    QUEUE_DEVICE = 0x0A0
    SHM_LEN = 0x0B0  # of a shared memory region: there is none, which is all ones
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


_ADDRESSES: Final = {
    Register.QUEUE_DESC: ("desc", 0),
    Register.QUEUE_DESC + 4: ("desc", 32),
    Register.QUEUE_DRIVER: ("avail", 0),
    Register.QUEUE_DRIVER + 4: ("avail", 32),
    Register.QUEUE_DEVICE: ("used", 0),
    Register.QUEUE_DEVICE + 4: ("used", 32),
}


class MmioTransport(Device):
    """`device` at `gpa`, interrupting `gsi`, edge-triggered."""

    def __init__(self, device: VirtioDevice, vm: Vm, c_bus: Any, gpa: int, gsi: int) -> None:
        self.name = f"virtio-mmio {device.name}"
        self.device, self.gpa, self.gsi = device, gpa, gsi
        self._irq_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        vm.irqfd(self._irq_fd, gsi)
        device.interrupt = Interrupt(vm.fd, gsi)
        device.interrupt.serve(c_bus, gpa + Register.INTERRUPT_STATUS)
        for cause in range(1 + device.queue_count):
            device.interrupt.set_fd(cause, self._irq_fd)
        for number, fd in enumerate(device.kick_fds):
            vm.ioeventfd(fd, gpa + Register.QUEUE_NOTIFY, 4, datamatch=number)
        self._select()

    def _select(self) -> None:
        self._queue_sel = self._device_features_sel = self._driver_features_sel = 0

    # ── registers ────────────────────────────────────────────────────────────────────────────

    def read(self, offset: int, size: int) -> int:
        with self.device.lock:
            if offset >= Register.CONFIG:
                config = self.device.read_config()[offset - Register.CONFIG :][:size]
                return int.from_bytes(config, "little")
            # §4.2.2.2: the driver uses 32-bit accesses, aligned; others have no meaning.
            return self._read(offset) if size == 4 and offset % 4 == 0 else 0

    def _read(self, offset: int) -> int:
        device = self.device
        number = self._queue_sel
        queue = device.queues[number] if number < device.queue_count else None
        match offset:
            case Register.MAGIC:
                return MAGIC
            case Register.VERSION:
                return VERSION
            case Register.DEVICE_ID:
                return device.device_id
            case Register.VENDOR_ID:
                return VENDOR
            case Register.DEVICE_FEATURES:
                return device.offered_half(self._device_features_sel)
            case Register.QUEUE_NUM_MAX:
                return SIZE_MAX if queue else 0
            case Register.QUEUE_READY:
                return int(queue.ready) if queue else 0
            case Register.INTERRUPT_STATUS:
                return device.interrupt.pending
            case Register.STATUS:
                return device.status
            case Register.CONFIG_GENERATION:
                return device.config_generation
            case (
                Register.SHM_LEN
                | Register.SHM_LEN_HIGH
                | Register.SHM_BASE
                | Register.SHM_BASE_HIGH
            ):
                return all_ones(4)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        with self.device.lock:
            if offset >= Register.CONFIG:
                data = value.to_bytes(8, "little")[:size]
                self.device.write_config(offset - Register.CONFIG, data)
            elif size == 4 and offset % 4 == 0:
                self._write(offset, value)

    def _write(self, offset: int, value: int) -> None:
        device = self.device
        match offset:
            case Register.DEVICE_FEATURES_SEL:
                self._device_features_sel = value
            case Register.DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case Register.DRIVER_FEATURES:
                device.accept_half(self._driver_features_sel, value)
            case Register.QUEUE_SEL:
                self._queue_sel = value
            case Register.QUEUE_NOTIFY:
                device.kick(value & 0xFFFF)
            case Register.INTERRUPT_ACK:
                device.interrupt.acknowledge(value)
            case Register.STATUS:
                device.set_status(value)
                if value == 0:
                    self._select()
            case _:
                self._write_queue(offset, value)

    def _write_queue(self, offset: int, value: int) -> None:
        """Set up the selected queue; once it is ready, it can only be made unready again."""
        number = self._queue_sel
        if number >= self.device.queue_count:
            return
        queue = self.device.queues[number]
        if queue.ready:
            if offset == Register.QUEUE_READY and not value & 1:
                self.device.disable_queue(number)
        elif offset == Register.QUEUE_NUM:
            queue.size = value & 0xFFFF
        elif offset == Register.QUEUE_READY:
            queue.ready = bool(value & 1)
        elif offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            setattr(queue, name, _replace(getattr(queue, name), value, shift))

    # ── the rest of a Device ─────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        with self.device.lock:
            self.device.reset()
            self._select()

    def freeze(self) -> None:
        self.device.freeze()

    def thaw(self) -> None:
        self.device.thaw()

    def state(self) -> bytes:
        selected = (self._queue_sel, self._device_features_sel, self._driver_features_sel)
        return b"".join(n.to_bytes(4, "little") for n in selected) + self.device.state()

    def restore(self, state: bytes) -> None:
        numbers = [int.from_bytes(state[at : at + 4], "little") for at in (0, 4, 8)]
        self._queue_sel, self._device_features_sel, self._driver_features_sel = numbers
        self.device.restore(state[12:])

    def close(self) -> None:
        """Stop the device. Safe to call twice."""
        self.device.close()
        self.device.interrupt.close()
        if self._irq_fd >= 0:
            os.close(self._irq_fd)
            self._irq_fd = -1


def _replace(before: int, value: int, shift: int) -> int:
    """`before` with 32 of its bits, from bit `shift`, replaced."""
    return before & ~(U32 << shift) | (value & U32) << shift

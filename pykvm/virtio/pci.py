"""virtio-pci: a device as a PCI function, its registers in BAR 0, found through capabilities.

Reached from `pykvm.pci`, which serves configuration space. Once the driver is ready only the notify
registers are used, and those are KVM's (ioeventfd); interrupts are messages (`msix`), or the INTA#
line for drivers without MSI-X. Source: virtio 1.2 §4.1 Virtio Over PCI Bus.

::

    BAR 0   0x0000 common configuration     0x1000 ISR status    0x2000 device configuration
            0x3000 notify, 4 bytes a queue  0x4000 MSI-X table   0x5000 MSI-X pending bits
"""

from __future__ import annotations

import enum
import struct
from contextlib import suppress

from pykvm.errors import KvmError
from pykvm.lean import TYPE_CHECKING
from pykvm.pci import INTX_DISABLE, PciFunction
from pykvm.virtio.interrupt import Interrupt
from pykvm.virtio.msix import NO_VECTOR, Msix

if TYPE_CHECKING:
    from typing import Final

    from pykvm.virtio.device import VirtioDevice
    from pykvm.virtio.msix import Messages

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040  # §4.1.2 PCI Device Discovery: plus the virtio device id
CLASSES: Final = {2: 0x01_00_00}  # a disk is a mass storage controller; others are unclassified
UNCLASSIFIED: Final = 0xFF_00_00

COMMON: Final = 0x0000
ISR: Final = 0x1000
DEVICE: Final = 0x2000
NOTIFY: Final = 0x3000
TABLE: Final = 0x4000
PENDING: Final = 0x5000
PART: Final = 0x1000  # each part has a page
BAR_SIZE: Final = 0x8000

NOTIFY_MULTIPLIER: Final = 4


class CapabilityId(enum.IntEnum):
    """PCI Local Bus Specification 3.0, appendix H."""

    VENDOR = 0x09
    MSIX = 0x11


class CfgType(enum.IntEnum):
    """§4.1.4 Virtio Structure PCI Capabilities."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5  # a window on the BAR, for those who cannot map it


CAPABILITY: Final = struct.Struct("<BBBB2xII")  # cap_len, cfg_type, bar, id, offset, length
assert CAPABILITY.size == 14  # the generic part's 16 bytes, less its id and link
PCI_DATA: Final = 16  # offset of pci_cfg_data in its capability

MSIX_ENABLE: Final = 1 << 15  # of the message control
MSIX_MASK: Final = 1 << 14

# §4.1.4.3 Common configuration structure layout.
COMMON_CFG: Final = struct.Struct("<IIIIHHBBHHHHHQQQHH")
assert COMMON_CFG.size == 60


class Field(enum.IntEnum):
    """Offsets in the common configuration of what the driver writes."""

    DEVICE_FEATURE_SELECT = 0x00
    DRIVER_FEATURE_SELECT = 0x08
    DRIVER_FEATURE = 0x0C
    CONFIG_VECTOR = 0x10
    STATUS = 0x14
    QUEUE_SELECT = 0x16
    QUEUE_SIZE = 0x18
    QUEUE_VECTOR = 0x1A
    QUEUE_ENABLE = 0x1C
    QUEUE_DESC = 0x20
    QUEUE_DRIVER = 0x28
    QUEUE_DEVICE = 0x30


SIZES: Final[dict[int, int]] = {
    Field.DEVICE_FEATURE_SELECT: 4,
    Field.DRIVER_FEATURE_SELECT: 4,
    Field.DRIVER_FEATURE: 4,
    Field.CONFIG_VECTOR: 2,
    Field.STATUS: 1,
    Field.QUEUE_SELECT: 2,
    Field.QUEUE_SIZE: 2,
    Field.QUEUE_VECTOR: 2,
    Field.QUEUE_ENABLE: 2,
}
ADDRESSES: Final = {0x20: "desc", 0x28: "avail", 0x30: "used"}

STATE: Final = struct.Struct("<IIHI")  # the selections; the size of the device's state


class PciTransport(PciFunction):
    """`device` as a PCI function whose INTA# pin is `gsi`."""

    bar_size = BAR_SIZE

    def __init__(self, device: VirtioDevice, messages: Messages, gsi: int) -> None:
        kind = device.device_id
        super().__init__(VENDOR, DEVICE_BASE + kind, CLASSES.get(kind, UNCLASSIFIED), 0x1100)
        self.name = f"virtio-pci {device.name}"
        self.device, self.gsi = device, gsi
        self._vm = messages.vm
        device.interrupt = Interrupt(messages.vm.fd, gsi)
        self.msix = Msix(messages, 1 + device.queue_count)
        self._add_capabilities()
        self._notify_base: int | None = None  # where BAR 0 was when these were made:
        self._ioeventfds: list[tuple[int, int]] = []  # (eventfd, address)
        self._select()
        self._connect_interrupts()

    def _add_capabilities(self) -> None:
        notify_size = NOTIFY_MULTIPLIER * self.device.queue_count
        parts = (
            (CfgType.COMMON, COMMON, COMMON_CFG.size),
            (CfgType.ISR, ISR, 1),
            (CfgType.DEVICE, DEVICE, PART),
        )
        for cfg_type, offset, length in parts:
            body = CAPABILITY.pack(2 + CAPABILITY.size, cfg_type, 0, 0, offset, length)
            self.add_capability(CapabilityId.VENDOR, body)
        size = 2 + CAPABILITY.size + 4
        body = CAPABILITY.pack(size, CfgType.NOTIFY, 0, 0, NOTIFY, notify_size)
        self.add_capability(CapabilityId.VENDOR, body + struct.pack("<I", NOTIFY_MULTIPLIER))
        # §4.1.4.9: the driver writes bar, offset and length, then reads or writes the data.
        body = CAPABILITY.pack(size, CfgType.PCI, 0, 0, 0, 0) + bytes(4)
        writable = CAPABILITY.pack(0, 0, 0xFF, 0, 0xFFFF_FFFF, 0xFFFF_FFFF)
        self._window = self.add_capability(CapabilityId.VENDOR, body, writable)
        count = len(self.msix.vectors)
        body = struct.pack("<HII", count - 1, TABLE, PENDING)
        writable = struct.pack("<H", MSIX_ENABLE | MSIX_MASK)
        self._msix = self.add_capability(CapabilityId.MSIX, body, writable)

    def _select(self) -> None:
        self._device_feature_select = self._driver_feature_select = self._queue_select = 0
        self._vectors = [NO_VECTOR] * (1 + self.device.queue_count)  # by cause

    # ── configuration space ──────────────────────────────────────────────────────────────────

    def read_config(self, offset: int, size: int) -> int:
        if offset == self._window + PCI_DATA and (target := self._window_target()):
            data = self.read_bar(*target).to_bytes(8, "little")
            self.config[offset : offset + 4] = data[:4]
        return super().read_config(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        control = super().read_config(self._msix + 2, 2)
        self.msix.set_control(enabled=bool(control & MSIX_ENABLE), masked=bool(control & MSIX_MASK))
        self._connect_interrupts()
        self._place_notify()
        if offset == self._window + PCI_DATA and (target := self._window_target()):
            at, length = target
            self.write_bar(at, length, super().read_config(offset, 4) & (1 << 8 * length) - 1)

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == self._window + PCI_DATA:  # writable, though it is not kept
            self.config[offset : offset + size] = value.to_bytes(size, "little")
        super().write_config(offset, size, value)

    def _window_target(self) -> tuple[int, int] | None:
        """(offset, length) in BAR 0 that the window capability points to, if it is sound."""
        at = self._window
        bar = self.config[at + 4]
        offset, length = struct.unpack_from("<II", self.config, at + 8)
        sound = length in (1, 2, 4) and offset % length == 0 and offset + length <= BAR_SIZE
        return (offset, length) if bar == 0 and sound else None

    def _place_notify(self) -> None:
        """Let KVM answer the notify registers where BAR 0 lies now."""
        base = self.bar
        if base == self._notify_base:
            return
        self._notify_base = base
        for fd, address in self._ioeventfds:
            self._vm.ioeventfd(fd, address, 0, assign=False)
        self._ioeventfds = []
        for number, fd in enumerate(self.device.kick_fds if base is not None else ()):
            address = (base or 0) + NOTIFY + NOTIFY_MULTIPLIER * number
            # A guest may put two BARs at one address, where KVM takes one alone: its own mistake.
            with suppress(KvmError):
                # 0: a write of any width, which KVM knows by the address alone.
                self._vm.ioeventfd(fd, address, 0)
                self._ioeventfds.append((fd, address))

    def _connect_interrupts(self) -> None:
        """Say what signals each cause: its vector, or the line."""
        interrupt = self.device.interrupt
        for cause, vector in enumerate(self._vectors):
            interrupt.set_fd(cause, self.msix.fd(vector))
        interrupt.use_line(not self.msix.enabled and not self.command & INTX_DISABLE)

    # ── BAR 0 ────────────────────────────────────────────────────────────────────────────────

    def read_bar(self, offset: int, size: int) -> int:
        part, offset = offset & -PART, offset % PART
        with self.device.lock:
            match part:
                case 0x0000:
                    return _piece(self._common(), offset, size)
                case 0x1000:  # §4.1.4.5: reading clears it, and the line
                    return self.device.interrupt.acknowledge(3) if offset == 0 else 0
                case 0x2000:
                    return _piece(self.device.read_config(), offset, size)
                case 0x4000:
                    return self.msix.read_table(offset, size)
                case 0x5000:
                    return self.msix.read_pending(offset, size) & (1 << 8 * size) - 1
        return 0

    def write_bar(self, offset: int, size: int, value: int) -> None:
        part, offset = offset & -PART, offset % PART
        with self.device.lock:
            match part:
                case 0x0000:
                    self._write_common(offset, size, value)
                case 0x2000:
                    self.device.write_config(offset, value.to_bytes(size, "little"))
                case 0x3000:  # KVM left it to us
                    self.device.kick(offset // NOTIFY_MULTIPLIER)
                case 0x4000:
                    self.msix.write_table(offset, size, value)

    def _common(self) -> bytes:
        """The common configuration as the driver sees it now."""
        device, number = self.device, self._queue_select
        queue = device.queues[number] if number < device.queue_count else None
        return COMMON_CFG.pack(
            self._device_feature_select,
            device.offered_half(self._device_feature_select),
            self._driver_feature_select,
            device.accepted_half(self._driver_feature_select),
            self._vectors[0],
            device.queue_count,
            device.status,
            device.config_generation,
            number,
            queue.size if queue else 0,
            self._vectors[1 + number] if queue else NO_VECTOR,
            queue.ready if queue else 0,
            number if queue else 0,  # queue_notify_off
            *((queue.desc, queue.avail, queue.used) if queue else (0, 0, 0)),
            *(0, 0),  # queue_notify_data, queue_reset: not offered
        )

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if 0x20 <= offset < 0x38 and size in (4, 8) and offset % size == 0:
            self._write_address(offset, size, value)
            return
        if SIZES.get(offset) != size:  # §4.1.3.1: a driver uses each field's own width
            return
        device = self.device
        match offset:
            case Field.DEVICE_FEATURE_SELECT:
                self._device_feature_select = value
            case Field.DRIVER_FEATURE_SELECT:
                self._driver_feature_select = value
            case Field.DRIVER_FEATURE:
                device.accept_half(self._driver_feature_select, value)
            case Field.CONFIG_VECTOR:
                self._set_vector(0, value)
            case Field.STATUS:
                device.set_status(value)
                if value == 0:
                    self._select()
                    self._connect_interrupts()
            case Field.QUEUE_SELECT:
                self._queue_select = value
            case _ if self._queue_select < device.queue_count:
                self._write_queue(offset, value)

    def _write_queue(self, offset: int, value: int) -> None:
        number = self._queue_select
        queue = self.device.queues[number]
        if offset == Field.QUEUE_VECTOR:
            self._set_vector(1 + number, value)
        elif queue.ready:
            return  # §4.1.4.3.2: set up before it is enabled; only a reset disables it
        elif offset == Field.QUEUE_SIZE:
            queue.size = value
        elif offset == Field.QUEUE_ENABLE:
            queue.ready = value == 1

    def _write_address(self, offset: int, size: int, value: int) -> None:
        number = self._queue_select
        if number >= self.device.queue_count or self.device.queues[number].ready:
            return
        queue, name = self.device.queues[number], ADDRESSES[offset & ~7]
        address = getattr(queue, name).to_bytes(8, "little")
        at = offset % 8
        address = address[:at] + value.to_bytes(size, "little") + address[at + size :]
        setattr(queue, name, int.from_bytes(address, "little"))

    def _set_vector(self, cause: int, value: int) -> None:
        """§4.1.5.1.2.1: a vector that is not there reads back as NO_VECTOR."""
        self._vectors[cause] = value if value < len(self.msix.vectors) else NO_VECTOR
        self._connect_interrupts()

    # ── the rest of a function ───────────────────────────────────────────────────────────────

    def reset(self) -> None:
        with self.device.lock:
            self.device.reset()
            self._select()
            super().reset()

    def freeze(self) -> None:
        self.device.freeze()

    def thaw(self) -> None:
        self.device.thaw()

    def state(self) -> bytes:
        device = self.device.state()
        selected = (self._device_feature_select, self._driver_feature_select, self._queue_select)
        vectors = struct.pack(f"<{len(self._vectors)}H", *self._vectors)
        return b"".join(
            (
                super().state(),
                STATE.pack(*selected, len(device)),
                vectors,
                device,
                self.msix.state(),
            )
        )

    def restore(self, state: bytes) -> None:
        at = len(self.config)
        (*selected, device_size) = STATE.unpack_from(state, at)
        self._device_feature_select, self._driver_feature_select, self._queue_select = selected
        at += STATE.size
        vectors = struct.Struct(f"<{len(self._vectors)}H")
        self._vectors = list(vectors.unpack_from(state, at))
        at += vectors.size
        super().restore(state[: len(self.config)])
        self.msix.restore(state[at + device_size :])
        self.device.restore(state[at : at + device_size])

    def close(self) -> None:
        """Stop the device. Safe to call twice."""
        self.device.close()
        self.device.interrupt.close()
        self.msix.close()


def _piece(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")

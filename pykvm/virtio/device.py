"""The device model under both transports: status, features, configuration, queues.

Reached from `mmio` and `pci`, which turn registers into calls here; each kind of device is a
subclass (`blk`, `rng`). Everything here happens once per boot or per reset; what happens once per
request is the data plane's, which `start` gives the queues to.

::

    status   0 ── ACKNOWLEDGE ── DRIVER ── FEATURES_OK ── DRIVER_OK      §3.1 Device Initialization
                                    │           │             └ start(): the data plane runs
                                    │           └ the features are checked, and fixed
             a write of 0: stop(), and everything is as it was at power-on
"""

from __future__ import annotations

import enum
import os
import struct
import sys
import threading

from pykvm._core import ffi, lib
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.interrupt import CONFIG, CONFIG_CAUSE, QUEUE
from pykvm.virtio.queue import SIZE_MAX, Fault

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.interrupt import Interrupt


class Status(enum.IntFlag):
    """§2.1 Device Status Field."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Feature(enum.IntFlag):
    """§6 Reserved Feature Bits: those that every device here offers."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


U32: Final = 0xFFFF_FFFF
COMPLAINTS_MAX: Final = 10

COMMON: Final = Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.VERSION_1

STATE: Final = struct.Struct("<IIQI")  # status, ISR, driver's features, number of queues
QUEUE_STATE: Final = struct.Struct("<QQQHHHBx")  # a QueueSetup, then its two indices
assert QUEUE_STATE.size == 32


class QueueSetup:
    """A queue as the driver sets it up, before DRIVER_OK; and where it is, in a snapshot."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.desc = self.avail = self.used = 0  # gpa of the three parts
        self.ready = False
        self.avail_idx = self.used_idx = 0


class VirtioDevice:
    """A virtio device. Its registers are used with `lock` held; the data plane has its own thread.

    The device owns its kick eventfds; the transport makes ioeventfds of them and sets `interrupt`.
    """

    device_id: int  # §5 Device Types
    name: str = "virtio"
    queue_count: int = 1
    features: int = 0  # offered beside COMMON
    feature_names: type[enum.IntFlag] = Feature

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.lock = threading.RLock()
        self.interrupt: Interrupt
        self.kick_fds = [
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(self.queue_count)
        ]
        self.c_queues = ffi.new("struct pk_queue[]", self.queue_count)
        self.config_generation = 0
        self._complaints = 0  # in the log, about the driver
        self._running = False  # the data plane
        self._frozen = self._starts_at_thaw = False
        self._interrupts_at_thaw = 0  # bits of the ISR
        self._clear()

    def _clear(self) -> None:
        self._status = Status(0)
        self.driver_features = 0
        self.queues = [QueueSetup(SIZE_MAX) for _ in range(self.queue_count)]
        self._told = False

    # ── for the kinds of devices ─────────────────────────────────────────────────────────────

    def read_config(self) -> bytes:
        """The device-specific configuration (§2.5 Device Configuration Space)."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take the driver's write to it; most of it is read-only."""

    def tell_of_config(self) -> None:
        """Tell the driver that the configuration is another than it has read."""
        self.config_generation += 1
        if self._frozen:
            self._interrupts_at_thaw |= CONFIG
        elif Status.DRIVER_OK in self._status:
            self.interrupt.notify(CONFIG_CAUSE)

    def start(self) -> None:
        """Begin to serve `c_queues`, in another thread."""
        raise NotImplementedError

    def stop(self) -> None:
        """Finish what is in flight and serve no more; then the queues' indices are read."""
        raise NotImplementedError

    # ── for the transports ───────────────────────────────────────────────────────────────────

    @property
    def device_features(self) -> int:
        """What the device offers."""
        return self.features | COMMON

    @property
    def status(self) -> int:
        """The status as the driver sees it: a queue with a fault makes it ask for a reset."""
        faults = self.faults() if self._running else {}
        if faults and not self._told:
            self._tell(faults)
        return self._status | (Status.NEEDS_RESET if faults else 0)

    def _tell(self, faults: dict[int, Fault]) -> None:
        """A line in the log, once until a reset: a driver must not fill it by resetting."""
        self._told = True
        self._complaints += 1
        if self._complaints > COMPLAINTS_MAX:
            return
        text = ", ".join(f"queue {n}: {fault.name}" for n, fault in faults.items())
        last = "; later ones are not reported" if self._complaints == COMPLAINTS_MAX else ""
        print(f"pykvm: {self.name}: the driver broke its ring ({text}){last}", file=sys.stderr)

    def faults(self) -> dict[int, Fault]:
        """The queues the driver has broken, by number."""
        return {
            number: Fault(c_queue.virtq.fault)
            for number, (queue, c_queue) in enumerate(zip(self.queues, self.c_queues, strict=True))
            if queue.ready and c_queue.virtq.fault
        }

    def set_status(self, value: int) -> None:
        """The driver writes the status: 0 resets, other values add bits."""
        if value == 0:
            self.reset()
            return
        added = Status(value & 0xFF) & ~self._status
        if Status.FEATURES_OK in added and not self._accept_features():
            added &= ~Status.FEATURES_OK
        self._status |= added & ~Status.NEEDS_RESET
        if Status.DRIVER_OK in added:
            # §3.1.1 has the driver check FEATURES_OK before it goes on.
            if Status.FEATURES_OK in self._status:
                self._start()
            else:
                self._status |= Status.NEEDS_RESET

    def _accept_features(self) -> bool:
        """§2.2.2, §6.1: nothing that was not offered, and VERSION_1 (there is no legacy device)."""
        features = self.driver_features
        return not features & ~self.device_features and bool(features & Feature.VERSION_1)

    def offered_half(self, selected: int) -> int:
        """32 bits of what the device offers: the low ones (0) or the high ones (1)."""
        return _half(self.device_features, selected)

    def accepted_half(self, selected: int) -> int:
        """32 bits of what the driver accepted."""
        return _half(self.driver_features, selected)

    def accept_half(self, selected: int, bits: int) -> None:
        """The driver accepts; what it accepted stays once it is agreed on."""
        if selected < 2 and Status.FEATURES_OK not in self._status:
            shift = 32 * selected
            self.driver_features = self.driver_features & ~(U32 << shift) | bits << shift

    def has_feature(self, bit: int) -> bool:
        """Whether the driver accepted it."""
        return bool(self.driver_features & bit)

    def kick(self, number: int) -> None:
        """What an ioeventfd does, for notifications that KVM leaves to us."""
        if number < self.queue_count:
            os.eventfd_write(self.kick_fds[number], 1)

    def reset(self) -> None:
        """Return to power-on state (§2.4 Device Reset)."""
        self._stop()
        self._clear()
        self.interrupt.acknowledge(0xFF)

    def disable_queue(self, number: int) -> None:
        """Serve this queue no more; the others go on."""
        running = self._running
        self._stop()
        self.queues[number].ready = False
        if running:
            self._start()

    # ── the data plane ───────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        if self._frozen:
            self._starts_at_thaw = True
            return
        for number, (queue, c_queue) in enumerate(zip(self.queues, self.c_queues, strict=True)):
            c_queue.kick_fd = self.kick_fds[number]
            virtq = c_queue.virtq
            virtq.mem = self.memory.handle
            virtq.size = queue.size if queue.ready else 0  # 0: a fault, so never served
            virtq.desc_gpa, virtq.avail_gpa, virtq.used_gpa = queue.desc, queue.avail, queue.used
            virtq.indirect = self.has_feature(Feature.INDIRECT_DESC)
            virtq.event_idx = self.has_feature(Feature.EVENT_IDX)
            virtq.avail_idx, virtq.used_idx = queue.avail_idx, queue.used_idx
            lib.pk_virtq_start(ffi.addressof(c_queue, "virtq"))
        self._running = True
        self.start()
        if self.faults():
            self.interrupt.notify(0)

    def _stop(self) -> None:
        self._starts_at_thaw = False
        if not self._running:
            return
        self.stop()
        self._running = False
        for queue, c_queue in zip(self.queues, self.c_queues, strict=True):
            queue.avail_idx, queue.used_idx = c_queue.virtq.avail_idx, c_queue.virtq.used_idx

    # ── snapshots ────────────────────────────────────────────────────────────────────────────

    def freeze(self) -> None:
        """Finish what is in flight, and serve nothing until `thaw`: the queues' indices, the
        guest's memory and the host's side of the device are of one moment then."""
        with self.lock:
            if not self._frozen:
                running = self._running
                self._stop()
                self._frozen, self._starts_at_thaw = True, running

    def thaw(self) -> None:
        """Serve again what waits in the queues."""
        with self.lock:
            self._frozen = False
            if self._starts_at_thaw:
                self._start()
                self._starts_at_thaw = False
            self._interrupt_again()

    def _interrupt_again(self) -> None:
        """After a restore: an interrupt may have been under way. One too many does no harm."""
        pending, self._interrupts_at_thaw = self._interrupts_at_thaw, 0
        if pending & CONFIG:
            self.interrupt.notify(CONFIG_CAUSE)
        for number, queue in enumerate(self.queues if pending & QUEUE else ()):
            if queue.ready:
                self.interrupt.notify(1 + number)

    def state(self) -> bytes:
        """Describe the device. What is in flight is finished first; then it goes on."""
        with self.lock:
            running = self._running
            if running:
                self._stop()
            data = STATE.pack(
                self._status, self.interrupt.pending, self.driver_features, self.queue_count
            )
            for q in self.queues:
                data += QUEUE_STATE.pack(
                    q.desc, q.avail, q.used, q.size, q.avail_idx, q.used_idx, q.ready
                )
            if running:
                self._start()
        return data

    def restore(self, state: bytes) -> None:
        """Take back what `state()` gave, of a device of the same kind. Raises `ValueError` when its
        driver counts on what this device cannot do."""
        with self.lock:
            self.reset()
            status, pending, self.driver_features, count = STATE.unpack_from(state)
            lacking = self.driver_features & ~self.device_features
            if lacking and Status.FEATURES_OK in Status(status):
                names = self.feature_names(lacking).name
                raise ValueError(f"{self.name} lacks {names}, which the guest uses")
            if count != self.queue_count:
                raise ValueError(f"{self.name}: a state of {count} queues, not {self.queue_count}")
            fields = QUEUE_STATE.iter_unpack(state[STATE.size :])
            for q, values in zip(self.queues, fields, strict=True):
                q.desc, q.avail, q.used, q.size, q.avail_idx, q.used_idx, q.ready = values
            self._status = Status(status)
            if Status.DRIVER_OK in self._status and Status.NEEDS_RESET not in self._status:
                self._start()
            self._interrupts_at_thaw = pending
            if not self._frozen:
                self._interrupt_again()

    def close(self) -> None:
        """Stop, and close the eventfds. No vCPU runs any more. Safe to call twice."""
        with self.lock:
            self._stop()
            for fd in self.kick_fds:
                os.close(fd)
            self.kick_fds = []

    def _c_args(self) -> tuple[Any, int, Any]:
        """What a data plane in C is started with."""
        return self.c_queues, self.queue_count, self.interrupt.handle


def _half(features: int, selected: int) -> int:
    """32 of 64 feature bits; there are none beyond."""
    return features >> 32 * selected & U32 if selected < 2 else 0

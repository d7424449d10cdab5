"""What tests of devices and transports share: a VM that remembers, a device that does nothing."""

from __future__ import annotations

import errno
from typing import Any

from pykvm._core import lib
from pykvm.errors import KvmError
from pykvm.virtio.device import Feature, Status, VirtioDevice


class FakeVm:
    """Takes what the transports ask of KVM, and keeps it."""

    fd = -1

    def __init__(self) -> None:
        self.irqfds: dict[int, int] = {}  # eventfd: GSI
        self.ioeventfds: dict[tuple[int, int | None], int] = {}  # (address, datamatch): eventfd
        self.messages: dict[int, tuple[int, int]] = {}  # GSI: (address, data)
        self.c_bus: Any = lib.pk_bus_create()

    def irqfd(self, eventfd: int, gsi: int, *, assign: bool = True) -> None:
        if assign:
            assert eventfd not in self.irqfds
            self.irqfds[eventfd] = gsi
        else:
            assert self.irqfds.pop(eventfd) == gsi

    def ioeventfd(
        self,
        eventfd: int,
        addr: int,
        size: int,
        *,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        if assign:
            if (addr, datamatch) in self.ioeventfds:
                raise KvmError("KVM_IOEVENTFD", errno.EEXIST)
            self.ioeventfds[addr, datamatch] = eventfd
        else:
            assert self.ioeventfds.pop((addr, datamatch)) == eventfd

    def set_messages(self, messages: dict[int, tuple[int, int]]) -> None:
        self.messages = dict(messages)


class IdleDevice(VirtioDevice):
    """A device with two queues and 8 bytes of configuration, that serves nothing."""

    device_id = 42
    name = "idle"
    queue_count = 2
    features = 1 << 5

    config = b"12345678"
    starts = 0
    stops = 0

    def read_config(self) -> bytes:
        return self.config

    def write_config(self, offset: int, data: bytes) -> None:
        if offset + len(data) <= len(self.config):
            self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        self.stops += 1


def start(device: VirtioDevice, size: int, features: int = 0) -> None:
    """What a driver does, with rings of `size`, those of queue n at 0x1000 * (n + 1)."""
    device.set_status(Status.ACKNOWLEDGE | Status.DRIVER)
    device.driver_features = Feature.VERSION_1 | features
    device.set_status(Status.FEATURES_OK)
    for number, queue in enumerate(device.queues):
        base = 0x1000 * (number + 1)
        queue.size, queue.ready = size, True
        queue.desc, queue.avail, queue.used = base, base + 0x400, base + 0x800
    device.set_status(Status.DRIVER_OK)

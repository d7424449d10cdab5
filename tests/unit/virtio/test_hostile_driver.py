"""A driver that means harm, against a real disk under both transports: registers, rings, BARs.

The transports and the disk are the ones that guests have, its thread and io_uring included; only
KVM is a fake. Run as it is, this finds what raises or hangs. tests/c/test_sanitized_core.py runs it
again with csrc/ under the address and undefined behaviour sanitizers, and ``make soak`` with
$PYKVM_CASES cases.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from fakes import FakeVm
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pykvm import layout, pci
from pykvm.devices.reset import ResetControl
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.blk import Blk
from pykvm.virtio.config.disk import DiskConfig
from pykvm.virtio.config.limits import Limits
from pykvm.virtio.device import Status
from pykvm.virtio.mmio import MmioTransport, Register
from pykvm.virtio.msix import Messages
from pykvm.virtio.pci import NOTIFY, Field, PciTransport

MEMORY = 1 << 18
SECTORS = 32
LAST = b"no whole sector, so no request reaches it"
QUEUES = 2
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
FEATURES = 1 << 32 | 1 << 28 | 1 << 29 | 1 << 9 | 1 << 11  # INDIRECT_DESC, EVENT_IDX, FLUSH, WCE

# Where the parts of a ring may be: apart, on one another, at the end, misaligned, outside.
DESC, AVAIL, USED, TABLE, BUFFERS = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
places = st.sampled_from(
    [DESC, AVAIL, USED, TABLE, BUFFERS, MEMORY - 0x100, DESC + 4, 0, MEMORY, 1 << 63]
)
sizes = st.sampled_from([8, 1, 256, 0, 7, 512, 32768])
addresses = st.sampled_from(
    [BUFFERS, BUFFERS + 7, TABLE, DESC, AVAIL, USED, MEMORY - 1, MEMORY, 0, (1 << 64) - 1]
)
lengths = st.sampled_from([16, 1, 512, 4096, 48, 20, 0, MEMORY, (1 << 32) - 1])
widths = st.sampled_from([4, 1, 2, 8])
values = st.sampled_from([0, 1, 0xFF, 0xFFFF, (1 << 32) - 1, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
types = st.sampled_from([0, 1, 4, 8, 11, 13, 0, 1, 99])


class HostileDriver(RuleBasedStateMachine):
    """Steps of a driver, sound ones among them so that the others find something to break."""

    @initialize(
        by_pci=st.booleans(),
        cache=st.sampled_from(["writeback", "none", "unsafe"]),
        limited=st.booleans(),
    )
    def plug(self, by_pci: bool, cache: str, limited: bool) -> None:
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in teardown
        self.file.write(bytes(SECTORS * 512) + LAST)
        self.file.flush()
        self.memory = GuestMemory(MEMORY)
        limits = Limits(iops=1000, iops_max=20) if limited else Limits()
        try:
            config = DiskConfig(self.file.name, cache=cache, queues=QUEUES, limits=limits)
            self.disk = Blk(self.memory, config)
        except ConfigError:  # a file system without O_DIRECT
            self.disk = Blk(self.memory, DiskConfig(self.file.name, queues=QUEUES))
        self.vm: Any = FakeVm()
        self.transport: Any
        if by_pci:
            self.bus = pci.PciBus(ResetControl(lambda: None))
            self.transport = PciTransport(self.disk, Messages(self.vm, layout.GSI_MESSAGES), 16)
            self.bus.add(self.transport)
        else:
            gpa = layout.VIRTIO_MMIO
            self.transport = MmioTransport(self.disk, self.vm, self.vm.c_bus, gpa, 16)
        self.by_pci = by_pci
        self.switch_on()
        self.set_up(8, (DESC, AVAIL, USED), FEATURES)

    # ── the driver's hands ───────────────────────────────────────────────────────────────────

    def write(self, offset: int, size: int, value: int) -> None:
        value &= (1 << 8 * size) - 1
        if self.by_pci:
            self.bus.window.write(self.base() + offset, size, value)
        else:
            self.transport.write(offset, size, value)

    def read(self, offset: int, size: int) -> int:
        if self.by_pci:
            return int(self.bus.window.read(self.base() + offset, size))
        return int(self.transport.read(offset, size))

    def base(self) -> int:
        return (self.transport.bar or layout.PCI_MMIO) - layout.PCI_MMIO

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.bus.ecam.write(1 << 15 | offset, size, value & (1 << 8 * size) - 1)

    def switch_on(self) -> None:
        if self.by_pci:
            self.config_write(pci.COMMAND, 2, pci.MEMORY_ENABLE | pci.BUS_MASTER)

    def settle(self, queue: int) -> None:
        """Give the disk's thread the time to take what there is, if it ever will."""
        virtq = self.disk.c_queues[queue].virtq
        for _ in range(20):
            idx = self.memory.read(AVAIL + 0x10000 * queue + 2, 2)
            if virtq.fault or virtq.avail_idx == int.from_bytes(idx, "little"):
                break
            time.sleep(0.0001)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    @rule(
        size=st.just(8) | sizes,
        rings=st.just((DESC, AVAIL, USED)) | st.tuples(places, places, places),
        features=st.sampled_from([FEATURES, 1 << 32, FEATURES ^ 1 << 29, 0, (1 << 64) - 1]),
    )
    def set_up(self, size: int, rings: tuple[int, int, int], features: int) -> None:
        """As a driver does it, with any ring."""
        self.reset()
        for at in (AVAIL, USED):
            for number in range(QUEUES):
                self.memory.write(at + 0x10000 * number, bytes(4))
        low, high = features & 0xFFFF_FFFF, features >> 32
        if self.by_pci:
            for half, bits in enumerate((low, high)):
                self.write(Field.DRIVER_FEATURE_SELECT, 4, half)
                self.write(Field.DRIVER_FEATURE, 4, bits)
            self.write(Field.STATUS, 1, READY)
            for number in range(QUEUES):
                self.write(Field.QUEUE_SELECT, 2, number)
                self.write(Field.QUEUE_SIZE, 2, size)
                for field, gpa in zip((0x20, 0x28, 0x30), rings, strict=True):
                    self.write(field, 8, gpa + 0x10000 * number)
                self.write(Field.QUEUE_VECTOR, 2, number)
                self.write(Field.QUEUE_ENABLE, 2, 1)
            self.write(Field.STATUS, 1, READY | Status.DRIVER_OK)
            return
        for half, bits in enumerate((low, high)):
            self.write(Register.DRIVER_FEATURES_SEL, 4, half)
            self.write(Register.DRIVER_FEATURES, 4, bits)
        self.write(Register.STATUS, 4, READY)
        for number in range(QUEUES):
            self.write(Register.QUEUE_SEL, 4, number)
            self.write(Register.QUEUE_NUM, 4, size)
            for register, gpa in zip((0x80, 0x90, 0xA0), rings, strict=True):
                self.write(register, 4, gpa + 0x10000 * number)
                self.write(register + 4, 4, gpa >> 32)
            self.write(Register.QUEUE_READY, 4, 1)
        self.write(Register.STATUS, 4, READY | Status.DRIVER_OK)

    @rule(
        queue=st.integers(0, QUEUES - 1),
        kind=types,
        sector=st.integers(0, SECTORS + 1) | values,
        length=st.sampled_from([512, 512, 4096, 16]) | lengths,
        slot=st.integers(0, 1),
        indirect=st.booleans(),
    )
    def request(
        self, queue: int, kind: int, sector: int, length: int, slot: int, indirect: bool
    ) -> None:
        """Three descriptors that are mostly sound, made available at the next place."""
        at = 0x10000 * queue
        header = BUFFERS + at + 0x4000 * slot
        words = struct.pack("<IIQ", kind, 0, sector & (1 << 64) - 1)
        self.memory.write(header, words + struct.pack("<QII", sector & (1 << 64) - 1, 1, 0))
        write = 2 if kind in (0, 8) else 0
        table = TABLE + at if indirect else DESC + at + 48 * slot
        first = 0 if indirect else 3 * slot
        self.memory.write(
            table,
            struct.pack("<QIHH", header, 16, 1, first + 1)
            + struct.pack("<QIHH", header + 16, length, 1 | write, first + 2)
            + struct.pack("<QIHH", header + 0x3FFF, 1, 2, 0),
        )
        if indirect:
            self.memory.write(DESC + at + 48 * slot, struct.pack("<QIHH", table, 48, 4, 0))
        self.offer(queue, 3 * slot, 1)

    @rule(
        queue=st.integers(0, QUEUES - 1),
        head=st.integers(0, 8),
        count=st.sampled_from([1, 1, 3, 9]),
    )
    def offer(self, queue: int, head: int, count: int) -> None:
        """Make descriptor `head` available, once or more often."""
        at = AVAIL + 0x10000 * queue
        idx = int.from_bytes(self.memory.read(at + 2, 2), "little")
        for n in range(idx, idx + count):
            self.memory.write(at + 4 + 2 * (n % 8), struct.pack("<H", head))
        self.memory.write(at + 2, struct.pack("<H", idx + count & 0xFFFF))
        self.kick(queue)
        self.settle(queue)

    @rule(
        queue=st.integers(0, QUEUES - 1),
        at=st.integers(0, 8),
        addr=addresses,
        length=lengths,
        flags=st.integers(0, 7),
        following=st.integers(0, 9),
        second=st.booleans(),
    )
    def describe(
        self,
        queue: int,
        at: int,
        addr: int,
        length: int,
        flags: int,
        following: int,
        second: bool,
    ) -> None:
        """One descriptor, in the table or the indirect one: a loop, a nested table, anything."""
        table = (TABLE if second else DESC) + 0x10000 * queue + 16 * at
        self.memory.write(table, struct.pack("<QIHH", addr, length, flags, following))
        if at < 8 and not second:
            self.offer(queue, at, 1)

    @rule(at=places, offset=st.integers(0, 64), data=st.binary(min_size=1, max_size=8))
    def scribble(self, at: int, offset: int, data: bytes) -> None:
        """Any bytes into a ring, while it may be in use."""
        if self.memory.contains(at + offset, len(data)):
            self.memory.write(at + offset, data)

    @rule(number=st.integers(0, 3) | st.integers(0, 0xFFFF))
    def kick(self, number: int) -> None:
        if self.by_pci:
            self.write(NOTIFY + 4 * (number % 64), 2, number)
        else:
            self.write(Register.QUEUE_NOTIFY, 4, number)

    @rule(offset=st.integers(0, 0x160) | st.integers(0, 0x5FFF), size=widths, value=values)
    def write_anywhere(self, offset: int, size: int, value: int) -> None:
        """Any register, any width: rings are moved while they are in use, too."""
        self.write(offset, size, value)

    @rule(offset=st.integers(0, 0x160) | st.integers(0, 0x5FFF), size=widths)
    def read_anywhere(self, offset: int, size: int) -> None:
        assert 0 <= self.read(offset, size) < 1 << 8 * size

    @rule(offset=st.integers(0, 255), size=st.sampled_from([1, 2, 4]), value=values)
    def configure_anywhere(self, offset: int, size: int, value: int) -> None:
        """PCI configuration space, the window on the BAR included; or the disk's own fields."""
        if self.by_pci:
            self.config_write(offset, size, value)
            self.bus.ecam.read(1 << 15 | offset, size)
            self.switch_on()
        else:
            self.write(Register.CONFIG + offset, size, value)

    @rule()
    def snapshot(self) -> None:
        """What it describes, it takes back."""
        self.transport.restore(self.transport.state())

    @rule()
    def reset(self) -> None:
        self.write(Field.STATUS if self.by_pci else Register.STATUS, 1 if self.by_pci else 4, 0)

    def teardown(self) -> None:
        if not hasattr(self, "transport"):
            return
        self.transport.close()  # returns: nothing hangs
        self.memory.close()
        written = Path(self.file.name).read_bytes()
        self.file.close()
        assert written[SECTORS * 512 :] == LAST


HostileDriver.TestCase.settings = settings(
    max_examples=int(os.environ.get("PYKVM_CASES", "40")), stateful_step_count=20
)
TestHostileDriver = HostileDriver.TestCase

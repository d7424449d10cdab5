"""A driver that means harm, under both transports: registers, rings, BARs. It has a real disk, and
a console with a real client.

The transports and the devices are the ones that guests have, threads and io_uring included; only
KVM is a fake. Run as it is, this finds what raises or hangs. tests/c/test_sanitized_core.py runs it
again with csrc/ under the address and undefined behaviour sanitizers, and ``make soak`` with
$PYKVM_CASES cases.
"""

from __future__ import annotations

import os
import socket
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
from pykvm.virtio.config.console import PortConfig
from pykvm.virtio.config.disk import DiskConfig
from pykvm.virtio.config.limits import Limits
from pykvm.virtio.console import CONTROL_RX, CONTROL_TX, VirtioConsole
from pykvm.virtio.device import Status, VirtioDevice
from pykvm.virtio.mmio import MmioTransport, Register
from pykvm.virtio.msix import Messages
from pykvm.virtio.pci import NOTIFY, Field, PciTransport

MEMORY = 1 << 19
SECTORS = 32
LAST = b"no whole sector, so no request reaches it"
QUEUES = 2  # of the disk's
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
COMMON = 1 << 32 | 1 << 28 | 1 << 29  # VERSION_1, INDIRECT_DESC, EVENT_IDX
DISK = 1 << 9 | 1 << 11  # FLUSH, CONFIG_WCE

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
numbers = st.integers(0, 7)  # of queues, modulo how many there are
types = st.sampled_from([0, 1, 4, 8, 11, 13, 0, 1, 99])


class HostileDriver(RuleBasedStateMachine):
    """Steps of a driver, sound ones among them so that the others find something to break."""

    features = COMMON  # that the device has
    queues = 2  # that the driver sets up

    def plug_in(self, device: VirtioDevice, *, by_pci: bool) -> None:
        self.device = device
        self.vm: Any = FakeVm()
        self.transport: Any
        if by_pci:
            self.bus = pci.PciBus(ResetControl(lambda: None))
            self.transport = PciTransport(device, Messages(self.vm, layout.GSI_MESSAGES), 16)
            self.bus.add(self.transport)
        else:
            gpa = layout.VIRTIO_MMIO
            self.transport = MmioTransport(device, self.vm, self.vm.c_bus, gpa, 16)
        self.by_pci = by_pci
        self.switch_on()
        self.set_up(8, (DESC, AVAIL, USED), -1)

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
        """Give the device's thread the time to take what there is, if it ever will."""
        virtq = self.device.c_queues[queue].virtq
        for _ in range(20):
            idx = self.memory.read(AVAIL + 0x10000 * queue + 2, 2)
            if virtq.fault or virtq.avail_idx == int.from_bytes(idx, "little"):
                break
            time.sleep(0.0001)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    @rule(
        size=st.just(8) | sizes,
        rings=st.just((DESC, AVAIL, USED)) | st.tuples(places, places, places),
        mask=st.sampled_from([-1, -1, 1 << 32, ~(1 << 29), 0]),
    )
    def set_up(self, size: int, rings: tuple[int, int, int], mask: int) -> None:
        """As a driver does it, with any ring."""
        features = self.features & mask
        self.reset()
        for at in (AVAIL, USED):
            for number in range(self.queues):
                self.memory.write(at + 0x10000 * number, bytes(4))
        low, high = features & 0xFFFF_FFFF, features >> 32
        if self.by_pci:
            for half, bits in enumerate((low, high)):
                self.write(Field.DRIVER_FEATURE_SELECT, 4, half)
                self.write(Field.DRIVER_FEATURE, 4, bits)
            self.write(Field.STATUS, 1, READY)
            for number in range(self.queues):
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
        for number in range(self.queues):
            self.write(Register.QUEUE_SEL, 4, number)
            self.write(Register.QUEUE_NUM, 4, size)
            for register, gpa in zip((0x80, 0x90, 0xA0), rings, strict=True):
                self.write(register, 4, gpa + 0x10000 * number)
                self.write(register + 4, 4, gpa >> 32)
            self.write(Register.QUEUE_READY, 4, 1)
        self.write(Register.STATUS, 4, READY | Status.DRIVER_OK)

    @rule(
        queue=numbers,
        head=st.integers(0, 8),
        count=st.sampled_from([1, 1, 3, 9]),
    )
    def offer(self, queue: int, head: int, count: int) -> None:
        """Make descriptor `head` available, once or more often."""
        queue %= self.queues
        at = AVAIL + 0x10000 * queue
        idx = int.from_bytes(self.memory.read(at + 2, 2), "little")
        for n in range(idx, idx + count):
            self.memory.write(at + 4 + 2 * (n % 8), struct.pack("<H", head))
        self.memory.write(at + 2, struct.pack("<H", idx + count & 0xFFFF))
        self.kick(queue)
        self.settle(queue)

    @rule(
        queue=numbers,
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
        table = (TABLE if second else DESC) + 0x10000 * (queue % self.queues) + 16 * at
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

    @rule()
    def negotiate_what_was_not_offered(self) -> None:
        self.features, features = (1 << 64) - 1, self.features
        self.set_up(8, (DESC, AVAIL, USED), -1)
        self.features = features

    def teardown(self) -> None:
        if not hasattr(self, "transport"):
            return
        self.transport.close()  # returns: nothing hangs
        self.device.close()
        self.memory.close()
        self.look_at_host()

    def look_at_host(self) -> None:
        """That nothing of the host's was touched."""


class HostileDiskDriver(HostileDriver):
    """It has a disk, whose last bytes no request may reach."""

    features = COMMON | DISK
    queues = QUEUES

    @initialize(
        by_pci=st.booleans(),
        cache=st.sampled_from(["writeback", "none", "unsafe"]),
        limited=st.booleans(),
        overlaid=st.booleans(),
    )
    def plug(self, by_pci: bool, cache: str, limited: bool, overlaid: bool) -> None:
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in teardown
        self.file.write(bytes(SECTORS * 512) + LAST)
        self.file.flush()
        self.memory = GuestMemory(MEMORY)
        limits = Limits(iops=1000, iops_max=20) if limited else Limits()
        try:
            options: Any = {"cache": cache, "limits": limits}
            if overlaid and cache != "none":
                options["overlay"] = f"{self.file.name}.overlay"
            disk = Blk(self.memory, DiskConfig(self.file.name, queues=QUEUES, **options))
        except ConfigError:  # a file system without O_DIRECT
            disk = Blk(self.memory, DiskConfig(self.file.name, queues=QUEUES))
        self.plug_in(disk, by_pci=by_pci)

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

    def look_at_host(self) -> None:
        written = Path(self.file.name).read_bytes()
        self.file.close()
        assert written[SECTORS * 512 :] == LAST
        overlay = Path(f"{self.file.name}.overlay")
        if overlay.exists():
            overlay.unlink()
            assert not any(written[: SECTORS * 512])


class HostileConsoleDriver(HostileDriver):
    """It has a console with one port, and that a client which reads, writes, comes and goes."""

    features = COMMON | 1 << 1  # MULTIPORT
    queues = 6

    @initialize(by_pci=st.booleans())
    def plug(self, by_pci: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/port"
        self.memory = GuestMemory(MEMORY)
        port = PortConfig("port", f"unix:{self.path}")
        self.client: socket.socket | None = None
        self.plug_in(VirtioConsole(self.memory, [port]), by_pci=by_pci)

    @rule(
        port=st.integers(0, 2) | st.integers(0, (1 << 32) - 1),
        event=st.integers(0, 8),
        value=st.integers(0, 1) | st.integers(0, 0xFFFF),
        size=st.sampled_from([8, 8, 8, 7, 9, 0]),
    )
    def say(self, port: int, event: int, value: int, size: int) -> None:
        """A message by the control queue."""
        at = 0x10000 * CONTROL_TX
        self.memory.write(BUFFERS + at, struct.pack("<IHH", port, event, value))
        self.memory.write(DESC + at, struct.pack("<QIHH", BUFFERS + at, size, 0, 0))
        self.offer(CONTROL_TX, 0, 1)

    @rule(queue=st.sampled_from([0, 1, CONTROL_RX, 4, 5]), size=st.sampled_from([64, 1, 4096]))
    def give(self, queue: int, size: int) -> None:
        """A sound buffer: to be filled, or with bytes for the host."""
        at = 0x10000 * queue
        write = 0 if queue & 1 else 2
        self.memory.write(DESC + at, struct.pack("<QIHH", BUFFERS + at, size, write, 0))
        self.offer(queue, 0, 1)

    @rule(data=st.binary(max_size=100), leaves=st.booleans())
    def act(self, data: bytes, leaves: bool) -> None:
        """The client does something."""
        try:
            if self.client is None:
                self.client = socket.socket(socket.AF_UNIX)
                self.client.setblocking(False)
                self.client.connect(self.path)
            self.client.send(data)
            self.client.recv(4096)
        except BlockingIOError:
            pass
        except ConnectionError:
            leaves = True
        if leaves:
            self.client.close()
            self.client = None

    def look_at_host(self) -> None:
        if self.client is not None:
            self.client.close()
        assert os.listdir(self.folder.name) == []
        self.folder.cleanup()


for machine in (HostileDiskDriver, HostileConsoleDriver):
    machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("PYKVM_CASES", "40")), stateful_step_count=20
    )
TestHostileDiskDriver = HostileDiskDriver.TestCase
TestHostileConsoleDriver = HostileConsoleDriver.TestCase

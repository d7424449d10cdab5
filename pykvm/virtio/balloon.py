"""The balloon: memory that the guest does without, and that the host has back. In Python.

Reached from `attach` (``--balloon``); `Machine.balloon` is this object. Source: virtio 1.2 §5.5
Traditional Memory Balloon Device. The data planes are `queueserver`'s, one thread a queue.

::

    target grows ─ configuration interrupt ─> the driver takes pages from its own memory, names them
    in the inflate queue ─> we punch them out of the memfd ─> it writes `actual`
    target falls ─> it names them in the deflate queue and uses them again: they come back on touch
"""

from __future__ import annotations

import enum
import struct
import threading

from pykvm.errors import ConfigError, HostError
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import Status, VirtioDevice
from pykvm.virtio.interrupt import CONFIG_CAUSE
from pykvm.virtio.queueserver import QueueServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.queue import Chain, Queue

PAGE: Final = 4096  # §5.5.6 Device Operation: always, whatever the guest's own pages are

# §5.5.2 Virtqueues: reporting follows the statistics where no hints are, as in QEMU and Linux.
INFLATE, DEFLATE, STATISTICS, REPORTING = range(4)

# §5.5.4 Device configuration layout: num_pages, actual, free_page_hint_cmd_id, poison_val
CONFIG: Final = struct.Struct("<IIII")
ACTUAL: Final = 4  # offsets of what the driver writes
POISON: Final = 12

# §5.5.6.3 Memory Statistics: a tag and a value each; §5.5.6.3.1 Memory Statistics Tags
STATISTIC: Final = struct.Struct("<HQ")
TAGS: Final = (
    *("swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available"),
    *("disk_caches", "hugetlb_allocations", "hugetlb_failures"),
)
MAX_STATISTICS: Final = 64  # of one buffer that are looked at


class BalloonFeature(enum.IntFlag):
    """§5.5.3 Feature bits: those that are offered."""

    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    PAGE_POISON = 1 << 4  # the driver says what it fills free pages with
    REPORTING = 1 << 5  # the driver tells of pages that it has no use for now


class Balloon(VirtioDevice):
    """A balloon, empty at first. `target`, `size` and `read_stats` may be used by any thread."""

    device_id = 5
    name = "balloon"
    queue_count = 4
    features = BalloonFeature(0)
    for _feature in BalloonFeature:
        features |= _feature

    def __init__(self, memory: GuestMemory, target: int = 0) -> None:
        self._num_pages = _pages(memory, target)
        super().__init__(memory)
        self._actual = 0
        self._poison = 0
        self._statistics = Statistics(self)
        self._servers = (
            QueueServer(self, "balloon-inflate", self._inflate),
            QueueServer(self, "balloon-deflate", lambda chain: 0),
            self._statistics,
            QueueServer(self, "balloon-reporting", self._report),
        )

    # ── for the user ─────────────────────────────────────────────────────────────────────────

    @property
    def target(self) -> int:
        """How many bytes the guest is to do without. Set it, and the driver follows in its time.

        Raises `ConfigError` for more than the guest has.
        """
        return self._num_pages * PAGE

    @target.setter
    def target(self, size: int) -> None:
        with self.lock:
            self._num_pages = _pages(self.memory, size)
            self.config_generation += 1
            if self._status & Status.DRIVER_OK:
                self.interrupt.notify(CONFIG_CAUSE)

    @property
    def size(self) -> int:
        """How many bytes the driver says are in the balloon."""
        return self._actual * PAGE

    def read_stats(self, timeout_s: float = 5.0) -> dict[str, int]:
        """The guest's memory statistics as it has them now, sizes in bytes: "free", "available",
        "major_faults" … (`TAGS`). Raises `HostError` when no driver answers."""
        return self._statistics.ask(timeout_s)

    # ── configuration ────────────────────────────────────────────────────────────────────────

    def read_config(self) -> bytes:
        return CONFIG.pack(self._num_pages, self._actual, 0, self._poison)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == ACTUAL and len(data) == 4:
            self._actual = int.from_bytes(data, "little")
        elif offset == POISON and len(data) == 4:
            self._poison = int.from_bytes(data, "little")

    # ── the data planes ──────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        for number, server in enumerate(self._servers):
            server.start(number)

    def stop(self) -> None:
        for server in self._servers:
            server.stop()

    def _inflate(self, chain: Chain) -> int:
        """§5.5.6: the chain holds page numbers. What is no memory of the guest's is passed over."""
        for gpa, size in chain.out:
            numbers = memoryview(self.memory.read(gpa, size - size % 4)).cast("I")
            for start, end in _runs(numbers):
                self._give_back(start * PAGE, (end - start) * PAGE)
        return 0

    def _report(self, chain: Chain) -> int:
        """§5.5.6.5 Free Page Reporting: the chain's buffers are the free memory itself.

        They must read as filled with `poison_val` afterwards; what was punched out reads as zeros.
        """
        if not (self.has_feature(BalloonFeature.PAGE_POISON) and self._poison):
            for gpa, size in chain.in_:
                start = -(-gpa // PAGE) * PAGE
                self._give_back(start, (gpa + size) // PAGE * PAGE - start)
        return 0

    def _give_back(self, gpa: int, size: int) -> None:
        if size > 0 and self.memory.contains(gpa, size):
            self.memory.discard(gpa, size)

    # ── the rest of a device ─────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        super().reset()
        self._actual = self._poison = 0

    def state(self) -> bytes:
        return CONFIG.pack(self._num_pages, self._actual, 0, self._poison) + super().state()

    def restore(self, state: bytes) -> None:
        super().restore(state[CONFIG.size :])
        self._num_pages, self._actual, _, self._poison = CONFIG.unpack_from(state)

    def close(self) -> None:
        super().close()
        for server in self._servers:
            server.close()


class Statistics(QueueServer):
    """Keeps the driver's buffer until somebody asks: giving it back is how to ask (§5.5.6.3)."""

    def __init__(self, device: Balloon) -> None:
        super().__init__(device, "balloon-stats", self._read)
        self._held: Chain | None = None
        self._changed = threading.Condition()  # _wanted, _count, _latest
        self._wanted = False
        self._count = 0
        self._latest: dict[str, int] = {}

    def ask(self, timeout_s: float) -> dict[str, int]:
        """What the driver answers. Raises `HostError` when it does not in time."""
        with self._changed:
            before, self._wanted = self._count, True
            self._device.kick(STATISTICS)
            if not self._changed.wait_for(lambda: self._count > before, timeout_s):
                raise HostError("the guest's balloon driver gives no statistics; is it loaded?")
            return dict(self._latest)

    def _serve(self, queue: Queue, number: int) -> None:
        while True:
            queue.refuse_kicks()
            with self._changed:
                asked = self._wanted and self._held is not None
                self._wanted = self._wanted and not asked
            if asked:
                self._return_held(queue, number)
            while chain := queue.pop():
                if self._held is not None:  # more than one at a time: no driver of ours
                    self._return_held(queue, number)
                self._held = chain
                self._read(chain)
            if not queue.ask_kicks():
                return

    def _return_held(self, queue: Queue, number: int) -> None:
        assert self._held is not None
        queue.push(self._held.head, 0)
        self._held = None
        if queue.wants_interrupt():
            self._device.interrupt.notify(1 + number)

    def _finish(self, queue: Queue) -> None:
        """A buffer that was not given back is taken again after a snapshot, or a stop."""
        if self._held is not None:
            queue.avail_idx = queue.avail_idx - 1 & 0xFFFF
            self._held = None

    def _read(self, chain: Chain) -> int:
        memory = self._device.memory
        data = b"".join(memory.read(*buffer) for buffer in chain.out)
        data = data[: min(len(data) // STATISTIC.size, MAX_STATISTICS) * STATISTIC.size]
        with self._changed:
            self._latest = {
                TAGS[tag]: value for tag, value in STATISTIC.iter_unpack(data) if tag < len(TAGS)
            }
            self._count += 1
            self._changed.notify_all()
        return 0


def _pages(memory: GuestMemory, size: int) -> int:
    if not 0 <= size < memory.size:
        raise ConfigError(
            f"--balloon: {size} bytes are not less than the guest's {memory.size}; try half"
        )
    return size // PAGE


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Page numbers as ranges [start, end) of pages that follow one another, in any order."""
    start = end = -1
    for number in sorted(set(numbers)):
        if number != end:
            if end > start:
                yield start, end
            start = number
        end = number + 1
    if end > start:
        yield start, end

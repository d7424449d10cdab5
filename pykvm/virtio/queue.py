"""A split virtqueue, the device's side, in readable Python: csrc/virtq.c says the same in C.

Reached from devices whose data plane is Python (`rng`) and from tests, where it is the oracle for
the C queue: on any bytes in guest memory the two agree. Read virtio 1.2 §2.7 Split Virtqueues.

::

    descriptor table   16 bytes each: addr len flags next      the driver writes
    available ring     flags idx ring[size] used_event         the driver writes
    used ring          flags idx ring[size] avail_event        the device writes
"""

from __future__ import annotations

import enum
import struct
import threading

from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import GuestMemoryError

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

SIZE_MAX: Final = 256  # the largest ring offered, so the longest chain

DESCRIPTOR: Final = struct.Struct("<QIHH")  # §2.7.5 The Virtqueue Descriptor Table
assert DESCRIPTOR.size == 16
USED_ELEMENT: Final = struct.Struct("<II")  # §2.7.8 The Virtqueue Used Ring
assert USED_ELEMENT.size == 8
U16: Final = struct.Struct("<H")
U32_MAX: Final = 0xFFFF_FFFF

# Offsets in the two rings; `idx` follows the flags.
FLAGS: Final = 0
IDX: Final = 2
RING: Final = 4


class Desc(enum.IntFlag):
    """§2.7.5, flags of a descriptor."""

    NEXT = 1
    WRITE = 2  # for the device to write; else to read
    INDIRECT = 4  # the buffer is a table of descriptors


NO_INTERRUPT: Final = 1  # §2.7.7: in the available ring's flags
NO_NOTIFY: Final = 1  # §2.7.10: in the used ring's flags


class Fault(enum.IntEnum):
    """What a driver did wrong (enum pk_virtq_fault in csrc/api.h)."""

    SOUND = 0
    BAD_SIZE = 1  # not a power of two, or larger than offered
    BAD_RING = 2  # a part misaligned or not (all) guest memory
    BAD_AVAIL = 3  # more chains made available than the ring holds
    BAD_INDEX = 4  # a head or next outside the descriptor table
    TOO_LONG = 5  # more descriptors than the ring's size: a loop is one of these
    BAD_INDIRECT = 6  # not negotiated, nested, chained on, or of a bad length
    BAD_BUFFER = 7  # empty, or not (all) guest memory; or more than 4 GiB together
    BAD_ORDER = 8  # a readable buffer after a writable one
    BAD_REQUEST = 9  # set by the device: no room for an answer


class QueueError(Exception):
    """The driver broke the ring: the device needs a reset, and this queue gives nothing more."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


class Ring(Record):
    """Where a driver put a queue, and the features that rule it."""

    size: int
    desc: int  # gpa of the descriptor table,
    avail: int  # of the available ring,
    used: int  # of the used ring
    indirect: bool = False
    event_idx: bool = False


class Chain(Record):
    """A descriptor chain: (gpa, len) of the buffers to read and of those to write."""

    head: int
    out: tuple[tuple[int, int], ...]
    in_: tuple[tuple[int, int], ...]


class Queue:
    """A queue at `ring` in `memory`. It belongs to one thread. Raises `QueueError` for a bad ring,
    when it is made and whenever a chain is taken."""

    def __init__(self, memory: GuestMemory, ring: Ring) -> None:
        size = ring.size
        self.memory, self.ring = memory, ring
        self._uncontended = threading.Lock()
        self.avail_idx = self.used_idx = self._signalled_idx = 0
        self.fault = Fault.SOUND
        if not 0 < size <= SIZE_MAX or size & (size - 1):
            raise self._failed(Fault.BAD_SIZE)
        self._used_event = RING + U16.size * size
        self._avail_event = RING + USED_ELEMENT.size * size
        self._desc = self._part(ring.desc, DESCRIPTOR.size * size, 16)
        self._avail = self._part(ring.avail, self._used_event + U16.size, 2)
        self._used = self._part(ring.used, self._avail_event + U16.size, 4)

    def _part(self, gpa: int, size: int, align: int) -> memoryview:
        try:
            if gpa % align == 0:
                return self.memory.view(gpa, size)
        except GuestMemoryError:
            pass
        raise self._failed(Fault.BAD_RING)

    def _failed(self, fault: Fault) -> QueueError:
        self.fault = fault
        return QueueError(fault)

    # ── taking ───────────────────────────────────────────────────────────────────────────────

    def pop(self) -> Chain | None:
        """Take the next chain, or None when there is none."""
        if self.fault:
            raise QueueError(self.fault)
        count = self.load_avail_idx() - self.avail_idx & 0xFFFF
        if count == 0:
            return None
        if count > self.ring.size:
            raise self._failed(Fault.BAD_AVAIL)
        chain = self.follow(self.available(self.avail_idx))
        self.avail_idx = self.avail_idx + 1 & 0xFFFF
        return chain

    def available(self, idx: int) -> int:
        """The head at free-running index `idx` of the available ring."""
        entry = RING + U16.size * (idx % self.ring.size)
        return int(U16.unpack_from(self._avail, entry)[0])

    def used(self, idx: int) -> int:
        """The head at free-running index `idx` of the used ring, cut to 16 bits."""
        entry = RING + USED_ELEMENT.size * (idx % self.ring.size)
        return int(U16.unpack_from(self._used, entry)[0])

    def place(self, head: int) -> int:
        """The gpa in the descriptor `head`: of a chain's first buffer, or of its indirect table."""
        if head >= self.ring.size:
            raise self._failed(Fault.BAD_INDEX)
        return int(DESCRIPTOR.unpack_from(self._desc, DESCRIPTOR.size * head)[0])

    def load_used_event(self) -> int:
        """With VIRTIO_F_EVENT_IDX, what the driver wants to be told of: used_event."""
        return int(U16.unpack_from(self._avail, self._used_event)[0])

    def load_used_idx(self) -> int:
        """How far the device is, when another process has been it."""
        return int(U16.unpack_from(self._used, IDX)[0])

    def load_avail_idx(self) -> int:
        """How far the driver is."""
        return int(U16.unpack_from(self._avail, IDX)[0])

    def follow(self, head: int) -> Chain:
        """Copy and check the chain at `head`. It ends: every turn adds one of at most `size`
        buffers, or enters an indirect table, which happens once."""
        table, num, in_indirect = self._desc, self.ring.size, False
        out: list[tuple[int, int]] = []
        in_: list[tuple[int, int]] = []
        index = head
        while True:
            if index >= num:
                raise self._failed(Fault.BAD_INDEX)
            addr, size, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            if flags & Desc.INDIRECT:
                # §2.7.5.3.1 Driver Requirements: Indirect Descriptors
                num, rest = divmod(size, DESCRIPTOR.size)
                allowed = self.ring.indirect and not in_indirect and not flags & Desc.NEXT
                if not allowed or num == 0 or rest:
                    raise self._failed(Fault.BAD_INDIRECT)
                if num > self.ring.size:
                    raise self._failed(Fault.TOO_LONG)
                if not self.memory.contains(addr, size):
                    raise self._failed(Fault.BAD_INDIRECT)
                table, index, in_indirect = self.memory.view(addr, size), 0, True
                continue
            self._add_buffer(out, in_, (addr, size), writable=bool(flags & Desc.WRITE))
            if not flags & Desc.NEXT:
                return Chain(head, tuple(out), tuple(in_))
            index = following

    def _add_buffer(
        self,
        out: list[tuple[int, int]],
        in_: list[tuple[int, int]],
        buffer: tuple[int, int],
        *,
        writable: bool,
    ) -> None:
        # §2.7.5.3.1: "A driver MUST NOT create a descriptor chain longer than the Queue Size".
        if len(out) + len(in_) == self.ring.size:
            raise self._failed(Fault.TOO_LONG)
        gpa, size = buffer
        if size == 0 or not self.memory.contains(gpa, size):
            raise self._failed(Fault.BAD_BUFFER)
        # §2.7.5: the buffers of a chain have fewer than 2^32 bytes together.
        if sum(length for _, length in out + in_) + size > U32_MAX:
            raise self._failed(Fault.BAD_BUFFER)
        if not writable and in_:
            raise self._failed(Fault.BAD_ORDER)  # §2.7.4.2: readable buffers come first
        (in_ if writable else out).append(buffer)

    # ── giving back ──────────────────────────────────────────────────────────────────────────

    def push(self, head: int, size: int) -> None:
        """Give a chain back, `size` bytes of its writable buffers written."""
        entry = RING + USED_ELEMENT.size * (self.used_idx % self.ring.size)
        USED_ELEMENT.pack_into(self._used, entry, head, size)
        self.used_idx = self.used_idx + 1 & 0xFFFF
        U16.pack_into(self._used, IDX, self.used_idx)

    def wants_interrupt(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since it was last asked."""
        before, self._signalled_idx = self._signalled_idx, self.used_idx
        if self.used_idx == before:
            return False
        self._fence()
        if not self.ring.event_idx:
            (flags,) = U16.unpack_from(self._avail, FLAGS)
            return not flags & NO_INTERRUPT
        (event,) = U16.unpack_from(self._avail, self._used_event)
        # Was the element `event` among those pushed since? Modulo 2^16, like the indices.
        return bool((self.used_idx - event - 1 & 0xFFFF) < (self.used_idx - before & 0xFFFF))

    def ask_kicks(self) -> bool:
        """Ask the driver for kicks; true when there is a chain already."""
        if self.fault:
            return False
        if self.ring.event_idx:
            U16.pack_into(self._used, self._avail_event, self.avail_idx)
        else:
            U16.pack_into(self._used, FLAGS, 0)
        # Either the driver sees that we ask, or we see its avail idx (§2.7.13.4).
        self._fence()
        return self.load_avail_idx() != self.avail_idx

    def _fence(self) -> None:
        """A full barrier: what was written before it is seen before what is read after it.

        Python has none of its own. Taking a lock that nobody else wants is a locked instruction on
        x86, which is one (Intel SDM vol. 3A §8.2.2 Memory Ordering in P6 and More Recent
        Processor Families).
        """
        with self._uncontended:
            pass

    def refuse_kicks(self) -> None:
        """Tell the driver not to bother."""
        if not self.ring.event_idx and not self.fault:
            U16.pack_into(self._used, FLAGS, NO_NOTIFY)

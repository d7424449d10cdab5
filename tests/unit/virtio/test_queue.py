"""The Python queue, and that the C queue says the same on any bytes in guest memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pykvm._core import ffi, lib
from pykvm.memory import GuestMemory
from pykvm.virtio.queue import SIZE_MAX, Chain, Fault, Queue, QueueError, Ring

MEMORY = 1 << 16
DESC, AVAIL, USED, TABLE, BUFFERS = 0, 0x1000, 0x2000, 0x3000, 0x4000
SIZE = 8


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(MEMORY) as memory:
        yield memory


def c_queue(memory: GuestMemory, ring: Ring) -> Any:
    return ffi.new(
        "struct pk_virtq *",
        {
            "mem": memory.handle,
            "size": ring.size,
            "desc_gpa": ring.desc,
            "avail_gpa": ring.avail,
            "used_gpa": ring.used,
            "indirect": ring.indirect,
            "event_idx": ring.event_idx,
        },
    )


def c_pop(memory: GuestMemory, queue: Any) -> Chain | Fault | None:
    chain = ffi.new("struct pk_chain *")
    result = lib.pk_virtq_pop(queue, chain)
    if result < 0:
        return Fault(queue.fault)
    if result == 0:
        return None
    base = int(ffi.cast("uintptr_t", memory.handle.hva))
    buffers = [
        (int(ffi.cast("uintptr_t", iov.iov_base)) - base, iov.iov_len)
        for iov in chain.iov[0 : chain.out_num + chain.in_num]
    ]
    out, in_ = tuple(buffers[: chain.out_num]), tuple(buffers[chain.out_num :])
    assert (chain.out_len, chain.in_len) == (sum(n for _, n in out), sum(n for _, n in in_))
    return Chain(chain.head, out, in_)


def python_pop(queue: Queue) -> Chain | Fault | None:
    try:
        return queue.pop()
    except QueueError as error:
        return error.fault


def python_start(memory: GuestMemory, ring: Ring) -> Fault:
    try:
        return Queue(memory, ring).fault
    except QueueError as error:
        return error.fault


def test_the_faults_have_the_same_numbers_in_c() -> None:
    assert {fault: getattr(lib, f"PK_VIRTQ_{fault.name}") for fault in Fault} == {
        fault: fault.value for fault in Fault
    }
    assert lib.PK_VIRTQ_SIZE_MAX == SIZE_MAX


# Addresses, lengths and flags near every boundary there is, with sound ones among them.
addresses = st.sampled_from([BUFFERS, BUFFERS + 7, TABLE, MEMORY - 1, MEMORY, 0, (1 << 64) - 1])
lengths = st.sampled_from([1, 16, 32, 128, 0x1000, 0, 17, MEMORY, (1 << 32) - 1])
descriptors = st.builds(
    lambda addr, size, flags, following: struct.pack("<QIHH", addr, size, flags, following),
    addresses | st.integers(0, (1 << 64) - 1),
    lengths | st.integers(0, (1 << 32) - 1),
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7]) | st.integers(0, 0xFFFF),
    st.integers(0, SIZE) | st.integers(0, 0xFFFF),
)
tables = st.lists(descriptors, min_size=SIZE, max_size=SIZE).map(b"".join)
indices = st.integers(0, SIZE) | st.integers(0, 0xFFFF)


@given(
    desc=tables,
    table=tables,
    heads=st.lists(indices, min_size=SIZE, max_size=SIZE),
    avail_idx=indices,
    event=indices,
    flags=st.integers(0, 1),
    features=st.tuples(st.booleans(), st.booleans()),
)
@example(  # two chains that share descriptors, the second through the indirect table
    desc=struct.pack("<QIHH", BUFFERS, 16, 1, 1)
    + struct.pack("<QIHH", BUFFERS, 512, 2, 0)
    + struct.pack("<QIHH", TABLE, 32, 4, 0)
    + bytes(16 * (SIZE - 3)),
    table=struct.pack("<QIHH", BUFFERS, 16, 1, 1) + struct.pack("<QIHH", BUFFERS, 512, 2, 0) * 7,
    heads=[0, 2, 1, 0, 0, 0, 0, 0],
    avail_idx=3,
    event=1,
    flags=0,
    features=(True, True),
)
def test_c_and_python_agree_on_any_ring(
    memory: GuestMemory,
    desc: bytes,
    table: bytes,
    heads: list[int],
    avail_idx: int,
    event: int,
    flags: int,
    features: tuple[bool, bool],
) -> None:
    memory.write(DESC, desc)
    memory.write(TABLE, table)
    memory.write(AVAIL, struct.pack("<HH8HH", flags, avail_idx, *heads, event))
    ring = Ring(SIZE, DESC, AVAIL, USED, *features)
    c, python = c_queue(memory, ring), Queue(memory, ring)
    assert lib.pk_virtq_start(c) == 0
    for _ in range(SIZE + 1):  # it terminates: no ring holds more
        taken = python_pop(python)
        assert c_pop(memory, c) == taken
        if not isinstance(taken, Chain):
            break
        used = []
        for push, wants, ask in (
            (python.push, python.wants_interrupt, python.ask_kicks),
            (
                lambda head, size: lib.pk_virtq_push(c, head, size),
                lambda: lib.pk_virtq_wants_interrupt(c),
                lambda: lib.pk_virtq_ask_kicks(c),
            ),
        ):
            memory.write(USED, bytes(4 + 8 * SIZE + 2))
            push(taken.head, 5)
            used.append((bool(wants()), bool(ask()), memory.read(USED, 4 + 8 * SIZE + 2)))
        assert used[0] == used[1]
    else:
        pytest.fail("more chains than the ring holds")


@given(
    size=st.sampled_from([0, 1, 3, 8, 256, 257, 512, 32768, 65535]),
    places=st.tuples(*[st.integers(0, MEMORY + 64) | st.integers(0, (1 << 64) - 1)] * 3),
)
def test_c_and_python_refuse_the_same_places(
    memory: GuestMemory, size: int, places: tuple[int, int, int]
) -> None:
    ring = Ring(size, *places)
    c = c_queue(memory, ring)
    lib.pk_virtq_start(c)
    assert python_start(memory, ring) == c.fault


def test_a_queue_with_a_fault_stays_broken(memory: GuestMemory) -> None:
    memory.write(AVAIL, struct.pack("<HH", 0, SIZE + 1))
    queue = Queue(memory, Ring(SIZE, DESC, AVAIL, USED))
    assert python_pop(queue) is Fault.BAD_AVAIL
    memory.write(AVAIL, struct.pack("<HH", 0, 1))
    assert python_pop(queue) is Fault.BAD_AVAIL
    assert not queue.ask_kicks()


def test_kicks_are_refused_by_the_flag(memory: GuestMemory) -> None:
    memory.write(AVAIL, bytes(32))
    queue = Queue(memory, Ring(SIZE, DESC, AVAIL, USED))
    queue.refuse_kicks()
    assert memory.read(USED, 2) == b"\1\0"
    queue.ask_kicks()
    assert memory.read(USED, 2) == b"\0\0"


class TwoQueues(RuleBasedStateMachine):
    """The C queue and the Python queue side by side, each in a memory of its own; the rings may lie
    on one another. Whatever is done to both, they answer the same and leave the same bytes."""

    @initialize(
        size=st.sampled_from([8, 4, 1]),
        places=st.just((DESC, AVAIL, USED))
        | st.tuples(*[st.sampled_from([DESC, AVAIL, USED, TABLE, BUFFERS, MEMORY - 0x100])] * 3),
        features=st.tuples(st.booleans(), st.booleans()),
    )
    def start(self, size: int, places: tuple[int, int, int], features: tuple[bool, bool]) -> None:
        self.memories = [GuestMemory(MEMORY), GuestMemory(MEMORY)]
        self.ring = Ring(size, *places, *features)
        self.c, self.python = (
            c_queue(self.memories[0], self.ring),
            Queue(self.memories[1], self.ring),
        )
        assert lib.pk_virtq_start(self.c) == 0
        self.taken = [0]

    @rule(
        at=st.sampled_from([DESC, AVAIL, USED, TABLE]),
        offset=st.integers(0, 80),
        data=st.binary(max_size=8),
    )
    def scribble(self, at: int, offset: int, data: bytes) -> None:
        for memory in self.memories:
            memory.write(at + offset, data)

    @rule(index=st.integers(0, SIZE - 1), descriptor=descriptors, indirect=st.booleans())
    def describe(self, index: int, descriptor: bytes, indirect: bool) -> None:
        for memory in self.memories:
            memory.write((TABLE if indirect else self.ring.desc) + 16 * index, descriptor)

    @rule(head=indices, count=st.integers(1, 3))
    def offer(self, head: int, count: int) -> None:
        for memory in self.memories:
            (idx,) = struct.unpack("<H", memory.read(self.ring.avail + 2, 2))
            for n in range(idx, idx + count):
                at = self.ring.avail + 4 + 2 * (n % self.ring.size)
                memory.write(at, struct.pack("<H", head))
            memory.write(self.ring.avail + 2, struct.pack("<H", idx + count & 0xFFFF))

    @rule()
    def pop(self) -> None:
        taken = python_pop(self.python)
        assert c_pop(self.memories[0], self.c) == taken
        if isinstance(taken, Chain):
            self.taken.append(taken.head)

    @rule(size=st.integers(0, (1 << 32) - 1), which=st.integers(0, 9))
    def push(self, size: int, which: int) -> None:
        head = self.taken[which % len(self.taken)]
        self.python.push(head, size)
        lib.pk_virtq_push(self.c, head, size)

    @rule()
    def ask(self) -> None:
        assert bool(lib.pk_virtq_ask_kicks(self.c)) == self.python.ask_kicks()

    @rule()
    def refuse(self) -> None:
        lib.pk_virtq_refuse_kicks(self.c)
        self.python.refuse_kicks()

    @rule()
    def interrupt(self) -> None:
        assert bool(lib.pk_virtq_wants_interrupt(self.c)) == self.python.wants_interrupt()

    @invariant()
    def same_bytes(self) -> None:
        if hasattr(self, "ring"):
            one, other = (memory.read(0, MEMORY) for memory in self.memories)
            assert one == other
            assert (self.c.avail_idx, self.c.used_idx) == (
                self.python.avail_idx,
                self.python.used_idx,
            )

    def teardown(self) -> None:
        for memory in getattr(self, "memories", ()):
            memory.close()


TwoQueues.TestCase.settings = settings(
    max_examples=int(os.environ.get("PYKVM_CASES", "60")), stateful_step_count=25
)
TestTwoQueues = TwoQueues.TestCase

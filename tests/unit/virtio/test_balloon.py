"""What a balloon gives back to the host, and what it answers a driver, hostile or not."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Iterator

import pytest
from fakes import start
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError, HostError
from pykvm.memory import GuestMemory
from pykvm.virtio.balloon import (
    ACTUAL,
    CONFIG,
    INFLATE,
    PAGE,
    POISON,
    REPORTING,
    STATISTIC,
    STATISTICS,
    Balloon,
    BalloonFeature,
    _runs,
)
from pykvm.virtio.interrupt import Interrupt
from pykvm.virtio.queue import Desc

SIZE = 4  # of each ring
FREE = 0x10_0000  # memory that the driver has no use for
WAIT_MS = 60_000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(2 << 20) as memory:
        memory.write(FREE, b"\xff" * 0x10_0000)
        yield memory


@pytest.fixture
def balloon(memory: GuestMemory) -> Iterator[Balloon]:
    device = Balloon(memory)
    device.interrupt = Interrupt()
    yield device
    device.close()
    device.interrupt.close()


def offer(device: Balloon, number: int, gpa: int, size: int, flags: int = 0) -> None:
    """Make one buffer available, and wait until it is used; a buffer for statistics is not."""
    memory, base = device.memory, 0x1000 * (number + 1)
    told = os.eventfd(0)
    device.interrupt.set_fd(1 + number, told)
    (idx,) = struct.unpack("<H", memory.read(base + 0x402, 2))
    memory.write(base, struct.pack("<QIHH", gpa, size, flags, 0))
    memory.write(base + 0x404 + 2 * (idx % SIZE), bytes(2))
    memory.write(base + 0x402, struct.pack("<H", idx + 1))
    device.kick(number)
    if number != STATISTICS:
        poll = select.poll()
        poll.register(told, select.POLLIN)
        assert poll.poll(WAIT_MS)
    device.interrupt.set_fd(1 + number, -1)
    os.close(told)


def inflate(device: Balloon, *pages: int) -> None:
    numbers = struct.pack(f"<{len(pages)}I", *pages)
    device.memory.write(0x8000, numbers)
    offer(device, INFLATE, 0x8000, len(numbers))


def allocated(memory: GuestMemory) -> int:
    """Bytes of the memfd that the host holds."""
    return os.fstat(memory.file).st_blocks * 512


def test_the_host_has_back_the_pages_in_the_balloon(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ)
    before = allocated(balloon.memory)
    inflate(balloon, *range(FREE // PAGE, FREE // PAGE + 100))
    assert allocated(balloon.memory) <= before - 100 * PAGE + 2 * PAGE
    assert balloon.memory.read(FREE, PAGE) == bytes(PAGE)
    assert balloon.memory.read(FREE + 100 * PAGE, PAGE) == b"\xff" * PAGE


def test_pages_that_are_not_the_guests_are_passed_over(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ)
    inflate(balloon, 0xFFFF_FFFF, balloon.memory.size // PAGE, FREE // PAGE)
    assert balloon.memory.read(FREE, PAGE) == bytes(PAGE)


def test_reported_pages_are_given_back_whole(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ | BalloonFeature.REPORTING)
    offer(balloon, REPORTING, FREE + 1, 3 * PAGE, Desc.WRITE)
    left = balloon.memory.read(FREE, 4 * PAGE)
    assert left == b"\xff" * PAGE + bytes(2 * PAGE) + b"\xff" * PAGE


def test_reported_pages_stay_as_the_driver_filled_them(balloon: Balloon) -> None:
    start(
        balloon,
        SIZE,
        BalloonFeature.STATS_VQ | BalloonFeature.REPORTING | BalloonFeature.PAGE_POISON,
    )
    balloon.write_config(POISON, b"\xaa\xaa\xaa\xaa")
    offer(balloon, REPORTING, FREE, PAGE, Desc.WRITE)
    assert balloon.memory.read(FREE, PAGE) == b"\xff" * PAGE


def test_the_target_is_told_in_pages_with_an_interrupt(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ)
    balloon.target = 1 << 20
    assert balloon.interrupt.pending == 2
    assert CONFIG.unpack(balloon.read_config())[0] == 256
    balloon.write_config(ACTUAL, struct.pack("<I", 17))
    assert balloon.size == 17 * PAGE


@pytest.mark.parametrize("size", [-1, 2 << 20, 1 << 40])
def test_a_target_that_leaves_nothing_is_refused(balloon: Balloon, size: int) -> None:
    with pytest.raises(ConfigError, match="--balloon"):
        balloon.target = size


def test_statistics_are_what_the_driver_says_when_asked(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ)
    balloon.memory.write(0x9000, STATISTIC.pack(4, 111) + STATISTIC.pack(77, 5))
    statistics = balloon._statistics
    offer(balloon, STATISTICS, 0x9000, 20)
    with statistics._changed:  # what it says by itself, when it is loaded
        assert statistics._changed.wait_for(lambda: statistics._latest == {"free": 111}, 60)

    def answer() -> None:  # the driver: its buffer came back, so it fills it anew
        base = 0x1000 * (STATISTICS + 1)
        while balloon.memory.read(base + 0x802, 2) == b"\0\0":
            pass
        balloon.memory.write(0x9000, STATISTIC.pack(4, 222))
        offer(balloon, STATISTICS, 0x9000, 10)

    driver = threading.Thread(target=answer)
    driver.start()
    assert balloon.read_stats(timeout_s=60) == {"free": 222}
    driver.join()


def test_without_a_driver_there_are_no_statistics(balloon: Balloon) -> None:
    with pytest.raises(HostError, match="driver"):
        balloon.read_stats(timeout_s=0)


def test_a_buffer_for_statistics_is_not_lost_with_a_snapshot(balloon: Balloon) -> None:
    start(balloon, SIZE, BalloonFeature.STATS_VQ)
    balloon.memory.write(0x9000, STATISTIC.pack(4, 111))
    offer(balloon, STATISTICS, 0x9000, 10)
    balloon.target = 1 << 20
    state = balloon.state()
    balloon.restore(state)
    assert balloon.target == 1 << 20
    assert balloon.queues[STATISTICS].avail_idx == 0
    assert balloon.state() == state


@given(st.lists(st.integers(0, 40)))
def test_runs_are_the_pages_in_order(numbers: list[int]) -> None:
    pages = [page for start, end in _runs(numbers) for page in range(start, end)]
    assert pages == sorted(set(numbers))

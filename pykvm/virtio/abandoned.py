"""Which requests a back end took from a queue and did not give back, found when it is gone.

Reached from `vhost`, which answers them with an error. vhost-user lets a back end note in shared
memory what it has in flight, but qemu-storage-daemon and virtiofsd do not; so it is found out from
what the guest's memory shows.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.queue import Fault, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.virtio.queue import Chain, Queue


def is_settled(queue: Queue) -> bool:
    """Whether the driver has taken all that was given back: it asks to be told of the next one.
    Without VIRTIO_F_EVENT_IDX that cannot be known."""
    return queue.ring.event_idx and queue.load_used_event() == queue.load_used_idx()


def last(queue: Queue) -> list[int]:
    """The heads that were made available last, as many as were not used. When they are what `find`
    finds, all was used in order, and another back end may go on where that stopped."""
    count = queue.load_avail_idx() - queue.used_idx & 0xFFFF
    return [queue.available(queue.used_idx + at) for at in range(min(count, queue.ring.size))]


def find(queue: Queue, is_waiting: Callable[[Chain], bool]) -> list[int]:
    """The heads of the chains that were made available and not used, the oldest first.

    `queue.used_idx` is the used ring's; `is_waiting` judges a chain by what is in its buffers.

    How many there are is certain: what the driver's index is ahead of ours. Which, is not always:
    the rings keep the last entries alone, and a chain that was used and made available again looks
    like one that was used early. But a chain that was used, and that the driver has taken (see
    `is_settled`), is seldom whole: Linux frees its table of indirect descriptors, which overwrites
    part of it, and takes the same memory for the next. So what is not sound was used, and what
    shares its first buffer with a later one, too.
    """
    size, base = queue.ring.size, queue.used_idx
    count = queue.load_avail_idx() - base & 0xFFFF
    used = {queue.used(base + at): at for at in range(-size, 0)}  # where, relative to `base`
    found: list[int] = []
    heads, places = set[int](), set[int]()
    for at in range(count - 1, count - 1 - size, -1):
        head = queue.available(base + at)
        if len(found) == count:
            break
        if head in heads or used.get(head, at - 1) >= at:
            continue
        heads.add(head)
        try:
            place, chain = queue.place(head), queue.follow(head)
        except QueueError:
            continue
        if place not in places and is_waiting(chain):
            found.append(head)
        places.add(place)
    queue.fault = Fault.SOUND  # what `follow` found wrong is not the driver's fault
    return found[::-1]

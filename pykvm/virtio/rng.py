"""The entropy source, with its data plane in Python: the smallest virtio device, to read first.

Reached from `attach` (``--rng``). The driver offers buffers, we fill them with the host's random
bytes. Source: virtio 1.2 §5.4 Entropy Device. What a faster device does in C instead is the same:
csrc/iothread.c is `_serve_kicks`, csrc/virtio_blk.c is `_serve`.
"""

from __future__ import annotations

import os
import select
import threading

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import Feature, VirtioDevice
from pykvm.virtio.queue import Queue, QueueError, Ring

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

PIECE: Final = 1 << 16  # bytes drawn at a time


class Rng(VirtioDevice):
    """An entropy source. One queue, whose chains are all for us to write."""

    device_id = 4
    name = "rng"

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self.faults() or not self.queues[0].ready:
            return
        setup = self.queues[0]
        ring = Ring(
            setup.size,
            setup.desc,
            setup.avail,
            setup.used,
            self.has_feature(Feature.INDIRECT_DESC),
            self.has_feature(Feature.EVENT_IDX),
        )
        queue = Queue(self.memory, ring)
        queue.avail_idx, queue.used_idx = setup.avail_idx, setup.used_idx
        self._thread = threading.Thread(target=self._serve_kicks, args=(queue,), name="virtio-rng")
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            os.eventfd_read(self._stop_fd)
            self._thread = None

    def close(self) -> None:
        super().close()
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1

    # ── the data plane, on its own thread ────────────────────────────────────────────────────

    def _serve_kicks(self, queue: Queue) -> None:
        """Serve `queue` whenever it is kicked, until stopped or broken."""
        poll = select.poll()
        poll.register(self._stop_fd, select.POLLIN)
        poll.register(self.kick_fds[0], select.POLLIN)
        virtq = self.c_queues[0].virtq  # where the base class looks for faults and indices
        ready: set[int] = set()
        try:
            while self._stop_fd not in ready:
                if self.kick_fds[0] in ready:
                    os.eventfd_read(self.kick_fds[0])
                self._serve(queue)
                ready = {fd for fd, _ in poll.poll()}
        except QueueError as error:
            virtq.fault = error.fault
            self.interrupt.notify(0)  # the configuration: DEVICE_NEEDS_RESET
        finally:
            virtq.avail_idx, virtq.used_idx = queue.avail_idx, queue.used_idx

    def _serve(self, queue: Queue) -> None:
        """Fill every chain there is."""
        while True:
            queue.refuse_kicks()
            while chain := queue.pop():
                written = 0
                for gpa, size in chain.in_:
                    self._fill(gpa, size)
                    written += size
                queue.push(chain.head, written)
                if queue.wants_interrupt():
                    self.interrupt.notify(1)
            if not queue.ask_kicks():
                return

    def _fill(self, gpa: int, size: int) -> None:
        while size > 0:
            data = os.urandom(min(size, PIECE))
            self.memory.write(gpa, data)
            gpa += len(data)
            size -= len(data)

"""Serves one queue of a device in Python, on a thread of its own: the data plane of slow devices.

Reached from `rng`, `balloon`, `netcontrol` and `console`. What a faster device does in C instead:
csrc/iothread.c is `_serve_kicks`, csrc/virtio_blk.c is `_serve`.
"""

from __future__ import annotations

import os
import select
import threading

from pykvm._core import lib
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import Feature
from pykvm.virtio.queue import Queue, QueueError, Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.virtio.device import VirtioDevice
    from pykvm.virtio.queue import Chain


class QueueServer:
    """Between `start` and `stop`, gives each chain to `answer`, which returns how many bytes of its
    writable buffers it has written. `answer` may raise `QueueError`. Chains stay in the queue while
    `can_answer` says no: it is asked again after a kick, and after a write to `wake_fd`."""

    def __init__(
        self,
        device: VirtioDevice,
        name: str,
        answer: Callable[[Chain], int],
        can_answer: Callable[[], bool] = lambda: True,
    ) -> None:
        self._device, self._name, self._answer = device, name, answer
        self._can_answer = can_answer
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def start(self, number: int = 0) -> None:
        """Serve queue `number`, unless the driver has not set it up or broken it."""
        device = self._device
        setup, virtq = device.queues[number], device.c_queues[number].virtq
        if not setup.ready or virtq.fault:
            return
        ring = Ring(
            setup.size,
            setup.desc,
            setup.avail,
            setup.used,
            device.has_feature(Feature.INDIRECT_DESC),
            device.has_feature(Feature.EVENT_IDX),
        )
        queue = Queue(device.memory, ring)
        queue.avail_idx, queue.used_idx = setup.avail_idx, setup.used_idx
        self._thread = threading.Thread(
            target=self._serve_kicks, args=(queue, number), name=self._name, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Finish the chain that is being answered. Then the queue's indices are the device's."""
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            os.eventfd_read(self._stop_fd)
            self._thread = None

    def wake(self) -> None:
        """Have `can_answer` asked again. Any thread."""
        os.eventfd_write(self.wake_fd, 1)

    def close(self) -> None:
        """Close the eventfds. Safe to call twice."""
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            os.close(self.wake_fd)
            self._stop_fd = self.wake_fd = -1

    # ── on the thread ────────────────────────────────────────────────────────────────────────

    def _serve_kicks(self, queue: Queue, number: int) -> None:
        """Serve `queue` whenever it is kicked, until stopped or broken."""
        kick_fd = self._device.kick_fds[number]
        poll = select.poll()
        poll.register(self._stop_fd, select.POLLIN)
        poll.register(kick_fd, select.POLLIN)
        poll.register(self.wake_fd, select.POLLIN)
        virtq = self._device.c_queues[number].virtq  # where the device looks for faults and indices
        ready: set[int] = set()
        try:
            while self._stop_fd not in ready:
                if kick_fd in ready:
                    os.eventfd_read(kick_fd)
                    self._device.interrupt.trace(lib.PK_TRACE_QUEUE_KICK, number)
                if self.wake_fd in ready:
                    os.eventfd_read(self.wake_fd)
                self._serve(queue, number)
                ready = {fd for fd, _ in poll.poll()}
        except QueueError as error:
            virtq.fault = error.fault
            self._device.interrupt.notify(0)  # the configuration: DEVICE_NEEDS_RESET
        finally:
            self._finish(queue)
            virtq.avail_idx, virtq.used_idx = queue.avail_idx, queue.used_idx

    def _finish(self, queue: Queue) -> None:
        """For servers that keep chains: undo that, before the queue's indices are the device's."""

    def _serve(self, queue: Queue, number: int) -> None:
        """Answer every chain there is."""
        while True:
            queue.refuse_kicks()
            while self._can_answer() and (chain := queue.pop()):
                queue.push(chain.head, self._answer(chain))
                self._device.interrupt.trace(lib.PK_TRACE_QUEUE_USED, number)
                if queue.wants_interrupt():
                    self._device.interrupt.notify(1 + number)
            if not queue.ask_kicks() or not self._can_answer():
                return

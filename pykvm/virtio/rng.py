"""The entropy source, with its data plane in Python: the smallest virtio device, to read first.

Reached from `attach` (``--rng``). The driver offers buffers, we fill them with the host's random
bytes, on the thread of a `queueserver`. Source: virtio 1.2 §5.4 Entropy Device.
"""

from __future__ import annotations

import os

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import VirtioDevice
from pykvm.virtio.queueserver import QueueServer

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.queue import Chain

PIECE: Final = 1 << 16  # bytes drawn at a time


class Rng(VirtioDevice):
    """An entropy source. One queue, whose chains are all for us to write."""

    device_id = 4
    name = "rng"

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self._server = QueueServer(self, "virtio-rng", self._fill)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def close(self) -> None:
        super().close()
        self._server.close()

    def _fill(self, chain: Chain) -> int:
        """Fill the chain's buffers with random bytes; returns how many these are."""
        for gpa, size in chain.in_:
            for at in range(0, size, PIECE):
                self.memory.write(gpa + at, os.urandom(min(size - at, PIECE)))
        return sum(size for _, size in chain.in_)

"""A network card's control queue: what its driver changes while it runs.

Reached from `net`. Commands are rare, so they are answered in Python.
Source: virtio 1.2 §5.1.6.5 Control Virtqueue.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.netfeatures import NetFeature
from pykvm.virtio.queue import Fault, QueueError

if TYPE_CHECKING:
    from typing import Final

    from pykvm.virtio.net import Net
    from pykvm.virtio.queue import Chain

OK: Final = b"\0"
ERR: Final = b"\1"

# Class and command. Their data: a number of pairs, 16 bits; a set of features, 64 bits.
PAIRS_SET: Final = b"\4\0"  # VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
OFFLOADS_SET: Final = b"\5\0"  # VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
COMMAND_MAX: Final = 2 + 8


def answer(net: Net, chain: Chain) -> int:
    """Carry out the command of `chain`; returns how many bytes of answer there are."""
    if not chain.in_:
        raise QueueError(Fault.BAD_REQUEST)
    command = b""
    for gpa, size in chain.out:  # copied once, and no more than the longest command has
        command += net.memory.read(gpa, min(size, COMMAND_MAX + 1 - len(command)))
    gpa, _ = chain.in_[0]
    net.memory.write(gpa, OK if _carry_out(net, command[:2], command[2:]) else ERR)
    return 1


def _carry_out(net: Net, command: bytes, data: bytes) -> bool:
    value = int.from_bytes(data, "little")
    if command == PAIRS_SET and len(data) == 2 and net.has_feature(NetFeature.MQ):
        return 1 <= value <= net.config.queues and net.set_pairs(value)
    if command == OFFLOADS_SET and len(data) == 8:
        # §5.1.6.5.6.2: only what was negotiated.
        return not value & ~net.negotiated_offloads and net.set_offloads(value)
    return False

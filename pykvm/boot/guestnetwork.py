"""What init is told of the guest's network: a line for each card, in the order of ``--net``.

Reached from `guestimage`. The other end is guests/init/network.c.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from pykvm.virtio.config.net import NetConfig

FILE: Final = "pykvm/network"
NONE: Final = "-"


def settings(nets: Iterable[NetConfig]) -> bytes:
    """``ADDRESS/BITS GATEWAY DNS``, each `NONE` when it is not known."""
    lines = []
    for net in nets:
        words = (NONE if word is None else str(word) for word in net.settings)
        lines.append(" ".join(words) + "\n")
    return "".join(lines).encode()

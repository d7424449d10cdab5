"""What init is told of the guest's network: a line for each card, in the order of ``--net``.

Reached from `guestimage`, for the boot; and from `virtio.attach`, for copies of the machine, whose
init asks for it by the firmware configuration device. The other end is guests/init/network.c.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.config.net import USER_MTU

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from pykvm.virtio.config.net import NetConfig

FILE: Final = "pykvm/network"  # in the initrd
FW_CFG: Final = "opt/pykvm/network"
NONE: Final = "-"


def settings(nets: Sequence[NetConfig], macs: Sequence[bytes] = ()) -> bytes:
    """``ADDRESS/BITS GATEWAY DNS MTU [MAC]``, each of the first four `NONE` when it is not known;
    an MTU that the card itself tells is left to the driver."""
    lines = []
    for number, net in enumerate(nets):
        mtu = USER_MTU if net.kind == "user" and net.mtu is None else None
        words = [NONE if word is None else str(word) for word in (*net.settings, mtu)]
        words += [mac.hex(":") for mac in macs[number : number + 1]]
        lines.append(" ".join(words) + "\n")
    return "".join(lines).encode()

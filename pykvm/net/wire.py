"""The host's end of a network card's cable, as the card sees it."""

from __future__ import annotations

from contextlib import ExitStack

from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Wire:
    """Open files that frames go through, and what undoes the rest when the machine ends."""

    def __init__(
        self,
        kind: int,  # PK_NET_*
        fds: Sequence[int],
        *,
        name: str,  # for messages, and what the card's address is made from
        resources: ExitStack,
        features: int = 0,  # VIRTIO_NET_F_*: what the other end takes, or does for us
        mtu: int | None = None,  # when the guest should be told
        listening: bool = False,  # fds[0] is a socket that the other end will connect to
        peer: str = "",  # the path that datagrams go to
        knows_connections: bool = False,  # those that began through it, and no others
    ) -> None:
        self.kind, self.fds, self.name = kind, list(fds), name
        self.features, self.mtu = features, mtu
        self.listening, self.peer = listening, peer
        self.knows_connections = knows_connections
        self._resources = resources

    def close(self) -> None:
        """Close the files, end helpers, remove sockets and interfaces of ours. Safe to repeat."""
        self._resources.close()

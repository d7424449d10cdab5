"""Where the cable of a network card leads on the host: a TAP, passt, a unix socket.

Reached from `virtio.net`, one `Wire` for each ``--net``. A kind of wire is a module here; what is
asked for is `virtio.config.net`; the frames move in csrc/virtio_net.c, and Python sees none.
"""

from __future__ import annotations

from pykvm.net.wire import Wire
from pykvm.virtio.config.net import NetConfig


def open_wire(config: NetConfig) -> Wire:
    """Set up the host's end for `config`. Raises `ConfigError`, `HostError`."""
    if config.kind == "user":
        from pykvm.net.passt import start_passt

        return start_passt(config)
    if config.kind == "socket":
        from pykvm.net.socket import open_socket

        return open_socket(config)
    from pykvm.net.tap import open_tap

    return open_tap(config)

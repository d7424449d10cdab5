"""The network card: what the driver is told of it. Its frames move in csrc/virtio_net.c.

Reached from `attach`, one `Net` for each ``--net``. Where its cable leads is `pykvm.net`; what the
driver may change while it runs is `netcontrol`. Source: virtio 1.2 §5.1 Network Device.

::

    queue 0, 1      receive and transmit of the first pair
    queue 2n, 2n+1  of the others: VIRTIO_NET_F_MQ
    the last one    control: VIRTIO_NET_F_CTRL_VQ. Number 2 for a driver that has no MQ

What is offered is what the other end can do: a TAP takes and leaves checksums and segments; a
socket takes whole frames, so we sum up what the driver left to us, and leave it nothing.
"""

from __future__ import annotations

import struct

from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING
from pykvm.net import open_wire
from pykvm.virtio.device import STATE as DEVICE_STATE
from pykvm.virtio.device import VirtioDevice
from pykvm.virtio.netcontrol import answer
from pykvm.virtio.netfeatures import GUEST_OFFLOADS, NetFeature
from pykvm.virtio.queueserver import QueueServer

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.memory import GuestMemory
    from pykvm.net.wire import Wire
    from pykvm.virtio.config.net import NetConfig

CONFIG: Final = struct.Struct("<6sHHH")  # §5.1.4: mac, status, max_virtqueue_pairs, mtu
LINK_UP: Final = 1
STATE: Final = struct.Struct("<HQ6s")  # pairs in use, guest offloads, mac

MAC_PREFIX: Final = b"\x52\x4b"  # locally administered: bit 1 of the first byte
CONTROL_WITHOUT_MQ: Final = 2  # §5.1.2: N is 1 when MQ is not negotiated


class Net(VirtioDevice):
    """A network card on a `Wire` of its own. Raises `ConfigError`, `HostError`."""

    device_id = 1
    feature_names = NetFeature

    def __init__(
        self,
        memory: GuestMemory,
        config: NetConfig,
        number: int = 0,
        identity: bytes | None = b"",
    ) -> None:
        """`number` among the cards, and `identity` (see `attach`), are what an address is made of
        where the user gave none."""
        self.config = config
        self._takes_over = identity is None and config.mac is None
        self._wire = open_wire(config)
        try:
            self._handle = self._create(self._wire)
        except BaseException:
            self._wire.close()
            raise
        self.name = f"net {self._wire.name}"
        self.mac = config.mac or default_mac(f"{self._wire.name} {number}", identity or b"")
        self.features = self._wire.features | NetFeature.MAC | NetFeature.STATUS
        self.features |= NetFeature.MRG_RXBUF
        if config.offload:
            self.features |= NetFeature.CSUM
        if self._wire.mtu is not None:
            self.features |= NetFeature.MTU
        if config.queues > 1:
            self.features |= NetFeature.MQ
        self.queue_count = 2 * config.queues
        if self.features & (NetFeature.MQ | NetFeature.CTRL_GUEST_OFFLOADS):
            self.features |= NetFeature.CTRL_VQ
            self.queue_count += 1
        self._pairs = 1  # in use
        self._offloads: int | None = None  # left to the driver; None: what is negotiated
        super().__init__(memory)
        self._control = QueueServer(self, "virtio-net-control", lambda chain: answer(self, chain))

    def _create(self, wire: Wire) -> Any:
        out = ffi.new("struct pk_net **")
        options = {
            "kind": wire.kind,
            "pairs": self.config.queues,
            "fds": wire.fds,
            "listening": wire.listening,
            "peer": wire.peer.encode(),
            "name": wire.name.encode()[:63],
            "limits": self.config.limits.for_c(),
        }
        check(lib.pk_net_create(ffi.new("struct pk_net_config *", options), out), "memory")
        return out[0]

    def read_config(self) -> bytes:
        status = LINK_UP if lib.pk_net_link(self._handle) else 0
        return CONFIG.pack(self.mac, status, self.config.queues, self._wire.mtu or 0)

    # ── the data plane ───────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        # §5.1.6.5.6.1: all that was negotiated, until the driver says otherwise.
        self.set_offloads(self.negotiated_offloads if self._offloads is None else self._offloads)
        args = (self.c_queues, self.driver_features, self.interrupt.handle)
        check(lib.pk_net_start(self._handle, *args), "a thread for a network card")
        self.set_pairs(self._pairs)
        if self.has_feature(NetFeature.CTRL_VQ):
            number = self.queue_count - 1
            self._control.start(number if self.has_feature(NetFeature.MQ) else CONTROL_WITHOUT_MQ)

    def stop(self) -> None:
        self._control.stop()
        lib.pk_net_stop(self._handle)

    @property
    def negotiated_offloads(self) -> int:
        """What the driver may be left to do, of `GUEST_OFFLOADS`."""
        return self.driver_features & GUEST_OFFLOADS

    def set_pairs(self, pairs: int) -> bool:
        """Receive by this many pairs of queues. False: the TAP would not."""
        done = int(lib.pk_net_set_pairs(self._handle, pairs)) >= 0
        if done:
            self._pairs = pairs
        return done

    def set_offloads(self, features: int) -> bool:
        """Leave these of `GUEST_OFFLOADS` to the driver, no others. False: the TAP would not."""
        done = int(lib.pk_net_set_offloads(self._handle, features)) >= 0
        if done:
            self._offloads = features
        return done

    # ── the rest of a device ─────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        super().reset()
        self._pairs, self._offloads = 1, None

    def state(self) -> bytes:
        return STATE.pack(self._pairs, self._offloads or 0, self.mac) + super().state()

    def restore(self, state: bytes) -> None:
        """As `VirtioDevice.restore`. The driver is told of another address than it has read."""
        with self.lock:
            pairs, offloads, mac = STATE.unpack_from(state)
            self.reset()
            if self._wire.knows_connections:
                check(lib.pk_net_forget_connections(self._handle), "memory for connections")
            if self._takes_over:
                self.mac = mac
            _, _, accepted, _ = DEVICE_STATE.unpack_from(state, STATE.size)
            self.features |= accepted & NetFeature.MTU  # it was told one, and needs no other
            super().restore(state[STATE.size :])
            if self._running:
                self.set_pairs(pairs)
                self.set_offloads(offloads)
            if mac != self.mac:
                self.tell_of_config()

    def close(self) -> None:
        super().close()
        self._control.close()
        if self._handle != ffi.NULL:
            lib.pk_net_destroy(self._handle)
            self._handle = ffi.NULL
            self._wire.close()


def default_mac(seed: str, identity: bytes = b"") -> bytes:
    """An address that is the same in every boot, and another for another `seed` or `identity`."""
    from hashlib import blake2s

    return MAC_PREFIX + blake2s(seed.encode() + identity, digest_size=4).digest()

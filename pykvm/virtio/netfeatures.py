"""The feature bits of a network card (virtio 1.2 §5.1.3 Feature bits): those that are offered."""

from __future__ import annotations

import enum


class NetFeature(enum.IntFlag):
    """HOST_*: the driver may leave it to us. GUEST_*: we may leave it to the driver."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2  # the driver may take GUEST_* back, and give them again
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15  # one packet may fill several buffers
    STATUS = 1 << 16  # whether the cable is in
    CTRL_VQ = 1 << 17
    MQ = 1 << 22
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


# What VIRTIO_NET_CTRL_GUEST_OFFLOADS may change.
GUEST_OFFLOADS = (
    NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_UFO
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
)

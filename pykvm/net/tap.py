"""A TAP of the host's: an interface whose other end is the guest's card. Found, or made as root.

Reached from `net`, for ``--net tap=NAME`` and ``--net bridge=NAME``. One that we made goes with us.
Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from contextlib import ExitStack

from pykvm._core import lib
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.net import interface
from pykvm.net.wire import Wire
from pykvm.virtio.netfeatures import NetFeature

if TYPE_CHECKING:
    from typing import Final

    from pykvm.virtio.config.net import NetConfig

TUN: Final = "/dev/net/tun"

TUNSETIFF: Final = 0x4004_54CA
TUNSETOFFLOAD: Final = 0x4004_54D0
TUNSETVNETHDRSZ: Final = 0x4004_54D8

IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_MULTI_QUEUE: Final = 0x0100

HEADER_SIZE: Final = 12  # struct virtio_net_hdr_v1

# TUNSETOFFLOAD, and what a card may offer in both directions when the kernel takes the flags.
TUN_F_CSUM: Final = 0x01
OFFLOADS: Final = (
    (
        TUN_F_CSUM,
        NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.CTRL_GUEST_OFFLOADS,
    ),
    (0x02, NetFeature.GUEST_TSO4 | NetFeature.HOST_TSO4),
    (0x04, NetFeature.GUEST_TSO6 | NetFeature.HOST_TSO6),
    (0x0E, NetFeature.GUEST_ECN | NetFeature.HOST_ECN),
    (0x10, NetFeature.GUEST_UFO | NetFeature.HOST_UFO),
    (0x60, NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6 | NetFeature.HOST_USO),
)

MTU_MAX: Final = 65521  # drivers/net/tun.c: 65,535 with the Ethernet header
MADE_NAME: Final = "pykvm%d"  # the kernel puts the first free number in


def open_tap(config: NetConfig) -> Wire:
    """Attach to the TAP, or make it; put it on its bridge."""
    bridge = config.where if config.kind == "bridge" else ""
    if bridge and not interface.exists(bridge):
        raise _no_bridge(bridge)
    wanted = MADE_NAME if bridge else config.where
    made = bool(bridge) or not interface.exists(wanted)
    resources = ExitStack()
    try:
        name, fds = _open_queues(wanted, config, made, resources)
        if made:
            _set_up(name, bridge, config)
        elif config.host_address not in (None, interface.address(name)):
            raise ConfigError(
                f"--net tap={name}: it is there already, and hostip= is for one that is made; "
                f"'ip addr add {config.host_address} dev {name}', or leave hostip= out"
            )
        features = _offloads(fds[0]) if config.offload else 0
        mtu = config.mtu or interface.mtu(name)
        if not interface.is_up(name):
            print(f"pykvm: --net tap={name}: it is down; 'ip link set {name} up'", file=sys.stderr)
    except BaseException:
        resources.close()
        raise
    return Wire(
        lib.PK_NET_TAP,
        fds,
        name=f"{bridge} {name}".strip(),
        features=features,
        mtu=mtu if config.mtu or mtu != 1500 else None,
        resources=resources,
    )


def _open_queues(
    wanted: str, config: NetConfig, made: bool, resources: ExitStack
) -> tuple[str, list[int]]:
    """The interface's name, and a file for each of its queues."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if config.queues > 1 else 0)
    name, fds = wanted, []
    for _ in range(config.queues):
        try:
            fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _no_tun(error) from None
        resources.callback(os.close, fd)
        try:
            name = _attach(fd, name, flags)
        except OSError as error:
            if error.errno == errno.EINVAL and not made and config.queues == 1:
                flags |= IFF_MULTI_QUEUE  # it was made with many; we use one
                try:
                    name = _attach(fd, name, flags)
                except OSError as again:
                    raise _refusal(wanted, config, again) from None
            else:
                raise _refusal(wanted, config, error) from None
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("<i", HEADER_SIZE))
        fds.append(fd)
    return name, fds


def _no_tun(error: OSError) -> ConfigError:
    """What to do where no TAP can be had at all."""
    remedy = f"let root run 'chmod 666 {TUN}'" if error.errno == errno.EACCES else "'modprobe tun'"
    return ConfigError(f"--net: {TUN}: {error.strerror}; {remedy}, or use --net user")


def _attach(fd: int, name: str, flags: int) -> str:
    ifreq = struct.pack(interface.IFREQ, name.encode(), struct.pack("<H", flags))
    return bytes(fcntl.ioctl(fd, TUNSETIFF, ifreq)[:16]).rstrip(b"\0").decode()


def _refusal(name: str, config: NetConfig, error: OSError) -> ConfigError:
    """What to do about it."""
    words = f"--net {config.kind}={config.where}"
    multi = " multi_queue" if config.queues > 1 else ""
    match error.errno:
        case errno.EPERM if config.kind == "bridge":
            return ConfigError(f"{words}: to make a TAP takes root; or use --net user")
        case errno.EPERM:
            return ConfigError(
                f"{words}: to make a TAP takes root; let root run "
                f"'ip tuntap add {name} mode tap user {os.geteuid()}{multi}', or use --net user"
            )
        case errno.EBUSY:
            return ConfigError(f"{words}: {name} is in use by another machine; choose another one")
        case errno.EINVAL if config.queues > 1:
            return ConfigError(
                f"{words}: {name} has one queue; make it with 'ip tuntap add {name} mode tap "
                "multi_queue', or leave queues= out"
            )
        case errno.EINVAL:
            return ConfigError(f"{words}: {name} is no TAP; choose another name")
    return ConfigError(f"{words}: {error.strerror}")


def host_mac(name: str) -> bytes:
    """The TAP's own address, the same whenever it is made: a guest that is restored on it still
    knows it, as it knows that of a bridge, which has the lowest of its ports'. This one is high, so
    that a bridge with a real card goes on having that card's."""
    from hashlib import blake2s

    return b"\xfe\x4b" + blake2s(name.encode(), digest_size=4).digest()


def _set_up(name: str, bridge: str, config: NetConfig) -> None:
    """Configure the interface that was made."""
    try:
        interface.set_mac(name, host_mac(name))
        if config.mtu or bridge:
            _set_mtu(name, bridge, config)
        if bridge:
            _add_to_bridge(bridge, name)
        if config.host_address is not None:
            interface.set_address(name, config.host_address)
        interface.set_up(name)
    except OSError as error:
        raise ConfigError(f"--net {config.kind}={config.where}: {name}: {error.strerror}") from None


def _set_mtu(name: str, bridge: str, config: NetConfig) -> None:
    try:
        interface.set_mtu(name, config.mtu or min(interface.mtu(bridge), MTU_MAX))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ConfigError(f"--net: mtu={config.mtu} is more than a TAP takes: {MTU_MAX}") from None


def _add_to_bridge(bridge: str, name: str) -> None:
    try:
        interface.add_to_bridge(bridge, name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise _no_bridge(bridge) from None


def _no_bridge(name: str) -> ConfigError:
    return ConfigError(
        f"--net: there is no bridge {name!r}; 'ip link add {name} type bridge' makes one"
    )


def _offloads(fd: int) -> int:
    """The features that this kernel's TAP can do."""
    features = 0
    for flags, names in OFFLOADS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | flags)
        except OSError:
            continue
        features |= names
    fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    return features

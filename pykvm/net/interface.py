"""Network interfaces of the host: their flags, addresses and bridges, by ioctl.

Reached from `tap`. Source: netdevice(7), Linux include/uapi/linux/sockios.h.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Interface
    from typing import Final

NAME_MAX: Final = 15  # IFNAMSIZ, without the NUL
IFREQ: Final = "16s24s"  # struct ifreq: a name, and a union

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFADDR: Final = 0x8915
SIOCSIFADDR: Final = 0x8916
SIOCGIFNETMASK: Final = 0x891B
SIOCSIFNETMASK: Final = 0x891C
SIOCGIFMTU: Final = 0x8921
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
SIOCGIFINDEX: Final = 0x8933
SIOCBRADDIF: Final = 0x89A2

IFF_UP: Final = 1
ARPHRD_ETHER: Final = 1


def exists(name: str) -> bool:
    """Whether there is an interface `name`."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def ioctl(request: int, name: str, value: bytes = b"") -> bytes:
    """A SIOC* ioctl about interface `name`; the union, after it. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ifreq = struct.pack(IFREQ, name.encode(), value)
        return bytes(fcntl.ioctl(any_socket, request, ifreq)[16:])


def is_up(name: str) -> bool:
    """Whether the interface is switched on."""
    (flags,) = struct.unpack_from("<H", ioctl(SIOCGIFFLAGS, name))
    return bool(flags & IFF_UP)


def set_up(name: str) -> None:
    """Switch the interface on."""
    (flags,) = struct.unpack_from("<H", ioctl(SIOCGIFFLAGS, name))
    ioctl(SIOCSIFFLAGS, name, struct.pack("<H", flags | IFF_UP))


def mtu(name: str) -> int:
    """The longest packet that the interface takes, in bytes."""
    return int(struct.unpack_from("<i", ioctl(SIOCGIFMTU, name))[0])


def set_mtu(name: str, size: int) -> None:
    """Let the interface take packets of `size` bytes."""
    ioctl(SIOCSIFMTU, name, struct.pack("<i", size))


def set_mac(name: str, mac: bytes) -> None:
    """Give an interface that is down another MAC address."""
    ioctl(SIOCSIFHWADDR, name, struct.pack("<H6s", ARPHRD_ETHER, mac))


def address(name: str) -> IPv4Interface | None:
    """The interface's first IPv4 address, and the network it is in."""
    from ipaddress import IPv4Interface

    try:
        values = [ioctl(request, name)[4:8] for request in (SIOCGIFADDR, SIOCGIFNETMASK)]
    except OSError:
        return None
    return IPv4Interface("/".join(socket.inet_ntoa(value) for value in values))


def set_address(name: str, address: IPv4Interface) -> None:
    """Give the interface an IPv4 address and the network it is in."""
    for request, value in ((SIOCSIFADDR, address.ip), (SIOCSIFNETMASK, address.netmask)):
        ioctl(request, name, struct.pack("<HH4s", socket.AF_INET, 0, value.packed))


def add_to_bridge(bridge: str, name: str) -> None:
    """Make interface `name` a port of `bridge`."""
    ioctl(SIOCBRADDIF, bridge, struct.pack("<i", socket.if_nametoindex(name)))

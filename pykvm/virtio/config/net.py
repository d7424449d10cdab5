"""``--net``: a virtio network card and where its cable leads. The device is `virtio.net`."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.limits import WORDS, Limits, take_limits
from pykvm.virtio.config.words import number, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Interface
    from typing import Any, Final

USAGE: Final = (
    "--net tap=NAME|bridge=NAME|user|socket=PATH[,mac=ADDR][,mtu=N][,queues=N][,offload=off]"
    "[,ip=ADDR/BITS][,gw=ADDR][,dns=ADDR][,hostip=ADDR/BITS][,peer=PATH]"
    "[,hostfwd=tcp|udp:[ADDR:]PORT-:PORT][,bps=N][,iops=N]"
)

KINDS: Final = ("tap", "bridge", "user", "socket")
PAIRS_MAX: Final = 8  # as PK_NET_PAIRS_MAX in csrc/api.h
MTU_MIN, MTU_MAX = 68, 65535  # §5.1.4.1
NAME_MAX: Final = 15  # of an interface: IFNAMSIZ
PATH_MAX: Final = 107  # of a unix socket: sun_path

# A guest behind passt, unless it is told otherwise: as behind QEMU's -netdev user.
USER_ADDRESS: Final = "10.0.2.15/24"
USER_GATEWAY: Final = 2  # the second address of that network,
USER_DNS: Final = 3  # and the third
# passt takes long frames, which makes up for segments. Init sets it, and DHCP tells it; the card
# does not: iPXE makes each of its buffers as long as the card says, and has no room for them.
USER_MTU: Final = 65520


class Forward(Record):
    """A port of the host's that leads to one of the guest's."""

    protocol: str  # tcp or udp
    address: str  # the host's, where it listens; "": everywhere
    port: int
    guest_port: int


class NetConfig(Record):
    """A network card."""

    kind: str  # one of KINDS
    where: str = ""  # the TAP's, bridge's or socket's name
    mac: bytes | None = None  # None: made from where the cable leads
    mtu: int | None = None
    queues: int = 1  # pairs of virtqueues
    offload: bool = True  # leave checksums and segments to one another, where both ends can
    address: IPv4Interface | None = None  # the guest's, which pykvm's init sets
    gateway: IPv4Address | None = None
    dns: IPv4Address | None = None
    host_address: IPv4Interface | None = None  # of a TAP that is made
    peer: str = ""  # sockets: datagrams go there
    forwards: tuple[Forward, ...] = ()
    limits: Limits = Limits()  # of each direction, by all queues together; operations are frames

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.kind == "user") != (not self.where):
            raise ConfigError(
                f"--net: {_first(self)!r} is not what a cable leads to; write {USAGE}"
            )
        if self.kind in ("tap", "bridge"):
            check_interface(self.where)
        for path in (self.where, self.peer) if self.kind == "socket" else ():
            if len(path.encode()) > PATH_MAX:
                raise ConfigError(f"--net: {path} is too long for a socket; at most {PATH_MAX}")
        if self.mtu is not None and not MTU_MIN <= self.mtu <= MTU_MAX:
            raise ConfigError(f"--net: mtu={self.mtu} is not {MTU_MIN} to {MTU_MAX}")
        if not 1 <= self.queues <= PAIRS_MAX:
            raise ConfigError(f"--net: queues={self.queues} is not 1 to {PAIRS_MAX}")
        if self.queues > 1 and self.kind not in ("tap", "bridge"):
            raise ConfigError("--net: only a TAP has several queues; leave queues= out")
        if self.mac is not None and (len(self.mac) != 6 or self.mac[0] & 1):
            raise ConfigError("--net: mac= is a group's address; its first byte must be even")
        if self.mac is not None and not any(self.mac):
            raise ConfigError("--net: mac= is nobody's address; leave it out to have one made")
        self.limits.check("--net")
        misplaced = {
            "hostip": self.host_address is not None and self.kind != "tap",
            "peer": self.peer and self.kind != "socket",
            "hostfwd": self.forwards and self.kind != "user",
            "ip": self.gateway is not None and self.address is None and self.kind != "user",
        }
        for name, wrong in misplaced.items():
            if wrong and name == "ip":
                raise ConfigError("--net: gw= says nothing without ip=; add ip=ADDR/BITS")
            if wrong:
                raise ConfigError(f"--net: {name}= has no meaning with {self.kind}; leave it out")

    @property
    def settings(self) -> tuple[Any, Any, Any]:
        """The guest's address, gateway and name server; each None when nobody knows."""
        address, gateway, dns = self.address, self.gateway, self.dns
        if self.kind == "user":
            address = address or _interface(USER_ADDRESS)
            gateway = gateway or address.network.network_address + USER_GATEWAY
            dns = dns or address.network.network_address + USER_DNS
        return address, gateway, dns


def _first(config: NetConfig) -> str:
    return f"{config.kind}={config.where}" if config.where else config.kind


def check_nets(nets: Sequence[NetConfig]) -> None:
    """Raise `ConfigError` when two cards of one machine want what only one can have."""
    seen: set[str] = set()
    for net in nets:
        wants = [f"tap={net.where}"] if net.kind == "tap" else []
        wants += [f"mac={net.mac.hex(':')}"] if net.mac else []
        wants += [f"hostfwd={f.protocol}:{f.address}:{f.port}" for f in net.forwards]
        for want in wants:
            if want in seen:
                raise ConfigError(f"--net: two cards have {want}; give one another")
        seen.update(wants)


def check_interface(name: str) -> None:
    """Raise `ConfigError` unless Linux would take it for an interface's name."""
    if len(name.encode()) > NAME_MAX or name in (".", "..") or set(name) & set("/:% \t\n"):
        raise ConfigError(
            f"--net: {name!r} is no name for an interface: at most {NAME_MAX} bytes, "
            "without '/', ':', '%' and spaces"
        )


def parse_net(text: str) -> NetConfig:
    """What ``--net`` is given, see `USAGE`; a comma in PATH is written twice, as in QEMU.

    Raises `ConfigError` naming `--net`.
    """
    forwards: list[Forward] = []

    def forward(words: str) -> tuple[Forward, ...]:
        forwards.append(_forward(words))
        return tuple(forwards)

    first, options = split(
        text,
        USAGE,
        values={
            "mac": _mac,
            "mtu": number,
            "queues": number,
            "offload": _on_or_off,
            "ip": _interface,
            "gw": _address,
            "dns": _address,
            "hostip": _interface,
            "peer": str,
            "hostfwd": forward,
            **WORDS,
        },
    )
    limits = take_limits(options)
    names = {"ip": "address", "gw": "gateway", "hostip": "host_address", "hostfwd": "forwards"}
    kind, equals, where = first.partition("=")
    if equals and not where:
        raise ConfigError(f"--net: {first!r} has no name; write {USAGE}")
    named = {names.get(name, name): value for name, value in options.items()}
    return NetConfig(kind, where, limits=limits, **named)


# ── values; each raises ValueError ───────────────────────────────────────────────────────────────


def _mac(text: str) -> bytes:
    parts = text.split(":")
    if len(parts) != 6 or not all(1 <= len(part) <= 2 for part in parts):
        raise ValueError(text)
    return bytes(int(part, 16) for part in parts)


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(text)
    return text == "on"


def _interface(text: str) -> Any:
    from ipaddress import IPv4Interface

    if "/" not in text:  # ADDR alone would be a network of one
        raise ValueError(text)
    return IPv4Interface(text)


def _address(text: str) -> Any:
    from ipaddress import IPv4Address

    return IPv4Address(text)


def _port(text: str) -> int:
    port = number(text)
    if not 1 <= port <= 0xFFFF:
        raise ValueError(text)
    return port


def _forward(text: str) -> Forward:
    """``tcp|udp:[ADDR:]PORT-:PORT``; QEMU's way of writing it, an empty ADDR included."""
    host, dash, guest = text.rpartition("-")
    protocol, _, place = host.partition(":")
    address, _, port = place.rpartition(":")
    if protocol not in ("tcp", "udp") or not dash or not guest.startswith(":"):
        raise ValueError(text)
    return Forward(
        protocol, str(_address(address)) if address else "", _port(port), _port(guest[1:])
    )

"""Where a copy of a machine has its disks, networks and sockets: other places than its origin.

Reached from `load` and `Template.machine`, whose `changes` to the configuration these are. What a
guest knows of a device stays as it was, unless it is said otherwise; what it cannot do without is
checked by the devices' `restore`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm.errors import ConfigError
from pykvm.virtio.config.console import PortConfig, parse_port
from pykvm.virtio.config.disk import DiskConfig, parse_disk
from pykvm.virtio.config.net import NetConfig, parse_net
from pykvm.virtio.config.vsock import VsockConfig, parse_vsock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pykvm.config import MachineConfig

ENDS: Final = ("host_address", "peer", "forwards")  # of a cable's end on the host: not the guest's


def repoint(config: MachineConfig, changes: dict[str, Any]) -> tuple[MachineConfig, set[int]]:
    """`config` with `changes`, and the numbers of the disks that are not the user's new choice.

    `disks`, `nets`, `vsock` and `ports` may hold an option's text in place of a record: what it
    does not say stays as it was. ``vdb=FILE`` and ``eth1=tap=NAME`` name one of several; texts
    without a name are for one after the other, records for all. Raises `ConfigError`.
    """
    changes = {"gdb": None, "wait_gdb": False, **changes}  # a debugger belongs to one machine
    old = set(range(len(config.disks)))
    if "disks" in changes:
        given = _by_number(changes["disks"], "--disk", len(config.disks), _disk_name)
        changes["disks"] = _merged(config.disks, given, parse_disk, _merge_disk)
        old -= given.keys()
    if "nets" in changes:
        given = _by_number(changes["nets"], "--net", len(config.nets), "eth{}".format)
        changes["nets"] = _merged(config.nets, given, parse_net, _merge_net)
    if isinstance(changes.get("vsock"), str):
        _expect("--vsock", 1, int(config.vsock is not None))
        changes["vsock"] = _merge_vsock(config.vsock, parse_vsock(changes["vsock"]))
    if "ports" in changes:
        changes["ports"] = _ports(config.ports, changes["ports"])
    return config._replace(**changes), old


def _by_number(
    given: Sequence[Any], option: str, count: int, name: Callable[[int], str]
) -> dict[int, Any]:
    """What is given for which device."""
    names = {name(number): number for number in range(count)}
    if any(not isinstance(each, str) for each in given):
        _expect(option, len(given), count, exactly=True)
        return dict(enumerate(given))
    found: dict[int, Any] = {}
    for each in given:
        first, equals, rest = each.partition("=")
        if equals and first in names:
            number, each = names[first], rest
        elif equals and first[:-1] in ("vd", "eth"):
            raise ConfigError(
                f"{option}: the machine has no {first}; it has {', '.join(names) or 'none'}"
            )
        else:
            number = next((n for n in range(count) if n not in found), count)
        _expect(option, number + 1, count)
        if number in found:
            raise ConfigError(f"{option}: {name(number)} is named twice; leave one out")
        found[number] = each
    return found


def _expect(option: str, given: int, count: int, *, exactly: bool = False) -> None:
    if given > count or (exactly and given != count):
        raise ConfigError(
            f"{option}: {given} are given, and the machine has {count}: a copy has the devices of "
            "its origin, no more and no fewer"
        )


def _merged(
    old: Sequence[Any], given: dict[int, Any], parse: Callable[[str], Any], merge: Any
) -> tuple[Any, ...]:
    new = list(old)
    for number, each in given.items():
        new[number] = merge(old[number], parse(each)) if isinstance(each, str) else each
    return tuple(new)


def _disk_name(number: int) -> str:
    """As Linux names it, the first 26."""
    return f"vd{chr(ord('a') + number)}"


def _said(new: Any, plain: Any) -> dict[str, Any]:
    """The fields that the user's text has set."""
    return {
        name: value
        for name, value, default in zip(new._fields, new, plain, strict=True)
        if value != default
    }


def _merge_disk(old: DiskConfig, new: DiskConfig) -> DiskConfig:
    return old._replace(path=new.path, **_said(new, DiskConfig(new.path)))


def _merge_net(old: NetConfig, new: NetConfig) -> NetConfig:
    """Another kind of cable has other ends on the host; to the guest the card stays the same."""
    plain = NetConfig(new.kind, new.where)
    if new.kind != old.kind:
        old = old._replace(**{name: getattr(plain, name) for name in ENDS})
    return old._replace(kind=new.kind, where=new.where, **_said(new, plain))


def _merge_vsock(old: VsockConfig | None, new: VsockConfig) -> VsockConfig:
    return new if old is None or new.cid is not None else new._replace(cid=old.cid)


def _ports(old: Sequence[PortConfig], given: Sequence[PortConfig | str]) -> tuple[PortConfig, ...]:
    new = {port.name: port for port in old}
    for each in given:
        port = parse_port(each) if isinstance(each, str) else each
        if port.name not in new:
            names = ", ".join(new) or "none"
            raise ConfigError(f"--port: the machine has no port {port.name!r}; it has {names}")
        new[port.name] = port
    return tuple(new.values())

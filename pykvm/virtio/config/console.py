"""``--port`` and ``--pipe``: byte channels. The device is `virtio.console`."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

USAGE: Final = "--port NAME=WHERE"

PORTS_MAX: Final = 15  # beside port 0, the kernel's own console: PK_CONSOLE_PORTS_MAX, less 1
NAME_MAX: Final = 64  # bytes

STREAMS: Final = ("stdio", "stdin", "stdout", "stderr")
SERVED: Final = ("unix", "file")  # each with a path behind a colon
INHERITED: Final = "fd"  # with the number of an open descriptor


class PortConfig(Record):
    """A port: its name in the guest, and what it leads to on the host."""

    name: str
    where: str  # one of STREAMS, or unix:PATH, file:PATH, fd:NUMBER

    @property
    def path(self) -> str:
        """PATH or NUMBER, or nothing for a stream of ours."""
        return self.where.partition(":")[2]

    @property
    def kind(self) -> str:
        """What is before it."""
        return self.where.partition(":")[0]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= NAME_MAX or set(self.name) & set("/\n\0"):
            raise ConfigError(
                f"--port: {self.name!r} is no name of 1 to {NAME_MAX} bytes; write {USAGE}"
            )
        served = self.kind in SERVED and bool(self.path)
        served = served or (self.kind == INHERITED and self.path.isdecimal())
        if not served and self.where not in STREAMS:
            raise ConfigError(
                f"--port: {self.where!r} is unknown; write {self.name}=unix:PATH, file:PATH, "
                f"fd:NUMBER, {', '.join(STREAMS[:-1])} or {STREAMS[-1]}"
            )


# What ``--pipe`` asks for: guests/init/streams.c makes these the command's.
PIPE: Final = tuple(PortConfig(f"pykvm.{name}", name) for name in STREAMS[1:])


def parse_port(text: str) -> PortConfig:
    """What ``--port`` is given, see `USAGE`. Raises `ConfigError` naming `--port`."""
    name, equals, where = text.partition("=")
    if not equals:
        raise ConfigError(f"--port: {text!r} has no '='; write {USAGE}")
    return PortConfig(name, where)


def check_ports(ports: Iterable[PortConfig]) -> None:
    """Raises `ConfigError` for ports that cannot be beside one another."""
    ports = tuple(ports)
    names = [port.name for port in ports]
    streams = [name for port in ports for name in _taken(port)]
    if len(ports) > PORTS_MAX:
        raise ConfigError(f"--port: {len(ports)} are more than the {PORTS_MAX} there can be")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--port: {name!r} is there twice; give each its own name")
    for name in streams:
        if streams.count(name) > 1:
            raise ConfigError(f"--port: {name} can lead to one port only")


def _taken(port: PortConfig) -> tuple[str, ...]:
    """The standard streams that the port is."""
    if port.where == "stdio":
        return ("stdin", "stdout")
    return (port.where,) if port.where in STREAMS else ()

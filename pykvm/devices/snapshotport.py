"""The port by which a guest asks for a snapshot of itself, and learns that it is a copy.

Reached from the bus at `layout.PORT_SNAPSHOT`, 0x5f9. As fork(2) returns twice, so a read after the
write tells the two apart::

    out 0x5f9, al     whoever runs the machine is asked; the guest goes on once that is done
    in  al, 0x5f9     how often this machine was restored or forked since it was booted, at most 255

Nothing happens unless the user wants it: ``pykvm boot --snapshot DIR``, `on_snapshot_request`.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine import Machine


class SnapshotPort(Device):
    """A write asks, by `on_request`; a read tells the generation of `machine`."""

    name = "snapshot port"

    def __init__(self, on_request: Callable[[], None], machine: Machine) -> None:
        self._on_request = on_request
        self._machine = machine

    def read(self, offset: int, size: int) -> int:
        return min(self._machine.generation, 0xFF)

    def write(self, offset: int, size: int, value: int) -> None:
        self._on_request()

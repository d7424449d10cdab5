"""The memory of a machine at rest, as files that nobody writes any more.

Reached from `template`. There are four cases, the cheaper ones first: the memfd of a booted machine
becomes the file; what has not changed has its files already; what changed in a few places gets a
layer over them; else all of it is copied. Read `layers` for what becomes of the files.
"""

from __future__ import annotations

import fcntl
import os

from pykvm.lean import TYPE_CHECKING, Record
from pykvm.snapshot import pages
from pykvm.snapshot.diff import changed
from pykvm.snapshot.layers import Layer, blocks_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from pykvm.machine import Machine
    from pykvm.memory import GuestMemory, Region
    from pykvm.snapshot.lazy import Source
    from pykvm.snapshot.template import Template

GROWN: Final = 4  # layers that forks add, before all is copied
SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Files(Record):
    """All of a memory: `fd`, which `lazy` reads if the machine is loaded lazily, under `layers`."""

    fd: int
    layers: Sequence[Layer] = ()
    lazy: Source | None = None
    grown: int = 0  # how many of the layers were added by forks
    added: Sequence[Region] = ()  # what the last of them has, which was added just now


def memory_of(machine: Machine) -> Files:
    """The files of a machine at rest, whose memory is, or will be, a private copy of them."""
    memory, before = machine.memory, machine.template
    if not memory.is_private:
        return Files(memory.freeze())
    if before is None:
        return _copy(memory)
    ranges = blocks_of(changed(machine, before), memory.size)
    if ranges is None or (ranges and before.grown == GROWN):
        return _copy(memory)
    return _grow(memory, before, ranges)


def _copy(memory: GuestMemory) -> Files:
    fd = _file(memory.size)
    try:
        pages.copy(memory, fd)
        memory.rebase(fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return Files(fd)


def _grow(memory: GuestMemory, before: Template, ranges: Sequence[Region]) -> Files:
    """Those of before and, where `ranges` have changed, a layer."""
    added = [_layer(memory, ranges)] if ranges else []
    same = before.copy()
    layers = [*same.layers, *added]
    return Files(same.fd, layers, same.lazy, before.grown + len(added), ranges)


def _layer(memory: GuestMemory, ranges: Sequence[Region]) -> Layer:
    fd = _file(memory.size)
    try:
        for offset, size in ranges:
            with memory.at_offset(offset, size) as view:
                pages.write(fd, offset, view)
        memory.check()
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return Layer(fd, ranges)


def _file(size: int) -> int:
    fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    return fd

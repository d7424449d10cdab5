"""Differential snapshots: of the memory, only the pages that changed since the base was taken.

Reached from `save`. Two things are needed: where to look, and whether a page there has changed.

- To look: everywhere that the memory or the base may be other than zero; or, far less, the pages
  that the kernel's copy-on-write has noted (csrc/cow.c), whoever wrote them, when the memory is a
  private copy of a file and it is known where that file differs from the base (`Ancestor`). A
  booted machine's memory is no such copy: its first differential snapshot makes it one.
- To tell: the bytes are compared with the base's. A page that was written back to what it was, or
  copied from a layer, is not saved again.

Read `chain` for how a base is found and checked, `layers` for its memory.
"""

from __future__ import annotations

import os

from pykvm import layout
from pykvm.devices.vmgenid import SIZE as ID_SIZE
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import Region
from pykvm.snapshot import chain, pages
from pykvm.snapshot.layers import Stack, differing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from pykvm.machine import Machine
    from pykvm.snapshot.chain import Link
    from pykvm.snapshot.template import Template


REMEMBERED: Final = 16  # snapshots of which it is known where the memory may differ


class Ancestor(Record):
    """A snapshot that a machine goes on from, or that was taken of it."""

    checksum: str  # of its head
    epoch: int  # of the machine's memory, for which `ranges` is true
    ranges: list[Region] | None  # where the file beneath may differ from it; None: anywhere


Lineage = dict[str, Ancestor]  # by the snapshot's id


def lineage_of(links: list[Link]) -> Lineage:
    """For a machine whose memory lies on a chain that was just opened."""
    found: Lineage = {}
    above: list[Region] = []
    for link in links:
        found[link.head["id"]] = Ancestor(link.head["checksum"], 0, above)
        above = [] if link.is_full else list(pages.joined([*above, *link.ranges]))
    return found


def inherited(machine: Machine) -> Lineage:
    """For a machine whose memory is a copy of this one's."""
    return {id: old._replace(ranges=None) for id, old in machine.lineage.items()}


class Base:
    """What a snapshot in the folder `target` is taken on. Owns open files.

    Raises `ConfigError` when it is not whole, or would be replaced.
    """

    def __init__(self, folder: str | os.PathLike[str], target: str) -> None:
        self.links = chain.follow(folder)
        self.folder = self.links[0].folder
        for link in self.links:
            if os.path.realpath(link.folder) == os.path.realpath(target):
                raise ConfigError(
                    f"snapshot {target}: it would take the place of its own base; name another "
                    "folder"
                )
        self.reference = chain.reference(self.links[0], target)
        self._stack = chain.open_stack(self.links)

    def save(self, machine: Machine, fd: int) -> list[Region]:
        """Write the pages of a machine at rest that have changed to an empty file of its memory's
        size; returns where they are."""
        head, memory = self.links[0].head, machine.memory
        ancestor = machine.lineage.get(head["id"])
        if ancestor is None or not self.links[0].is_known_by(ancestor.checksum):
            raise ConfigError(
                f"base {self.folder}: the machine does not go on from there, and it is no snapshot "
                "of the machine; name one that is, or take a full one, without a base"
            )
        ranges = []
        for offset, data in differing(memory, self._stack, self._candidates(machine, ancestor)):
            pages.write(fd, offset, data)
            ranges.append(Region(offset, len(data)))
        ranges = list(pages.joined(ranges))
        if not memory.is_private:
            os.close(memory.freeze())  # from here on its changes are noted
            machine.lineage[head["id"]] = Ancestor(head["checksum"], memory.epoch, ranges)
        return ranges

    def _candidates(self, machine: Machine, ancestor: Ancestor) -> list[Region]:
        memory = machine.memory
        if memory.is_private and ancestor.epoch == memory.epoch and ancestor.ranges is not None:
            return list(pages.joined([*ancestor.ranges, *memory.changes()]))
        return list(pages.joined([*pages.touched(memory), *self._stack.touched()]))

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        self._stack.close()


def note(machine: Machine, id: str) -> None:
    """The machine at rest is as the snapshot `id` will be, whose head is not written yet."""
    memory, lineage = machine.memory, machine.lineage
    for old in list(lineage)[:-REMEMBERED]:
        lineage[old] = lineage[old]._replace(ranges=None)
    ranges = list(memory.changes()) if memory.is_private else None
    lineage[id] = Ancestor("", memory.epoch, ranges)


def changed(machine: Machine, before: Template) -> Iterator[Region]:
    """Where the memory is other than the template's. The bytes are compared: a device that rests
    and goes on writes to its rings what is there already. The generation id does not count: who
    goes on from here gets one of its own."""
    stack = Stack(before.fd, machine.memory.size, before.layers)  # whose files stay the template's
    place = layout.VM_GENERATION_ID
    for offset, data in differing(machine.memory, stack, machine.memory.changes()):
        beneath = stack.read(offset, len(data))
        if (offset, len(data)) != (place, pages.PAGE) or data[ID_SIZE:] != beneath[ID_SIZE:]:
            yield Region(offset, len(data))


def has_changed(machine: Machine, before: Template) -> bool:
    """Whether there is any such place."""
    return any(changed(machine, before))


def note_layer(machine: Machine, ranges: Sequence[Region]) -> None:
    """What lies beneath the machine's memory has just become another, in `ranges` alone."""
    for id, old in machine.lineage.items():
        if old.epoch == machine.memory.epoch - 1 and old.ranges is not None:
            both = list(pages.joined([*old.ranges, *ranges]))
            machine.lineage[id] = old._replace(epoch=machine.memory.epoch, ranges=both)

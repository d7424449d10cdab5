"""A machine at rest, complete: what new machines go on from, and what one is reset to.

Reached from `Machine.fork` (a template held in memory) and from `load` (a snapshot on disk). The
memory is a file that nobody writes: machines map it privately, so that making one takes no longer
for a guest of gigabytes. Read `capture` for the parts.
"""

from __future__ import annotations

import functools
import os
import threading

from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory
from pykvm.snapshot import capture, overlays
from pykvm.snapshot.diff import has_changed, inherited, note_layer
from pykvm.snapshot.host import check_cpuid
from pykvm.snapshot.layers import Layer, Placing, close_files
from pykvm.snapshot.memoryfiles import memory_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, Self

    from pykvm.boot.entry import Entry
    from pykvm.config import MachineConfig
    from pykvm.machine import Machine
    from pykvm.snapshot.calls import Calls
    from pykvm.snapshot.capture import Parts
    from pykvm.snapshot.diff import Lineage
    from pykvm.snapshot.lazy import Source
    from pykvm.snapshot.overlays import Overlays
    from pykvm.snapshot.vcpu import VcpuFormat

IDENTITIES: Final = ("new", "keep")  # MACs and CID of a copy, where the user gave none


class Template:
    """`config` and `parts` of a machine; its memory is the file `fd`, under `layers`.

    Owns the descriptors. Machines made from it keep their own: it may be closed before them.
    """

    def __init__(
        self,
        config: MachineConfig,
        entry: Entry,
        parts: Parts,
        fd: int,
        *,
        generation: int = 0,
        layers: Sequence[Layer] = (),
    ) -> None:
        self.config = config
        self.entry = entry
        self.parts = parts
        self.generation = generation  # of the machine that was captured
        self.fd = fd
        self.layers = list(layers)
        self.overlays: Overlays = {}  # what overlays had that ended with the machine
        self.placed: list[tuple[int, int, str]] = []  # see `GuestMemory`; not kept on disk
        self.clock = "stay"
        self.identity = "new"  # one of IDENTITIES
        self.prefault = False
        self.grown = 0  # how many of the layers were added by forks
        self.lazy: Source | None = None  # what `fd` has is read piece by piece
        self.foreign = False  # from disk: it may be of another host
        self._settings: Calls | None = None  # see `settings`
        self.lineage: Lineage = {}  # the snapshots on disk that it goes on from
        self.vcpu_format: VcpuFormat | None = None  # of this host; None: not known yet
        self._users = 1
        self._lock = threading.Lock()  # _users: copies may be closed on any thread

    def machine(self, **changes: Any) -> Machine:
        """A new machine that goes on from here, with `changes` to its configuration: see
        `repoint`."""
        from pykvm.machine import Machine

        return Machine(changed(self.config, changes)[0], self)

    # ── for Machine ──────────────────────────────────────────────────────────────────────────

    @property
    def cpuid(self) -> list[bytes]:
        """What CPUID tells the guest, a table for each vCPU."""
        return [self.parts[f"vcpu{index}/cpuid"] for index in range(self.config.cpus)]

    def memory(self) -> GuestMemory:
        """Memory for a new machine."""
        memory = GuestMemory(self.config.memory, self.lazy.cache_fd if self.lazy else self.fd)
        try:
            if self.lazy:
                self.lazy.load(memory)
            for layer, ranges in zip(self.layers, self._placing.mapped, strict=True):
                memory.lay(layer.fd, ranges)
            if self.prefault:
                memory.prefault()
            self.overlay(memory)
        except BaseException:
            memory.close()
            raise
        memory.placed = list(self.placed)
        return memory

    def overlay(self, memory: GuestMemory) -> None:
        """Copy what is not mapped of the layers into memory that is otherwise as it was."""
        for layer, ranges in zip(self.layers, self._placing.copied, strict=True):
            memory.lay(layer.fd, ranges, copied=True)

    def put_under(self, memory: GuestMemory) -> None:
        """Map what is mapped of the layers beneath memory that has the same bytes."""
        memory.laid.clear()
        for layer, ranges in zip(self.layers, self._placing.mapped, strict=True):
            memory.lay(layer.fd, ranges)
        memory.epoch += 1

    @functools.cached_property
    def _placing(self) -> Placing:
        return Placing(self.layers)

    def fill(self, machine: Machine) -> Parts:
        """Give a new machine, its memory in place, the rest; returns what has no device yet."""
        if self.foreign:
            check_cpuid(machine.kvm, self.cpuid[0])
        if machine.memory.loader is not None:
            machine.memory.loader.guard(machine.vcpus)
        machine.lineage = dict(self.lineage)
        machine.template = self.share()
        machine.vcpu_format = self.vcpu_format
        if self.clock == "stay":
            calls = self.settings(machine)
        else:
            calls = capture.settings(machine, self.parts, self.clock)
        devices = capture.devices_of(machine)
        for _, device in devices:
            device.freeze()
        rest = capture.apply(machine, devices, self.parts, calls)
        overlays.assign(machine, self.overlays)
        if self.clock == "step":
            capture.tell_of_the_pause(machine)
        machine.generation_id.announce()
        for _, device in devices:
            device.thaw()
        return rest

    def settings(self, machine: Machine) -> Calls:
        """The ioctls that bring a machine of this template's back here, time included."""
        if self._settings is None:
            self._settings = capture.settings(machine, self.parts, "stay")
            self.vcpu_format = machine.vcpu_format
        return self._settings

    # ── owning ───────────────────────────────────────────────────────────────────────────────

    def share(self) -> Template:
        """This one, for another who will close it: the last one to do so does."""
        with self._lock:
            self._users += 1
        return self

    def copy(self) -> Template:
        """The same, with descriptors of its own."""
        layers = [layer.copy() for layer in self.layers]
        same = Template(
            self.config,
            self.entry,
            self.parts,
            os.dup(self.fd),
            generation=self.generation,
            layers=layers,
        )
        same.placed = self.placed
        same.lineage = self.lineage
        same.lazy = self.lazy.copy() if self.lazy else None
        same.grown = self.grown
        return same

    def close(self) -> None:
        """Close the descriptors, once nobody shares it any more."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
        close_files(self.fd, self.layers)
        self.fd, self.layers = -1, []
        if self.lazy is not None:
            self.lazy.close()
        overlays.close(self.overlays)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def changed(config: MachineConfig, changes: dict[str, Any]) -> tuple[MachineConfig, set[int]]:
    """`config` for a copy, and which disks are the old ones: see `repoint`."""
    if changes:
        from pykvm.snapshot.repoint import repoint

        return repoint(config, changes)
    if config.gdb is not None:
        config = config._replace(gdb=None, wait_gdb=False)
    return config, set(range(len(config.disks)))


def template_of(machine: Machine) -> Template:
    """The template of a machine as it is now; the machine owns it. Any thread but a vCPU's.

    The first costs no copy: what was the memory becomes the template's, and the machine goes on
    with a private copy. A later one copies what has changed, or all of the memory if that is in too
    many places; when nothing at all has, it is the last one.
    """
    # What has no thread of its own is at rest while no vCPU runs, and need not be called to it.
    rests = machine.parking.is_empty() and not machine.virtio
    before = _current(machine) if rests else None
    return before or machine.at_rest(lambda: _current(machine) or _take(machine))


def _current(machine: Machine) -> Template | None:
    """The template of a machine at rest, if it still is as it was when that was taken: it has not
    run, nobody has set a register, no device and no byte of memory is other than it was. (Time has
    gone by: that is no change.)"""
    template = machine.template
    if (
        template is None
        or machine.captured_at != machine.changes
        or template.overlays
        or overlays.are_written(machine)
        or not capture.states_of(machine).items() <= template.parts.items()
        or has_changed(machine, template)
    ):
        return None
    template.lineage = inherited(machine)
    return template


def _take(machine: Machine) -> Template:
    """Take a template of a machine at rest."""
    parts, written = overlays.capture_all(machine)  # first: it may refuse
    try:
        files = memory_of(machine)
    except BaseException:
        overlays.close(written)
        raise
    template = Template(
        machine.config,
        machine.entry,
        parts,
        files.fd,
        generation=machine.generation,
        layers=files.layers,
    )
    template.overlays = written
    template.lazy, template.grown = files.lazy, files.grown
    template.placed = machine.memory.placed
    if files.added:
        template.put_under(machine.memory)
        note_layer(machine, files.added)
    template.lineage = inherited(machine)
    template.vcpu_format = machine.vcpu_format
    if machine.template is not None:
        machine.template.close()
    machine.template = template
    machine.captured_at = machine.changes
    return template

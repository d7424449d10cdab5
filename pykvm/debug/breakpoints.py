"""Breakpoints and watchpoints: those set, and what they do to guest memory and debug registers.

Reached from `control`, while no vCPU runs. Three ways to stop a guest before an instruction:

- an INT3 in its place (as many as you like);
- a debug register (four);
- where neither works, an OUTSB in its place *and* a debug register: KVM has to emulate the OUTSB,
  and before it emulates it looks at the debug registers itself (arch/x86/kvm/x86.c,
  kvm_vcpu_check_code_breakpoint). Ring 0 only: in ring 3 OUTSB is a #GP.

And two to stop it after a write: a debug register, or a look at the watched bytes after each single
step. What is planted in guest memory is known by its gpa: one page may be mapped at many addresses.
Read `host` for who needs which. Source: Intel SDM vol. 3B §17.2 "Debug Registers".
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from pykvm.debug.host import Abilities
from pykvm.errors import PykvmError
from pykvm.lean import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.debug.pagewalk import Walk
    from pykvm.memory import GuestMemory

INT3: Final = b"\xcc"
OUTSB: Final = b"\x6e"
SLOTS: Final = 4  # DR0 to DR3


class Kind(IntEnum):
    """What gdb calls them in packets Z and z."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


# R/W and LEN fields of DR7 (SDM vol. 3B §17.2.4 "Debug Control Register (DR7)").
_RW: Final = {Kind.SOFTWARE: 0, Kind.HARDWARE: 0, Kind.WRITE: 1, Kind.ACCESS: 3}
_LEN: Final = {1: 0, 2: 1, 4: 3, 8: 2}
_GE: Final = 1 << 9 | 1 << 10  # exact breakpoints, and a bit that is always 1


class BreakpointError(PykvmError):
    """This breakpoint cannot be set. The message says why."""


class Planted(Record):
    """A byte of the guest's that was replaced."""

    gpa: int
    original: bytes
    trap: bytes


class Breakpoint(Record):
    """One that somebody asked for."""

    kind: Kind
    gva: int
    length: int


class Breakpoints:
    """The breakpoints of one machine.

    `find` gives the page walk of a gva, `examine` what this host can do; that is asked once.
    """

    def __init__(
        self,
        memory: GuestMemory,
        find: Callable[[int], Walk],
        examine: Callable[[], Abilities],
    ) -> None:
        self._memory = memory
        self._find = find
        self._examine = examine
        self._abilities: Abilities | None = None
        self._all: dict[Breakpoint, list[int]] = {}  # and the slots each one uses
        self._planted: dict[int, Planted] = {}  # by gpa
        self._at: dict[Breakpoint, int] = {}  # and the gpa each one is planted at
        self._slots: list[tuple[Kind, int, int] | None] = [None] * SLOTS  # kind, gva, length
        self._watched: dict[Breakpoint, tuple[int, bytes]] = {}  # gpa, and the bytes last seen

    def __iter__(self) -> Iterator[Breakpoint]:
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def abilities(self) -> Abilities:
        """What this host can do."""
        if self._abilities is None:
            self._abilities = self._examine()
        return self._abilities

    # ── set and removed ──────────────────────────────────────────────────────────────────────

    def insert(self, kind: Kind, gva: int, length: int) -> None:
        """Set one; setting it twice is setting it once. Raises `BreakpointError`."""
        wanted = Breakpoint(kind, gva, length)
        if wanted in self._all:
            return
        if kind is Kind.READ:
            raise BreakpointError("x86 has no watchpoints for reads alone")
        if kind in (Kind.WRITE, Kind.ACCESS):
            self._insert_watchpoint(wanted)
        elif kind is Kind.SOFTWARE:
            self._insert_software(wanted)
        else:
            self._insert_hardware(wanted)

    def _insert_software(self, wanted: Breakpoint) -> None:
        gpa, abilities = self._find(wanted.gva).gpa, self.abilities
        plant = abilities.int3 or (abilities.refused and None not in self._slots)
        if gpa is not None and plant:
            self._all[wanted] = []
            self._plant(wanted, gpa, INT3)
        else:
            # Not mapped (yet): a debug register compares linear addresses and needs no memory.
            self._insert_hardware(wanted)

    def _insert_hardware(self, wanted: Breakpoint) -> None:
        if self.abilities.execute:
            self._all[wanted] = self._take([(wanted.kind, wanted.gva, 1)])
            return
        walk = self._find(wanted.gva)
        if walk.gpa is None:
            raise BreakpointError(f"{wanted.gva:#x} is not mapped: {walk.why}")
        if walk.levels and walk.user:
            raise BreakpointError("this host's KVM has no breakpoints in pages of ring 3")
        self._all[wanted] = self._take([(wanted.kind, wanted.gva, 1)])
        self._plant(wanted, walk.gpa, OUTSB)

    def _insert_watchpoint(self, wanted: Breakpoint) -> None:
        if self.abilities.watch:
            self._all[wanted] = self._take(
                [(wanted.kind, at, size) for at, size in aligned(wanted.gva, wanted.length)]
            )
            return
        if wanted.kind is Kind.ACCESS:
            raise BreakpointError("this host's KVM has no watchpoints, and none for reads by steps")
        walk = self._find(wanted.gva)
        if walk.gpa is None:
            raise BreakpointError(f"{wanted.gva:#x} is not mapped: {walk.why}")
        if not 0 < wanted.length <= 4096 - walk.gpa % 4096:
            raise BreakpointError("a watchpoint made of single steps stays in one page")
        if not self._memory.contains(walk.gpa, wanted.length):
            raise BreakpointError(f"gpa {walk.gpa:#x} is not memory")
        self._all[wanted] = []
        self._watched[wanted] = walk.gpa, self._memory.read(walk.gpa, wanted.length)

    def _take(self, pieces: list[tuple[Kind, int, int]]) -> list[int]:
        """Put `pieces` into free slots; returns which. Raises `BreakpointError`, none taken."""
        free = [number for number, slot in enumerate(self._slots) if slot is None]
        if not 0 < len(pieces) <= len(free):
            raise BreakpointError(
                f"it takes {len(pieces)} debug registers and {len(free)} of {SLOTS} are free"
            )
        taken = free[: len(pieces)]
        for number, piece in zip(taken, pieces, strict=True):
            self._slots[number] = piece
        return taken

    def _plant(self, wanted: Breakpoint, gpa: int, trap: bytes) -> None:
        if gpa not in self._planted:
            if not self._memory.contains(gpa):
                self._release(wanted)
                raise BreakpointError(f"gpa {gpa:#x} is not memory")
            self._planted[gpa] = Planted(gpa, self._memory.read(gpa, 1), trap)
            self._memory.write(gpa, trap)
        self._at[wanted] = gpa

    def remove(self, kind: Kind, gva: int, length: int) -> None:
        """Take one away. One that is not there is no error."""
        wanted = Breakpoint(kind, gva, length)
        if wanted not in self._all:
            return
        self._watched.pop(wanted, None)
        gpa = self._at.pop(wanted, None)
        self._release(wanted)
        if gpa is not None and gpa not in self._at.values():
            self._restore(self._planted.pop(gpa))

    def _release(self, wanted: Breakpoint) -> None:
        for number in self._all.pop(wanted):
            self._slots[number] = None

    def _restore(self, planted: Planted) -> None:
        # Only if it is still ours: a kernel that rewrites its code may have been there.
        if self._memory.read(planted.gpa, 1) == planted.trap:
            self._memory.write(planted.gpa, planted.original)

    def clear(self) -> None:
        """Take all away."""
        for each in self:
            self.remove(each.kind, each.gva, each.length)

    # ── what the guest's memory would be without them ────────────────────────────────────────

    def hide(self, gpa: int, data: bytearray) -> None:
        """Put the guest's own bytes into `data`, which was read at `gpa`."""
        for planted in self._planted.values():
            at = planted.gpa - gpa
            if 0 <= at < len(data) and data[at : at + 1] == planted.trap:
                data[at : at + 1] = planted.original

    def write(self, gpa: int, data: bytes) -> None:
        """Write to guest memory; what is planted there stays. Raises `GuestMemoryError`."""
        self._memory.write(gpa, data)
        for planted in list(self._planted.values()):
            at = planted.gpa - gpa
            if 0 <= at < len(data):
                self._planted[planted.gpa] = planted._replace(original=data[at : at + 1])
                self._memory.write(planted.gpa, planted.trap)
        self.look()  # what the user writes is no event

    def lift(self, gpa: int) -> bool:
        """Let the guest's own byte be at `gpa` until `replant`. Whether there was another one."""
        if gpa not in self._planted:
            return False
        self._restore(self._planted[gpa])
        return True

    def replant(self, gpa: int) -> None:
        """Put back what `lift` took away."""
        planted = self._planted.get(gpa)
        if planted is not None:
            self._planted[gpa] = planted._replace(original=self._memory.read(gpa, 1))
            self._memory.write(gpa, planted.trap)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The guest's memory as if there were none: for who copies it, or puts another in place."""
        there = [p for p in self._planted.values() if self._memory.read(p.gpa, 1) == p.trap]
        for planted in there:
            self._restore(planted)
        try:
            yield
        finally:
            for planted in there:
                self.replant(planted.gpa)
            self.look()  # what changed meanwhile is no event

    # ── what the vCPUs are told, and what they tell ──────────────────────────────────────────

    @property
    def uses_int3(self) -> bool:
        """Whether an INT3 is planted."""
        return any(planted.trap == INT3 for planted in self._planted.values())

    @property
    def watching(self) -> bool:
        """Whether the guest must go in single steps so that writes are seen."""
        return bool(self._watched)

    def is_int3(self, gpa: int | None) -> bool:
        """Whether the INT3 at `gpa` is one of ours."""
        return gpa in self._planted and self._planted[gpa].trap == INT3

    def stops_at(self, gva: int, gpa: int | None) -> Kind | None:
        """The kind of the breakpoint that stops an instruction there, or None."""
        for each in self._all:
            if each.kind in (Kind.SOFTWARE, Kind.HARDWARE) and (
                each.gva == gva or (gpa is not None and self._at.get(each) == gpa)
            ):
                return each.kind
        return None

    def debug_registers(self, but: int | None = None) -> tuple[list[int], int]:
        """DR0 to DR3 and DR7, without breakpoints for execution at the address `but`."""
        addresses, dr7 = [0] * SLOTS, 0
        for number, slot in enumerate(self._slots):
            if slot is None:
                continue
            kind, gva, length = slot
            if _RW[kind] == 0 and gva == but:
                continue
            addresses[number] = gva
            dr7 |= 1 << 2 * number + 1 | (_RW[kind] | _LEN[length] << 2) << 16 + 4 * number
        return addresses, dr7 | _GE if dr7 else 0

    def slot(self, dr6: int) -> tuple[Kind, int] | None:
        """The breakpoint that DR6 names: its kind and the gva gdb gave it. None: none of ours."""
        for number, slot in enumerate(self._slots):
            if slot is not None and dr6 >> number & 1:
                for each, slots in self._all.items():
                    if number in slots:
                        return each.kind, each.gva
        return None

    def look(self) -> int | None:
        """The gva of watched bytes that changed since the last look, or None."""
        changed = None
        for watch, (gpa, before) in self._watched.items():
            now = self._memory.read(gpa, len(before))
            if now != before:
                self._watched[watch] = gpa, now
                changed = watch.gva
        return changed


def aligned(gva: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces that a debug register can hold: 8, 4, 2 or 1 bytes, aligned."""
    pieces = 0
    while length > 0 and pieces <= SLOTS:
        size = next(s for s in (8, 4, 2, 1) if s <= length and gva % s == 0)
        yield gva, size
        gva, length, pieces = gva + size, length - size, pieces + 1

"""Stopping a machine and letting it go on: all of it, one vCPU of it, one instruction of one.

Reached from the gdb stub (`target`) and from the Python view (`view`); vCPU threads come here with
every exit that KVM_SET_GUEST_DEBUG causes. Everything else runs on the thread that owns the
machine. Source: Linux Documentation/virt/kvm/api.rst §4.87 KVM_SET_GUEST_DEBUG.

A vCPU that is held waits in `Parking.park`, outside the guest. Before one goes on from a
breakpoint it makes a single step alone, with that breakpoint lifted; only then do the others start
too.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from pykvm._core import ffi, lib
from pykvm.debug.breakpoints import Breakpoints, Kind
from pykvm.debug.emulation import Emulation
from pykvm.debug.host import examine
from pykvm.debug.pagewalk import EFER_LMA, Paging, Walk, walk
from pykvm.debug.registers import RegisterFile
from pykvm.errors import check
from pykvm.lean import Enum, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.machine import Machine
    from pykvm.vcpu import Vcpu

# Intel SDM vol. 3A §6.15 "Exception and Interrupt Reference", vol. 3B §17.2.3 "Debug Status
# Register (DR6)".
VECTOR_DB: Final = 1
VECTOR_BP: Final = 3
DR6_SLOTS: Final = 0xF
DR6_BS: Final = 1 << 14  # single step
RFLAGS_TF: Final = 1 << 8


NO_RANGES: Final[Mapping[int, range]] = {}


class Why(Enum):
    """Why a vCPU stopped."""

    STEP = "step"
    SOFTWARE = "software breakpoint"
    HARDWARE = "hardware breakpoint"
    WATCH = "watchpoint"
    ASKED = "interrupted"
    DEAD = "cannot go on"


class Stop(Record):
    """A vCPU stopped, and the machine with it."""

    vcpu: int
    why: Why
    address: int  # of the next instruction, linear; of a watchpoint: what is watched
    text: str = ""

    def __repr__(self) -> str:
        return f"<vCPU {self.vcpu} stopped at {self.address:#x}: {self.text or self.why.value}>"


class RunControl:
    """Who of a machine's vCPUs runs, and what stops them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.breakpoints = Breakpoints(machine.memory, self.find, lambda: examine(machine.kvm))
        self.stopped = False
        self.running: set[int] = set()  # who was let go last
        # A stop was noted, on a vCPU's thread: make the owning thread call `collect`.
        self.notify: Callable[[], None] = lambda: None
        # Asked after each step on the vCPU's thread: true to go on with the next.
        self.next_step: Callable[[Vcpu], bool] = lambda vcpu: False
        self.files = [RegisterFile(vcpu) for vcpu in machine.vcpus]
        self.current = 0  # the vCPU whose page tables give addresses a meaning
        self._lock = threading.Lock()
        self._stops: list[Stop] = []
        self._plan: dict[int, bool] = {}  # who goes on; true: one step
        self._ranges: Mapping[int, range] = NO_RANGES
        self._over: list[int] = []  # who has to step over a breakpoint first
        self._lifted: int | None = None
        self._pages: dict[tuple[int, int], int | None] = {}  # see `translate`
        self._again: set[int] = set()  # stopped at a breakpoint, but another's stop was reported
        self._armed: dict[int, tuple[int, list[int], int]] = {}  # what KVM was told of each vCPU
        modes = machine.kvm.check_extension(lib.KVM_CAP_SET_GUEST_DEBUG2)
        self._stepped = False  # at least once
        self._block_irq = modes & lib.KVM_GUESTDBG_BLOCKIRQ
        self._emulation = Emulation(machine.memory)

    # ── on the owning thread ─────────────────────────────────────────────────────────────────

    def find(self, gva: int, vcpu: int | None = None) -> Walk:
        """Translate `gva` with a vCPU's page tables: `current`'s unless told.

        What the tables do not map at all, not even at their top, may be where the kernel's ELF file
        says: so is a 64-bit kernel's address before it has made page tables of its own. To a vCPU
        that waits to be started such an address means what it means to the boot processor.
        """
        sregs = self.files[self.current if vcpu is None else vcpu].structure("sregs")
        if gva >> 63 and not sregs.efer & EFER_LMA:
            sregs = self.files[0].structure("sregs")
        paging = Paging.of(sregs)
        found = walk(self.machine.memory, paging, gva)
        if found.gpa is None and len(found.levels) == 1 and gva >> 63:
            for vaddr, paddr, size in self.machine.entry.linked:
                if 0 <= gva - vaddr < size:
                    return Walk(gva, "as the kernel is linked", 0, (), gva - vaddr + paddr)
        return found

    def translate(self, gva: int, vcpu: int) -> int | None:
        """The gpa that `find` finds. Remembered by page until the guest runs or `forget`: gdb reads
        the same few pages again and again."""
        page = vcpu, gva >> 12
        if page not in self._pages:
            gpa = self.find(gva, vcpu).gpa
            self._pages[page] = None if gpa is None else gpa & ~0xFFF
        base = self._pages[page]
        return None if base is None else base | gva & 0xFFF

    def forget(self) -> None:
        """What was read of the machine may be so no longer."""
        self._pages.clear()
        for file in self.files:
            file.drop()

    def interrupt(self) -> None:
        """Stop all vCPUs; `collect` tells of it."""
        self.machine.parking.hold(range(len(self.files)))
        with self._lock:
            self._stops.append(Stop(self.current, Why.ASKED, 0))

    def give_up(self, text: str) -> None:
        """Stop all vCPUs: the machine is dead in some way, and whoever debugs it wants to see."""
        self.machine.parking.hold(range(len(self.files)))
        with self._lock:
            self._stops.append(Stop(self.current, Why.DEAD, 0, text))
        self.notify()

    def collect(self) -> Stop | None:
        """Take note of a stop, if there was one: the machine stands still, and this says why.

        None when nothing stopped, or when it only stepped over a breakpoint and goes on.
        """
        with self._lock:
            if not self._stops:
                return None
        with self.machine.paused():
            pass  # wait for all to be held
        self.forget()
        with self._lock:
            stops, self._stops = self._stops, []
        if self._lifted is not None:
            self.breakpoints.replant(self._lifted)
            self._lifted = None
        over = Stop(self._over[0], Why.STEP, 0) if self._over else None
        if over and not self._plan[over.vcpu]:
            others = [stop for stop in stops if (stop.vcpu, stop.why) != (over.vcpu, over.why)]
            if not others:
                del self._over[0]
                self._go()
                return None
            stops = others
        first = stops[0]
        self._over = []
        self._again = {stop.vcpu for stop in stops[1:] if stop.why in _BEFORE}
        # What cannot happen again must not be lost: a write is seen once.
        self._stops += [stop for stop in stops[1:] if stop.why is Why.WATCH]
        self.stopped = True
        self.current = first.vcpu
        if first.why in (Why.ASKED, Why.DEAD):
            first = first._replace(address=self.files[first.vcpu].pc)
        return first

    def resume(self, plan: Mapping[int, bool], ranges: Mapping[int, range] = NO_RANGES) -> None:
        """Let the vCPUs in `plan` go on, those with a true value for one step; hold the others.
        Those in `ranges` step until they are out of their range, or something else stops them."""
        self.stopped = False
        self._ranges = ranges
        with self._lock:
            if self._stops:  # one that waits to be told
                self.notify()
                return
        self._plan = dict(plan)
        self._over = [id for id in plan if id not in self._again and self._at_breakpoint(id)]
        self._again.clear()
        self._go()

    def _at_breakpoint(self, id: int) -> bool:
        if not self.breakpoints:
            return False
        pc = self.files[id].pc
        return self.breakpoints.stops_at(pc, self.find(pc, id).gpa) is not None

    def _go(self) -> None:
        if self._over:
            id = self._over[0]
            pc = self.files[id].pc
            gpa = self.find(pc, id).gpa
            self._lifted = gpa if gpa is not None and self.breakpoints.lift(gpa) else None
            self._arm(id, step=True, but=pc)
            running = {id}
        else:
            for id, step in self._plan.items():
                self._arm(id, step)
            running = set(self._plan)
        self.forget()
        for id in running & self._stepping():
            stop = self._halt(self.machine.vcpus[id])
            if stop is not None:
                self._note(stop)
                return
        self.running = running
        self.machine.parking.release(running)

    def _arm(self, id: int, step: bool, but: int | None = None) -> None:
        """Tell KVM what to stop vCPU `id` for."""
        addresses, dr7 = self.breakpoints.debug_registers(but)
        control = lib.KVM_GUESTDBG_ENABLE if step or self.breakpoints.watching or dr7 else 0
        if self.breakpoints.uses_int3:
            control |= lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_SW_BP
        if dr7:
            control |= lib.KVM_GUESTDBG_USE_HW_BP
        if step or self.breakpoints.watching:
            control |= lib.KVM_GUESTDBG_SINGLESTEP
        vcpu = self.machine.vcpus[id]
        if control & lib.KVM_GUESTDBG_SINGLESTEP:
            self._stepped = True
        elif self._stepped:
            # KVM steps with RFLAGS.TF, and what saved the flags meanwhile (an interrupt, SYSCALL,
            # PUSHF) has TF in it. When that comes back, the trap shall come here (`_debug_exit`).
            control |= lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP
        # A step should end at the next instruction and not in an interrupt handler. But a halted
        # vCPU is waiting for an interrupt, and a watched one lives on.
        if step and vcpu.get_mp_state() != lib.KVM_MP_STATE_HALTED:
            control |= self._block_irq
        if step or self._armed.get(id) != (control, addresses, dr7):
            self._armed[id] = control, addresses, dr7
            set_guest_debug(vcpu, control, addresses, dr7)

    def _stepping(self) -> set[int]:
        """The vCPUs that KVM's emulator is told to take through single steps."""
        step = lib.KVM_GUESTDBG_SINGLESTEP
        armed = {id for id, (control, _, _) in self._armed.items() if control & step}
        return armed if armed and self.breakpoints.abilities.refused else set()

    def _halt(self, vcpu: Vcpu) -> Stop | None:
        """Carry out the HLTs that are next, where the emulator cannot be let to; the stop, if the
        debugger wants to know of it."""
        file = RegisterFile(vcpu)
        self._emulation.begin(file)
        while self._emulation.halt(file):
            stop = Stop(vcpu.id, Why.STEP, file.pc)
            if (self._over or self._plan[vcpu.id]) and not self._goes_on(vcpu, stop):
                return stop
        return None

    def _note(self, stop: Stop) -> None:
        """Hold all, and have `collect` tell of it. Any thread."""
        self.machine.parking.hold(range(len(self.files)), but=stop.vcpu)
        with self._lock:
            self._stops.append(stop)
        self.notify()

    def disarm(self) -> None:
        """Take all breakpoints away and KVM's debugging with them. The machine stands still."""
        self.breakpoints.clear()
        self._again.clear()
        with self._lock:
            self._stops = []
        for vcpu in self.machine.vcpus:
            self._arm(vcpu.id, step=False)

    def start_over(self) -> None:
        """The machine, which stands still, was taken back to another moment."""
        self.forget()
        self._again.clear()
        with self._lock:
            self._stops = []

    # ── on a vCPU's thread ───────────────────────────────────────────────────────────────────

    def on_exit(self, vcpu: Vcpu, exit: Any) -> bool:
        """Whether this exit was the debugger's; if so the vCPU may park, and go on after that."""
        file = RegisterFile(vcpu)
        if exit.kind == lib.PK_EXIT_DEBUG:
            stop = self._debug_exit(vcpu, file, exit.addr, exit.data & 0xFFFF_FFFF, exit.data >> 32)
        elif exit.kind == lib.PK_EXIT_INTERNAL and exit.data == lib.KVM_INTERNAL_ERROR_EMULATION:
            # A KVM made of software does not emulate INT3; but it tells where the guest is.
            stop = self._at_int3(vcpu, file.pc)
            if stop is None:
                return False
        else:
            return False
        if vcpu.id in self._stepping():
            self._emulation.clean(file)
            if stop is None or self._goes_on(vcpu, stop):
                stop = self._halt(vcpu)
        elif stop is not None and self._goes_on(vcpu, stop):
            return True
        if stop is not None:
            self._note(stop)
        return True

    def _goes_on(self, vcpu: Vcpu, stop: Stop) -> bool:
        """Whether this was one of several steps, not the last. A step over a breakpoint, which has
        it lifted, ends in any case: the debugger says again how to go on."""
        if stop.why is not Why.STEP:
            return False
        in_range = not self._over and stop.address in self._ranges.get(stop.vcpu, ())
        return in_range or self.next_step(vcpu)

    def _debug_exit(
        self, vcpu: Vcpu, file: RegisterFile, pc: int, vector: int, dr6: int
    ) -> Stop | None:
        if vector == VECTOR_BP:
            stop = self._at_int3(vcpu, pc)
            if stop is None:  # the guest's own: it shall have it
                self._inject(vcpu, lib.KVM_GUESTDBG_INJECT_BP)
            return stop
        slot = self.breakpoints.slot(dr6 & DR6_SLOTS)
        if slot is not None:
            kind, gva = slot
            if kind in (Kind.WRITE, Kind.ACCESS):
                return Stop(vcpu.id, Why.WATCH, gva)
            why = Why.SOFTWARE if kind is Kind.SOFTWARE else Why.HARDWARE
            return Stop(vcpu.id, why, pc)
        if not self._armed[vcpu.id][0] & lib.KVM_GUESTDBG_SINGLESTEP:
            flags = file.get("rflags")
            if dr6 & DR6_BS and flags & RFLAGS_TF and self._stepped:
                file.set("rflags", flags & ~RFLAGS_TF)
                return None
            self._inject(vcpu, lib.KVM_GUESTDBG_INJECT_DB)
            return None
        written = self.breakpoints.look() if self.breakpoints.watching else None
        if written is not None:
            return Stop(vcpu.id, Why.WATCH, written)
        if not self._over and not self._plan[vcpu.id]:
            return None  # on its way to a write
        return Stop(vcpu.id, Why.STEP, pc)

    def _inject(self, vcpu: Vcpu, exception: int) -> None:
        """Give the guest an exception that was its own, and not the debugger's."""
        control, addresses, dr7 = self._armed[vcpu.id]
        set_guest_debug(vcpu, control | exception, addresses, dr7)

    def _at_int3(self, vcpu: Vcpu, pc: int) -> Stop | None:
        found = walk(self.machine.memory, Paging.of(vcpu.get_sregs()), pc)
        if not self.breakpoints.is_int3(found.gpa):
            return None
        kind = self.breakpoints.stops_at(pc, found.gpa)
        return Stop(vcpu.id, Why.HARDWARE if kind is Kind.HARDWARE else Why.SOFTWARE, pc)


def set_guest_debug(vcpu: Vcpu, control: int, addresses: list[int], dr7: int) -> None:
    """KVM_SET_GUEST_DEBUG: flags KVM_GUESTDBG_*, DR0 to DR3, DR7."""
    debug = ffi.new("struct kvm_guest_debug *", {"control": control})
    for number, address in enumerate(addresses):
        debug.arch.debugreg[number] = address
    debug.arch.debugreg[7] = dr7
    check(lib.pk_ioctl(vcpu.fd, lib.KVM_SET_GUEST_DEBUG, debug), "KVM_SET_GUEST_DEBUG")


# Those that stop before the instruction: it will stop again.
_BEFORE: Final = frozenset({Why.SOFTWARE, Why.HARDWARE})

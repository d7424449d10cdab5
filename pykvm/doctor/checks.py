"""What the doctor asks: one row per question, one function per kind of question.

Reached from `doctor.examination`, and from `doctor.why_not_linux` for the rows that Linux cannot do
without. A row's key is part of the JSON output: never renamed. Read `doctor.guest` for how a probe
is run and guests/probe/ for what it does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.boot.entry import CpuMode
from pykvm.cpuid import FEATURES
from pykvm.devices.base import Device, FunctionDevice
from pykvm.doctor.guest import EXCEPTION, INTERRUPT, Answer, Code, ProbeGuest
from pykvm.errors import PykvmError, check
from pykvm.kvm import Kvm


class Result(NamedTuple):
    """The answer to a question: yes, no, or None where it does not arise."""

    ok: bool | None
    detail: str = ""


class Host:
    """This host's KVM, and the guest that most questions share."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self._guest: ProbeGuest | None = None
        self._leaves: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def guest(self) -> ProbeGuest:
        if self._guest is None:
            self._guest = ProbeGuest(self.kvm)
        return self._guest

    def visible(self, feature: str) -> bool:
        """Whether the guest's kernel sees this CPU feature: what CPUID says in ring 0."""
        place = FEATURES[feature]
        key = place.function, place.index
        if key not in self._leaves:
            self._leaves[key] = _cpuid(self.guest, "cpuid_ring0", *key)
        return bool(self._leaves[key][place.register] >> place.bit & 1)

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None


class Check(NamedTuple):
    """A question. `linux`: a stock 64-bit Linux cannot do without a yes."""

    key: str
    label: str
    function: Callable[[Host], Result]
    linux: bool = False

    def run(self, host: Host) -> Result:
        """Ask. A failing ioctl is an answer."""
        try:
            return self.function(host)
        except PykvmError as error:
            return Result(False, str(error))


def complaint(check: Check, result: Result) -> str:
    """What is wrong, in half a sentence."""
    joint = " " if result.detail.startswith("does not") else ": "
    return f"{check.label}{joint}{result.detail}"


def _expect(answer: Answer, wanted: int = Code.YES, detail: str = "") -> Result:
    return Result(True, detail) if answer.value == wanted else Result(False, answer.text)


# ── answered by the probe alone ──────────────────────────────────────────────────────────────────


def _probe(
    name: str,
    *,
    mode: CpuMode = CpuMode.LONG,
    wanted: int = Code.YES,
    feature: str = "",
) -> Callable[[Host], Result]:
    """Ask the probe `name`. A guest that sees no `feature` does not use the instruction."""

    def ask(host: Host) -> Result:
        if feature and not host.visible(feature):
            return Result(None, f"a guest's CPUID has no {feature}")
        return _expect(host.guest.call(name, mode), wanted)

    return ask


def _page_fault(host: Host) -> Result:
    answer = host.guest.call("page_fault")
    seen = (answer.value, answer.regs.rbx, answer.regs.rdi)  # error code, CR2
    if seen[0] == EXCEPTION + 14 and seen != (EXCEPTION + 14, 2, 0x1_0000_0008):
        return Result(False, f"#PF, but with error code {seen[1]} and CR2 {seen[2]:#x}")
    return _expect(answer, EXCEPTION + 14)


# ── interrupts, CPUs, devices ────────────────────────────────────────────────────────────────────


def _timer(probe: str, vector: int) -> Callable[[Host], Result]:
    """A timer's interrupt wakes HLT. PIC lines other than IRQ 0 are masked."""

    def ask(host: Host) -> Result:
        with ProbeGuest(host.kvm) as guest:
            return _expect(guest.call(probe, rdi=0xFE), INTERRUPT + vector)

    return ask


def _irqfd(host: Host) -> Result:
    """The guest says that it is ready; writing the eventfd must then wake it from HLT."""
    irq = 5
    with ProbeGuest(host.kvm) as guest, _EventFd() as event:
        guest.vm.irqfd(event.fd, irq)
        guest.prepare("wait_for_interrupt", rdi=0xFF & ~(1 << irq))
        trigger = FunctionDevice(lambda _offset, _size, _value: os.eventfd_write(event.fd, 1))
        answer = guest.run(ports={layout.PORT_POST: trigger})
    return _expect(answer, INTERRUPT + 0x20 + irq)


def _ioeventfd(probe: str, addr: int, *, pio: bool) -> Callable[[Host], Result]:
    """The guest's write must reach the eventfd, once, and not us."""

    def ask(host: Host) -> Result:
        exits = _Recorder()
        with ProbeGuest(host.kvm) as guest, _EventFd() as event:
            guest.vm.ioeventfd(event.fd, addr, 1, pio=pio)
            guest.prepare(probe, rdi=addr)
            devices: dict[int, Device] = {addr: exits}
            answer = guest.run(ports=devices) if pio else guest.run(memory=devices)
            signals = event.count()
        if answer.value != Code.YES:
            return Result(False, answer.text)
        if exits.values or signals != 1:
            return Result(False, f"{len(exits.values)} exits and {signals} signals for one write")
        return Result(True)

    return ask


def _second_cpu(host: Host) -> Result:
    if host.kvm.max_vcpus < 2:
        return Result(False, "one vCPU at most")
    with ProbeGuest(host.kvm, cpus=2) as guest:
        return _expect(guest.call("second_cpu"))


def _mmio(host: Host) -> Result:
    device = _Recorder(0x1234)
    host.guest.prepare("mmio")
    answer = host.guest.run(memory={layout.MMIO_HOLE: device})
    if answer.value == Code.YES and device.values != [0x1235]:
        return Result(False, f"wrote {device.values}")
    return _expect(answer)


def _string_io(host: Host) -> Result:
    device = _Recorder(0x5A)
    host.guest.prepare("string_io")
    answer = host.guest.run(ports={layout.PORT_POST: device})
    if answer.value == Code.YES and device.values != [0x5A] * 4:
        return Result(False, f"wrote {device.values}")
    return _expect(answer)


def _dirty_log(host: Host) -> Result:
    """The page that the guest writes must be in the log, and its neighbours must not."""
    page = 0x100
    with ProbeGuest(host.kvm, log_dirty=True) as guest:
        guest.prepare("write_memory", rdi=page * 4096)
        size = guest.memory.size
        guest.vm.dirty_log(0, size)
        answer = guest.run()
        bitmap = int.from_bytes(guest.vm.dirty_log(0, size), "little")
    if answer.value != Code.YES:
        return Result(False, answer.text)
    around = bitmap >> (page - 1) & 7
    if around != 0b010:
        return Result(False, "the written page is not in it" if not around & 2 else "too much")
    return Result(True)


def _immediate_exit(host: Host) -> Result:
    """Kicked before it runs, the guest must not execute a single instruction."""
    guest = host.guest
    guest.prepare("spin")
    guest.vcpu.kick()
    check(lib.pk_vcpu_run(guest.vcpu.handle), "KVM_RUN")
    kind, rip = guest.vcpu.handle.exit.kind, guest.vcpu.read_register("rip")
    if kind != lib.PK_EXIT_KICK or rip != guest.address("spin"):
        return Result(False, f"exit {kind} at {rip:#x}")
    return Result(True)


def _kick(probe: str) -> Callable[[Host], Result]:
    """A guest in an endless loop must leave soon after the kick."""

    def ask(host: Host) -> Result:
        limit_s = 0.02
        host.guest.prepare(probe)
        began = time.perf_counter()
        answer = host.guest.run(limit_s=limit_s)
        late_s = time.perf_counter() - began - limit_s
        if answer.value is not None or not answer.end.startswith("no answer"):
            return Result(False, answer.text)
        return Result(True, f"after {late_s * 1000:.1f} ms")

    return ask


# ── debugging ────────────────────────────────────────────────────────────────────────────────────

# Intel SDM vol. 3B §17.2.4 Debug Control Register (DR7): G0, and for a data breakpoint also
# R/W0 = writes, LEN0 = 4 bytes.
_DR7_EXECUTE: Final = 1 << 1
_DR7_WRITE: Final = 1 << 1 | 1 << 16 | 3 << 18


def _set_debug(guest: ProbeGuest, control: int, dr0: int = 0, dr7: int = 0) -> None:
    debug = ffi.new("struct kvm_guest_debug *", {"control": control})
    debug.arch.debugreg[0], debug.arch.debugreg[7] = dr0, dr7
    check(lib.pk_ioctl(guest.vcpu.fd, lib.KVM_SET_GUEST_DEBUG, debug), "KVM_SET_GUEST_DEBUG")


def _breakpoint(
    probe: str, at: str, expected: str, control: int, dr7: int
) -> Callable[[Host], Result]:
    """A debug exit at `expected`, for DR0 = `at`."""

    def ask(host: Host) -> Result:
        with ProbeGuest(host.kvm) as guest:
            guest.prepare(probe)
            _set_debug(guest, lib.KVM_GUESTDBG_ENABLE | control, guest.address(at), dr7)
            stops: list[int] = []

            def stop(pc: int) -> bool:
                stops.append(pc)
                return False

            answer = guest.run(on_debug=stop)
            if stops == [guest.address(expected)]:
                return Result(True)
        if stops:
            return Result(False, f"stopped at {stops[0]:#x}")
        return Result(False, "never stops" if answer.value == Code.YES else answer.text)

    return ask


def _single_step(probe: str, start: str) -> Callable[[Host], Result]:
    """A debug exit after each of the three one-byte instructions at `start`."""

    def ask(host: Host) -> Result:
        with ProbeGuest(host.kvm) as guest:
            guest.prepare(probe)
            _set_debug(guest, lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
            stops: list[int] = []
            last = guest.address(start) + 3

            def stop(pc: int) -> bool:
                stops.append(pc)
                return pc != last and len(stops) < 100

            answer = guest.run(on_debug=stop)
            if stops[-3:] == [last - 2, last - 1, last]:
                return Result(True)
        if stops:
            return Result(False, f"{len(stops)} steps, some left out")
        return Result(False, "no step is reported" if answer.value == Code.YES else answer.text)

    return ask


# ── CPUID ────────────────────────────────────────────────────────────────────────────────────────

_HIDDEN: Final = ("cx16", "popcnt", "aes", "xsave")
_DYNAMIC: Final = ("osxsave",)  # follows CR4, not the table


def _cpuid(guest: ProbeGuest, probe: str, function: int, index: int) -> dict[str, int]:
    """What CPUID tells the guest, by register. All zero when it tells nothing."""
    answer = guest.call(probe, rdi=function, rsi=index)
    if answer.value != Code.YES:
        return dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
    regs = answer.regs
    return {"eax": regs.r8, "ebx": regs.r9, "ecx": regs.r10, "edx": regs.r11}


def _cpuid_hidden(probe: str) -> Callable[[Host], Result]:
    """The guest's own CPUID must not show what its table lacks: `--cpu host,-NAME` relies on it.

    Asked of the two registers with the most features: leaf 1, ECX, and leaf 7, EBX.
    """

    def ask(host: Host) -> Result:
        offered = {(e.function, e.index): e for e in host.kvm.supported_cpuid()}
        with ProbeGuest(host.kvm, features=dict.fromkeys(_HIDDEN, False)) as guest:
            seen = {leaf: _cpuid(guest, probe, *leaf) for leaf in ((1, 0), (7, 0))}
        if not seen[1, 0]["edx"]:
            return Result(False, "CPUID does not run")
        shown = [
            name
            for name, (function, index, register, bit) in FEATURES.items()
            if (function, register) in ((1, "ecx"), (7, "ebx"))
            and index == 0
            and name not in _DYNAMIC
            and seen[function, 0][register] >> bit & 1
            and (name in _HIDDEN or not getattr(offered.get((function, 0)), register, 0) >> bit & 1)
        ]
        few = ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
        return Result(not shown, f"shows {few}" if shown else "")

    return ask


# ── the table ────────────────────────────────────────────────────────────────────────────────────

_HW, _SW = lib.KVM_GUESTDBG_USE_HW_BP, lib.KVM_GUESTDBG_USE_SW_BP

GROUPS: Final[dict[str, tuple[Check, ...]]] = {
    "modes and rings": (
        Check("real_mode", "real mode", _probe("real_mode", mode=CpuMode.REAL)),
        Check("protected_mode", "protected mode", _probe("protected_mode", mode=CpuMode.PROTECTED)),
        Check("long_mode", "long mode, paging", _probe("long_mode"), linux=True),
        Check("ring3", "ring 3 and back", _probe("ring3"), linux=True),
        Check("syscall", "SYSCALL from ring 3", _probe("syscall_enters_ring0"), linux=True),
        Check("sysret", "SYSRET to ring 3", _probe("sysret_enters_ring3"), linux=True),
        Check("int80", "INT 80h from ring 3", _probe("int80")),
    ),
    "interrupts and exceptions": (
        Check("page_fault", "page fault", _page_fault, linux=True),
        Check("ud2", "UD2", _probe("ud2", wanted=EXCEPTION + 6), linux=True),
        Check("pit", "PIT interrupt", _timer("pit_interrupt", 0x20), linux=True),
        Check("lapic_timer", "local APIC timer", _timer("lapic_interrupt", 0x40), linux=True),
        Check("irqfd", "irqfd", _irqfd),
        Check("second_cpu", "second vCPU by INIT, SIPI", _second_cpu),
    ),
    "instructions in ring 0": (
        Check("int3", "INT3", _probe("int3", wanted=EXCEPTION + 3), linux=True),
        Check("popcnt", "POPCNT", _probe("popcnt", feature="popcnt"), linux=True),
        Check("cmpxchg16b", "CMPXCHG16B", _probe("cmpxchg16b", feature="cx16"), linux=True),
        Check("clac", "CLAC", _probe("clac", feature="smap"), linux=True),
        Check("stac", "STAC", _probe("stac", feature="smap"), linux=True),
        Check("fwait", "FWAIT", _probe("fwait"), linux=True),
        Check("ldmxcsr", "LDMXCSR", _probe("ldmxcsr"), linux=True),
        Check("xsetbv", "XSETBV", _probe("xsetbv", feature="xsave"), linux=True),
        Check("xsave", "XSAVE", _probe("xsave", feature="xsave"), linux=True),
        Check("xrstor", "XRSTOR", _probe("xrstor", feature="xsave"), linux=True),
        Check("rdfsbase", "RDFSBASE", _probe("rdfsbase", feature="fsgsbase"), linux=True),
        Check("swapgs", "SWAPGS", _probe("swapgs"), linux=True),
        Check("invpcid", "INVPCID", _probe("invpcid", feature="invpcid"), linux=True),
    ),
    "leaving the guest": (
        Check("string_io", "string I/O", _string_io),
        Check("mmio", "MMIO", _mmio, linux=True),
        Check(
            "ioeventfd_pio",
            "ioeventfd on a port",
            _ioeventfd("write_port", layout.PORT_POST, pio=True),
        ),
        Check(
            "ioeventfd_mmio",
            "ioeventfd in memory",
            _ioeventfd("write_memory", layout.MMIO_HOLE, pio=False),
        ),
        Check("dirty_log", "dirty log", _dirty_log),
        Check("immediate_exit", "immediate_exit", _immediate_exit),
        Check("kick_ring0", "kick out of ring 0", _kick("spin")),
        Check("kick_ring3", "kick out of ring 3", _kick("spin_in_ring3")),
    ),
    "debugging": (
        Check(
            "breakpoint_ring0",
            "hardware breakpoint, ring 0",
            _breakpoint("steps", "breakpoint", "breakpoint", _HW, _DR7_EXECUTE),
        ),
        Check(
            "breakpoint_ring3",
            "hardware breakpoint, ring 3",
            _breakpoint("steps_in_ring3", "user_breakpoint", "user_breakpoint", _HW, _DR7_EXECUTE),
        ),
        Check(
            "watchpoint",
            "watchpoint, ring 0",
            _breakpoint("steps", "watched", "watched_write", _HW, _DR7_WRITE),
        ),
        Check(
            "breakpoint_int3",
            "INT3 to the debugger",
            _breakpoint("software_breakpoint", "steps", "int3_of_debugger", _SW, 0),
        ),
        Check("step_ring0", "single step, ring 0", _single_step("steps", "steps")),
        Check("step_ring3", "single step, ring 3", _single_step("steps_in_ring3", "user_steps")),
    ),
    "CPUID": (
        Check("cpuid_ring0", "hiding a feature, ring 0", _cpuid_hidden("cpuid_ring0")),
        Check("cpuid_ring3", "hiding a feature, ring 3", _cpuid_hidden("cpuid_ring3")),
    ),
}
CHECKS: Final = tuple(check for group in GROUPS.values() for check in group)


class _EventFd:
    """An eventfd for the length of a `with`."""

    def __enter__(self) -> _EventFd:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def count(self) -> int:
        """How often it was signalled since the last time."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0


class _Recorder(Device):
    """Keeps what the guest writes; answers every read with the same value."""

    name = "recorder"

    def __init__(self, answer: Any = 0) -> None:
        self.values: list[int] = []
        self._answer = answer

    def read(self, offset: int, size: int) -> int:
        return int(self._answer)

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)

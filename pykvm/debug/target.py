"""A machine as the gdb stub sees it.

Reached from `gdbstub`, on the thread that owns the machine, while the machine stands still. gdb's
thread n is vCPU n - 1. Read `control` for how it is stopped, `description` for its registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm._core import lib
from pykvm.cpuid import FEATURES
from pykvm.debug.breakpoints import Kind
from pykvm.debug.control import RunControl, Stop, Why
from pykvm.debug.debuggee import EFAULT, TargetError
from pykvm.debug.description import AMD64, I386, I8086, Description
from pykvm.debug.registers import AVX
from pykvm.kvm import unpack_cpuid
from pykvm.outcome import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pykvm.machine import Machine
    from pykvm.vcpu import Vcpu

PAGE: Final = 4096
SIGINT, SIGTRAP, SIGABRT = 2, 5, 6  # in gdb's numbering, which is Linux' own for these
EFER_LMA: Final = 1 << 10
CR0_PE: Final = 1 << 0

MP_STATES: Final = {
    lib.KVM_MP_STATE_RUNNABLE: "running",
    lib.KVM_MP_STATE_UNINITIALIZED: "waits for INIT",
    lib.KVM_MP_STATE_INIT_RECEIVED: "waits for SIPI",
    lib.KVM_MP_STATE_SIPI_RECEIVED: "starts",
    lib.KVM_MP_STATE_HALTED: "halted",
}


class MachineTarget:
    """`debuggee.Target` for a `Machine`. Owned by the thread that runs it."""

    def __init__(self, machine: Machine, control: RunControl) -> None:
        self._machine = machine
        self._control = control
        self._description = Description(architecture(machine, control), has_avx(machine.vcpus[0]))
        self._stop = Stop(0, Why.ASKED, 0)

    def note(self, stop: Stop) -> None:
        """This is why it stands still."""
        self._stop = stop

    # ── threads ──────────────────────────────────────────────────────────────────────────────

    def threads(self) -> range:
        return range(1, len(self._machine.vcpus) + 1)

    def thread_state(self, thread: int) -> str:
        state = MP_STATES.get(self._machine.vcpus[thread - 1].get_mp_state(), "?")
        return f"vCPU {thread - 1} [{state}]"

    def _vcpu(self, thread: int) -> int:
        self._control.current = thread - 1
        return thread - 1

    # ── registers ────────────────────────────────────────────────────────────────────────────

    def description(self) -> bytes:
        return self._description.xml()

    def read_registers(self, thread: int) -> bytes:
        return self._description.read_all(self._control.files[self._vcpu(thread)])

    def write_registers(self, thread: int, data: bytes) -> None:
        self._control.forget()
        self._description.write_all(self._control.files[self._vcpu(thread)], data)

    def read_register(self, thread: int, number: int) -> bytes:
        return self._description.read(self._control.files[self._vcpu(thread)], number)

    def write_register(self, thread: int, number: int, data: bytes) -> None:
        self._control.forget()
        self._description.write(self._control.files[self._vcpu(thread)], number, data)

    # ── memory ───────────────────────────────────────────────────────────────────────────────

    def _pieces(
        self, thread: int, address: int, size: int, physical: bool
    ) -> Iterator[tuple[int, int]]:
        """The range as (gpa, size) by page, up to the first byte that is not memory."""
        vcpu = self._vcpu(thread)
        end = min(address + size, 1 << 64)
        while address < end:
            piece = min(end - address, PAGE - address % PAGE)
            gpa = address if physical else self._control.translate(address, vcpu)
            if gpa is None or not self._machine.memory.contains(gpa, piece):
                return
            yield gpa, piece
            address += piece

    def read_memory(self, thread: int, address: int, size: int, physical: bool) -> bytes:
        data = b""
        for gpa, piece in self._pieces(thread, address, size, physical):
            page = bytearray(self._machine.memory.read(gpa, piece))
            self._control.breakpoints.hide(gpa, page)
            data += page
        return data

    def write_memory(self, thread: int, address: int, data: bytes, physical: bool) -> None:
        pieces = list(self._pieces(thread, address, len(data), physical))
        if sum(size for _, size in pieces) != len(data):
            raise TargetError(EFAULT)
        self._control.forget()  # page tables may be among what is written
        at = 0
        for gpa, size in pieces:
            self._control.breakpoints.write(gpa, data[at : at + size])
            at += size

    # ── breakpoints, going on ────────────────────────────────────────────────────────────────

    def insert(self, thread: int, kind: Kind, address: int, length: int) -> None:
        self._vcpu(thread)
        self._control.breakpoints.insert(kind, address, length)

    def remove(self, kind: Kind, address: int, length: int) -> None:
        self._control.breakpoints.remove(kind, address, length)

    def resume(self, plan: Mapping[int, bool], ranges: Mapping[int, range]) -> None:
        self._control.resume(
            {thread - 1: step for thread, step in plan.items()},
            {thread - 1: addresses for thread, addresses in ranges.items()},
        )

    def interrupt(self) -> None:
        self._control.interrupt()
        self._control.notify()

    def detach(self) -> None:
        self._control.disarm()
        self._control.resume(dict.fromkeys(range(len(self._machine.vcpus)), False))

    def kill(self) -> None:
        self._control.disarm()
        self._machine.stop(Reason.QUIT)

    def monitor(self, thread: int, command: str) -> str:
        from pykvm.debug.monitor import answer

        return answer(self._machine, self._control, self._vcpu(thread), command)

    def stop_reply(self, swbreak: bool, hwbreak: bool) -> bytes:
        stop = self._stop
        signal = {Why.ASKED: SIGINT, Why.DEAD: SIGABRT}.get(stop.why, SIGTRAP)
        parts = [f"thread:{stop.vcpu + 1:x}"]
        file = self._control.files[stop.vcpu]
        for name in ("rip", "rsp", "rbp") if self._description.architecture == AMD64 else ():
            number = self._description.number(name)  # what gdb would ask for next
            parts.append(f"{number:02x}:{self._description.read(file, number).hex()}")
        if stop.why is Why.SOFTWARE and swbreak:
            parts.append("swbreak:")
        elif stop.why is Why.HARDWARE and hwbreak:
            parts.append("hwbreak:")
        elif stop.why is Why.WATCH:
            parts.append(f"watch:{stop.address:x}")
        return f"T{signal:02x}{';'.join(parts)};".encode()


def architecture(machine: Machine, control: RunControl) -> str:
    """What gdb shall take the machine for. It cannot change its mind while it is connected, so a
    64-bit kernel is one from its first instruction on, in whatever mode that is."""
    sregs = control.files[0].structure("sregs")
    if sregs.efer & EFER_LMA or any(vaddr >> 32 for vaddr, _, _ in machine.entry.linked):
        return AMD64
    if machine.entry.protocol.startswith(("linux", "bzimage")):
        return AMD64
    return I386 if sregs.cr0 & CR0_PE else I8086


def has_avx(vcpu: Vcpu) -> bool:
    """Whether the guest's processor has AVX. A KVM made of software may not say so in CPUID and let
    ring 3 have it all the same, when the guest has switched it on."""
    place = FEATURES["avx"]
    for entry in unpack_cpuid(vcpu.cpuid):
        if (entry.function, entry.index) == (place.function, place.index):
            said = bool(getattr(entry, place.register) >> place.bit & 1)
            return said or bool(vcpu.get_xcrs().xcrs[0].value & AVX)
    return False

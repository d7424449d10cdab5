"""The questions, but for the debugger's: each makes a guest, runs a probe and judges its answer.

Reached from `doctor.checks`. Each is a `Question`, or a function that makes one. Read
guests/probe/ beside it for what the guest does.
"""

from __future__ import annotations

import os
import time
from typing import Final

from pykvm import layout
from pykvm._core import lib
from pykvm.boot.entry import CpuMode
from pykvm.cpuid import FEATURES
from pykvm.devices.base import Device, FunctionDevice
from pykvm.doctor.guest import EXCEPTION, INTERRUPT, Code, ProbeGuest
from pykvm.doctor.host import Host, Question, Result, cpuid, expect
from pykvm.errors import check


def probe(
    name: str,
    *,
    mode: CpuMode = CpuMode.LONG,
    wanted: int = Code.YES,
    feature: str = "",
) -> Question:
    """Ask the probe `name`. A guest that sees no `feature` does not use the instruction."""

    def ask(host: Host) -> Result:
        if feature and not host.visible(feature):
            return Result(None, f"a guest's CPUID has no {feature}")
        return expect(host.guest.call(name, mode), wanted)

    return ask


def page_fault(host: Host) -> Result:
    answer = host.guest.call("page_fault")
    seen = (answer.value, answer.regs.rbx, answer.regs.rdi)  # error code, CR2
    if seen[0] == EXCEPTION + 14 and seen != (EXCEPTION + 14, 2, 0x1_0000_0008):
        return Result(False, f"#PF, but with error code {seen[1]} and CR2 {seen[2]:#x}")
    return expect(answer, EXCEPTION + 14)


# ── interrupts, CPUs, devices ────────────────────────────────────────────────────────────────────


def timer(probe: str, vector: int) -> Question:
    """A timer's interrupt wakes HLT. PIC lines other than IRQ 0 are masked."""

    def ask(host: Host) -> Result:
        with ProbeGuest(host.kvm) as guest:
            return expect(guest.call(probe, rdi=0xFE), INTERRUPT + vector)

    return ask


def irqfd(host: Host) -> Result:
    """The guest says that it is ready; writing the eventfd must then wake it from HLT."""
    irq = 5
    with ProbeGuest(host.kvm) as guest, _EventFd() as event:
        guest.vm.irqfd(event.fd, irq)
        guest.prepare("wait_for_interrupt", rdi=0xFF & ~(1 << irq))
        trigger = FunctionDevice(lambda _offset, _size, _value: os.eventfd_write(event.fd, 1))
        answer = guest.run(ports={layout.PORT_POST: trigger})
    return expect(answer, INTERRUPT + 0x20 + irq)


def ioeventfd(probe: str, addr: int, *, pio: bool) -> Question:
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


def second_cpu(host: Host) -> Result:
    if host.kvm.max_vcpus < 2:
        return Result(False, "one vCPU at most")
    with ProbeGuest(host.kvm, cpus=2) as guest:
        return expect(guest.call("second_cpu"))


def mmio(host: Host) -> Result:
    device = _Recorder(0x1234)
    host.guest.prepare("mmio")
    answer = host.guest.run(memory={layout.MMIO_HOLE: device})
    if answer.value == Code.YES and device.values != [0x1235]:
        return Result(False, f"wrote {device.values}")
    return expect(answer)


def string_io(host: Host) -> Result:
    device = _Recorder(0x5A)
    host.guest.prepare("string_io")
    answer = host.guest.run(ports={layout.PORT_POST: device})
    if answer.value == Code.YES and device.values != [0x5A] * 4:
        return Result(False, f"wrote {device.values}")
    return expect(answer)


def dirty_log(host: Host) -> Result:
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


def immediate_exit(host: Host) -> Result:
    """Kicked before it runs, the guest must not execute a single instruction."""
    guest = host.guest
    guest.prepare("spin")
    guest.vcpu.kick()
    check(lib.pk_vcpu_run(guest.vcpu.handle), "KVM_RUN")
    kind, rip = guest.vcpu.handle.exit.kind, guest.vcpu.read_register("rip")
    if kind != lib.PK_EXIT_KICK or rip != guest.address("spin"):
        return Result(False, f"exit {kind} at {rip:#x}")
    return Result(True)


def kick(probe: str) -> Question:
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


# ── CPUID ────────────────────────────────────────────────────────────────────────────────────────

_HIDDEN: Final = ("cx16", "popcnt", "aes", "xsave")
_DYNAMIC: Final = ("osxsave",)  # follows CR4, not the table
_LEAVES: Final = {(1, 0): "ecx", (7, 0): "ebx"}  # the two registers with the most features


def cpuid_hidden(probe: str) -> Question:
    """The guest's own CPUID must not show what its table lacks: `--cpu host,-NAME` relies on it."""

    def ask(host: Host) -> Result:
        with ProbeGuest(host.kvm, features=dict.fromkeys(_HIDDEN, False)) as guest:
            seen = {leaf: cpuid(guest, probe, *leaf) for leaf in _LEAVES}
            table = {(e.function, e.index): e for e in guest.cpuid[0]}
        if not seen[1, 0]["edx"]:
            return Result(False, "CPUID does not run")
        shown = []
        for name, (function, index, register, bit) in FEATURES.items():
            leaf = function, index
            if _LEAVES.get(leaf) != register or name in _DYNAMIC:
                continue
            promised = getattr(table.get(leaf), register, 0)
            if (seen[leaf][register] & ~promised) >> bit & 1:
                shown.append(name)
        few = ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
        return Result(not shown, f"shows {few}, which its table lacks" if shown else "")

    return ask


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

    def __init__(self, answer: int = 0) -> None:
        self.values: list[int] = []
        self._answer = answer

    def read(self, offset: int, size: int) -> int:
        return self._answer

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)

"""One vCPU: its exits, served; its registers, read and set.

Reached from `machine`, which runs one Python thread per vCPU in `Vcpu.run`. Everything that C can
answer itself never arrives here (csrc/vcpu.c). Read docs/architecture.md, "The way of an exit".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import starmap

from pykvm._core import ffi, lib
from pykvm.bus import Bus
from pykvm.errors import check
from pykvm.kvm import CPUID_ENTRY, Kvm, Vm
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final, Self

    from pykvm.debug.view import Registers

PIO: int = lib.PK_EXIT_PIO
MMIO: int = lib.PK_EXIT_MMIO
KICK: int = lib.PK_EXIT_KICK

# struct kvm_msrs and struct kvm_cpuid2 begin alike: how many entries there are.
TABLE_HEAD: Final = struct.Struct("<I4x")
assert TABLE_HEAD.size == ffi.sizeof("struct kvm_msrs") == ffi.sizeof("struct kvm_cpuid2")
MSR_ENTRY: Final = struct.Struct("<I4xQ")  # struct kvm_msr_entry
assert MSR_ENTRY.size == ffi.sizeof("struct kvm_msr_entry")

GENERAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{n}" for n in range(8, 16)),
    *("rip", "rflags"),
)
SEGMENT_REGISTERS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class Vcpu:
    """A vCPU. It belongs to the thread that calls `run`; `kick` may come from any thread, and
    registers may be read and set from another thread only while the vCPU is not running."""

    def __init__(self, kvm: Kvm, vm: Vm, id: int, c_bus: Any) -> None:
        self.id = id
        self.handle = ffi.new("struct pk_vcpu *")
        check(lib.pk_vcpu_create(kvm.fd, vm.fd, id, c_bus, self.handle), f"KVM_CREATE_VCPU({id})")
        self.fd: int = self.handle.fd
        self.cpuid = b""  # as it was set
        self.changes = 0  # grows whenever it runs or a register is set

    # ── running ──────────────────────────────────────────────────────────────────────────────

    def run(self, pio: Bus, mmio: Bus, other: Callable[[Vcpu, Any], bool]) -> None:
        """Run the guest and serve its exits until `other` says stop.

        `other(vcpu, exit)` is asked about every exit that is no access, a kick included; true
        means go on. The GIL is free while the guest runs. Raises `KvmError` when KVM_RUN fails.
        """
        self.changes += 1
        run, handle, exit = lib.pk_vcpu_run, self.handle, self.handle.exit
        while True:
            result = run(handle)
            if result < 0:
                check(result, "KVM_RUN")
            kind = exit.kind
            if kind == PIO:
                bus = pio
            elif kind == MMIO:
                bus = mmio
            elif other(self, exit):
                continue
            else:
                return
            if exit.is_write:
                bus.write(exit.addr, exit.size, exit.data)
            else:
                exit.data = bus.read(exit.addr, exit.size)

    def kick(self) -> None:
        """Make the vCPU leave the guest soon. Any thread."""
        check(lib.pk_vcpu_kick(self.handle), "tgkill of a vCPU thread")

    def settle(self) -> None:
        """Complete an access that `run` left open when a device raised, without running on."""
        while self.handle.pending:
            self.kick()
            check(lib.pk_vcpu_run(self.handle), "KVM_RUN")

    @property
    def exits(self) -> int:
        """How often KVM_RUN returned so far, exits served in C included."""
        return int(self.handle.exits)

    # ── state, one pair for each KVM_GET_x / KVM_SET_x ───────────────────────────────────────

    def _get(self, request: int, ctype: str, call: str) -> Any:
        value = ffi.new(ctype)
        check(lib.pk_ioctl(self.fd, request, value), call)
        return value

    def _set(self, request: int, value: Any, call: str) -> None:
        self.changes += 1
        check(lib.pk_ioctl(self.fd, request, value), call)

    def get_regs(self) -> Any:
        """General registers: a `struct kvm_regs`."""
        return self._get(lib.KVM_GET_REGS, "struct kvm_regs *", "KVM_GET_REGS")

    def set_regs(self, regs: Any) -> None:
        self._set(lib.KVM_SET_REGS, regs, "KVM_SET_REGS")

    def get_sregs(self) -> Any:
        """Segment and control registers: a `struct kvm_sregs`."""
        return self._get(lib.KVM_GET_SREGS, "struct kvm_sregs *", "KVM_GET_SREGS")

    def set_sregs(self, sregs: Any) -> None:
        self._set(lib.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")

    def get_fpu(self) -> Any:
        """x87 and SSE registers: a `struct kvm_fpu`."""
        return self._get(lib.KVM_GET_FPU, "struct kvm_fpu *", "KVM_GET_FPU")

    def set_fpu(self, fpu: Any) -> None:
        self._set(lib.KVM_SET_FPU, fpu, "KVM_SET_FPU")

    def get_xsave(self) -> Any:
        """The first 4096 bytes of the XSAVE area: a `struct kvm_xsave`."""
        return self._get(lib.KVM_GET_XSAVE, "struct kvm_xsave *", "KVM_GET_XSAVE")

    def set_xsave(self, xsave: Any) -> None:
        self._set(lib.KVM_SET_XSAVE, xsave, "KVM_SET_XSAVE")

    def get_xcrs(self) -> Any:
        """Extended control registers: a `struct kvm_xcrs`."""
        return self._get(lib.KVM_GET_XCRS, "struct kvm_xcrs *", "KVM_GET_XCRS")

    def set_xcrs(self, xcrs: Any) -> None:
        self._set(lib.KVM_SET_XCRS, xcrs, "KVM_SET_XCRS")

    def get_lapic(self) -> Any:
        """The local APIC's register page: a `struct kvm_lapic_state`."""
        return self._get(lib.KVM_GET_LAPIC, "struct kvm_lapic_state *", "KVM_GET_LAPIC")

    def set_lapic(self, lapic: Any) -> None:
        self._set(lib.KVM_SET_LAPIC, lapic, "KVM_SET_LAPIC")

    def get_mp_state(self) -> int:
        """KVM_MP_STATE_*: whether the vCPU runs, halts or waits for INIT or SIPI."""
        state = self._get(lib.KVM_GET_MP_STATE, "struct kvm_mp_state *", "KVM_GET_MP_STATE")
        return int(state.mp_state)

    def set_mp_state(self, state: int) -> None:
        value = ffi.new("struct kvm_mp_state *", {"mp_state": state})
        self._set(lib.KVM_SET_MP_STATE, value, "KVM_SET_MP_STATE")

    def get_events(self) -> Any:
        """Pending exceptions, interrupts, NMIs: a `struct kvm_vcpu_events`."""
        return self._get(lib.KVM_GET_VCPU_EVENTS, "struct kvm_vcpu_events *", "KVM_GET_VCPU_EVENTS")

    def set_events(self, events: Any) -> None:
        self._set(lib.KVM_SET_VCPU_EVENTS, events, "KVM_SET_VCPU_EVENTS")

    def get_debugregs(self) -> Any:
        """DR0 to DR7: a `struct kvm_debugregs`."""
        return self._get(lib.KVM_GET_DEBUGREGS, "struct kvm_debugregs *", "KVM_GET_DEBUGREGS")

    def set_debugregs(self, debugregs: Any) -> None:
        self._set(lib.KVM_SET_DEBUGREGS, debugregs, "KVM_SET_DEBUGREGS")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The given MSRs; those this vCPU does not have are left out."""
        values: dict[int, int] = {}
        wanted = list(indices)
        while wanted:
            rows = self.get_msr_rows(wanted)
            values.update(MSR_ENTRY.iter_unpack(rows))
            wanted = wanted[len(rows) // MSR_ENTRY.size + 1 :]  # KVM stops at the first it cannot
        return values

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        """Set MSRs; returns the indices that KVM refused."""
        refused: list[int] = []
        rows = pack_msrs(values)
        while rows:
            rows = rows[self.set_msr_rows(rows) * MSR_ENTRY.size :]
            refused += [index for index, _ in MSR_ENTRY.iter_unpack(rows[: MSR_ENTRY.size])]
            rows = rows[MSR_ENTRY.size :]
        return refused

    def get_msr_rows(self, indices: Iterable[int]) -> bytes:
        """The given MSRs up to the first that this vCPU does not have, as KVM has them."""
        rows = pack_msrs(dict.fromkeys(indices, 0))
        table = ffi.new("uint8_t[]", msr_table(rows))
        done = check(lib.pk_ioctl(self.fd, lib.KVM_GET_MSRS, table), "KVM_GET_MSRS")
        return bytes(ffi.buffer(table)[TABLE_HEAD.size :][: done * MSR_ENTRY.size])

    def set_msr_rows(self, rows: bytes) -> int:
        """Set MSRs, as `pack_msrs` makes them, up to the first that KVM refuses; returns how many
        that were."""
        self.changes += 1
        table = msr_table(rows)
        return check(lib.pk_ioctl(self.fd, lib.KVM_SET_MSRS, table), "KVM_SET_MSRS")

    def set_cpuid(self, rows: bytes) -> None:
        """What CPUID tells the guest, as `kvm.pack_cpuid` makes it. Before the first run."""
        self.cpuid = rows
        table = TABLE_HEAD.pack(len(rows) // CPUID_ENTRY.size) + rows
        self._set(lib.KVM_SET_CPUID2, table, "KVM_SET_CPUID2")

    # ── registers by name ────────────────────────────────────────────────────────────────────

    def read_register(self, name: str) -> int:
        """A register's value by its name: rax … r15, rip, rflags, cs … (selector), cr0 …, efer.

        Raises `KeyError` for a name that is none of them.
        """
        if name in GENERAL_REGISTERS:
            return int(getattr(self.get_regs(), name))
        sregs = self.get_sregs()
        if name in SEGMENT_REGISTERS:
            return int(getattr(sregs, name).selector)
        if name in CONTROL_REGISTERS:
            return int(getattr(sregs, name))
        raise KeyError(f"no register is called {name!r}")

    def write_register(self, name: str, value: int) -> None:
        """Set a general or control register by name. Raises `KeyError` for other names."""
        if name in GENERAL_REGISTERS:
            regs = self.get_regs()
            setattr(regs, name, value)
            self.set_regs(regs)
        elif name in CONTROL_REGISTERS:
            sregs = self.get_sregs()
            setattr(sregs, name, value)
            self.set_sregs(sregs)
        else:
            raise KeyError(f"no general or control register is called {name!r}")

    @property
    def regs(self) -> Registers:
        """Every register by name, to read and to set: ``vm.vcpus[0].regs.rip = 0x1000``."""
        from pykvm.debug.view import Registers

        return Registers(self)

    def translate(self, gva: int) -> int | None:
        """The gpa behind a guest-virtual address, or None when it is not mapped."""
        value = ffi.new("struct kvm_translation *", {"linear_address": gva})
        check(lib.pk_ioctl(self.fd, lib.KVM_TRANSLATE, value), "KVM_TRANSLATE")
        return int(value.physical_address) if value.valid else None

    def close(self) -> None:
        """Close the descriptor. No thread may be in `run`. Safe to call twice."""
        lib.pk_vcpu_destroy(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pack_msrs(values: Mapping[int, int]) -> bytes:
    """MSRs by index, as KVM has them: `struct kvm_msr_entry`, one after the other."""
    return b"".join(starmap(MSR_ENTRY.pack, values.items()))


def msr_table(rows: bytes) -> bytes:
    """A `struct kvm_msrs` of what `pack_msrs` gave."""
    return TABLE_HEAD.pack(len(rows) // MSR_ENTRY.size) + rows

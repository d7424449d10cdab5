"""A vCPU's state as bytes, in the order that KVM wants it read and set.

Reached from `capture`. Each part is the kernel's own structure, unchanged. Source: Linux
Documentation/virt/kvm/api.rst; why this order:

=========  =======================================================================================
reading    MP_STATE first: it may take a pending INIT or SIPI, which changes the rest. LAPIC may
           fold posted interrupts in; VCPU_EVENTS last, after all that can change what is pending.
setting    CPUID first: it decides which bits the others accept. SREGS before LAPIC (apic_base says
           whether it is an x2APIC), XCRS before XSAVE, TSC before all that is timed by it, LAPIC
           before TSC_DEADLINE (only a timer in that mode takes one), MP_STATE before VCPU_EVENTS.
=========  =======================================================================================
"""

from __future__ import annotations

import errno

from pykvm._core import ffi, lib
from pykvm.errors import KvmError, check
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.vcpu import MSR_ENTRY, msr_table, pack_msrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from pykvm.machine import Machine
    from pykvm.vcpu import Vcpu

MSR_TSC: Final = 0x10
MSR_TSC_DEADLINE: Final = 0x6E0
# Memory types, which KVM keeps and does not list: ranges, fixed ranges, the default (Intel SDM vol.
# 3A §12.11.2, "Memory Type Range Registers (MTRRs)").
MTRRS: Final = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
TSS_BUSY: Final = 1 << 1  # of the type of a TSS
FAR: Final = 1 << 40  # TSC ticks: some minutes
U64: Final = 0xFFFF_FFFF_FFFF_FFFF

# Structure, KVM_GET_ and KVM_SET_ of the parts that have one form only.
_PLAIN: Final = {
    "mp_state": ("struct kvm_mp_state", lib.KVM_GET_MP_STATE, lib.KVM_SET_MP_STATE),
    "regs": ("struct kvm_regs", lib.KVM_GET_REGS, lib.KVM_SET_REGS),
    "xcrs": ("struct kvm_xcrs", lib.KVM_GET_XCRS, lib.KVM_SET_XCRS),
    "debugregs": ("struct kvm_debugregs", lib.KVM_GET_DEBUGREGS, lib.KVM_SET_DEBUGREGS),
    "lapic": ("struct kvm_lapic_state", lib.KVM_GET_LAPIC, lib.KVM_SET_LAPIC),
    "events": ("struct kvm_vcpu_events", lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS),
}
_READ: Final = (
    *("mp_state", "regs", "sregs", "xsave", "xcrs", "debugregs", "lapic", "msrs"),
    "events",
)
_SET: Final = (
    *("sregs", "xcrs", "xsave", "msrs", "lapic", "deadline", "regs", "debugregs"),
    *("mp_state", "events"),
)
PARTS: Final = ("cpuid", *_READ)


class Form(Record):
    """How KVM reads and sets a part: its size, the two ioctls, their names but for the verb."""

    size: int
    get: int
    set: int
    name: str

    def call(self, verb: str) -> str:
        return f"KVM_{verb}_{self.name}"


def _forms(machine: Machine) -> dict[str, Form]:
    """SREGS and XSAVE have newer, larger forms, where this host's KVM knows them."""
    forms = {
        name: Form(ffi.sizeof(structure), get, set_, name.upper())
        for name, (structure, get, set_) in _PLAIN.items()
    }
    sregs, xsave = ffi.sizeof("struct kvm_sregs"), ffi.sizeof("struct kvm_xsave")
    forms["sregs"] = Form(sregs, lib.KVM_GET_SREGS, lib.KVM_SET_SREGS, "SREGS")
    forms["xsave"] = Form(xsave, lib.KVM_GET_XSAVE, lib.KVM_SET_XSAVE, "XSAVE")
    if machine.kvm.check_extension(lib.KVM_CAP_SREGS2):
        size = ffi.sizeof("struct kvm_sregs2")
        forms["sregs"] = Form(size, lib.KVM_GET_SREGS2, lib.KVM_SET_SREGS2, "SREGS2")
    # The size of XSAVE2 depends on what the process has enabled (AMX): the VM knows.
    size = lib.pk_ioctl_val(machine.vm.fd, lib.KVM_CHECK_EXTENSION, lib.KVM_CAP_XSAVE2)
    if size > 0:
        forms["xsave"] = Form(max(size, xsave), lib.KVM_GET_XSAVE2, lib.KVM_SET_XSAVE, "XSAVE2")
    return forms


class VcpuFormat:
    """How this host's KVM describes a vCPU: sizes, and which MSRs there are to save."""

    def __init__(self, machine: Machine) -> None:
        self.msrs = list(dict.fromkeys([*machine.kvm.msr_indices(), *MTRRS]))
        vendor = ffi.new("uint32_t[4]")
        lib.pk_cpuid(0, 0, vendor)
        self._is_amd = bytes(ffi.buffer(vendor))[4:8] == b"Auth"
        self._forms = _forms(machine)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def capture(self, vcpu: Vcpu) -> dict[str, bytes]:
        """All parts of a vCPU that is outside the guest, its last access completed."""
        return {name: self._read(vcpu, name) for name in _READ}

    def _read(self, vcpu: Vcpu, name: str) -> bytes:
        if name == "msrs":
            return self._read_msrs(vcpu)
        form = self._forms[name]
        buffer = ffi.new("uint8_t[]", form.size)
        check(lib.pk_ioctl(vcpu.fd, form.get, buffer), form.call("GET"))
        return bytes(ffi.buffer(buffer))

    def _read_msrs(self, vcpu: Vcpu) -> bytes:
        """As many as this vCPU has; those that it has not are forgotten for the next time."""
        while True:
            rows = vcpu.get_msr_rows(self.msrs)
            done = len(rows) // MSR_ENTRY.size
            if done == len(self.msrs):
                return rows
            del self.msrs[done]

    # ── setting ──────────────────────────────────────────────────────────────────────────────

    def settings(
        self, number: int, parts: dict[str, bytes], tsc: int
    ) -> Iterator[tuple[int, bytes, str]]:
        """The ioctls, in order, that set all parts of vCPU `number`, and its TSC to `tsc`: request,
        argument and name of each.

        Raises `KvmError` for a part of another size: the snapshot is of another kind of host.
        """
        msrs = dict(MSR_ENTRY.iter_unpack(parts["msrs"]))
        deadline = msrs.pop(MSR_TSC_DEADLINE, 0)
        msrs.pop(MSR_TSC, None)
        for name in _SET:
            match name:
                case "msrs":
                    # KVM takes a TSC near to where the last one written would be by now for an
                    # attempt to make two vCPUs agree, and lets it go on as it is
                    # (kvm_synchronize_tsc). That is what the other vCPUs want, but the first must
                    # go back: it writes one that is far away before.
                    if number == 0:
                        yield _msrs({MSR_TSC: tsc + FAR & U64})
                    yield _msrs({MSR_TSC: tsc})
                    yield _msrs(msrs)
                case "deadline":
                    if deadline:
                        yield _msrs({MSR_TSC_DEADLINE: deadline})
                case "sregs":
                    yield self._setting(name, self._with_task(parts[name]))
                case _:
                    yield self._setting(name, parts[name])

    def _setting(self, name: str, data: bytes) -> tuple[int, bytes, str]:
        form = self._forms[name]
        if len(data) != form.size:
            hint = f"the state has {len(data)} bytes, and this host's has {form.size}"
            raise KvmError(form.call("SET"), errno.EINVAL, hint)
        return form.set, data, form.call("SET")

    def _with_task(self, sregs: bytes) -> bytes:
        """SREGS with TR's type as an AMD processor keeps it: available, not busy. KVM reports the
        bit always (arch/x86/kvm/svm/svm.c, svm_get_segment), and an emulated processor that finds
        it set lets no program use ports."""
        if not self._is_amd:
            return sregs
        at = ffi.offsetof("struct kvm_sregs", "tr", "type")  # the same in kvm_sregs2
        return sregs[:at] + bytes([sregs[at] & ~TSS_BUSY]) + sregs[at + 1 :]


def _msrs(values: dict[int, int]) -> tuple[int, bytes, str]:
    numbers = f"({next(iter(values)):#x})" if len(values) == 1 else ""
    return lib.KVM_SET_MSRS, msr_table(pack_msrs(values)), f"KVM_SET_MSRS{numbers}"


def tsc_of(parts: dict[str, bytes]) -> int:
    """The TSC that a vCPU had when it was captured."""
    return int(dict(MSR_ENTRY.iter_unpack(parts["msrs"])).get(MSR_TSC, 0))

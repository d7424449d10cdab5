"""/dev/kvm and a virtual machine: the system and VM ioctls, each as one method.

Reached from `machine`. A `Vm` owns its descriptor and nothing else; memory, devices and vCPUs are
handed to it. Read csrc/vm.c beside it, and Linux Documentation/virt/kvm/api.rst for every ioctl.
"""

from __future__ import annotations

import errno
import os
import struct
from itertools import starmap

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.errors import KvmError, check
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Self

CPUID_ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2
assert CPUID_ENTRY.size == ffi.sizeof("struct kvm_cpuid_entry2")

IDENTITY_MAP = ffi.new("uint64_t *", layout.IDENTITY_MAP)
PIT_CONFIG = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})

PROCESSOR_NAME = (0x8000_0002, 0x8000_0003, 0x8000_0004)  # CPUID functions: 16 characters each
API_VERSION = 12  # the only one there is since Linux 2.6.22

_OPEN_HINTS = {
    errno.ENOENT: "this host has no KVM; run the same command with 'pykvm lab --' in front",
    errno.EACCES: "your user may not open it: sudo usermod -aG kvm $USER, then log in again",
    errno.EPERM: "this container or sandbox does not pass /dev/kvm through",
    errno.ENODEV: "no KVM driver is loaded: sudo modprobe kvm_amd or kvm_intel",
    errno.ENXIO: "no KVM driver is loaded: sudo modprobe kvm_amd or kvm_intel",
}


class CpuidEntry(Record):
    """One row of CPUID: input `function` (and `index`, when `flags` says so), output registers."""

    function: int
    index: int  # type: ignore[assignment]  # KVM's name for ECX; hides tuple.index
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def pack_cpuid(table: Iterable[CpuidEntry]) -> bytes:
    """The rows as KVM has them: `struct kvm_cpuid_entry2`, one after the other."""
    return b"".join(starmap(CPUID_ENTRY.pack, table))


def unpack_cpuid(rows: bytes) -> list[CpuidEntry]:
    """What `pack_cpuid` was given."""
    return list(map(CpuidEntry._make, CPUID_ENTRY.iter_unpack(rows)))


_supported: dict[str, tuple[CpuidEntry, ...]] = {}  # what `Kvm.supported_cpuid` found, by path


class Kvm:
    """An open /dev/kvm. Raises `KvmError` with a remedy when it cannot be used."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._path = path
        result = lib.pk_open_kvm(path.encode())
        self.fd = check(result, f"open {path}", _OPEN_HINTS.get(-result, ""))
        version = lib.pk_ioctl_val(self.fd, lib.KVM_GET_API_VERSION, 0)
        if version != API_VERSION:
            self.close()
            raise KvmError(
                f"KVM_GET_API_VERSION of {path}",
                -version if version < 0 else errno.ENOTSUP,
                f"it must give {API_VERSION}; {path} is not Linux's KVM",
            )

    def check_extension(self, capability: int) -> int:
        """The value of KVM_CHECK_EXTENSION: 0 when the capability is missing."""
        return max(0, int(lib.pk_ioctl_val(self.fd, lib.KVM_CHECK_EXTENSION, capability)))

    @property
    def max_vcpus(self) -> int:
        """How many vCPUs a VM may have."""
        return self.check_extension(lib.KVM_CAP_MAX_VCPUS) or 4  # api.rst: 4 when not told

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """What KVM and this host can offer a guest: KVM_GET_SUPPORTED_CPUID, and the processor's
        name, which that leaves empty. Asked once in a process: it is a third of what a VM costs."""
        if self._path not in _supported:
            _supported[self._path] = self._ask_supported_cpuid()
        return _supported[self._path]

    def _ask_supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        count = 256
        table = ffi.new("struct kvm_cpuid2 *", {"entries": count})
        table.nent = count
        check(lib.pk_ioctl(self.fd, lib.KVM_GET_SUPPORTED_CPUID, table), "KVM_GET_SUPPORTED_CPUID")
        entries = unpack_cpuid(ffi.buffer(table.entries)[: table.nent * CPUID_ENTRY.size])
        registers = ffi.new("uint32_t[4]")
        for i, entry in enumerate(entries):
            if entry.function in PROCESSOR_NAME and entry[3:] == (0, 0, 0, 0):
                lib.pk_cpuid(entry.function, 0, registers)
                entries[i] = CpuidEntry._make((*entry[:3], *registers))
        return tuple(entries)

    def msr_indices(self) -> list[int]:
        """The MSRs that KVM can save and restore (KVM_GET_MSR_INDEX_LIST)."""
        table = ffi.new("struct kvm_msr_list *", {"indices": 0})
        lib.pk_ioctl(self.fd, lib.KVM_GET_MSR_INDEX_LIST, table)  # E2BIG: nmsrs says how many
        count = table.nmsrs
        table = ffi.new("struct kvm_msr_list *", {"indices": count})
        table.nmsrs = count
        check(lib.pk_ioctl(self.fd, lib.KVM_GET_MSR_INDEX_LIST, table), "KVM_GET_MSR_INDEX_LIST")
        return list(table.indices[0 : table.nmsrs])

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Vm:
    """One virtual machine. Owned by the thread that made it; ioctls may come from any."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.changes = 0  # grows with every ioctl that may change the VM's state
        self.fd = check(lib.pk_ioctl_val(kvm.fd, lib.KVM_CREATE_VM, 0), "KVM_CREATE_VM")

    def ioctl(self, request: int, argument: Any, call: str) -> int:
        """One ioctl with a pointer argument; `call` is its name, for the error."""
        self.changes += 1
        return check(lib.pk_ioctl(self.fd, request, argument), call)

    def map_memory(self, memory: GuestMemory, *, log_dirty: bool = False) -> None:
        """Make guest memory visible to the guest: slot 0 below the hole, slot 1 above it."""
        flags = lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty else 0
        result = lib.pk_vm_map(self.fd, memory.handle, flags)
        size_mib = memory.size // layout.MIB
        check(result, f"KVM_SET_USER_MEMORY_REGION of {size_mib} MiB", "try a smaller --memory")

    def create_irqchip(self) -> None:
        """The in-kernel PIC, IOAPIC, LAPICs and PIT. Before the first vCPU."""
        # VMX without unrestricted guest needs a page for the identity map and three for a TSS;
        # other hosts ignore both.
        self.ioctl(lib.KVM_SET_IDENTITY_MAP_ADDR, IDENTITY_MAP, "KVM_SET_IDENTITY_MAP_ADDR")
        check(
            lib.pk_ioctl_val(self.fd, lib.KVM_SET_TSS_ADDR, layout.TSS),
            "KVM_SET_TSS_ADDR",
        )
        check(lib.pk_ioctl_val(self.fd, lib.KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP")
        self.ioctl(lib.KVM_CREATE_PIT2, PIT_CONFIG, "KVM_CREATE_PIT2")

    def enable_x2apic_ids(self) -> None:
        """Let APIC ids be 32 bits wide: needed above 254 vCPUs. Before the first vCPU."""
        flags = lib.KVM_X2APIC_API_USE_32BIT_IDS | lib.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
        cap = ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_X2APIC_API})
        cap.args[0] = flags
        self.ioctl(lib.KVM_ENABLE_CAP, cap, "KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)")

    def irq_line(self, gsi: int, level: int) -> None:
        """Raise (1) or lower (0) an input of the in-kernel irqchip."""
        self.changes += 1
        check(lib.pk_vm_irq_line(self.fd, gsi, level), "KVM_IRQ_LINE")

    def irqfd(self, eventfd: int, gsi: int, *, assign: bool = True) -> None:
        """Inject `gsi` whenever `eventfd` is written."""
        flags = 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        irqfd = ffi.new("struct kvm_irqfd *", {"fd": eventfd, "gsi": gsi, "flags": flags})
        self.ioctl(lib.KVM_IRQFD, irqfd, "KVM_IRQFD")

    def ioeventfd(
        self,
        eventfd: int,
        addr: int,
        size: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        """Write `eventfd` instead of leaving the guest when it writes `size` bytes at `addr`."""
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        if datamatch is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if not assign:
            flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        event = ffi.new(
            "struct kvm_ioeventfd *",
            {"datamatch": datamatch or 0, "addr": addr, "len": size, "fd": eventfd, "flags": flags},
        )
        self.ioctl(lib.KVM_IOEVENTFD, event, "KVM_IOEVENTFD")

    def set_messages(self, messages: Mapping[int, tuple[int, int]]) -> None:
        """Let GSIs stand for message-signalled interrupts: GSI, from 24 on, to (address, data)."""
        table = ffi.new(
            "struct pk_message[]",
            [{"gsi": g, "address": a, "data": d} for g, (a, d) in messages.items()],
        )
        check(lib.pk_vm_set_messages(self.fd, table, len(messages)), "KVM_SET_GSI_ROUTING")

    def get_clock(self) -> Any:
        """The kvmclock: a `struct kvm_clock_data`."""
        clock = ffi.new("struct kvm_clock_data *")
        self.ioctl(lib.KVM_GET_CLOCK, clock, "KVM_GET_CLOCK")
        return clock

    def set_clock(self, clock: Any) -> None:
        """Set the kvmclock from what `get_clock` gave."""
        self.ioctl(lib.KVM_SET_CLOCK, clock, "KVM_SET_CLOCK")

    def dirty_log(self, slot: int, size: int) -> bytes:
        """The pages of a memslot of `size` bytes written since the last call, one bit each."""
        bitmap = ffi.new("uint64_t[]", (size // 4096 + 63) // 64)
        log = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
        self.ioctl(lib.KVM_GET_DIRTY_LOG, log, "KVM_GET_DIRTY_LOG")
        return bytes(ffi.buffer(bitmap))

    def close(self) -> None:
        """Destroy the VM once its vCPUs are closed too. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""What KVM says of itself: KVM_CHECK_EXTENSION, for what pykvm and its users care about.

Reached from `doctor.examination`. Source of the numbers: <linux/kvm.h>; of the meanings: Linux
Documentation/virt/kvm/api.rst. They stand here, not in the C core, because the header that the
core is compiled with may be older than the KVM it meets.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pykvm.kvm import Kvm


class Capability(NamedTuple):
    """KVM_CAP_*: its number and a name for people. `unit`: its value counts something."""

    number: int
    label: str
    unit: str = ""


# By key of the JSON output. A value of 0 is "no"; without a unit any other is "yes".
CAPABILITIES: Final = {
    "nr_vcpus": Capability(9, "vCPUs, recommended", "vCPUs"),
    "max_vcpus": Capability(66, "vCPUs, at most", "vCPUs"),
    "max_vcpu_id": Capability(128, "vCPU ids", "ids"),
    "nr_memslots": Capability(10, "memslots", "memslots"),
    "irq_routing": Capability(25, "interrupt routes", "routes"),
    "xsave2": Capability(208, "XSAVE area", "bytes"),
    "dirty_log_ring": Capability(192, "dirty ring, at most", "bytes"),
    "coalesced_mmio": Capability(15, "coalesced MMIO"),
    "coalesced_pio": Capability(162, "coalesced PIO"),
    "set_guest_debug": Capability(23, "guest debugging"),
    "pit2": Capability(33, "PIT"),
    "adjust_clock": Capability(39, "clock adjustment"),
    "tsc_control": Capability(60, "TSC control"),
    "tsc_deadline_timer": Capability(72, "TSC deadline timer"),
    "sync_regs": Capability(74, "sync_regs"),
    "signal_msi": Capability(77, "signal-MSI"),
    "readonly_mem": Capability(81, "read-only memslots"),
    "irqfd_resample": Capability(82, "irqfd with resampling"),
    "x86_smm": Capability(117, "SMM"),
    "split_irqchip": Capability(121, "split irqchip"),
    "x2apic_api": Capability(129, "x2APIC ids"),
    "x86_disable_exits": Capability(143, "exits that can be turned off"),
    "nested_state": Capability(157, "nested state"),
    "manual_dirty_log_protect2": Capability(168, "manual dirty-log protection"),
    "x86_user_space_msr": Capability(188, "MSRs in user space"),
    "x86_msr_filter": Capability(189, "MSR filter"),
    "binary_stats_fd": Capability(203, "statistics"),
    "exit_on_emulation_failure": Capability(204, "emulation failures as exits"),
    "pmu_capability": Capability(212, "PMU control"),
    "user_memory2": Capability(231, "memory regions 2"),
    "guest_memfd": Capability(234, "guest_memfd"),
}


def read(kvm: Kvm) -> dict[str, int]:
    """The value of each capability; 0: this KVM does not have it."""
    return {key: kvm.check_extension(each.number) for key, each in CAPABILITIES.items()}

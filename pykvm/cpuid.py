"""What CPUID tells the guest: what KVM offers, this vCPU's place, and the user's `--cpu`.

Reached from `machine`, once per vCPU. Sources: Intel SDM vol. 2A "CPUID—CPU Identification"; AMD64
APM vol. 3 appendix E "Obtaining Processor Information Via the CPUID Instruction"; Linux
Documentation/virt/kvm/x86/cpuid.rst. Feature names are those of Linux's /proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from pykvm.errors import ConfigError
from pykvm.kvm import CpuidEntry, pack_cpuid
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Final


class Bit(Record):
    """Where a feature is: CPUID function, index, output register, bit number."""

    function: int
    index: int  # type: ignore[assignment]  # KVM's name for ECX; hides tuple.index
    register: str
    bit: int


# One row of names per output register, bit 0 first; "-" is reserved or not a feature.
_ROWS: Final = {
    (0x1, 0, "edx"): (
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - "
        "dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"
    ),
    (0x1, 0, "ecx"): (
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - "
        "pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c "
        "rdrand hypervisor"
    ),
    (0x6, 0, "eax"): "dtherm ida arat",
    (0x7, 0, "ebx"): (
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a "
        "avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er "
        "avx512cd sha_ni avx512bw avx512vl"
    ),
    (0x7, 0, "ecx"): (
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni "
        "avx512_bitalg - avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - "
        "movdiri movdir64b enqcmd"
    ),
    (0x7, 0, "edx"): (
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize "
        "hybrid_cpu tsxldtrk - pconfig - ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl "
        "stibp flush_l1d arch_capabilities - ssbd"
    ),
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves",
    (0x4000_0001, 0, "eax"): (
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi "
        "kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control "
        "kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id - - - - - - - - kvmclock_stable"
    ),
    (0x8000_0001, 0, "ecx"): (
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs "
        "xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext "
        "- perfctr_llc mwaitx"
    ),
    (0x8000_0001, 0, "edx"): (
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - "
        "lm 3dnowext 3dnow"
    ),
    (0x8000_0007, 0, "edx"): "- - - - - - - - constant_tsc",
    (0x8000_0008, 0, "ebx"): (
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp_amd - "
        "stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no"
    ),
}
FEATURES: Final = {
    name: Bit._make((*place, bit))
    for place, names in _ROWS.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}

_HTT = FEATURES["ht"]
_HYPERVISOR = FEATURES["hypervisor"]
_CMP_LEGACY = FEATURES["cmp_legacy"]
_TSC_DEADLINE = FEATURES["tsc_deadline_timer"]


def parse_model(text: str) -> dict[str, bool]:
    """Parse ``--cpu host[,+NAME][,-NAME]…`` into name → wanted. Raises `ConfigError`."""
    model, *changes = text.split(",")
    if model != "host":
        raise ConfigError(f"--cpu: the model {model!r} is unknown; write --cpu host[,+NAME,-NAME…]")
    wanted: dict[str, bool] = {}
    for change in changes:
        sign, name = change[:1], change[1:]
        if sign not in ("+", "-") or name not in FEATURES:
            import difflib

            near = difflib.get_close_matches(name or change, FEATURES, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(
                f"--cpu: {change!r} is not +NAME or -NAME with a name from /proc/cpuinfo{hint}"
            )
        wanted[name] = sign == "+"
    return wanted


@lru_cache(maxsize=64)
def packed(
    supported: tuple[CpuidEntry, ...], model: str, apic_id: int, cpus: int, tsc_deadline: bool
) -> bytes:
    """`build` as `Vcpu.set_cpuid` takes it, by ``--cpu`` as it was written. Kept, because it takes
    longer than all else that Python does for a vCPU."""
    features = parse_model(model)
    return pack_cpuid(
        build(supported, apic_id=apic_id, cpus=cpus, features=features, tsc_deadline=tsc_deadline)
    )


def build(
    supported: Iterable[CpuidEntry],
    *,
    apic_id: int,
    cpus: int,
    features: dict[str, bool],
    tsc_deadline: bool,
) -> list[CpuidEntry]:
    """The CPUID table of one vCPU: one package of `cpus` cores with one thread each.

    `supported` is what KVM offers, `features` the user's changes to it. Raises `ConfigError` for a
    feature that KVM does not offer.
    """
    table = [_place(e, apic_id, cpus) for e in supported if e.function not in (0xB, 0x1F)]
    table += _extended_topology(0xB, apic_id, cpus)
    # Two bits that KVM_GET_SUPPORTED_CPUID leaves to us: that there is a hypervisor (without it no
    # guest looks for kvmclock), and KVM_CAP_TSC_DEADLINE_TIMER's.
    _set_bit(table, _HYPERVISOR, True)
    _set_bit(table, _TSC_DEADLINE, tsc_deadline)
    for name, wanted in features.items():
        offered = _set_bit(table, FEATURES[name], wanted)
        if wanted and not offered:
            raise ConfigError(f"--cpu: +{name}: this host's KVM does not offer it")
    return table


def _set_bit(table: list[CpuidEntry], place: Bit, value: bool) -> bool:
    """Set or clear one feature where the table has its leaf; tell whether it was set."""
    function, index, register, bit = place
    was = False
    for i, entry in enumerate(table):
        if entry.function == function and entry.index == index:
            was = bool(getattr(entry, register) >> bit & 1)
            table[i] = _with_bit(entry, place, value)
    return was


def _with_bit(entry: CpuidEntry, place: Bit, value: bool) -> CpuidEntry:
    register = getattr(entry, place.register) & ~(1 << place.bit) | value << place.bit
    return entry._replace(**{place.register: register})


def _place(entry: CpuidEntry, apic_id: int, cpus: int) -> CpuidEntry:
    """`entry` with the fields that depend on the vCPU's place and on the number of vCPUs."""
    bits = (cpus - 1).bit_length()
    match entry.function:
        case 0x1:  # EBX[31:24] initial APIC id, [23:16] logical processors in the package
            ebx = entry.ebx & 0xFFFF | (min(cpus, 255) << 16) | (apic_id & 0xFF) << 24
            return _with_bit(entry._replace(ebx=ebx), _HTT, cpus > 1)
        case 0x4 if entry.eax & 0x1F:  # EAX[31:26] cores - 1, [25:14] sharers of this cache - 1
            level = entry.eax >> 5 & 7
            sharers = cpus - 1 if level >= 3 else 0
            eax = entry.eax & 0x3FFF | min(sharers, 0xFFF) << 14 | min(cpus - 1, 63) << 26
            return entry._replace(eax=eax)
        case 0x8000_0001:
            return _with_bit(entry, _CMP_LEGACY, cpus > 1)
        case 0x8000_0008:  # ECX[15:12] bits of the core id in the APIC id, [7:0] cores - 1
            return entry._replace(ecx=bits << 12 | min(cpus - 1, 0xFF))
        case 0x8000_001D if entry.eax & 0x1F:
            level = entry.eax >> 5 & 7
            sharers = cpus - 1 if level >= 3 else 0
            return entry._replace(eax=entry.eax & 0x3FFF | min(sharers, 0xFFF) << 14)
        case 0x8000_001E:  # EAX extended APIC id; EBX core id, one thread per core; ECX node 0
            return entry._replace(eax=apic_id, ebx=apic_id & 0xFF, ecx=0)
        case _:
            return entry


def _extended_topology(function: int, apic_id: int, cpus: int) -> list[CpuidEntry]:
    """Leaf 0BH "Extended Topology Enumeration": one thread per core, `cpus` cores, x2APIC id."""
    indexed = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    core_bits = (cpus - 1).bit_length()
    return [
        CpuidEntry(function, 0, indexed, 0, 1, 1 << 8 | 0, apic_id),  # SMT level
        CpuidEntry(function, 1, indexed, core_bits, cpus, 2 << 8 | 1, apic_id),  # core level
        CpuidEntry(function, 2, indexed, 0, 0, 2, apic_id),  # end
    ]

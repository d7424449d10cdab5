"""The structures of <linux/kvm.h> that pykvm uses, once more, for ctypes.

Reached from tests/unit/test_structs.py, which holds sizes and offsets against what the C compiler
says of the kernel's own header; nobody should have to trust either. `host.py` beside this file
uses a few of them to run a guest. A field is "TYPE NAME …"; TYPE[N] is an array. Members of unnamed
structures have the outer name in front.
"""

import ctypes

TYPES = {
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "s32": ctypes.c_int32,
    "u64": ctypes.c_uint64,
    "char": ctypes.c_char,
    "pointer": ctypes.c_void_p,
}


def struct(name, *fields):
    """Define `struct name`, and let later ones use it."""
    made = []
    for field in fields:
        kind, *names = field.split()
        base, _, count = kind.rstrip("]").partition("[")
        made += [(each, TYPES[base] * int(count) if count else TYPES[base]) for each in names]
    TYPES[name] = type(name, (ctypes.Structure,), {"_fields_": made})


struct(
    "kvm_regs",
    "u64 rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags",
)
struct(
    "kvm_segment",
    "u64 base",
    "u32 limit",
    "u16 selector",
    "u8 type present dpl db s l g avl unusable padding",
)
struct("kvm_dtable", "u64 base", "u16 limit", "u16[3] padding")
struct(
    "kvm_sregs",
    "kvm_segment cs ds es fs gs ss tr ldt",
    "kvm_dtable gdt idt",
    "u64 cr0 cr2 cr3 cr4 cr8 efer apic_base",
    "u64[4] interrupt_bitmap",
)
struct(
    "kvm_sregs2",
    "kvm_segment cs ds es fs gs ss tr ldt",
    "kvm_dtable gdt idt",
    "u64 cr0 cr2 cr3 cr4 cr8 efer apic_base",
    "u64 flags",
    "u64[4] pdptrs",
)
struct(
    "kvm_fpu",
    "u8[128] fpr",
    "u16 fcw fsw",
    "u8 ftwx pad1",
    "u16 last_opcode",
    "u64 last_ip last_dp",
    "u8[256] xmm",
    "u32 mxcsr pad2",
)
struct("kvm_xsave", "u32[1024] region", "u32[0] extra")
struct("kvm_xcr", "u32 xcr reserved", "u64 value")
struct("kvm_xcrs", "u32 nr_xcrs flags", "kvm_xcr[16] xcrs", "u64[16] padding")
struct("kvm_msr_entry", "u32 index reserved", "u64 data")
struct("kvm_msrs", "u32 nmsrs pad", "kvm_msr_entry[0] entries")
struct("kvm_msr_list", "u32 nmsrs", "u32[0] indices")
struct("kvm_cpuid_entry2", "u32 function index flags eax ebx ecx edx", "u32[3] padding")
struct("kvm_cpuid2", "u32 nent padding", "kvm_cpuid_entry2[0] entries")
struct("kvm_lapic_state", "char[1024] regs")
struct("kvm_mp_state", "u32 mp_state")
struct(
    "kvm_vcpu_events",
    "u8 exception_injected exception_nr exception_has_error_code exception_pending",
    "u32 exception_error_code",
    "u8 interrupt_injected interrupt_nr interrupt_soft interrupt_shadow",
    "u8 nmi_injected nmi_pending nmi_masked nmi_pad",
    "u32 sipi_vector flags",
    "u8 smi_smm smi_pending smi_smm_inside_nmi smi_latched_init",
    "u8 triple_fault_pending",
    "u8[26] reserved",
    "u8 exception_has_payload",
    "u64 exception_payload",
)
struct("kvm_debugregs", "u64[4] db", "u64 dr6 dr7 flags", "u64[9] reserved")
struct("kvm_clock_data", "u64 clock", "u32 flags pad0", "u64 realtime host_tsc", "u32[4] pad")
struct("kvm_irqchip", "u32 chip_id pad", "char[512] chip")
struct("kvm_pit_config", "u32 flags", "u32[15] pad")
struct(
    "kvm_pit_channel_state",
    "u32 count",
    "u16 latched_count",
    "u8 count_latched status_latched status read_state write_state write_latch",
    "u8 rw_mode mode bcd gate",
    "u64 count_load_time",
)
struct("kvm_pit_state2", "kvm_pit_channel_state[3] channels", "u32 flags", "u32[9] reserved")
struct(
    "kvm_userspace_memory_region",
    "u32 slot flags",
    "u64 guest_phys_addr memory_size userspace_addr",
)
struct("kvm_irqfd", "u32 fd gsi flags resamplefd", "u8[16] pad")
struct("kvm_ioeventfd", "u64 datamatch addr", "u32 len", "s32 fd", "u32 flags", "u8[36] pad")
struct("kvm_enable_cap", "u32 cap flags", "u64[4] args", "u8[64] pad")
struct("kvm_dirty_log", "u32 slot padding1", "pointer dirty_bitmap")
struct(
    "kvm_translation",
    "u64 linear_address physical_address",
    "u8 valid writeable usermode",
    "u8[5] pad",
)
struct("kvm_guest_debug_arch", "u64[8] debugreg")
struct("kvm_guest_debug", "u32 control pad", "kvm_guest_debug_arch arch")
struct("kvm_irq_routing_irqchip", "u32 irqchip pin")
struct("kvm_irq_routing_msi", "u32 address_lo address_hi data pad")

STRUCTURES = {name: made for name, made in TYPES.items() if name.startswith("kvm_")}

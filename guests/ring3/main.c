/* Ring 3: user code that may not touch the machine, and asks the kernel by INT 0x80.
 *
 *     pykvm boot pykvm/guests/ring3
 *
 * Down by IRETQ, with the selectors and stack of ring 3 in the frame; up again through a gate that
 * ring 3 may use. On the way up the processor takes its stack from the TSS (Intel SDM vol. 3A
 * §7.7 Task Management in 64-bit Mode). The verdict: every call came up and went down again,
 * and HLT, which only ring 0 may do, ended in #GP.
 */
#include "interrupts.h"

#define KERNEL_CS 0x08
#define USER_SS   (0x10 | 3)
#define USER_CS   (0x18 | 3)
#define TSS       0x20

#define VECTOR_INVALID_OPCODE     6
#define VECTOR_GENERAL_PROTECTION 13
#define VECTOR_SYSCALL            0x80

#define PAGE_FLAGS 0x87 /* present, writable, user, 2 MiB */
#define LINK_FLAGS 0x07 /* present, writable, user: every level has to let ring 3 in */

static uint64_t pml4[512] __attribute__((aligned(4096)));
static uint64_t pdpt[512] __attribute__((aligned(4096)));
static uint64_t pd[512] __attribute__((aligned(4096)));

static uint8_t kernel_stack[4096] __attribute__((aligned(16)));
static uint8_t user_stack[4096] __attribute__((aligned(16)));

static struct {
    uint32_t reserved;
    uint64_t rsp0; /* the stack for entries from lower privilege */
    uint8_t other[92];
} __attribute__((packed)) tss;

static uint64_t gdt[] = {
    0,
    0x00AF9A000000FFFF, /* KERNEL_CS: 64-bit code */
    0x00CFF2000000FFFF, /* USER_SS: data, DPL 3 */
    0x00AFFA000000FFFF, /* USER_CS: 64-bit code, DPL 3 */
    0x0000890000000000, /* TSS: two entries, base and limit still to come */
    0,
};

static void load_tables(void)
{
    uintptr_t base = (uintptr_t)&tss;
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdtr = {sizeof(gdt) - 1, (uintptr_t)gdt};

    pml4[0] = (uintptr_t)pdpt | LINK_FLAGS;
    pdpt[0] = (uintptr_t)pd | LINK_FLAGS;
    pd[0] = PAGE_FLAGS; /* the first 2 MiB, where all of this is */

    tss.rsp0 = (uintptr_t)(kernel_stack + sizeof(kernel_stack));
    gdt[4] |= (sizeof(tss) - 1) | (base & 0xFFFFFF) << 16 | (base >> 24 & 0xFF) << 56;
    gdt[5] = base >> 32;

    __asm__ volatile("mov %0, %%cr3\n\t"
                     "lgdt %1\n\t"
                     "pushq %2\n\t" /* CS changes by a far return only */
                     "lea 1f(%%rip), %%rax\n\t"
                     "push %%rax\n\t"
                     "lretq\n"
                     "1:\n\t"
                     "mov %w3, %%ss\n\t"
                     "ltr %w4"
                     :
                     : "r"(pml4), "m"(gdtr), "i"(KERNEL_CS), "r"(0), "r"(TSS)
                     : "rax", "memory");
}

static unsigned long calls;

/* A system call. Everything it may know of ring 3 is in the frame. */
HANDLER syscall_entry(struct frame *frame)
{
    calls++;
    if (calls == 1)
        check((frame->cs & 3) == 3, "INT 0x80 came from ring 3");
}

/* A KVM made of software may not know INT and raise #UD for it. The way into ring 0 and back is the
 * same, so serve the call here, say so once, and step over the instruction as INT would have. */
HANDLER invalid_opcode(struct frame *frame)
{
    const uint8_t *at = (const uint8_t *)frame->rip;

    if (at[0] != 0xCD || at[1] != VECTOR_SYSCALL) {
        check(0, "no other invalid instruction");
        outb(PORT_EXIT_CODE, (uint8_t)failures);
    }
    if (!calls)
        say("note: this KVM turns INT 0x80 into #UD\n");
    /* Volatile: to gcc 14 the frame ends with this function, and no store to it matters. */
    ((volatile struct frame *)frame)->rip += 2;
    calls++;
}

/* Ring 3 tried what it may not: end here, not there. */
HANDLER general_protection(struct frame *frame, uint64_t error)
{
    check((frame->cs & 3) == 3 && error == 0, "HLT in ring 3 is refused (#GP)");
    check(calls == 3, "three system calls were served, and returned");
    outb(PORT_EXIT_CODE, (uint8_t)failures);
}

static void user(void)
{
    for (int i = 0; i < 3; i++)
        __asm__ volatile("int %0" : : "i"(VECTOR_SYSCALL) : "memory");
    __asm__ volatile("hlt");
}

int main(void)
{
    struct frame to_user = {
        .rip = (uintptr_t)user,
        .cs = USER_CS,
        .rflags = 1 << 1, /* always 1; IOPL 0, interrupts off */
        .rsp = (uintptr_t)(user_stack + sizeof(user_stack) - 8),
        .ss = USER_SS,
    };

    load_tables();
    on_interrupt(VECTOR_SYSCALL, syscall_entry, 3);
    on_interrupt(VECTOR_INVALID_OPCODE, invalid_opcode, 0);
    on_interrupt(VECTOR_GENERAL_PROTECTION, general_protection, 0);
    load_idt();
    __asm__ volatile("mov %0, %%rsp; iretq" : : "r"(&to_user) : "memory");
    __builtin_unreachable();
}

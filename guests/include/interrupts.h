/* Interrupts and exceptions in long mode: the IDT, the two PICs, the local APIC.
 *
 * Included by the 64-bit guests that take any. A handler is a C function marked HANDLER: the
 * compiler then saves every register it uses and returns with IRETQ.
 */
#ifndef GUESTS_INTERRUPTS_H
#define GUESTS_INTERRUPTS_H

#include "bare.h"

#define HANDLER __attribute__((interrupt)) static void

/* What the processor pushes (Intel SDM vol. 3A §6.14.2 64-Bit Mode Stack Frame). */
struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

/* A gate (§6.14.1 64-Bit Mode IDT): where a vector's handler is. */
static struct gate {
    uint16_t offset_0;
    uint16_t selector;
    uint8_t ist;
    uint8_t type; /* present << 7 | DPL << 5 | 0xe: interrupt gate */
    uint16_t offset_16;
    uint32_t offset_32;
    uint32_t reserved;
} idt[256];

/* Let `handler` serve `vector`; code of privilege `dpl` and below may ask for it by INT. */
static void on_interrupt(uint8_t vector, void *handler, unsigned dpl)
{
    uintptr_t address = (uintptr_t)handler;
    uint16_t cs;

    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    idt[vector] = (struct gate){
        .offset_0 = (uint16_t)address,
        .selector = cs,
        .type = (uint8_t)(0x8e | dpl << 5),
        .offset_16 = (uint16_t)(address >> 16),
        .offset_32 = (uint32_t)(address >> 32),
    };
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idtr = {sizeof(idt) - 1, (uintptr_t)idt};

    __asm__ volatile("lidt %0" : : "m"(idtr));
}

/* Sleep until an interrupt was served. Interrupts are off before and after; STI takes effect only
 * after the next instruction, so none can slip in between it and HLT and leave us asleep. */
static void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* The two 8259A PICs of a PC: give IRQ 0 to 15 the vectors 0x20 to 0x2f, let only `irq` through. */
#define PIC1          0x20
#define PIC2          0xA0
#define IRQ_VECTOR(n) (0x20 + (n))

static void pic_enable(unsigned irq)
{
    outb(PIC1, 0x11); /* ICW1: cascaded, ICW4 follows */
    outb(PIC2, 0x11);
    outb(PIC1 + 1, IRQ_VECTOR(0)); /* ICW2: vectors */
    outb(PIC2 + 1, IRQ_VECTOR(8));
    outb(PIC1 + 1, 1 << 2); /* ICW3: the second one hangs off IRQ 2 */
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1); /* ICW4: 8086 mode */
    outb(PIC2 + 1, 1);
    outb(PIC1 + 1, (uint8_t) ~(1 << irq)); /* OCW1: mask all the others */
    outb(PIC2 + 1, 0xff);
}

static void pic_done(void)
{
    outb(PIC1, 0x20); /* OCW2: end of interrupt */
}

/* The local APIC, in memory at its usual place (Intel SDM vol. 3A §10.4.1 The Local APIC Block
 * Diagram). */
enum lapic {
    LAPIC_ID = 0x020,
    LAPIC_EOI = 0x0B0,
    LAPIC_SPURIOUS = 0x0F0, /* bit 8: the APIC is on */
    LAPIC_ICR = 0x300,
    LAPIC_ICR_DESTINATION = 0x310,
    LAPIC_LVT_TIMER = 0x320,
    LAPIC_LVT_LINT0 = 0x350,
    LAPIC_TIMER_COUNT = 0x380,
    LAPIC_TIMER_DIVIDE = 0x3E0,
};

static volatile uint32_t *lapic(enum lapic reg)
{
    return (volatile uint32_t *)(0xFEE00000UL + reg);
}

/* Turn the local APIC on and let the PICs' interrupts through it; in this order, for an APIC that
 * is off masks whatever is written to its local vector table. */
static void lapic_enable(void)
{
    *lapic(LAPIC_SPURIOUS) = 1 << 8 | 0xff;
    *lapic(LAPIC_LVT_LINT0) = 0x700; /* ExtINT: LINT0 is where the PICs are wired to */
}

#endif

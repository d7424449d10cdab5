/* The probes of `pykvm doctor`: each a few instructions that work on a complete KVM, and an answer.
 *
 * Not a guest to boot: pykvm/doctor/guest.py loads it at 0x1000 (pykvm/layout.py), finds the probes in the table
 * at its front, and starts a CPU at one of them, in the mode it is written for. A probe ends by
 * answering (`answer`). An exception that no probe expects answers too, so that an instruction
 * that is refused has a name. What does not answer at all is the doctor's to notice.
 *
 *     probe.S           the table, how to answer
 *     tables.inc        GDT, TSS, IDT; exceptions; going down to ring 3
 *     modes.inc         real mode, protected mode, long mode and paging, ring 3, SYSCALL
 *     instructions.inc  what kernels use in ring 0 and an emulator may not know
 *     events.inc        interrupts, a second CPU, port and memory accesses
 *     debug.inc         code to set breakpoints on, loops to measure
 *
 * All of it is linked below 64 KiB: real mode reaches it, and 16 bits of an address are enough in
 * a descriptor.
 */
#include "ports.h"

/* Answers; pykvm/doctor/guest.py has the same table. */
#define YES         1
#define WRONG       2      /* the instruction gave a wrong result */
#define NOT_RING0   3      /* this code should run in ring 0 and does not */
#define NOT_RING3   4      /* this code should run in ring 3 and does not */
#define EXCEPTION   0x100  /* + vector; RBX error code, RCX RIP, RSI CS, RDI CR2 */
#define INTERRUPT   0x200  /* + vector */

/* What pykvm gives a CPU to start with (pykvm/x86.py, pykvm/layout.py). */
#define BOOT_CS     0x10
#define BOOT_DS     0x18
#define PAGE_TABLES 0x9000 /* PML4, PDPT, page directories; the first 4 GiB in 2 MiB pages */
#define MMIO_HOLE   0xC0000000
#define LAPIC       0xFEE00000

/* The table is subsection 0 of .text, the code subsection 1: the one comes before the other. */
.macro  NAME name
        .text   0
        .quad   \name
100:    .ascii  "\name"
        .skip   24 - (. - 100b)
        .text   1
\name:
.endm

/* A probe in 64-bit code, unless .code16 or .code32 follows. */
.macro  PROBE name
        .balign 16
        NAME    \name
        .code64
.endm

        .text   1
        .globl  _start
_start:
        .code64
yes:    mov     $YES, %eax
answer:                                 /* EAX; never returns */
        mov     $PORT_EXIT_CODE, %edx
        out     %eax, %dx
halt:   hlt
        jmp     halt

/* Yes if the zero flag is set. */
verdict:
        je      yes
wrong:  mov     $WRONG, %eax
        jmp     answer

#include "tables.inc"
#include "modes.inc"
#include "instructions.inc"
#include "events.inc"
#include "debug.inc"

        .text   0
        .quad   0                       /* the table ends here */

        .section .note.GNU-stack, "", @progbits

/* From real mode into protected mode and on into long mode, by the guest itself.
 *
 *     pykvm boot pykvm/guests/modes --mode real
 *
 * Each mode writes one letter to the serial port: R, P, L. The order of the steps is the manual's
 * (Intel SDM vol. 3A §9.9.1 Switching to Protected Mode, §9.8.5 Initializing IA-32e Mode). The
 * verdict is EFER.LMA, "long mode active", which only the processor can set.
 */
#include "ports.h"

        .set    CODE_32, 0x08           /* selectors: offsets in the table `gdt` below */
        .set    CODE_64, 0x10
        .set    DATA, 0x18
        .set    PML4, 0x1000            /* three page tables, a page each */
        .set    PDPT, 0x2000
        .set    PD, 0x3000
        .set    PRESENT_WRITABLE, 0x03
        .set    LARGE, 0x80             /* the entry maps 2 MiB, no table below */
        .set    MSR_EFER, 0xC0000080

        .macro  letter character
        mov     $PORT_COM1, %dx
        mov     $\character, %al
        out     %al, %dx
        .endm

        .code16
        .globl  _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        letter  'R'
        lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $1, %al                 /* CR0.PE */
        mov     %eax, %cr0
        ljmpl   $CODE_32, $protected    /* CS changes by a far jump only */

        .code32
protected:
        mov     $DATA, %ax
        mov     %ax, %ds
        letter  'P'
        movl    $PDPT + PRESENT_WRITABLE, PML4      /* the first entry of each table: */
        movl    $PD + PRESENT_WRITABLE, PDPT        /* memory below 2 MiB, mapped to itself */
        movl    $0 + PRESENT_WRITABLE + LARGE, PD
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $1 << 5, %eax           /* CR4.PAE: entries of 8 bytes */
        mov     %eax, %cr4
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $1 << 8, %eax           /* EFER.LME: long mode is wanted */
        wrmsr
        mov     %cr0, %eax
        or      $1 << 31, %eax          /* CR0.PG: paging on, and long mode with it */
        mov     %eax, %cr0
        ljmp    $CODE_64, $long

        .code64
long:
        letter  'L'
        letter  '\n'
        mov     $MSR_EFER, %ecx
        rdmsr
        not     %eax
        shr     $10, %eax               /* EFER.LMA, turned over: 0 is good */
        and     $1, %eax
        mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx
halt:   hlt
        jmp     halt

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9A000000FFFF      /* CODE_32: base 0, 4 GiB, execute/read */
        .quad   0x00AF9A000000FFFF      /* CODE_64: the same with L set, D clear */
        .quad   0x00CF92000000FFFF      /* DATA: read/write */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .note.GNU-stack, "", @progbits

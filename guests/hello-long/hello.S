/* Long mode: 64-bit registers, and every address goes through page tables.
 *
 *     pykvm boot pykvm/guests/hello-long --mode long
 *
 * pykvm has built the tables (the first 4 GiB mapped to themselves), pointed CR3 at them and set
 * CR4.PAE, EFER.LME and CR0.PG, in this order, as the manual wants it (Intel SDM vol. 3A §9.8.5
 * Initializing IA-32e Mode). The verdict: EFER.LMA, "long mode active", which the processor sets
 * itself, reads as 1, and a register holds 64 bits.
 */
#include "ports.h"

        .set    MSR_EFER, 0xC0000080
        .set    EFER_LMA, 10

        .code64
        .globl  _start
_start:
        lea     message(%rip), %rsi
        mov     $message_end - message, %ecx
        mov     $PORT_COM1, %dx
        cld
        rep outsb

        mov     $MSR_EFER, %ecx
        rdmsr                           /* EDX:EAX */
        shr     $EFER_LMA, %eax
        and     $1, %eax
        shl     $40, %rax               /* a bit that 32-bit registers do not have */
        shr     $40, %rax
        xor     $1, %eax                /* 0 if both were true */

        mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx
halt:   hlt
        jmp     halt

message:
        .ascii  "hello from long mode\n"
message_end:

        .section .note.GNU-stack, "", @progbits

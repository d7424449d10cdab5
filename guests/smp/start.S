/* Where a second CPU begins: in real mode, at the page that the SIPI names. This code is copied
 * there; CS is that page. */
#include "start64.S"

        .section .rodata
        .globl  trampoline, trampoline_end, trampoline_counter
        .code16
trampoline:
        lock incw %cs:counter - trampoline      /* several may be here at the same time */
parked: cli
        hlt
        jmp     parked
        .balign 2
counter:
        .word   0
trampoline_end:

trampoline_counter:
        .long   counter - trampoline

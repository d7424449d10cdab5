/* What a second CPU does here: it counts, in real mode, at the page that the SIPI names. */
#include "start64.S"

        .section .rodata
        .globl  trampoline, trampoline_end, trampoline_counter
        .code16
trampoline:
1:      lock incl %cs:counter - trampoline      /* several may be here at the same time */
        jmp     1b
        .balign 4
counter:
        .long   0
trampoline_end:

trampoline_counter:
        .long   counter - trampoline

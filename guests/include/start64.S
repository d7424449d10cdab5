/* How the 64-bit guests in C begin: as Linux does, in long mode with RSI = boot_params, the first
 * 4 GiB mapped to themselves (Linux Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL").
 * Then a stack, main(boot_params), its result to the host.
 */
#include "ports.h"

        .text
        .globl  _start
_start:
        mov     $stack_end, %esp
        mov     %rsi, %rdi
        call    main
        mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx                /* the machine ends here */
halt:   cli
        hlt
        jmp     halt

        .bss
        .balign 16
        .skip   8192
stack_end:

        .section .note.GNU-stack, "", @progbits

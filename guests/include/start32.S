/* How the 32-bit guests in C begin: a stack, main(eax, ebx), its result to the host.
 *
 * Included by a guest's start.S, after what its boot protocol wants to find in the image.
 */
#include "ports.h"

        .text
        .globl  _start
_start:
        mov     $stack_end, %esp
        push    %ebx
        push    %eax
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

/* Reboots the machine by the reset control register of a PC's chipset.
 *
 *     pykvm boot pykvm/guests/reset --mode protected
 */
#include "ports.h"

        .code32
        .globl  _start
_start:
        mov     $PORT_RESET, %dx
        mov     $0x02, %al              /* bit 1: a hard reset, when asked for */
        out     %al, %dx
        mov     $0x06, %al              /* bit 2: asked for */
        out     %al, %dx
halt:   hlt
        jmp     halt

        .section .note.GNU-stack, "", @progbits

/* Real mode: the processor as it was in 1978, and as every x86 still wakes up.
 *
 *     pykvm boot pykvm/guests/hello-real --mode real
 *
 * 16-bit registers; an address is segment * 16 + offset; no protection of anything. Devices are
 * reached by IN and OUT, through a second address space of 64 Ki ports. Every OUT below leaves
 * the guest: KVM hands the port and the byte to pykvm, which plays the device.
 */
#include "ports.h"

        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds                /* DS:SI with DS = 0: the addresses below are physical */
        mov     $message, %si
        mov     $message_end - message, %cx
        mov     $PORT_COM1, %dx
        cld
        rep outsb                       /* CX bytes from DS:SI, one by one, to the serial port */

        mov     $PORT_EXIT_CODE, %dx
        mov     $0, %al                 /* the verdict: all is well */
        out     %al, %dx
halt:   hlt
        jmp     halt

message:
        .ascii  "hello from real mode\n"
message_end:

        .section .note.GNU-stack, "", @progbits

/* Protected mode: 32-bit registers, segments described by a table, paging still off.
 *
 *     pykvm boot pykvm/guests/hello-protected --mode protected
 *
 * pykvm has set CR0.PE and loaded segments that start at 0 and reach to 4 GiB, so an address is
 * just an address. The verdict is earned by things real mode cannot do: CR0.PE reads as 1, and
 * a byte above 1 MiB + 64 KiB (out of reach for segment * 16 + offset) can be written and read.
 */
#include "ports.h"

        .set    HIGH, 0x00200000        /* 2 MiB */

        .code32
        .globl  _start
_start:
        mov     $message, %esi
        mov     $message_end - message, %ecx
        mov     $PORT_COM1, %dx
        cld
        rep outsb

        mov     %cr0, %eax
        and     $1, %eax                /* CR0.PE: protection enabled */
        mov     %eax, HIGH
        mov     HIGH, %eax
        xor     $1, %eax                /* 0 if both were true */

        mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx
halt:   hlt
        jmp     halt

message:
        .ascii  "hello from protected mode\n"
message_end:

        .section .note.GNU-stack, "", @progbits

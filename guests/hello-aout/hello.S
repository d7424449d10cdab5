/* Multiboot 1 without ELF: the "a.out kludge". The header itself says what goes where.
 *
 *     pykvm boot pykvm/guests/hello-aout
 *
 * Bit 16 of the flags announces five addresses (Multiboot Specification 0.6.96, §3.1.3 The address
 * fields of Multiboot header). The verdict: the magic is right, and the loader cleared our .bss.
 */
#include "ports.h"

        .set    FLAGS, 1 << 16

        .code32
        .globl  _start
header: .long   0x1BADB002
        .long   FLAGS
        .long   -(0x1BADB002 + FLAGS)
        .long   header                  /* where this header belongs: gives all of the file a place */
        .long   header                  /* load from here ... */
        .long   load_end                /* ... to here, */
        .long   bss_end                 /* zero to here, */
        .long   _start                  /* and start here. */

_start:
        mov     %eax, %ebx
        mov     $message, %esi
        mov     $message_end - message, %ecx
        mov     $PORT_COM1, %dx
        cld
        rep outsb

        mov     $1, %al
        cmp     $0x2BADB002, %ebx
        jne     leave
        cmpl    $0, load_end
        jne     leave
        cmpl    $0, bss_end - 4
        jne     leave
        mov     $0, %al
leave:  mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx
halt:   cli
        hlt
        jmp     halt

message:
        .ascii  "hello from a.out\n"
message_end:
        .balign 4
load_end:
        .set    bss_end, load_end + 4096

        .section .note.GNU-stack, "", @progbits

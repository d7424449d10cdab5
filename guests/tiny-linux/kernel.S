/* The smallest "Linux": a boot header that loaders know, and sixty-four bits of code behind it.
 *
 *     pykvm boot pykvm/guests/tiny-linux --append 'hello from the command line'
 *
 * A bzImage is a real-mode part of some sectors, with the setup header in it, and behind that the
 * kernel. Its 64-bit entry is 0x200 bytes into the kernel; RSI is the address of boot_params
 * (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", "64-bit BOOT PROTOCOL").
 * This one prints its command line and leaves.
 */
#include "ports.h"

        .set    CMD_LINE_PTR, 0x228     /* in boot_params, as in the header */

        .code64
        .globl  _start
_start:                                 /* the real-mode part: boot sector and one setup sector */
        .org    0x1f1
        .byte   1                       /* setup_sects, beside the boot sector */
        .org    0x1f4
        .long   (end - kernel + 15) / 16        /* syssize, in paragraphs */
        .org    0x1fe
        .word   0xAA55                  /* boot_flag */
        .org    0x200
        .byte   0xeb, 0x66              /* a short jump, to the end of the header */
        .ascii  "HdrS"
        .word   0x020c                  /* version 2.12: the first with a 64-bit entry */
        .org    0x20e
        .word   version - _start - 0x200
        .org    0x211
        .byte   1                       /* loadflags: LOADED_HIGH */
        .org    0x214
        .long   0x100000                /* code32_start */
        .org    0x22c
        .long   0x7fffffff              /* initrd_addr_max */
        .long   0x200000                /* kernel_alignment */
        .byte   1                       /* relocatable_kernel */
        .byte   21                      /* min_alignment */
        .word   1                       /* xloadflags: XLF_KERNEL_64 */
        .long   255                     /* cmdline_size */
        .org    0x258
        .quad   0x100000                /* pref_address */
        .long   0x10000                 /* init_size */
        .org    0x268
version:
        .asciz  "0.1 (by hand) #1"
        .org    0x400
kernel:
        .org    0x600                   /* the 64-bit entry */
        mov     CMD_LINE_PTR(%rsi), %esi
        mov     $PORT_COM1, %dx
        cld
1:      lodsb
        test    %al, %al
        jz      2f
        out     %al, %dx
        jmp     1b
2:      mov     $'\n', %al
        out     %al, %dx
        mov     $PORT_EXIT_CODE, %dx
        xor     %eax, %eax
        out     %al, %dx
halt:   hlt
        jmp     halt
        .org    0x1000
end:

        .section .note.GNU-stack, "", @progbits

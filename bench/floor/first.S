/* The smallest guest: its first instructions say that they ran, the next ones end the machine.
 *
 * bench/start.py compiles it three ways: a flat binary for the floor; with -DPVH an ELF kernel that
 * pykvm and QEMU both boot; with -DFIRMWARE a ROM, which QEMU starts in place of its own. */
        .set    COM1, 0x3F8
        .set    DEBUG_EXIT, 0xF4

#ifdef FIRMWARE
        .code16
#else
        .code32
#endif
#ifdef PVH
        .section .note.Xen, "a", @note  /* XEN_ELFNOTE_PHYS32_ENTRY, as in guests/hello-pvh */
        .balign 4
        .long   4, 4, 18
        .asciz  "Xen"
        .long   _start
#endif
        .text
        .globl  _start
_start: mov     $COM1, %dx
        mov     $'!', %al
        out     %al, %dx
        mov     $DEBUG_EXIT, %dx
        out     %al, %dx
1:      hlt
        jmp     1b

#ifdef FIRMWARE
        .org    0xFFF0                  /* the processor's first instruction after reset */
        .byte   0xE9                    /* jmp, 16-bit displacement */
        .word   _start - (. + 2)
        .org    0x10000
#endif
        .section .note.GNU-stack, "", @progbits

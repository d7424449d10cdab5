/* A guest that says when it goes on elsewhere: it writes '?', asks for a snapshot, and reads the
 * same port until that says 1, as it does in a restored guest (docs/snapshots.md; bench/snapshot.py
 * has QEMU's answer so, too). Then it writes '!' and leaves. An ELF kernel, entered by PVH. */
        .set    COM1, 0x3F8
        .set    SNAPSHOT, 0x5F9
        .set    DEBUG_EXIT, 0xF4

        .code32
        .section .note.Xen, "a", @note  /* XEN_ELFNOTE_PHYS32_ENTRY, as in guests/hello-pvh */
        .balign 4
        .long   4, 4, 18
        .asciz  "Xen"
        .long   _start
        .text
        .globl  _start
_start: mov     $COM1, %dx
        mov     $'?', %al
        out     %al, %dx
        mov     $SNAPSHOT, %dx
        out     %al, %dx
1:      in      %dx, %al
        cmp     $1, %al
        jne     1b
        mov     $COM1, %dx
        mov     $'!', %al
        out     %al, %dx
        mov     $DEBUG_EXIT, %dx
        out     %al, %dx
2:      hlt
        jmp     2b
        .section .note.GNU-stack, "", @progbits

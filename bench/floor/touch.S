/* Laps that write to PAGES pages, one word each, with a write to MARK after each lap. A flat binary
 * for 32-bit protected mode; bench/snapshot.py compiles it. */
        .set    MARK, 0x540
        .set    FIRST, 0x200000

        .code32
        .globl  _start
_start: mov     $PAGES, %ecx
        mov     $FIRST, %edi
1:      incl    (%edi)
        add     $4096, %edi
        dec     %ecx
        jnz     1b
        mov     $MARK, %edx
        out     %al, %dx
        jmp     _start

        .section .note.GNU-stack, "", @progbits

/* Laps of COUNT exits, a write to MARK before each; bench/exits.py compiles one for each kind:
 * -DCOUNT=200 -DACCESS="out %al, %dx" -DADDRESS=0x80. A flat binary for 32-bit protected mode. */
        .set    MARK, 0x540

        .code32
        .globl  _start
_start: mov     $MARK, %edx
        out     %al, %dx
        mov     $COUNT, %ecx
        mov     $ADDRESS, %edx
1:      ACCESS
        dec     %ecx
        jnz     1b
        jmp     _start

        .section .note.GNU-stack, "", @progbits

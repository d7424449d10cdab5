/* Code for the debugger to stop in, and loops for the clock. */

PROBE   steps
        nop
        nop
NAME    breakpoint
        nop
        movl    $1, watched
NAME    behind_write
        jmp     yes
        .balign 4                               /* as DR7 wants it for 4 bytes */
NAME    watched
        .long   0

PROBE   steps_in_ring3
        call    set_up
        ENTER_RING3 user_steps
NAME    user_steps
        nop
        nop
NAME    user_breakpoint
        nop
        jmp     user_yes

/* INT3 that the debugger, not the guest, should get. */
PROBE   software_breakpoint
        call    set_up
NAME    int3_of_debugger
        int3
        jmp     wrong

/* Two instructions, RCX times; a write to port 0x80 begins. */
PROBE   loop_in_ring0
        out     %al, $PORT_POST
1:      dec     %rcx
        jnz     1b
        jmp     yes
PROBE   loop_in_ring3
        call    set_up
        out     %al, $PORT_POST
        ENTER_RING3 user_loop
user_loop:
        dec     %rcx
        jnz     user_loop
        jmp     user_yes

/* RCX times 256 exits, by reading port EDX; a write to port 0x80 begins each round. */
PROBE   exits
        out     %al, $PORT_POST
        mov     $16, %ebx
1:      .rept   16
        in      %dx, %al
        .endr
        dec     %ebx
        jnz     1b
        dec     %rcx
        jnz     exits
        out     %al, $PORT_POST
        jmp     yes

/* For ever. */
PROBE   spin
        jmp     spin
PROBE   spin_in_ring3
        call    set_up
        ENTER_RING3 user_spin
user_spin:
        jmp     user_spin

/* Asleep with interrupts off: nothing but an NMI could wake it, and none comes.
 *
 *     pykvm boot pykvm/guests/hang --mode real --timeout 1
 */
        .code16
        .globl  _start
_start:
        cli
halt:   hlt
        jmp     halt

        .section .note.GNU-stack, "", @progbits

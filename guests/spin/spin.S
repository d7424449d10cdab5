/* Busy with nothing, for ever: the guest never exits, so only a kick from outside ends it.
 *
 *     pykvm boot pykvm/guests/spin --mode long --timeout 1
 */
        .code64
        .globl  _start
_start:
        jmp     _start

        .section .note.GNU-stack, "", @progbits

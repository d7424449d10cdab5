/* A triple fault: an exception whose handler faults, whose handler faults. The processor gives up
 * and shuts down; a PC resets itself then, pykvm ends the run and says where it happened.
 *
 *     pykvm boot pykvm/guests/triplefault --mode protected
 */
        .code32
        .globl  _start
_start:
        lidt    empty                   /* no vector has a handler, double fault included */
        ud2

empty:  .word   0                       /* limit */
        .long   0                       /* base */

        .section .note.GNU-stack, "", @progbits

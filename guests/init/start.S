/* Where the kernel enters init: the stack holds argc, argv[], NULL, envp[], NULL
 * (System V ABI, AMD64 supplement, 3.4.1 Initial Stack and Register State). */
        .globl  _start
_start:
        xor     %ebp, %ebp              /* the outermost frame, for debuggers */
        mov     %rsp, %rdi
        and     $-16, %rsp
        call    init                    /* void init(long *stack); never returns */
        ud2

        .section .note.GNU-stack, "", @progbits

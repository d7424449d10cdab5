/* Instructions that kernels use in ring 0. A KVM that emulates ring 0 may lack some of them. */

        .set    CR4_OSFXSR, 1 << 9
        .set    CR4_FSGSBASE, 1 << 16
        .set    CR4_OSXSAVE, 1 << 18

.macro  SET_CR4 bits
        mov     %cr4, %rax
        or      $\bits, %rax
        mov     %rax, %cr4
.endm

/* Exceptions 3 and 6 are the right answers to these two: Linux patches itself behind the one
 * and warns through the other. */
PROBE   int3
        call    set_up
        int3
        jmp     wrong
PROBE   ud2
        call    set_up
        ud2
        jmp     wrong

/* A write to a page that is not there: error code 2 (write, not present) and CR2 say so. */
PROBE   page_fault
        call    set_up
        movabs  $0x100000008, %rax              /* 4 GiB: the map ends there */
        movb    $1, (%rax)
        jmp     wrong

PROBE   popcnt
        call    set_up
        mov     $0x0F0F, %eax
        popcnt  %eax, %eax
        cmp     $8, %eax
        jmp     verdict

PROBE   cmpxchg16b
        call    set_up
        xor     %eax, %eax
        xor     %edx, %edx
        mov     $1, %ebx
        mov     $2, %ecx
        movq    $0, pair
        movq    $0, pair + 8
        lock cmpxchg16b pair
        jne     wrong
        cmpq    $2, pair + 8
        jmp     verdict

PROBE   clac
        call    set_up
        clac
        jmp     yes
PROBE   stac
        call    set_up
        stac
        jmp     yes

PROBE   fwait
        call    set_up
        fwait
        jmp     yes

PROBE   ldmxcsr
        call    set_up
        SET_CR4 CR4_OSFXSR
        movl    $0x1F80, pair
        ldmxcsr pair
        jmp     yes

/* XCR0 (XSETBV) first: x87 and SSE state. */
.macro  SET_UP_XSAVE
        SET_CR4 CR4_OSFXSR | CR4_OSXSAVE
        xor     %ecx, %ecx
        xor     %edx, %edx
        mov     $3, %eax
        xsetbv
.endm
PROBE   xsetbv
        call    set_up
        SET_UP_XSAVE
        jmp     yes
PROBE   xsave
        call    set_up
        SET_UP_XSAVE
        movl    $0, xsave_area + 24
        xsave   xsave_area
        cmpl    $0x1F80, xsave_area + 24        /* MXCSR at power-on */
        jmp     verdict
PROBE   xrstor
        call    set_up
        SET_UP_XSAVE
        movl    $0x1F80, xsave_area + 24
        movq    $0, xsave_area + 512            /* XSTATE_BV: all as at power-on */
        movq    $0, xsave_area + 520            /* XCOMP_BV: not compacted */
        xrstor  xsave_area
        jmp     yes

PROBE   rdfsbase
        call    set_up
        SET_CR4 CR4_FSGSBASE
        mov     $0x12345, %ebx
        wrfsbase %rbx
        rdfsbase %rax
        cmp     %rbx, %rax
        jmp     verdict

PROBE   swapgs
        call    set_up
        mov     $0xC0000102, %ecx               /* IA32_KERNEL_GS_BASE */
        mov     $0x12345, %eax
        xor     %edx, %edx
        wrmsr
        swapgs
        mov     $0xC0000101, %ecx               /* IA32_GS_BASE */
        rdmsr
        cmp     $0x12345, %eax
        jmp     verdict

PROBE   invpcid
        call    set_up
        movq    $0, pair
        movq    $0, pair + 8
        mov     $2, %eax                        /* all contexts */
        invpcid pair, %rax
        jmp     yes

        .balign 64
pair:   .quad   0, 0
        .balign 64
xsave_area:
        .skip   576

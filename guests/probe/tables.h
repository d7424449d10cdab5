/* What long mode wants before it takes an exception or goes to ring 3.
 *
 * Source: Intel SDM vol. 3A §3.4.5 Segment Descriptors, §6.14.1 64-Bit Mode IDT, §7.7 Task
 * Management in 64-bit Mode.
 */

#define USER_BASE 0x20                  /* SYSRET: SS is 8, CS 16 behind it */
#define USER_SS   (0x28 | 3)
#define USER_CS   (0x30 | 3)
#define TSS       0x38

        .balign 16
gdt:    .quad   0
        .quad   0
        .quad   0x00AF9B000000FFFF      /* BOOT_CS: 64-bit code */
        .quad   0x00CF93000000FFFF      /* BOOT_DS */
        .quad   0                       /* USER_BASE: SYSRET to 32-bit code would use it */
        .quad   0x00CFF3000000FFFF      /* USER_SS: data, DPL 3 */
        .quad   0x00AFFB000000FFFF      /* USER_CS: 64-bit code, DPL 3 */
        .word   103, tss, 0x8900, 0     /* TSS: limit, base, present; an entry twice as long */
        .quad   0
gdt_end:

        .balign 16
tss:    .long   0
        .quad   stack_from_user         /* RSP0 */
        .skip   92
        .skip   512
stack_from_user:
        .skip   512
user_stack:

.macro  GATE handler, dpl=0
        .word   \handler, BOOT_CS, 0x8E00 | \dpl << 13, 0       /* interrupt gate */
        .quad   0
.endm

        .balign 16
idt:    .set    vector, 0
        .rept   32
        GATE    "exceptions + 16 * vector"
        .set    vector, vector + 1
        .endr
        .rept   16
        GATE    "interrupts + 16 * (vector - 32)"
        .set    vector, vector + 1
        .endr
        .skip   16 * (0x40 - 48)
        GATE    lapic_handler           /* 0x40 */
        .skip   16 * (0x80 - 0x41)
        GATE    system_call, 3          /* 0x80: ring 3 may ask for it */
idt_end:

gdtr:   .word   gdt_end - gdt - 1
        .quad   gdt
idtr:   .word   idt_end - idt - 1
        .quad   idt

/* Load them, and open the first GiB to ring 3: every level of the tables has a say. */
set_up:
        lgdt    gdtr
        lidt    idtr
        mov     $TSS, %eax
        ltr     %ax
        orb     $4, PAGE_TABLES                 /* PML4[0] */
        orb     $4, PAGE_TABLES + 0x1000        /* PDPT[0] */
        orb     $4, PAGE_TABLES + 0x2000        /* the first 2 MiB, where all of this is */
        mov     %cr3, %rax
        mov     %rax, %cr3
        ret

/* 16 bytes each: the vector, below it an error code. Some exceptions bring one, others need a zero
 * (Intel SDM vol. 3A §6.13 Error Code). */
        .balign 16
exceptions:
        .set    vector, 0
        .rept   32
        .balign 16
        .ifeq   0x60227D00 >> vector & 1
        push    $0
        .endif
        push    $vector
        jmp     exception
        .set    vector, vector + 1
        .endr

/* Ring 3 answers by an invalid instruction at user_done: unlike INT, no KVM is without #UD. Any
 * other exception is the answer itself. */
exception:
        cmpq    $user_done, 16(%rsp)
        je      from_user
        pop     %rax
        pop     %rbx
        mov     (%rsp), %rcx
        mov     8(%rsp), %rsi
        mov     %cr2, %rdi
        or      $EXCEPTION, %eax
        jmp     answer
from_user:
        testb   $3, 24(%rsp)                    /* CS */
        jnz     answer                          /* EAX, as ring 3 left it */
        mov     $NOT_RING3, %eax
        jmp     answer

user_done:
        ud2

/* Go to ring 3, interrupts on, as every operating system does (an interrupt's frame, undone). */
.macro  ENTER_RING3 label
        pushq   $USER_SS
        pushq   $user_stack
        pushq   $0x202
        pushq   $USER_CS
        pushq   $\label
        iretq
.endm

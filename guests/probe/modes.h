/* The processor's modes and rings: whether the code runs, and in the mode it should. */

/* 16-bit code, and a segment that is an address divided by 16. */
PROBE   real_mode
        .code16
        mov     $real_mode_data, %bx
        mov     $1, %ax
        mov     %ax, %ds
        cmpw    $0x5A5A, -16(%bx)
        jne     1f
        mov     %cr0, %eax
        test    $1, %al                         /* PE: protected mode */
        jnz     1f
        mov     $YES, %eax
        jmp     2f
1:      mov     $WRONG, %eax
2:      mov     $PORT_EXIT_CODE, %dx
        out     %eax, %dx
3:      hlt
        jmp     3b
real_mode_data:
        .word   0x5A5A

/* 32-bit code; no paging. */
PROBE   protected_mode
        .code32
        mov     $0x12345678, %ecx
        mov     %cr0, %eax
        and     $0x80000001, %eax               /* PG, PE */
        cmp     $1, %eax
        jne     1f
        cmp     $0x12345678, %ecx               /* 16-bit code would have read other bytes */
        jne     1f
        mov     $YES, %eax
        jmp     2f
1:      mov     $WRONG, %eax
2:      mov     $PORT_EXIT_CODE, %edx
        out     %eax, %dx
3:      hlt
        jmp     3b

/* 64-bit registers, and a second view of the first 2 MiB at 1 GiB through a changed page table. */
PROBE   long_mode
        movabs  $0x123456789ABCDEF0, %rax
        mov     %rax, magic
        movq    $0x83, PAGE_TABLES + 0x3000     /* PDPT[1] leads to the second directory */
        mov     $0x40000000, %ecx
        invlpg  (%rcx)
        cmp     %rax, magic(%rcx)
        jmp     verdict
        .balign 8
magic:  .quad   0

/* Down by IRETQ, up by an exception: exception: sees which ring it came from. */
PROBE   ring3
        call    set_up
        ENTER_RING3 user_yes
user_yes:
        mov     $YES, %eax
        jmp     user_done

/* A gate that ring 3 may use, as 32-bit programs do. */
PROBE   int80
        call    set_up
        ENTER_RING3 user_int80
user_int80:
        int     $0x80
system_call:
        testb   $3, 8(%rsp)
        jnz     yes
        mov     $NOT_RING3, %eax
        jmp     answer

/* AMD64 APM vol. 2 §6.1.1 SYSCALL and SYSRET Instructions. */
        .set    MSR_EFER, 0xC0000080            /* bit 0: SCE */
        .set    MSR_STAR, 0xC0000081            /* segments: 63:48 SYSRET, 47:32 SYSCALL */
        .set    MSR_LSTAR, 0xC0000082           /* RIP of SYSCALL */
        .set    MSR_FMASK, 0xC0000084           /* flags that SYSCALL clears */
set_up_syscall:
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $1, %eax
        wrmsr
        mov     $MSR_STAR, %ecx
        xor     %eax, %eax
        mov     $(USER_BASE | 3) << 16 | BOOT_CS, %edx
        wrmsr
        mov     $MSR_LSTAR, %ecx
        mov     $syscall_entry, %eax
        xor     %edx, %edx
        wrmsr
        mov     $MSR_FMASK, %ecx
        mov     $0x200, %eax
        wrmsr
        ret

/* Every 64-bit system call of Linux. In ring 0 it must be able to do what only ring 0 may. */
PROBE   syscall_enters_ring0
        call    set_up
        call    set_up_syscall
        ENTER_RING3 user_syscall
user_syscall:
        syscall
        ud2
syscall_entry:
        mov     %cs, %eax
        test    $3, %al
        jnz     1f
        mov     %cr0, %rax
        jmp     yes
1:      mov     $NOT_RING0, %eax                /* and answer as ring 3 has to */
        jmp     user_done

PROBE   sysret_enters_ring3
        call    set_up
        call    set_up_syscall
        mov     $user_after_sysret, %ecx        /* RIP */
        mov     $0x202, %r11d                   /* RFLAGS */
        mov     $user_stack, %esp
        sysretq
user_after_sysret:
        mov     %cs, %ecx
        cmp     $USER_CS, %ecx
        mov     $WRONG, %eax
        mov     $YES, %ecx
        cmove   %ecx, %eax
        jmp     user_done

/* CPUID of leaf EDI, subleaf ESI: R8 to R11 take EAX to EDX. */
PROBE   cpuid_ring0
        mov     %edi, %eax
        mov     %esi, %ecx
        cpuid
        mov     %eax, %r8d
        mov     %ebx, %r9d
        mov     %ecx, %r10d
        mov     %edx, %r11d
        jmp     yes

PROBE   cpuid_ring3
        call    set_up
        ENTER_RING3 user_cpuid
user_cpuid:
        mov     %edi, %eax
        mov     %esi, %ecx
        cpuid
        mov     %eax, %r8d
        mov     %ebx, %r9d
        mov     %ecx, %r10d
        mov     %edx, %r11d
        jmp     user_yes

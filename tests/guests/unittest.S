/* A multiboot guest of the kind that test suites of hypervisors are made of, kvm-unit-tests first:
 * 64-bit code in an ELF32 image, linked at 4 MiB, that brings itself and the other CPUs to long
 * mode. APs begin at page 0. unittest.c has main(). */
        .section .init, "ax"
        .code32
        .balign 4
        .long   0x1BADB002, 0, -0x1BADB002      /* no flags: no promises about modules */

        .globl  start
start:  mov     %ebx, boot_info
        mov     $stacks_end, %esp
        call    to_long_mode
        ljmp    $8, $start64

to_long_mode:
        lgdt    gdt_descriptor
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %cr4, %eax
        bts     $5, %eax                        /* PAE */
        mov     %eax, %cr4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx               /* EFER */
        rdmsr
        bts     $8, %eax                        /* LME */
        wrmsr
        mov     %cr0, %eax
        bts     $0, %eax
        bts     $31, %eax
        mov     %eax, %cr0
        ret

        .code16
        .globl  sipi, sipi_end, boot_info, cpus_online
sipi:   mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        lgdtl   gdt32_descriptor - sipi
        ljmpl   $0x18, $start_ap
gdt32_descriptor:
        .word   gdt_end - gdt - 1
        .long   gdt
sipi_end:

        .code32
start_ap:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %ss
        mov     $-4096, %esp
        lock xadd %esp, next_stack
        call    to_long_mode
        ljmp    $8, $ap64

        .code64
ap64:   lock incw cpus_online
1:      hlt
        jmp     1b

start64:
        mov     boot_info, %edi
        call    main
        mov     $0xF4, %dx
        out     %eax, %dx                       /* 32 bits wide */
1:      hlt
        jmp     1b

        .data
        .balign 4096
pml4:   .quad   pdpt + 7
        .fill   511, 8, 0
pdpt:   i = 0
        .rept   4
        .quad   directories + i * 4096 + 7
        i = i + 1
        .endr
        .fill   508, 8, 0
directories:
        i = 0
        .rept   512 * 4
        .quad   0x1E7 | i << 21
        i = i + 1
        .endr
gdt:    .quad   0
        .quad   0x00AF9B000000FFFF              /* 64-bit code */
        .quad   0x00CF93000000FFFF              /* data */
        .quad   0x00CF9B000000FFFF              /* 32-bit code */
gdt_end:
gdt_descriptor:
        .word   gdt_end - gdt - 1
        .quad   gdt
next_stack:
        .long   stacks_end - 4096
boot_info:
        .quad   0
cpus_online:
        .word   1

        .bss
        .balign 4096
        .skip   4096 * 16
stacks_end:
        .section .note.GNU-stack, "", @progbits

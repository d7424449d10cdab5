/* A boot sector, as PCs have started from since 1981: 512 bytes at 0:7c00 that call the BIOS.
 *
 *     pykvm boot pykvm/guests/boot-sector --mode real       (and press a key)
 *
 * A service is called by INT: the vector leads into a ROM, whose stub leaves the registers on this
 * program's stack and writes to a port. pykvm/devices/bios.py answers. The clock's interrupt comes
 * without being asked for: IRQ 0 counts the ticks at 0x46c, 18.2 of them a second.
 */
#include "ports.h"

#define TICKS           0x46c
#define SMAP            0x534d4150

        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        sti                             /* a BIOS may have left interrupts on, or not */
        mov     $hello, %si
        call    print

        /* int 15h, AX=E820h: the memory map, an entry a call, until EBX is 0 again */
        xor     %ebx, %ebx
        xor     %bp, %bp
1:      mov     $0xe820, %eax
        mov     $20, %ecx
        mov     $SMAP, %edx
        mov     $entry, %di
        int     $0x15
        jc      failed
        cmp     $SMAP, %eax
        jne     failed
        inc     %bp
        test    %ebx, %ebx
        jnz     1b
        cmp     $2, %bp                 /* RAM below 640 KiB, RAM above 1 MiB: at the least */
        jb      failed
        mov     $map, %si
        call    print

        /* Asleep until the timer has interrupted once */
        mov     TICKS, %bx
2:      hlt
        cmp     TICKS, %bx
        je      2b
        mov     $tick, %si
        call    print

        /* int 16h, AH=00h: wait for a key; AL is its character */
        mov     $0x00, %ah
        int     $0x16
        mov     %al, key
        mov     $typed, %si
        call    print

        mov     $0, %al
        jmp     leave
failed: mov     $bad, %si
        call    print
        mov     $1, %al
leave:  mov     $PORT_EXIT_CODE, %dx
        out     %al, %dx
        cli
3:      hlt
        jmp     3b

/* int 10h, AH=0Eh: a character to the screen, as a teletype would; DS:SI up to a zero byte */
print:  lodsb
        test    %al, %al
        jz      4f
        mov     $0x0e, %ah
        mov     $0x0007, %bx
        int     $0x10
        jmp     print
4:      ret

hello:  .asciz  "hello from a boot sector\r\n"
map:    .asciz  "the memory map is there\r\n"
tick:   .asciz  "the clock ticks\r\n"
typed:  .ascii  "you typed "
key:    .asciz  "?\r\n"
bad:    .asciz  "FAILED\r\n"
entry:  .skip   20

        .org    510
        .word   0xaa55                  /* how a BIOS knows a boot sector */

        .section .note.GNU-stack, "", @progbits

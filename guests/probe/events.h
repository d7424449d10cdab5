/* What comes from outside the CPU: interrupts, other CPUs, the answers of devices. */

#define PIC1        0x20
#define PIC2        0xA0
#define PIT_0       0x40
#define PIT_COMMAND 0x43

#define APIC_EOI      (LAPIC + 0x0B0)
#define APIC_SPURIOUS (LAPIC + 0x0F0)
#define APIC_ICR      (LAPIC + 0x300)
#define APIC_TIMER    (LAPIC + 0x320)
#define APIC_LINT0    (LAPIC + 0x350)
#define APIC_COUNT    (LAPIC + 0x380)
#define APIC_DIVIDE   (LAPIC + 0x3E0)

.macro  PUT_APIC reg, value
        mov     $\reg, %ecx
        movl    $\value, (%rcx)
.endm
.macro  PUT_PORT port, value
        mov     $\value, %al
        out     %al, $\port
.endm

        .balign 16
interrupts:
        .set    vector, 0x20
        .rept   16
        .balign 16
        mov     $INTERRUPT + vector, %eax
        jmp     answer
        .set    vector, vector + 1
        .endr
lapic_handler:
        mov     $INTERRUPT + 0x40, %eax
        jmp     answer

/* Both PICs: IRQ n is vector 0x20 + n; the first one lets through what DIL leaves zero. */
set_up_interrupts:
        call    set_up
        PUT_APIC APIC_SPURIOUS, 0x1FF           /* on */
        PUT_APIC APIC_LINT0, 0x700              /* ExtINT: the PICs' line */
        PUT_PORT PIC1, 0x11
        PUT_PORT PIC1 + 1, 0x20
        PUT_PORT PIC1 + 1, 4
        PUT_PORT PIC1 + 1, 1
        mov     %edi, %eax
        out     %al, $PIC1 + 1
        ret

/* Tell the host by port 0x80, then sleep: an interrupt is the answer. */
PROBE   wait_for_interrupt
        call    set_up_interrupts
ready:  out     %al, $PORT_POST
        sti
        hlt
        jmp     wrong

PROBE   pit_interrupt
        call    set_up_interrupts
        PUT_PORT PIT_COMMAND, 0x30              /* channel 0, mode 0: once */
        PUT_PORT PIT_0, 0x00
        PUT_PORT PIT_0, 0x04                    /* 1024 / 1193182 Hz */
        jmp     ready

PROBE   lapic_interrupt
        call    set_up_interrupts
        PUT_APIC APIC_DIVIDE, 0xB               /* by 1 */
        PUT_APIC APIC_TIMER, 0x40               /* once */
        PUT_APIC APIC_COUNT, 1000000            /* KVM's bus runs at 1 GHz: a millisecond */
        jmp     ready

/* INIT and SIPI to all but this CPU; the other one answers. */
PROBE   second_cpu
        PUT_APIC APIC_SPURIOUS, 0x1FF
        PUT_APIC APIC_ICR, 0xC4500
        mov     $second_cpu_start, %eax
        shr     $12, %eax                       /* SIPI carries the page's number */
        or      $0xC4600, %eax
        mov     %eax, (%rcx)
        cli
        jmp     halt

/* Ports and memory that no device in the kernel has. EBX holds what the host answers to a read. */
PROBE   mmio
        mov     $MMIO_HOLE, %ecx
        mov     (%rcx), %ebx
        lea     1(%rbx), %eax
        mov     %eax, 4(%rcx)
        jmp     yes

PROBE   string_io
        cld
        mov     $PORT_POST, %edx
        mov     $string, %edi
        mov     $4, %ecx
        rep insb
        mov     $string, %esi
        mov     $4, %ecx
        rep outsb
        jmp     yes
string: .skip   4

/* One byte at EDI, which the host watches: memory with a dirty log, or an ioeventfd. */
PROBE   write_memory
        movb    $1, (%rdi)
        jmp     yes
PROBE   write_port
        mov     %edi, %edx
        mov     $1, %al
        out     %al, %dx
        jmp     yes

/* Where the SIPI sends the other one, in real mode: a page of its own. */
        .balign 4096
second_cpu_start:
        .code16
        mov     $YES, %eax
        mov     $PORT_EXIT_CODE, %dx
        out     %eax, %dx
1:      hlt
        jmp     1b
        .code64

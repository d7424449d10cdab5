/* Exceptions: four instructions that cannot be carried out, and the handlers that repair them.
 *
 *     pykvm boot pykvm/guests/exceptions
 *
 * For an exception the processor looks up a gate in the IDT, pushes where it was (`struct frame`)
 * and, for some vectors, an error code, and jumps (Intel SDM vol. 3A §6.12 Exception and Interrupt
 * Handling). A fault points to the instruction that failed, so a handler that changes nothing
 * would meet it again for ever. The verdict: each exception came, once, and the program went on.
 */
#include "interrupts.h"

enum { DIVIDE_ERROR = 0, INVALID_OPCODE = 6, GENERAL_PROTECTION = 13, PAGE_FAULT = 14 };

#define UNMAPPED 0x4000000000UL /* 256 GiB: pykvm has mapped the first 4 only */

static volatile unsigned seen[32];
static volatile uint64_t error_code, fault_address;

/* Step over the failed instruction; each of those below has two bytes. Volatile: to gcc the frame
 * ends with the handler, and no store to it matters. */
static void skip(struct frame *frame)
{
    ((volatile struct frame *)frame)->rip += 2;
}

HANDLER divide_error(struct frame *frame)
{
    seen[DIVIDE_ERROR]++;
    skip(frame);
}

HANDLER invalid_opcode(struct frame *frame)
{
    seen[INVALID_OPCODE]++;
    skip(frame);
}

HANDLER general_protection(struct frame *frame, uint64_t error)
{
    seen[GENERAL_PROTECTION]++;
    error_code = error;
    skip(frame);
}

HANDLER page_fault(struct frame *frame, uint64_t error)
{
    seen[PAGE_FAULT]++;
    error_code = error;
    __asm__ volatile("mov %%cr2, %0" : "=r"(fault_address));
    skip(frame);
}

int main(void)
{
    on_interrupt(DIVIDE_ERROR, divide_error, 0);
    on_interrupt(INVALID_OPCODE, invalid_opcode, 0);
    on_interrupt(GENERAL_PROTECTION, general_protection, 0);
    on_interrupt(PAGE_FAULT, page_fault, 0);
    load_idt();

    __asm__ volatile("div %%cl" : : "a"(1), "c"(0));
    check(seen[DIVIDE_ERROR] == 1, "1 / 0 is #DE");

    __asm__ volatile("ud2");
    check(seen[INVALID_OPCODE] == 1, "ud2 is #UD");

    __asm__ volatile("mov %w0, %%ds" : : "a"(0x1230));
    check(seen[GENERAL_PROTECTION] == 1, "a selector past the end of the GDT is #GP");
    check(error_code == 0x1230, "its error code is the selector");

    __asm__ volatile("mov %%al, (%0)" : : "b"(UNMAPPED), "a"(1) : "memory");
    check(seen[PAGE_FAULT] == 1, "a write where no page is is #PF");
    check(error_code == 2 && fault_address == UNMAPPED,
          "its error code says write, CR2 says where");
    return failures;
}

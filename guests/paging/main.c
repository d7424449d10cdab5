/* Paging: four levels of tables, two names for one page, and a page fault that is repaired.
 *
 *     pykvm boot pykvm/guests/paging
 *
 * An address in long mode is four indexes of 9 bits and an offset of 12 (Intel SDM vol. 3A §4.5
 * 4-Level Paging and 5-Level Paging):
 *
 *      47     39 38     30 29     21 20     12 11         0
 *     ┌─────────┬─────────┬─────────┬─────────┬────────────┐
 *     │  PML4   │  PDPT   │   PD    │   PT    │   offset   │
 *     └────┬────┴────┬────┴────┬────┴────┬────┴────────────┘
 *   CR3 ─> table ──> table ──> table ──> table ──> page
 *
 * The verdict: what is written through a high address shows at the page's own; touching an
 * address that is not mapped ends in our #PF handler, which maps it, and the access goes on.
 */
#include "interrupts.h"

#define PRESENT  1u
#define WRITABLE 2u
#define LARGE    0x80u /* in a page directory: 2 MiB, no table below */

#define ALIAS  0xFFFF800012345000UL /* a second name for `page` */
#define ABSENT 0xFFFF800012346000UL /* the next page: not mapped, until it is touched */

#define VECTOR_PAGE_FAULT 14
#define ERROR_WRITE       2u

typedef uint64_t table[512] __attribute__((aligned(4096)));

static table pml4, low_pdpt, low_pd, high_pdpt, high_pd, high_pt;
static volatile uint64_t page[512] __attribute__((aligned(4096)));

static volatile uint64_t fault_address, fault_error;

static unsigned part(uintptr_t address, unsigned level)
{
    return address >> (12 + 9 * level) & 511;
}

static void map(volatile uint64_t *entry, const volatile void *to, unsigned flags)
{
    *entry = (uintptr_t)to | flags | PRESENT | WRITABLE;
}

static void build_tables(void)
{
    map(&pml4[0], low_pdpt, 0);
    map(&low_pdpt[0], low_pd, 0);
    map(&low_pd[0], 0, LARGE); /* the first 2 MiB, where this program is, to themselves */

    map(&pml4[part(ALIAS, 3)], high_pdpt, 0);
    map(&high_pdpt[part(ALIAS, 2)], high_pd, 0);
    map(&high_pd[part(ALIAS, 1)], high_pt, 0);
    map(&high_pt[part(ALIAS, 0)], page, 0);
}

HANDLER page_fault(struct frame *frame, uint64_t error)
{
    uintptr_t address;

    (void)frame;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    fault_address = address;
    fault_error = error;
    map(&high_pt[part(address, 0)], page, 0); /* on return the instruction is tried again */
}

int main(void)
{
    volatile uint64_t *alias = (volatile uint64_t *)ALIAS;
    volatile uint64_t *absent = (volatile uint64_t *)ABSENT;

    on_interrupt(VECTOR_PAGE_FAULT, page_fault, 0);
    load_idt();
    build_tables();
    __asm__ volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");

    alias[7] = 0x1122334455667788;
    check(page[7] == 0x1122334455667788, "a write through the alias shows in the page");
    page[8] = 42;
    check(alias[8] == 42, "a write to the page shows through the alias");
    check(fault_address == 0, "no page fault until here");

    absent[9] = 43;
    check(fault_address == (uintptr_t)&absent[9], "CR2 holds the address that was not mapped");
    check(fault_error == ERROR_WRITE, "the error code says: a write, page not present");
    check(page[9] == 43, "the repaired access went through");
    return failures;
}

/* A counter in memory, and a page dirtied for every round: what dirty logging and snapshots see.
 *
 *     pykvm lesson 11
 *
 * The program counts in its own memory and writes to page number `counter` from PAGES on, then
 * tells the host (port 0x510) how far it is. It never ends by itself.
 */
#include "bare.h"

#define PAGES     0x400000UL
#define PAGE_SIZE 0x1000UL
#define PORT_TELL 0x510

int main(void)
{
    volatile uint32_t counter = 0;

    for (;;) {
        counter++;
        *(volatile uint32_t *)(PAGES + counter * PAGE_SIZE) = counter;
        __asm__ volatile("outl %0, %w1" : : "a"(counter), "d"(PORT_TELL));
    }
}

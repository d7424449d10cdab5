/* A device in memory: loads and stores that reach no RAM.
 *
 *     pykvm lesson 7
 *
 * The device is the host's, ten lines of Python at DEVICE: three registers of 32 bits. Where a
 * guest-physical address has no memory behind it, KVM decodes the instruction that touched it and
 * leaves with KVM_EXIT_MMIO. The verdict: the device answers what its registers promise.
 */
#include "bare.h"

#define DEVICE 0xD0000000UL

enum reg { A = 0, B = 4, SUM = 8 }; /* write A and B, read their sum */

static volatile uint32_t *reg(enum reg offset)
{
    return (volatile uint32_t *)(DEVICE + offset);
}

int main(void)
{
    *reg(A) = 40;
    *reg(B) = 2;
    uint32_t sum = *reg(SUM);
    say("40 + 2 = %u\n", sum);
    check(sum == 42, "the device can add");
    return failures;
}

/* Exits in a row: what bench/ measures the cost of one with.
 *
 *     pykvm boot pykvm/guests/exits --append 'count=100000 port=0x80'
 *
 * Writes a byte to the port, again and again; reads one with in=1.
 */
#include <asm/bootparam.h>

#include "bare.h"

int main(const struct boot_params *params)
{
    const char *cmdline = (const char *)(uintptr_t)params->hdr.cmd_line_ptr;
    unsigned long count = option(cmdline, "count", 1000);
    unsigned long port = option(cmdline, "port", PORT_POST);

    if (option(cmdline, "in", 0))
        __asm__ volatile("1: in %%dx, %%al; dec %0; jnz 1b" : "+r"(count) : "d"(port) : "al");
    else
        __asm__ volatile("1: out %%al, %%dx; dec %0; jnz 1b" : "+r"(count) : "d"(port), "a"(0));
    return failures;
}

/* Leaves through QEMU's debug-exit port: the host's exit code is value * 2 + 1, never 0.
 *
 *     pykvm boot pykvm/guests/debugexit --append value=16      exits with 33
 */
#include <asm/bootparam.h>

#include "bare.h"

int main(const struct boot_params *params)
{
    const char *cmdline = (const char *)(uintptr_t)params->hdr.cmd_line_ptr;

    outb(PORT_DEBUG_EXIT, (uint8_t)option(cmdline, "value", 0));
    say("FAILED: nothing listens at the debug-exit port\n");
    return 1;
}

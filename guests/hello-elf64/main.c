/* The 64-bit Linux boot protocol: what Linux itself is told.
 *
 *     pykvm boot pykvm/guests/hello-elf64 --append 'word word'
 *
 * RSI points to boot_params, the "zero page" (Linux Documentation/arch/x86/boot.rst and
 * zero-page.rst). The verdict: it holds a boot loader's type and memory where we were loaded.
 */
#include <asm/bootparam.h>

#include "bare.h"

static int here; /* something we know to be in memory */

int main(const struct boot_params *params)
{
    int found = 0;

    say("command line: %s\n", (const char *)(uintptr_t)params->hdr.cmd_line_ptr);
    say("initrd: %u bytes at %x\n", params->hdr.ramdisk_size, params->hdr.ramdisk_image);
    for (unsigned i = 0; i < params->e820_entries && i < E820_MAX_ENTRIES_ZEROPAGE; i++) {
        const struct boot_e820_entry *entry = &params->e820_table[i];

        say("memory map: %016llx, %llx bytes, type %u\n", entry->addr, entry->size, entry->type);
        found |= entry->type == 1 && (uintptr_t)&here - entry->addr < entry->size;
    }
    check(params->hdr.type_of_loader != 0, "boot_params names a boot loader's type");
    check(found, "the memory map has memory where this program is");
    return failures;
}

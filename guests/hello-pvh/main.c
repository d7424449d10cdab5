/* PVH: what a hypervisor tells a kernel that was not written for a PC's firmware.
 *
 *     pykvm boot pykvm/guests/hello-pvh --append 'word word'
 *
 * We start in 32-bit protected mode, paging off, EBX = the address of a start_info. The verdict:
 * its magic is right, and there is memory where we were loaded.
 */
#include "bare.h"

#define MAGIC 0x336EC578 /* "xEn3", its top bit set */

/* xen/include/public/arch-x86/hvm/start_info.h */
struct start_info {
    uint32_t magic;
    uint32_t version; /* 1: the memory map is there */
    uint32_t flags;
    uint32_t modules_count;
    uint64_t modules;
    uint64_t cmdline;
    uint64_t rsdp;
    uint64_t memory_map;
    uint32_t memory_map_count;
    uint32_t reserved;
};

struct module {
    uint64_t address, size, cmdline, reserved;
};

struct memory {
    uint64_t base, size;
    uint32_t type; /* 1: usable */
    uint32_t reserved;
};

static int here; /* something we know to be in memory */

/* All that pykvm places for us is below 4 GiB. */
static const void *low(uint64_t address)
{
    return (const void *)(uint32_t)address;
}

int main(uint32_t eax, const struct start_info *info)
{
    const struct memory *memory = low(info->memory_map);
    const struct module *module = low(info->modules);
    int found = 0;

    (void)eax; /* PVH leaves it undefined */
    check(info->magic == MAGIC, "EBX points to a start_info");
    if (info->magic != MAGIC)
        return failures;

    if (info->cmdline)
        say("command line: %s\n", (const char *)low(info->cmdline));
    say("RSDP: %llx\n", (unsigned long long)info->rsdp);
    for (uint32_t i = 0; i < info->modules_count; i++, module++)
        say("module: %llx bytes\n", (unsigned long long)module->size);
    for (uint32_t i = 0; i < info->memory_map_count; i++, memory++) {
        say("memory map: %016llx, %llx bytes, type %u\n", (unsigned long long)memory->base,
            (unsigned long long)memory->size, memory->type);
        found |= memory->type == 1 && (uint32_t)&here - memory->base < memory->size;
    }
    check(found, "the memory map has memory where this program is");
    return failures;
}

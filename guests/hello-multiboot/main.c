/* Multiboot 1, an ELF32 image: what a boot loader told us.
 *
 *     pykvm boot pykvm/guests/hello-multiboot --append 'word word' --module 'FILE its own words'
 *
 * We start in 32-bit protected mode, paging off, EAX = a magic number, EBX = the address of the
 * structure below. The verdict: the magic is right, and there is memory where we were loaded.
 */
#include "bare.h"

#define MAGIC 0x2BADB002

/* Multiboot Specification 0.6.96, §3.3 Boot information format: the first part of it. */
struct multiboot_info {
    uint32_t flags;                  /* bit n: the fields marked [n] are there */
    uint32_t mem_lower, mem_upper;   /* [0] KiB below 1 MiB, KiB above */
    uint32_t boot_device;            /* [1] */
    uint32_t cmdline;                /* [2] */
    uint32_t mods_count, mods_addr;  /* [3] */
    uint32_t syms[4];                /* [4] or [5] */
    uint32_t mmap_length, mmap_addr; /* [6] */
};

struct module {
    uint32_t start, end; /* the first byte, and the one after the last */
    uint32_t string;
    uint32_t reserved;
};

struct memory {
    uint32_t size; /* of what follows */
    uint64_t base, length;
    uint32_t type; /* 1: usable */
} __attribute__((packed));

static int here; /* something we know to be in memory */

int main(uint32_t magic, const struct multiboot_info *info)
{
    int found = 0;

    check(magic == MAGIC, "EAX holds the multiboot magic");
    if (magic != MAGIC)
        return failures;

    if (info->flags & 1 << 0)
        say("memory: %u KiB below 1 MiB, %u KiB above\n", info->mem_lower, info->mem_upper);
    if (info->flags & 1 << 2)
        say("command line: %s\n", (const char *)info->cmdline);
    if (info->flags & 1 << 3) {
        const struct module *module = (const struct module *)info->mods_addr;

        for (uint32_t i = 0; i < info->mods_count; i++, module++)
            say("module: %u bytes, %s\n", module->end - module->start,
                (const char *)module->string);
    }
    if (info->flags & 1 << 6) {
        uint32_t at = info->mmap_addr, end = at + info->mmap_length;

        while (at < end) {
            const struct memory *memory = (const struct memory *)at;
            uint64_t offset = (uint32_t)&here - memory->base;

            say("memory map: %016llx, %llx bytes, type %u\n", (unsigned long long)memory->base,
                (unsigned long long)memory->length, memory->type);
            found |= memory->type == 1 && offset < memory->length;
            at += memory->size + (uint32_t)sizeof(memory->size);
        }
    }
    check(found, "the memory map has memory where this program is");
    return failures;
}

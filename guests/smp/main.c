/* More than one CPU: found in the ACPI tables, started by INIT and SIPI, counted.
 *
 *     pykvm boot pykvm/guests/smp -c 4
 *
 * Only the boot processor runs at first. The others wait for two messages from a local APIC: INIT
 * resets them, SIPI ("start-up") says at which 4 KiB page below 1 MiB to begin, in real mode
 * (Intel SDM vol. 3A §8.4 Multiple-Processor (MP) Initialization). The verdict: as many CPUs
 * counted themselves as the MADT and the firmware configuration say there are.
 */
#include <asm/bootparam.h>

#include "interrupts.h"

#define START_PAGE 0x8000UL /* any free page below 1 MiB */

#define ICR_INIT       0xC4500 /* to all but self, assert */
#define ICR_STARTUP(p) (0xC4600 | (uint32_t)((p) >> 12))

#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_NB_CPUS   0x05

extern const uint8_t trampoline[], trampoline_end[];
extern const uint32_t trampoline_counter;

/* ACPI 6.5 §5.2.6 System Description Table Header, §5.2.12 Multiple APIC Description Table */
struct table {
    char signature[4];
    uint32_t length;
    uint8_t other[28];
    uint8_t body[];
} __attribute__((packed));

enum { LOCAL_APIC = 0, LOCAL_X2APIC = 9, ENABLED = 1 };

static int is(const char *at, const char *signature)
{
    while (*signature && *at == *signature) {
        at++;
        signature++;
    }
    return !*signature;
}

/* §5.2.5.1 Finding the RSDP on IA-PC Systems: at a multiple of 16 in the BIOS's memory; Linux's
 * boot protocol says where. */
static const char *find_rsdp(const struct boot_params *params)
{
    if (params->acpi_rsdp_addr)
        return (const char *)params->acpi_rsdp_addr;
    for (const char *at = (const char *)0xE0000; at < (const char *)0x100000; at += 16)
        if (is(at, "RSD PTR "))
            return at;
    return NULL;
}

static const struct table *find_madt(const char *rsdp)
{
    const struct table *xsdt = *(const struct table *const *)(rsdp + 24);
    const struct table *const *entries = (const void *)xsdt->body;

    for (size_t i = 0; i < (xsdt->length - sizeof(*xsdt)) / sizeof(*entries); i++)
        if (is(entries[i]->signature, "APIC"))
            return entries[i];
    return NULL;
}

static unsigned count_in_madt(const struct table *madt)
{
    const uint8_t *end = (const uint8_t *)madt + madt->length;
    unsigned count = 0;

    /* The entries follow the local APIC's address and the flags; each is type, length, ... */
    for (const uint8_t *entry = madt->body + 8; entry < end; entry += entry[1]) {
        if (entry[0] == LOCAL_APIC)
            count += entry[4] & ENABLED;
        if (entry[0] == LOCAL_X2APIC)
            count += entry[8] & ENABLED;
    }
    return count;
}

static unsigned fw_cfg(uint16_t key)
{
    unsigned value;

    outw(PORT_FW_CFG, key);
    value = inb(PORT_FW_CFG + 1);
    return value | (unsigned)inb(PORT_FW_CFG + 1) << 8;
}

int main(const struct boot_params *params)
{
    uint8_t *page = (uint8_t *)START_PAGE;
    volatile uint16_t *counter = (volatile uint16_t *)(START_PAGE + trampoline_counter);
    const char *rsdp = find_rsdp(params);
    const struct table *madt = rsdp ? find_madt(rsdp) : NULL;
    unsigned expected;

    check(madt != NULL, "the ACPI tables have a MADT");
    if (!madt)
        return failures;
    expected = count_in_madt(madt);
    say("the MADT names %u\n", expected);
    if (fw_cfg(FW_CFG_SIGNATURE) == ('Q' | 'E' << 8))
        check(fw_cfg(FW_CFG_NB_CPUS) == expected, "the firmware configuration agrees");

    for (const uint8_t *from = trampoline; from < trampoline_end;)
        *page++ = *from++;
    lapic_enable();
    *lapic(LAPIC_ICR) = ICR_INIT;
    *lapic(LAPIC_ICR) = ICR_STARTUP(START_PAGE);

    /* Wait for the others, and a moment for one too many. Port 0x80 is a PC's unit of patience. */
    for (unsigned patience = 100000; patience && *counter + 1u < expected; patience--)
        outb(PORT_POST, 0);
    for (unsigned patience = 100; patience; patience--)
        outb(PORT_POST, 0);
    say("%u CPU%s\n", *counter + 1u, *counter ? "s" : "");
    check(*counter + 1u == expected, "all of them run");
    return failures;
}

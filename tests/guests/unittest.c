/* Its words are its command line's and its first module's; its verdict leaves through 0xf4. */
#include "bare.h"

#define FW_CFG_NB_CPUS 5
#define LAPIC_ICR      0xFEE00300UL
#define TEST_LINES     0x2000
#define PIC            0x20
#define READ_IRR       0x0A
#define LINE           5

struct multiboot_info {
    uint32_t flags, lower, upper, boot_device, cmdline, mods_count, mods_addr;
};

extern const uint8_t sipi[], sipi_end[];
extern volatile uint16_t cpus_online;

static void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static uint32_t inl(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void start_cpus(void)
{
    volatile uint32_t *icr = (volatile uint32_t *)LAPIC_ICR;
    volatile uint8_t *page = NULL; /* where the other CPUs begin: 0 */
    uint16_t count;

    __asm__("" : "+r"(page)); /* or the compiler takes it for an error */
    for (const uint8_t *from = sipi; from < sipi_end;)
        *page++ = *from++;
    *icr = 0xC4500; /* INIT to all but self */
    *icr = 0xC4600; /* start-up at page 0 */
    outw(PORT_FW_CFG, FW_CFG_NB_CPUS);
    count = inb(PORT_FW_CFG + 1);
    count |= (uint16_t)(inb(PORT_FW_CFG + 1) << 8);
    while (cpus_online != count)
        __asm__ volatile("pause");
    say("%u CPUs\n", count);
}

static void use_test_device(void)
{
    volatile uint32_t *memory = (volatile uint32_t *)0xFF000000;

    outl(0xE0, 0x12345678);
    outb(0xE1, 0xFF);
    check(inl(0xE0) == 0x1234FF78 && inb(0xEB) == 0x12, "the test register keeps its bytes");
    memory[1] = 0x11223344;
    *((volatile uint8_t *)memory + 5) = 0;
    check(memory[1] == 0x11220044 && memory[0] == 0, "the test memory is memory");
    outl(0xE4, 0x400000); /* a page to be mapped anew */
    outb(PIC, READ_IRR);
    check(!(inb(PIC) >> LINE & 1), "a test line is low");
    outb(TEST_LINES + LINE, 1);
    check(inb(PIC) >> LINE & 1, "and raised");
    outb(TEST_LINES + LINE, 0);
}

int main(const struct multiboot_info *info)
{
    const uint32_t *module = (const uint32_t *)(uintptr_t)info->mods_addr;

    say("arguments: %s\n", (const char *)(uintptr_t)info->cmdline);
    if (info->mods_count)
        say("environment: %s", (const char *)(uintptr_t)*module);
    start_cpus();
    use_test_device();
    return failures ? 1 : (int)option((const char *)(uintptr_t)info->cmdline, "code", 0);
}

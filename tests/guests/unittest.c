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

/* As xv6 asks a PC: who else is there, and where is the cursor? */
static void look_around(void)
{
    const char *pointer = NULL;
    unsigned count = 0;

    for (const char *at = (const char *)0xF0000; at < (const char *)0x100000; at += 16)
        if (*(const uint32_t *)at == 0x5F504D5F) /* "_MP_" */
            pointer = at;
    check(pointer != NULL, "there is an MP table");
    if (pointer) {
        const uint8_t *table = (const uint8_t *)(uintptr_t) * (const uint32_t *)(pointer + 4);

        for (const uint8_t *entry = table + 44; *entry == 0; entry += 20)
            count += entry[3] & 1;
        check(count == cpus_online, "it has the CPUs that run");
    }
    outw(0x3D4, 0x120E); /* the cursor's high byte */
    outb(0x3D4, 0x0F);
    check(inb(0x3D5) == 0, "the cursor is on the screen");
    outb(0x3D4, 0x0E);
    check(inb(0x3D5) == 0x12, "and stays where it is put");
    while (!(inb(0x3DA) & 8))
        ;
    while (inb(0x3DA) & 8)
        ;
}

int main(const struct multiboot_info *info)
{
    const uint32_t *module = (const uint32_t *)(uintptr_t)info->mods_addr;

    say("arguments: %s\n", (const char *)(uintptr_t)info->cmdline);
    if (info->mods_count)
        say("environment: %s", (const char *)(uintptr_t)*module);
    start_cpus();
    use_test_device();
    look_around();
    return failures ? 1 : (int)option((const char *)(uintptr_t)info->cmdline, "code", 0);
}

/* A virtio disk without an operating system.
 *
 *     pykvm boot pykvm/guests/virtqueue --disk FILE --append 'pci=1 count=10'
 *
 * With pci=1 it looks for the disk on the PCI bus; else it finds the registers of --transport mmio
 * where pykvm puts the first device's (mmio= and gsi= say otherwise). It reads sector 0 `count`
 * times, writes what it read to sector 1 with every bit turned over, and flushes. With resets=N it
 * first starts and resets the device N times, with a read each time. The verdict: every status is
 * OK, sector 1 reads as written, and no interrupt was one too many but for spare=N, for a device
 * that sends one when it starts.
 *
 * With journal=1 it writes numbers instead, see journal(); with flush=0 it is a driver that does
 * not know how to flush. Read disk.h for the driver.
 */
#include <asm/bootparam.h>

#include "disk.h"

/* Write sector after sector, each full of the number of its write, from 1 to `last` (0: for ever),
 * around the disk; flush after every `batch` and say so. A host that kills us must find every
 * number that was flushed. Returns the number of failures. */
static int journal(unsigned long last, unsigned long batch)
{
    static uint32_t words[512 / sizeof(uint32_t)];
    uint32_t sectors = capacity();

    for (uint32_t n = 1; !last || n <= last; n++) {
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
            words[i] = n;
        uint8_t result = request(BLK_OUT, n % sectors, words);
        if (result != BLK_OK)
            say("write %u: status %u\n", n, result);
        if (batch && n % batch == 0)
            say(request(BLK_FLUSH, 0, NULL) == BLK_OK ? "flushed %u\n" : "not flushed %u\n", n);
    }
    say("written\n");
    for (;;) /* the host looks at the disk, and ends us */
        wait_for_interrupt();
}

int main(const struct boot_params *params)
{
    const char *cmdline = (const char *)(uintptr_t)params->hdr.cmd_line_ptr;
    unsigned long count = option(cmdline, "count", 1), errors = 0;
    unsigned long resets = option(cmdline, "resets", 0);

    on_interrupt(VECTOR, on_device, 0);
    load_idt();
    lapic_enable();
    pic_enable(0);
    outb(PIC1 + 1, 0xff);
    if (!option(cmdline, "flush", 1))
        wanted_features = 0;
    if (option(cmdline, "pci", 0))
        find_by_pci();
    else
        find_by_mmio(cmdline);
    if (failures)
        return failures;
    for (unsigned long i = 0; i < resets; i++)
        errors += !start_device() || request(BLK_IN, 0, sector_0) != BLK_OK;
    check(!errors, "it starts whenever it is asked to");
    check(start_device(), "it takes us for its driver");
    if (failures)
        return failures;
    say("%u sectors\n", capacity());
    if (option(cmdline, "journal", 0))
        return journal(option(cmdline, "writes", 0), option(cmdline, "batch", 0));

    for (unsigned long i = 0; i < count; i++)
        errors += request(BLK_IN, 0, sector_0) != BLK_OK;
    check(!errors, "sector 0 is read");
    say("it begins with \"%s\"\n", sector_0[511] ? "(no text)" : (const char *)sector_0);
    for (size_t i = 0; i < sizeof(sector_0); i++)
        sector_1[i] = sector_0[i] ^ 0xff;
    check(request(BLK_OUT, 1, sector_1) == BLK_OK, "sector 1 is written");
    for (size_t i = 0; i < sizeof(sector_1); i++)
        sector_1[i] = 0;
    check(request(BLK_FLUSH, 0, NULL) == BLK_OK, "the disk is flushed");
    check(request(BLK_IN, 1, sector_1) == BLK_OK, "sector 1 is read");
    for (size_t i = 0; i < sizeof(sector_1); i++)
        errors += (sector_1[i] ^ sector_0[i]) != 0xff;
    check(!errors, "it reads as it was written");
    check(request(BLK_IN, capacity(), sector_1) != BLK_OK, "there is nothing behind the end");
    while (!interrupts) /* one may have been too late for its request; none at all is a hang */
        wait_for_interrupt();
    check(interrupts <= resets + count + 4 + option(cmdline, "spare", 0),
          "interrupts told us, at most one for each answer");
    return failures;
}

/* Notices that this machine is a copy of the one that it was, and gives its cards their new
 * addresses.
 *
 * A process of its own, while there are cards whose addresses init sets. That the VM generation id
 * is another the kernel tells in its log, and nowhere else (drivers/char/random.c,
 * add_vmfork_randomness(), since Linux 5.18). What the cards are now, the host has in a file of its
 * firmware configuration device (pykvm/devices/fwcfg.py).
 * Source: QEMU docs/specs/fw_cfg.rst; Linux Documentation/ABI/testing/dev-kmsg.
 */
#include "linux.h"
#include "ports.h"
#include "tasks.h"

#include <stdint.h>

#define FW_CFG_FILES 0x19
#define DATA         (PORT_FW_CFG + 1)
#define FILES_MAX    64

static const char NAME[] = "opt/pykvm/network";
static const char COPIED[] = "virtual machine fork"; /* "random: crng reseeded due to …" */

struct file { /* numbers are big-endian */
    uint32_t size;
    uint16_t selector, reserved;
    char name[56];
};

static void read_bytes(void *buffer, size_t size)
{
    unsigned char *at = buffer;

    while (size--)
        __asm__ volatile("inb %%dx, %%al" : "=a"(*at++) : "d"(DATA));
}

static void select_item(uint16_t selector)
{
    __asm__ volatile("outw %%ax, %%dx" : : "a"(selector), "d"(PORT_FW_CFG));
}

/* Read the host's file into `text` and end it with a NUL; returns whether there is one. */
static int read_file(char *text, size_t size)
{
    struct file file;
    uint32_t count;

    select_item(FW_CFG_FILES);
    read_bytes(&count, sizeof(count));
    count = __builtin_bswap32(count);
    for (uint32_t i = 0; i < count && i < FILES_MAX; i++) {
        read_bytes(&file, sizeof(file));
        if (same(NAME, file.name)) {
            size_t len = __builtin_bswap32(file.size);

            len = len < size ? len : size - 1;
            select_item(__builtin_bswap16(file.selector));
            read_bytes(text, len);
            text[len] = 0;
            return 1;
        }
    }
    return 0;
}

/* Whether `text` is somewhere in a line of the log. */
static int says(const char *line, const char *text)
{
    for (; *line; line++) {
        size_t i = 0;

        while (text[i] && line[i] == text[i])
            i++;
        if (!text[i])
            return 1;
    }
    return 0;
}

/* Each read is one line, and waits for it; -EPIPE tells that some were overwritten before. */
static void watch(long log)
{
    static char line[8192], text[4096];
    long len;

    while ((len = SYS(read, log, line, sizeof(line) - 1)) > 0 || len == -EPIPE || len == -EINTR) {
        line[len > 0 ? len : 0] = 0;
        if (says(line, COPIED) && read_file(text, sizeof(text)))
            renew_network(text);
    }
}

void watch_identity(void)
{
    long log;

    if (SYS(access, "/pykvm/network") < 0 || SYS(ioperm, PORT_FW_CFG, 2, 1) < 0)
        return;
    log = SYS(open, "/dev/kmsg", O_RDONLY | O_CLOEXEC);
    SYS(lseek, log, 0, 2 /* SEEK_END */);
    if (log >= 0 && SYS(fork) == 0) {
        watch(log);
        SYS(exit, 0);
    }
    SYS(ioperm, PORT_FW_CFG, 2, 0);
    if (log >= 0)
        SYS(close, log);
}

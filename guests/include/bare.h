/* What a program without an operating system needs: ports, the serial line, a way to stop.
 *
 * Included by the guests in C, 32- and 64-bit. start32.S and start64.S call their main(), and hand
 * what it returns to the host as the exit code.
 */
#ifndef GUESTS_BARE_H
#define GUESTS_BARE_H

#include "ports.h"
#include "say.h"

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* COM1's transmitter takes a byte whenever one is written: no hypervisor makes a guest wait. */
static void put(const char *text, size_t len)
{
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(len) : "d"(PORT_COM1) : "memory");
}

static int failures;

/* One line of the verdict. main() ends with `return failures;`. */
static void check(int holds, const char *what)
{
    say("%s: %s\n", holds ? "ok" : "FAILED", what);
    failures += !holds;
}

/* The value of NAME=VALUE on a command line, decimal or 0x hexadecimal; `otherwise` without one. */
static unsigned long option(const char *cmdline, const char *name, unsigned long otherwise)
{
    for (const char *word = cmdline; *word; word++) {
        const char *p = word, *n = name;
        unsigned long value = 0, base = 10;

        while (*n && *p == *n) {
            p++;
            n++;
        }
        if (!*n && *p == '=' && (word == cmdline || word[-1] == ' ')) {
            p++;
            if (p[0] == '0' && p[1] == 'x') {
                base = 16;
                p += 2;
            }
            for (; *p && *p != ' '; p++)
                value = value * base + (unsigned long)((*p & 0xf) + (*p >= 'A' ? 9 : 0));
            return value;
        }
    }
    return otherwise;
}

#endif

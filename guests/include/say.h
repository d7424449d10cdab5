/* Formatted output in a screenful, for programs without a C library.
 *
 * Included by every guest in C. The program that includes it says where text goes by defining
 * put(): a serial port (bare.h) or a file (init).
 */
#ifndef GUESTS_SAY_H
#define GUESTS_SAY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

static void put(const char *text, size_t len);

/* Print the way printf does; knows %s, %u, %x, %lu, %lx, %llx, each with a width like %02u.
 * The text goes out in one put(), so that nothing comes between; it is cut at 1024 bytes. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[1024];
    size_t len = 0;
    va_list args;

    va_start(args, format);
    for (const char *p = format; *p; p++) {
        char digits[24], *end = digits + sizeof(digits) - 1;
        const char *text = p;
        size_t text_len = 1;

        if (*p == '%') {
            int width = 0, longs = 0;
            unsigned long long value;

            for (p++; *p >= '0' && *p <= '9'; p++)
                width = width * 10 + *p - '0';
            for (; *p == 'l'; p++)
                longs++;
            *end = 0;
            if (*p == 's') {
                text = va_arg(args, const char *);
            } else {
                value = longs == 0   ? va_arg(args, unsigned)
                        : longs == 1 ? va_arg(args, unsigned long)
                                     : va_arg(args, unsigned long long);
                do {
                    /* Decimal keeps to a long: 64-bit division on i386 needs a library. */
                    unsigned long digit = *p == 'x' ? value & 15 : (unsigned long)value % 10;

                    *--end = "0123456789abcdef"[digit];
                    value = *p == 'x' ? value >> 4 : (unsigned long)value / 10;
                } while (--width > 0 || value);
                text = end;
            }
            for (text_len = 0; text[text_len];)
                text_len++;
        }
        while (text_len-- && len < sizeof(line))
            line[len++] = *text++;
    }
    va_end(args);
    put(line, len);
}

#endif

/* The little of a C library that init needs. See linux.h. */

#include "linux.h"

size_t length(const char *s)
{
    size_t len = 0;

    while (s[len])
        len++;
    return len;
}

int same(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

static char *put_number(char *end, unsigned long value, int digits)
{
    do {
        *--end = (char)('0' + value % 10);
        value /= 10;
    } while (--digits > 0 || value);
    return end;
}

void say(const char *format, ...)
{
    char line[1024], number[24];
    size_t len = 0;
    va_list args;

    va_start(args, format);
    for (const char *p = format; *p; p++) {
        const char *text = p;
        size_t text_len = 1;

        if (*p == '%') {
            int digits = *++p == '0' ? 2 : 1;

            if (digits == 2)
                p += 2;
            number[sizeof(number) - 1] = 0;
            text = *p == 's' ? va_arg(args, const char *)
                             : put_number(number + sizeof(number) - 1,
                                          va_arg(args, unsigned long), digits);
            text_len = length(text);
        }
        while (text_len-- && len < sizeof(line))
            line[len++] = *text++;
    }
    va_end(args);
    /* One write for a whole line: what else prints here cannot come between. */
    SYS(write, STDERR, line, len);
}

size_t slurp(const char *path, char *buf, size_t size)
{
    long fd = SYS(open, path, O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    long got;

    while (fd >= 0 && len < size - 1 && (got = SYS(read, fd, buf + len, size - 1 - len)) > 0)
        len += (size_t)got;
    if (fd >= 0)
        SYS(close, fd);
    buf[len] = 0;
    return len;
}

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

int exit_code(int status)
{
    return status & 0x7f ? 128 + (status & 0x7f) : (status >> 8) & 0xff;
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

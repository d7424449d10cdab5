/* What init needs of Linux: system calls without a C library.
 *
 * Names and numbers are the kernel's own (its UAPI headers); a call returns its result or -errno.
 */
#ifndef GUESTS_INIT_LINUX_H
#define GUESTS_INIT_LINUX_H

#include <asm/ioctls.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <linux/sysinfo.h>
#include <linux/utsname.h>
#include <stddef.h>

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* SYS(mkdir, "/proc", 0755): missing arguments are 0. */
#define SYS(name, ...) SYS_PAD(__NR_##name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define SYS_PAD(number, a, b, c, d, e, f, ...)                                                     \
    syscall6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#define STDIN  0
#define STDOUT 1
#define STDERR 2

size_t length(const char *s);
int same(const char *a, const char *b);

/* A wait status as a shell would tell it. */
int exit_code(int status);

/* Read a whole small file into `buf` and end it with a NUL. Returns its length, 0 if unreadable. */
size_t slurp(const char *path, char *buf, size_t size);

#endif

/* The guest's end of `pykvm boot --port` and `--pipe`: virtio ports by their names, and a command
 * whose standard streams are three of them. Reached from init.c.
 *
 *   command ── pipe ── pump() ── /dev/virtio-ports/pykvm.stdout ══ the host's standard output
 *
 * Pipes, not the ports themselves: those can be opened but once, so that "echo >/dev/stderr" would
 * fail, and a write to a port nobody reads waits for ever, where one to a pipe fails.
 */
#include "streams.h"

#include <linux/poll.h>
#include <linux/time.h>
#include <stdint.h>

#include "linux.h"

#define LISTED  "/pykvm/ports" /* the names to wait for, one a line */
#define DEVICES "/sys/class/virtio-ports"
#define LINKS   "/dev/virtio-ports/" /* as udev has them */
#define TRIES   1000                 /* of 10 ms: the driver may take its time */

/* ── names ──────────────────────────────────────────────────────────────────────────────────── */

struct linux_dirent64 {
    uint64_t d_ino, d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};

static void join(char *to, size_t size, const char *a, const char *b, const char *c)
{
    const char *parts[] = {a, b, c};
    size_t len = 0;

    for (size_t i = 0; i < 3; i++)
        for (const char *p = parts[i]; *p && len < size - 1; p++)
            to[len++] = *p;
    to[len] = 0;
}

/* Make a link for every port that has a name by now. */
static void link_ports(void)
{
    static char entries[4096];
    char name[128], path[256], target[256];
    long fd = SYS(open, DEVICES, O_RDONLY | O_DIRECTORY | O_CLOEXEC), len;

    while (fd >= 0 && (len = SYS(getdents64, fd, entries, sizeof(entries))) > 0)
        for (long at = 0; at < len;) {
            struct linux_dirent64 *entry = (void *)(entries + at);

            at += entry->d_reclen;
            join(path, sizeof(path), DEVICES "/", entry->d_name, "/name");
            size_t end = slurp(path, name, sizeof(name));
            if (!end || entry->d_name[0] == '.')
                continue;
            name[end - 1] = 0; /* its newline */
            join(path, sizeof(path), LINKS, name, "");
            join(target, sizeof(target), "../", entry->d_name, "");
            SYS(symlink, target, path);
        }
    if (fd >= 0)
        SYS(close, fd);
}

/* The first of the names listed that is not there, or NULL. */
static const char *missing_port(char *listed)
{
    static char name[128];
    char path[256];

    for (char *p = listed; *p;) {
        size_t len = 0;

        for (; *p && *p != '\n'; p++)
            if (len < sizeof(name) - 1)
                name[len++] = *p;
        name[len] = 0;
        if (*p)
            p++;
        join(path, sizeof(path), LINKS, name, "");
        if (len && SYS(access, path, 0) < 0)
            return name;
    }
    return NULL;
}

const char *find_ports(void)
{
    static char listed[4096];
    const struct timespec pause = {.tv_nsec = 10000000};
    const char *missing = NULL;

    if (!slurp(LISTED, listed, sizeof(listed)))
        return NULL;
    SYS(mkdir, LINKS, 0755);
    for (int tries = 0; tries < TRIES; tries++) {
        link_ports();
        missing = missing_port(listed);
        if (!missing)
            return NULL;
        SYS(nanosleep, &pause, NULL);
    }
    return missing;
}

/* ── a command's streams ────────────────────────────────────────────────────────────────────── */

enum { READ, WRITE };

static const char *const STREAMS[] = {LINKS "pykvm.stdin", LINKS "pykvm.stdout",
                                      LINKS "pykvm.stderr"};
static long pumps[3];
static long end_pipe[2]; /* closed when the command has ended */

/* Write it all; 0 when nobody takes it. */
static int deliver(long to, const char *bytes, long len)
{
    while (len > 0) {
        struct pollfd pollfd = {.fd = (int)to, .events = POLLOUT};
        long done = SYS(write, to, bytes, len);

        if (done > 0) {
            bytes += done;
            len -= done;
        } else if (done != -EAGAIN) {
            return 0;
        } else if (SYS(poll, &pollfd, 1, -1) > 0 && (pollfd.revents & (POLLHUP | POLLERR))) {
            return 0;
        }
    }
    return 1;
}

/* Move bytes until one end is closed; or, when the command has ended, until none are left. */
static void pump(long from, long to)
{
    static char bytes[32 * 1024];
    struct pollfd fds[] = {
        {.fd = (int)from, .events = POLLIN},
        {.fd = (int)to}, /* an end that nobody reads tells without being asked */
        {.fd = (int)end_pipe[READ], .events = POLLIN},
    };

    for (;;) {
        if (SYS(poll, fds, 3, -1) < 0)
            continue;
        if (fds[1].revents)
            return;
        if (fds[0].revents) {
            long len = SYS(read, from, bytes, sizeof(bytes));

            if (len != -EAGAIN && (len <= 0 || !deliver(to, bytes, len)))
                return;
        } else if (fds[2].revents) {
            return;
        }
    }
}

int open_streams(long streams[3])
{
    long ports[3], pipes[3][2];

    for (int i = 0; i < 3; i++) {
        ports[i] = SYS(open, STREAMS[i], (i ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
        if (ports[i] < 0)
            return 0;
    }
    int fds[2];
    SYS(pipe2, fds, O_CLOEXEC);
    end_pipe[READ] = fds[READ];
    end_pipe[WRITE] = fds[WRITE];
    for (int i = 0; i < 3; i++) {
        SYS(pipe2, fds, O_CLOEXEC);
        pipes[i][READ] = fds[READ];
        pipes[i][WRITE] = fds[WRITE];
    }
    for (int i = 0; i < 3; i++) {
        pumps[i] = SYS(fork);
        if (pumps[i] != 0)
            continue;
        SYS(close, end_pipe[WRITE]);
        for (int other = 0; other < 3; other++) { /* or no pipe would come to its end */
            SYS(close, pipes[other][other ? WRITE : READ]);
            if (other != i)
                SYS(close, pipes[other][other ? READ : WRITE]);
        }
        if (i == STDIN)
            pump(ports[i], pipes[i][WRITE]);
        else
            pump(pipes[i][READ], ports[i]);
        SYS(exit, 0);
    }
    for (int i = 0; i < 3; i++) {
        streams[i] = pipes[i][i ? WRITE : READ];
        SYS(close, pipes[i][i ? READ : WRITE]);
        SYS(close, ports[i]);
    }
    return 1;
}

void close_streams(void)
{
    SYS(close, end_pipe[WRITE]);
    for (int i = STDOUT; i <= STDERR; i++)
        SYS(wait4, pumps[i], NULL, 0, NULL);
}

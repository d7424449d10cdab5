/* Mounts disks and shared folders, and makes one of them the root.
 *
 * Reached from init.c. /pykvm/fstab, made by pykvm/virtio/config/storage.py, has a line for each,
 * the root first: SOURCE TARGET TYPE OPTIONS, as in fstab(5). TYPE is auto for what the kernel is
 * to find out, OPTIONS ro or rw.
 */
#include "mounts.h"

#include <asm/signal.h>
#include <asm/stat.h>

#include "linux.h"
#include "say.h"

#define NEW_ROOT   "/pykvm/root" /* where the root is while / is still the initrd */
#define MAX_MOUNTS 16
#define WAIT_MS    10000 /* for a disk's driver to find it */

static const char *const ROOTS_TOO[] = {"/dev", "/proc", "/sys", "/run"}; /* already mounted */

static char table[16 * 1024];
static char *targets[MAX_MOUNTS]; /* in the end, so without NEW_ROOT */
static size_t count;
static int has_root;

static void put(const char *text, size_t len)
{
    SYS(write, STDERR, text, len);
}

static int is_equal(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* `first` and `second` one after the other, in `buf`; what has no room is cut off. */
static void join(char *buf, size_t size, const char *first, const char *second)
{
    size_t len = 0;

    for (; *first && len < size - 1; first++)
        buf[len++] = *first;
    for (; *second && len < size - 1; second++)
        buf[len++] = *second;
    buf[len] = 0;
}

/* The next field of a line, taken out of it: \040 is a blank. */
static char *take_field(char **line)
{
    char *field = *line, *in = field, *out = field;

    while (*in && *in != ' ') {
        if (in[0] == '\\' && in[1] && in[2] && in[3]) {
            *out++ = (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
            in += 4;
        } else
            *out++ = *in++;
    }
    *line = *in ? in + 1 : in;
    *out = 0;
    return field;
}

/* Make `path` and the directories above it. */
static void make_directories(char *path)
{
    for (char *p = path + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            SYS(mkdir, path, 0755);
            *p = '/';
        }
    SYS(mkdir, path, 0755);
}

static void wait_for(const char *path)
{
    struct __kernel_timespec pause = {.tv_nsec = 10 * 1000 * 1000};

    for (int ms = 0; SYS(access, path, 0) < 0 && ms < WAIT_MS; ms += 10)
        SYS(nanosleep, &pause, NULL);
}

/* Try every file system of the kernel's that wants a device, ext4 first: it is the likeliest, and
 * the kernel itself tries ext2 before. */
static long mount_any(const char *source, const char *target, unsigned long flags)
{
    static char names[4096];
    long error = SYS(mount, source, target, "ext4", flags | MS_SILENT, NULL);

    if (error != -EINVAL && error != -ENODEV)
        return error;

    slurp("/proc/filesystems", names, sizeof(names));
    for (char *line = names; *line;) { /* "nodev\tNAME\n" or "\tNAME\n" */
        char *end = line;
        while (*end && *end != '\n')
            end++;
        char *next = *end ? end + 1 : end;
        *end = 0;
        if (*line == '\t') {
            error = SYS(mount, source, target, line + 1, flags | MS_SILENT, NULL);
            if (error != -EINVAL)
                return error;
        }
        line = next;
    }
    return error;
}

static int mount_one(char *line)
{
    static char path[4096];
    const char *source = take_field(&line), *target = take_field(&line);
    const char *type = take_field(&line), *options = take_field(&line);
    unsigned long flags = is_equal(options, "ro") ? MS_RDONLY : 0;
    int is_root = is_equal(target, "/");
    long error;

    join(path, sizeof(path), has_root || is_root ? NEW_ROOT : "", target);
    make_directories(path);
    if (*source == '/')
        wait_for(source);
    if (is_equal(type, "auto"))
        error = mount_any(source, path, flags);
    else
        error = SYS(mount, source, path, type, flags, NULL);
    if (error < 0) {
        say("pykvm: %s cannot be mounted at %s as %s: %s (errno %lu)\n", source, target, type,
            error == -ENOENT || error == -ENXIO ? "it is not there, or the place for it is not"
            : error == -ENODEV                  ? "this kernel has no such file system"
            : error == -EINVAL                  ? "there is no such file system on it"
                                                : "it was refused",
            (unsigned long)-error);
        return -1;
    }
    has_root |= is_root;
    if (count < MAX_MOUNTS)
        targets[count++] = (char *)target;
    return 0;
}

int mount_all(void)
{
    slurp("/pykvm/fstab", table, sizeof(table));
    for (char *line = table, *next; *line; line = next) {
        for (next = line; *next && *next != '\n'; next++)
            ;
        if (*next)
            *next++ = 0;
        if (mount_one(line) < 0)
            return -1;
    }
    return 0;
}

/* ── the root ───────────────────────────────────────────────────────────────────────────────── */

struct dirent64 { /* getdents64(2) */
    unsigned long ino, off;
    unsigned short len;
    unsigned char type;
    char name[];
};

/* Remove all below the directory `fd` that is on `device`: the initrd's files are memory. */
static void remove_below(long fd, unsigned long device)
{
    char entries[1024] __attribute__((aligned(8)));
    struct stat info;
    long len;

    while ((len = SYS(getdents64, fd, entries, sizeof(entries))) > 0)
        for (long at = 0; at < len;) {
            struct dirent64 *entry = (struct dirent64 *)(void *)(entries + at);
            const char *name = entry->name;

            at += entry->len;
            if (is_equal(name, ".") || is_equal(name, ".."))
                continue;
            if (SYS(newfstatat, fd, name, &info, AT_SYMLINK_NOFOLLOW) < 0 || info.st_dev != device)
                continue;
            if (SYS(unlinkat, fd, name, 0) == 0)
                continue;
            long below = SYS(openat, fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below < 0)
                continue;
            remove_below(below, device);
            SYS(close, below);
            SYS(unlinkat, fd, name, AT_REMOVEDIR);
        }
}

int enter_root(void)
{
    static char path[64];
    struct stat info;
    long old;

    if (!has_root)
        return 0;
    for (size_t i = 0; i < sizeof(ROOTS_TOO) / sizeof(ROOTS_TOO[0]); i++) {
        join(path, sizeof(path), NEW_ROOT, ROOTS_TOO[i]);
        SYS(mkdir, path, 0755);
        SYS(mount, ROOTS_TOO[i], path, NULL, MS_MOVE, NULL);
    }
    old = SYS(open, "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    SYS(chdir, NEW_ROOT);
    SYS(mount, ".", "/", NULL, MS_MOVE, NULL);
    SYS(chroot, ".");
    SYS(chdir, "/");
    if (old >= 0 && SYS(newfstatat, old, ".", &info, 0) == 0)
        remove_below(old, info.st_dev);
    SYS(close, old);
    return 1;
}

void unmount_all(void)
{
    if (!count)
        return;
    SYS(kill, -1, SIGKILL); /* not this process */
    while (SYS(wait4, -1, NULL, 0, NULL) > 0)
        ;
    while (count--)
        if (!is_equal(targets[count], "/"))
            SYS(umount2, targets[count], 0);
        else
            SYS(mount, NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    count = 0;
}

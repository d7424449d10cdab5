/* Runs in a Linux guest whose root is a disk: uses what is mounted in it, and outlives the programs
 * that serve it.
 *
 *     storage MIB OPERATIONS
 *
 * /mnt/share and /mnt/ro are folders of the host's, /mnt/disk is a file system on a disk. What the
 * host is to end, it asks for on stdout; /dev/vdc is the disk that it loses so. The code 7 says
 * that all was as it must be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MIB     (1u << 20)
#define FSX_MAX (256u * 1024)
#define SOUND   7

static void expect(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

static void say(const char *text)
{
    puts(text);
    fflush(stdout);
}

static void fill(const char *path, uint32_t mibs)
{
    static uint32_t words[MIB / sizeof(uint32_t)];
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);

    expect(fd >= 0, path);
    for (uint32_t mib = 0; mib < mibs; mib++) {
        for (uint32_t i = 0; i < MIB / sizeof(uint32_t); i++)
            words[i] = mib << 20 | i;
        expect(write(fd, words, MIB) == MIB, path);
    }
    expect(fsync(fd) == 0, "fsync");
    close(fd);
}

/* What fsx does: a file is read, written, mapped and cut at random; it must always be what a copy
 * in memory is. */
static void fsx(const char *path, int operations)
{
    static char copy[FSX_MAX], buffer[FSX_MAX];
    size_t size = 0;
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0644);

    expect(fd >= 0, path);
    memset(copy, 0, sizeof(copy));
    srandom(1);
    for (int n = 0; n < operations; n++) {
        size_t at = (size_t)random() % FSX_MAX, len = (size_t)random() % (FSX_MAX - at) / 4 + 1;
        struct stat info;

        switch (random() % 6) {
        case 0: /* write */
            memset(copy + at, (int)random(), len);
            expect(pwrite(fd, copy + at, len, (off_t)at) == (ssize_t)len, "pwrite");
            size = at + len > size ? at + len : size;
            break;
        case 1: /* cut or stretch */
            expect(ftruncate(fd, (off_t)at) == 0, "ftruncate");
            if (at < size)
                memset(copy + at, 0, FSX_MAX - at);
            size = at;
            break;
        case 2: /* write through a mapping */
        case 3: /* read through one */
            if (at < size) {
                char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                expect(map != MAP_FAILED, "mmap");
                len = len > size - at ? size - at : len;
                expect(memcmp(map, copy, size) == 0, "the mapping is what was written");
                memset(copy + at, n, len);
                memset(map + at, n, len);
                expect(munmap(map, size) == 0, "munmap");
            }
            break;
        case 4: /* close and open */
            expect(random() % 8 || fsync(fd) == 0, "fsync");
            close(fd);
            fd = open(path, O_RDWR);
            expect(fd >= 0, path);
            break;
        default: /* read */
            expect(pread(fd, buffer, FSX_MAX, 0) == (ssize_t)size, "the size is what was written");
            expect(memcmp(buffer, copy, size) == 0, "the file is what was written");
        }
        expect(fstat(fd, &info) == 0 && (size_t)info.st_size == size, "fstat");
    }
    close(fd);
    expect(unlink(path) == 0, "unlink");
}

static void use_folders(int operations)
{
    char text[64] = "";
    struct statfs info;
    int fd = open("/mnt/share/hello", O_RDONLY);

    expect(fd >= 0 && read(fd, text, sizeof(text)) > 0, "/mnt/share/hello");
    close(fd);
    expect(strcmp(text, "from the host\n") == 0, text);
    fd = open("/mnt/share/reply", O_CREAT | O_WRONLY, 0600);
    expect(fd >= 0 && write(fd, "from the guest\n", 15) == 15 && close(fd) == 0, "reply");
    fsx("/mnt/share/fsx", operations);
    expect(access("/mnt/ro/hello", R_OK) == 0, "/mnt/ro/hello");
    expect(open("/mnt/ro/new", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS, "it is read-only");
    expect(statfs("/", &info) == 0 && info.f_type == 0xef53, "the root is ext4");
}

/* Until the host has ended what serves `path`, and one second more: every use is an error then. */
static void lose(const char *path, int flags, int (*use)(int fd))
{
    int failures = 0;

    for (int tries = 0; failures < 10 && tries < 60000; tries++) {
        int fd = open(path, flags);
        if (fd < 0 || use(fd) < 0) {
            expect(errno == EIO, "an I/O error");
            failures++;
        } else
            expect(failures == 0, "it is gone for good");
        if (fd >= 0)
            close(fd);
        usleep(1000);
    }
    expect(failures == 10, path);
}

static int read_name(int fd)
{
    struct stat info;

    (void)fd;
    return stat("/mnt/share/not-there", &info) < 0 && errno == ENOENT ? 0 : -1;
}

static int write_block(int fd)
{
    static char block[4096] __attribute__((aligned(4096)));

    return pwrite(fd, block, sizeof(block), 4096 * (random() % 64)) < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    expect(argc == 3, "arguments");
    int operations = atoi(argv[2]);

    use_folders(operations);
    fsx("/mnt/disk/fsx", operations);
    fill("/mnt/disk/data", (uint32_t)atoi(argv[1]));
    say("end virtiofsd");
    lose("/", O_RDONLY | O_DIRECTORY, read_name);
    say("end qemu-storage-daemon");
    lose("/dev/vdc", O_WRONLY | O_DIRECT, write_block);
    say("all is sound");
    return SOUND;
}

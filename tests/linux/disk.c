/* Runs in a Linux guest whose first disk is an ext4 file system: finds it, takes it from its driver
 * and gives it back, fills a file, reads the disk past the page cache, and says what it saw.
 *
 *     disk ROUNDS [MIB]
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK   "/dev/vda"
#define DRIVER "/sys/bus/virtio/drivers/virtio_blk/"
#define MIB    (1u << 20)

static void expect(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

static int open_disk(int flags)
{
    for (int tries = 0; tries < 600; tries++) {
        int fd = open(DISK, flags);
        if (fd >= 0)
            return fd;
        usleep(100000); /* the driver is still at it */
    }
    perror(DISK);
    exit(1);
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    expect(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

static void find_device(char *name, size_t size)
{
    DIR *folder = opendir(DRIVER);
    struct dirent *entry;

    expect(folder != NULL, DRIVER);
    while ((entry = readdir(folder)) != NULL)
        if (strncmp(entry->d_name, "virtio", 6) == 0)
            snprintf(name, size, "%s", entry->d_name);
    closedir(folder);
}

static void fill(const char *path, uint32_t size_mib)
{
    static uint32_t words[MIB / sizeof(uint32_t)];
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);

    expect(fd >= 0, path);
    for (uint32_t mib = 0; mib < size_mib; mib++) {
        for (uint32_t i = 0; i < MIB / sizeof(uint32_t); i++)
            words[i] = mib << 20 | i;
        expect(write(fd, words, MIB) == MIB, path);
    }
    expect(fsync(fd) == 0, "fsync");
    close(fd);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1, size_mib = argc > 2 ? atoi(argv[2]) : 16;
    char device[64] = "";
    void *block;

    close(open_disk(O_RDONLY));
    find_device(device, sizeof(device));
    for (int round = 0; round < rounds; round++) {
        write_text(DRIVER "unbind", device);
        expect(access(DISK, F_OK) != 0, "the disk is gone");
        write_text(DRIVER "bind", device);
        close(open_disk(O_RDONLY));
        if (round % 50 == 49)
            printf("%d rounds\n", round + 1);
    }
    mkdir("/mnt", 0755);
    expect(mount(DISK, "/mnt", "ext4", 0, "") == 0, "mount");
    fill("/mnt/data", (uint32_t)size_mib);
    expect(umount("/mnt") == 0, "umount");

    int fd = open_disk(O_RDONLY | O_DIRECT);
    expect(posix_memalign(&block, 4096, 4096) == 0, "memory");
    expect(pread(fd, block, 4096, 0) == 4096, "a direct read");
    expect(memcmp((char *)block + 1024 + 56, "\x53\xef", 2) == 0, "ext4's magic number");
    puts("the disk is sound");
    return 0;
}

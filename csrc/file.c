/* What Python's os module and the C library lack of the calls on files. */
#include "core.h"
#include "iov.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

int pk_file_exchange(const char *one, const char *other)
{
    return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) < 0 ? -errno : 0;
}

int64_t pk_file_system(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) < 0 ? -errno : (int64_t)fs.f_type;
}

int pk_file_is_in_memory(int fd)
{
    struct stat file; /* a block device's name lies in a tmpfs */
    return fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && pk_file_system(fd) == TMPFS_MAGIC;
}

int pk_file_clear(int fd, off_t at, off_t len, int unmap)
{
    static const uint8_t ZEROES[1 << 16] __attribute__((aligned(4096)));

    if (unmap && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len) == 0)
        return 0;
    if (fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len) == 0)
        return 0;
    while (len > 0) {
        size_t piece = len < (off_t)sizeof(ZEROES) ? (size_t)len : sizeof(ZEROES);
        ssize_t result = pwrite(fd, ZEROES, piece, at);
        if (result < 0 && errno != EINTR)
            return -errno;
        if (result > 0) {
            at += result;
            len -= result;
        }
    }
    return 0;
}

int pk_file_transfer(int fd, int is_write, struct iovec *iov, uint32_t num, off_t at, int flags)
{
    pk_iov_advance(&iov, &num, 0);
    while (num > 0) {
        ssize_t result = is_write ? pwritev2(fd, iov, (int)num, at, flags)
                                  : preadv2(fd, iov, (int)num, at, flags);
        if (result < 0 && errno != EINTR)
            return -errno;
        if (result == 0)
            return -EIO; /* the file has become shorter */
        if (result > 0) {
            pk_iov_advance(&iov, &num, (uint64_t)result);
            at += result;
        }
    }
    return 0;
}

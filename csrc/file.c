/* What Python's os module lacks of the calls on files. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <unistd.h>

int pk_file_exchange(const char *one, const char *other)
{
    return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) < 0 ? -errno : 0;
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

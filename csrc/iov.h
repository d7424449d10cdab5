/* Bytes that are spread over several buffers. */
#ifndef PK_IOV_H
#define PK_IOV_H

#include <stdint.h>
#include <sys/uio.h>

/* Drop `len` bytes from the front of the buffers, and buffers that have none. */
static inline void pk_iov_advance(struct iovec **iov, uint32_t *num, uint64_t len)
{
    while (*num > 0 && len >= (*iov)->iov_len) {
        len -= (*iov)->iov_len;
        ++*iov;
        --*num;
    }
    if (*num > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + len;
        (*iov)->iov_len -= len;
    }
}

#endif

/* Bytes that are spread over several buffers. */
#ifndef PK_IOV_H
#define PK_IOV_H

#include "core.h"

#include <string.h>

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

/* Copy up to `len` bytes from the front of the buffers, and drop them there. */
static inline void pk_iov_take(struct iovec **iov, uint32_t *num, void *to, size_t len)
{
    uint8_t *at = to;
    while (len > 0 && *num > 0) {
        size_t piece = (*iov)->iov_len < len ? (*iov)->iov_len : len;
        memcpy(at, (*iov)->iov_base, piece);
        at += piece;
        len -= piece;
        pk_iov_advance(iov, num, piece);
    }
}

/* Let `iov` end after `len` bytes; returns how many of its buffers that are. */
static inline uint32_t pk_iov_limit(struct iovec *iov, uint32_t num, size_t len)
{
    uint32_t i = 0;
    for (; i < num && len > 0; i++) {
        if (iov[i].iov_len > len)
            iov[i].iov_len = len;
        len -= iov[i].iov_len;
    }
    return i;
}

#endif

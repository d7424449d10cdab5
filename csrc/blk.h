/* What the files of the disk share: virtio_blk.c, blk_request.c. */
#ifndef PK_BLK_H
#define PK_BLK_H

#include "iothread.h"
#include "ratelimit.h"
#include "uring.h"

struct pk_blk_request {
    struct pk_chain chain;
    struct pk_blk_request *next; /* in the free list */
    uint32_t queue;
    uint32_t type;
    uint64_t sector;
    int fd;            /* the file that has the data, */
    uint64_t at;       /* and where */
    struct iovec *iov; /* the data, in chain.iov */
    uint32_t iov_num;
    uint64_t len; /* of the data */
    uint8_t *status;
};

struct pk_blk {
    struct pk_blk_config config;
    uint32_t writeback; /* atomic: Python sets it, the thread reads it */
    uint32_t logged;
    struct pk_iothread io;
    struct pk_uring ring;
    uint32_t in_flight;               /* in the ring */
    uint64_t waits_until_ns;          /* until then, a write to a disk is expected to wait */
    int in_memory, overlay_in_memory; /* the file, the overlay's file */
    struct pk_limiter limiter;
    int starved;    /* a queue may have chains that no request was free for, or no token */
    uint32_t first; /* the queue to be served first when that is over */
    struct pk_blk_request *requests, *free;
};

/* Begin a request: its chain was taken, and it is off the free list. It is answered at once or by
 * what the ring completes. Returns -EINVAL for a chain that is none. */
int pk_blk_begin(struct pk_blk *b, struct pk_blk_request *r);
/* The ring has completed it. */
void pk_blk_complete(struct pk_blk *b, struct pk_blk_request *r, int32_t result);

#endif

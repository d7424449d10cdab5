/* io_uring by its system calls: many requests in flight, no library. */
#ifndef PK_URING_H
#define PK_URING_H

#include <linux/io_uring.h>

#include "core.h"

struct pk_uring {
    int fd; /* readable when something is complete; -1: closed */
    uint32_t entries;
    uint32_t filled; /* entries taken by pk_uring_next() and not yet submitted */
    uint32_t *sq_head, *sq_tail, *sq_array;
    uint32_t *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *rings;
    size_t rings_size;
};

/* -ENOSYS, -EPERM, …: this host has none, or not for us. */
int pk_uring_open(struct pk_uring *ring, uint32_t entries);
void pk_uring_close(struct pk_uring *ring);
/* A zeroed entry to fill, or NULL when all are taken. */
struct io_uring_sqe *pk_uring_next(struct pk_uring *ring);
/* Start what was filled, and wait until `wait` requests are complete. */
int pk_uring_submit(struct pk_uring *ring, uint32_t wait);
/* Take one completion: 1, or 0 when there is none. */
int pk_uring_reap(struct pk_uring *ring, uint64_t *user_data, int32_t *ret);

#endif

/* io_uring by its system calls. Source: io_uring(7), io_uring_setup(2), io_uring_enter(2).
 *
 *   submission queue: we write sqes and the tail, the kernel moves the head
 *   completion queue: the kernel writes cqes and the tail, we move the head
 *
 * One thread uses a ring.
 */
#include "uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int pk_uring_open(struct pk_uring *ring, uint32_t entries)
{
    struct io_uring_params params = {0};
    int fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    if (fd < 0)
        return -errno;
    *ring = (struct pk_uring){.fd = fd, .entries = params.sq_entries};
    int err = ENOSYS;
    if (!(params.features & IORING_FEAT_SINGLE_MMAP)) /* before Linux 5.4 */
        goto fail;
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    size_t size = sq_size > cq_size ? sq_size : cq_size;
    uint8_t *rings =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED) {
        err = errno;
        goto fail;
    }
    ring->rings = rings;
    ring->rings_size = size;
    void *sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
    if (sqes == MAP_FAILED) {
        err = errno;
        goto fail;
    }
    ring->sqes = sqes;
    ring->sq_head = (uint32_t *)(void *)(rings + params.sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(rings + params.sq_off.tail);
    ring->sq_array = (uint32_t *)(void *)(rings + params.sq_off.array);
    ring->sq_mask = *(uint32_t *)(void *)(rings + params.sq_off.ring_mask);
    ring->cq_head = (uint32_t *)(void *)(rings + params.cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(rings + params.cq_off.tail);
    ring->cq_mask = *(uint32_t *)(void *)(rings + params.cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(void *)(rings + params.cq_off.cqes);
    return 0;
fail:
    pk_uring_close(ring);
    return -err;
}

void pk_uring_close(struct pk_uring *ring)
{
    if (ring->sqes != NULL)
        munmap(ring->sqes, ring->entries * sizeof(struct io_uring_sqe));
    if (ring->rings != NULL)
        munmap(ring->rings, ring->rings_size);
    if (ring->fd >= 0)
        close(ring->fd);
    *ring = (struct pk_uring){.fd = -1};
}

struct io_uring_sqe *pk_uring_next(struct pk_uring *ring)
{
    uint32_t tail = *ring->sq_tail; /* ours alone */
    /* Acquire: the kernel is done with the entries below its head. */
    if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->entries)
        return NULL;
    uint32_t index = tail & ring->sq_mask;
    ring->sq_array[index] = index;
    memset(&ring->sqes[index], 0, sizeof(ring->sqes[index]));
    /* The kernel looks at the tail only inside io_uring_enter(): the caller may fill at leisure.
     * Release all the same, as io_uring(7) has it. */
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->filled++;
    return &ring->sqes[index];
}

int pk_uring_submit(struct pk_uring *ring, uint32_t wait)
{
    while (ring->filled > 0 || wait > 0) {
        int done = (int)syscall(SYS_io_uring_enter, ring->fd, ring->filled, wait,
                                wait > 0 ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
        if (done < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            return -errno;
        }
        ring->filled -= (uint32_t)done;
        wait = 0;
    }
    return 0;
}

int pk_uring_reap(struct pk_uring *ring, uint64_t *user_data, int32_t *ret)
{
    uint32_t head = *ring->cq_head; /* ours alone */
    /* Acquire: the completion was written before the tail moved. */
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return 0;
    const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
    *user_data = cqe->user_data;
    *ret = cqe->res;
    /* Release: we are done with the entry before the kernel may use it again. */
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}

/* The data plane of a disk. Source: virtio 1.2 §5.2 Block Device.
 *
 *   kick ─> pop ─> pk_blk_begin() ─> io_uring or preadv/pwritev ─> finish() ─> push ─> interrupt
 *
 * What becomes of a request is in blk_request.c; here are the queues, the ring and the thread.
 */
#include "blk.h"
#include "overlay.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUESTS 256u /* in flight, all queues together */

/* Whether one more request may begin. When not, all queues are served again once one may. */
static int may_begin(struct pk_blk *b)
{
    uint64_t at = pk_limiter_opens_at(&b->limiter);

    if (at == 0 && b->free != NULL)
        return 1;
    if (at != 0)
        b->io.wake_ns = at;
    b->starved = 1;
    return 0;
}

/* Take chains while there are any and requests may begin. */
static void take_chains(struct pk_blk *b, uint32_t queue)
{
    struct pk_virtq *q = &b->io.queues[queue].virtq;

    while (!pk_iothread_stopping(&b->io) && may_begin(b)) {
        struct pk_blk_request *r = b->free;
        int result = pk_virtq_pop(q, &r->chain);
        if (result == 0)
            return;
        if (result > 0) {
            b->free = r->next;
            r->queue = queue;
            if (pk_blk_begin(b, r) == 0)
                continue;
            r->next = b->free;
            b->free = r;
            __atomic_store_n(&q->fault, PK_VIRTQ_BAD_REQUEST, __ATOMIC_RELAXED);
        }
        pk_iothread_report_fault(&b->io);
        return;
    }
}

/* Finish what the ring has completed, and tell the driver of all that was answered. */
static void reap(struct pk_blk *b)
{
    uint64_t user_data;
    int32_t result;

    while (b->ring.fd >= 0 && pk_uring_reap(&b->ring, &user_data, &result)) {
        struct pk_blk_request *r = (struct pk_blk_request *)(uintptr_t)user_data;
        b->in_flight--;
        pk_blk_complete(b, r, result);
    }
    for (uint32_t i = 0; i < b->io.num; i++)
        if (!b->io.queues[i].virtq.fault)
            pk_iothread_notify(&b->io, i);
}

static void serve_queue(struct pk_blk *b, uint32_t queue)
{
    struct pk_virtq *q = &b->io.queues[queue].virtq;

    if (q->fault)
        return;
    do {
        pk_virtq_refuse_kicks(q);
        take_chains(b, queue);
        if (b->ring.fd >= 0)
            pk_uring_submit(&b->ring, 0);
        reap(b); /* what the page cache had is done already */
    } while (!b->starved && !pk_iothread_stopping(&b->io) && pk_virtq_ask_kicks(q));
}

/* Serve the queues again that had to wait, once one need not: each in turn is the first. */
static void serve_starved(struct pk_blk *b)
{
    while (b->starved && !pk_iothread_stopping(&b->io) && may_begin(b)) {
        uint32_t first = b->first++;
        b->starved = 0;
        for (uint32_t i = 0; i < b->io.num; i++)
            serve_queue(b, (first + i) % b->io.num);
    }
}

static void serve(void *device, uint32_t queue)
{
    serve_queue(device, queue);
    serve_starved(device);
}

static void ready(void *device)
{
    reap(device);
    serve_starved(device);
}

/* The ring is the thread's own. When one goes, the kernel interrupts the system calls of every
 * thread that has used it (io_ring_exit_work): here that is none that matters. */
static void begin_thread(void *device)
{
    struct pk_blk *b = device;

    /* Without io_uring (an old kernel, a container that forbids it) the thread does all itself. */
    if (b->config.no_uring || pk_uring_open(&b->ring, REQUESTS) < 0)
        b->ring = (struct pk_uring){.fd = -1};
    b->io.ready_fd = b->ring.fd;
}

static void end_thread(void *device)
{
    struct pk_blk *b = device;

    while (b->in_flight > 0 && pk_uring_submit(&b->ring, 1) == 0)
        reap(b);
    if (b->ring.fd >= 0)
        pk_uring_close(&b->ring);
}

/* ── for Python ─────────────────────────────────────────────────────────────────────────────── */

int pk_blk_create(const struct pk_blk_config *config, struct pk_blk **ret)
{
    struct pk_blk *b = calloc(1, sizeof(*b));
    if (b == NULL)
        return -ENOMEM;
    b->config = *config;
    b->writeback = 1;
    b->in_memory = pk_file_is_in_memory(config->fd);
    b->overlay_in_memory = config->overlay && pk_file_is_in_memory(pk_overlay_fd(config->overlay));
    pk_limiter_init(&b->limiter, &config->limits);
    b->ring.fd = -1; /* begin() opens it */
    b->requests = calloc(REQUESTS, sizeof(*b->requests));
    if (b->requests == NULL) {
        free(b);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        b->requests[i].next = b->free;
        b->free = &b->requests[i];
    }
    *ret = b;
    return 0;
}

void pk_blk_destroy(struct pk_blk *b)
{
    free(b->requests);
    free(b);
}

void pk_blk_set_writeback(struct pk_blk *b, int on)
{
    __atomic_store_n(&b->writeback, (uint32_t)on, __ATOMIC_RELAXED);
}

int pk_blk_start(struct pk_blk *b, struct pk_queue *queues, uint32_t num, struct pk_interrupt *irq)
{
    b->io = (struct pk_iothread){
        .queues = queues,
        .num = num,
        .irq = irq,
        .device = b,
        .begin = begin_thread,
        .serve = serve,
        .ready = ready,
        .end = end_thread,
        .ready_events = POLLIN,
    };
    b->starved = 0;
    return pk_iothread_start(&b->io, "virtio-blk");
}

void pk_blk_stop(struct pk_blk *b)
{
    pk_iothread_stop(&b->io);
}

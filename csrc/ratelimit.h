/* Rate limits: how many bytes and operations a second a device may move.
 *
 *     struct pk_limiter limiter;
 *     pk_limiter_init(&limiter, &config->limits);             once; a reset of the device keeps it
 *     uint64_t at = pk_limiter_opens_at(&limiter);            before a request is taken
 *     if (at != 0) { io.wake_ns = at; return; }               not now: `ready` is called then
 *     pk_limiter_take(&limiter, 1, bytes);                    once it is known how large it is
 *
 * A queue that must wait is left alone: its chains stay in the ring and the thread sleeps in
 * poll(), so it can be stopped at any time. Whoever serves again after `wake_ns` serves all queues,
 * because the driver was not asked for kicks meanwhile. A device that is limited in two directions
 * has two limiters. Queues with threads of their own may share one: each asks and takes under its
 * lock, so a moment between the two lets every thread take one request at most, paid for
 * afterwards.
 */
#ifndef PK_RATELIMIT_H
#define PK_RATELIMIT_H

#include "core.h"

#include <pthread.h>

/* One token bucket, told in time: it is full when `full_ns` has passed. */
struct pk_bucket {
    uint64_t rate;     /* tokens a second; 0: no limit */
    uint64_t slack_ns; /* how long an empty one takes to fill, less one token */
    uint64_t full_ns;  /* CLOCK_MONOTONIC */
};

struct pk_limiter {
    pthread_mutex_t lock; /* a leaf */
    struct pk_bucket bytes, ops;
};

void pk_limiter_init(struct pk_limiter *limiter, const struct pk_limits *limits);
/* 0 when a request may be taken now; else when to ask again, in nanoseconds of CLOCK_MONOTONIC. */
uint64_t pk_limiter_opens_at(struct pk_limiter *limiter);
/* Take tokens. A request larger than what is left is not cut: the next one waits longer. */
void pk_limiter_take(struct pk_limiter *limiter, uint64_t ops, uint64_t bytes);

/* The two above at a time of the caller's; for tests. */
uint64_t pk_bucket_opens_at(const struct pk_bucket *bucket, uint64_t now_ns);
void pk_bucket_take(struct pk_bucket *bucket, uint64_t tokens, uint64_t now_ns);

uint64_t pk_now_ns(void); /* CLOCK_MONOTONIC */

#endif

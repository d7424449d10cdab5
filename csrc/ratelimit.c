/* Token buckets, as time instead of tokens (the "virtual scheduling" form of ITU-T I.371's generic
 * cell rate algorithm): a token takes 1/rate seconds to come, and taking one moves the moment at
 * which the bucket is full that far away. There is a whole token in it while that moment is no
 * further than what an empty bucket takes to fill, less one token.
 *
 *        now                    full_ns
 *     ────┼────────────────────────┼─────>     tokens left = (burst_ns - (full_ns - now)) × rate
 *         └ at most burst_ns - token_ns, which is slack_ns: open
 *
 * So no clock has to tick, nothing is rounded away between requests, and a request that is larger
 * than the bucket goes through and is paid for afterwards.
 */
#include "ratelimit.h"

#include <time.h>

#define SECOND_NS 1000000000ull

uint64_t pk_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

/* How long `tokens` take to come, rounded up: a limit is never exceeded. */
static uint64_t duration_ns(uint64_t tokens, uint64_t rate)
{
    unsigned __int128 ns = ((unsigned __int128)tokens * SECOND_NS + rate - 1) / rate;
    return ns < INT64_MAX ? (uint64_t)ns : INT64_MAX;
}

static struct pk_bucket bucket(uint64_t rate, uint64_t burst)
{
    if (rate == 0)
        return (struct pk_bucket){0};
    uint64_t token_ns = duration_ns(1, rate), burst_ns = duration_ns(burst, rate);
    return (struct pk_bucket){.rate = rate,
                              .slack_ns = burst_ns > token_ns ? burst_ns - token_ns : 0};
}

uint64_t pk_bucket_opens_at(const struct pk_bucket *b, uint64_t now_ns)
{
    if (b->rate == 0 || b->full_ns <= now_ns + b->slack_ns)
        return 0;
    return b->full_ns - b->slack_ns;
}

void pk_bucket_take(struct pk_bucket *b, uint64_t tokens, uint64_t now_ns)
{
    if (b->rate == 0)
        return;
    if (b->full_ns < now_ns)
        b->full_ns = now_ns;
    uint64_t ns = duration_ns(tokens, b->rate);
    b->full_ns = ns < INT64_MAX - b->full_ns ? b->full_ns + ns : INT64_MAX;
}

void pk_limiter_init(struct pk_limiter *limiter, const struct pk_limits *limits)
{
    *limiter = (struct pk_limiter){
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .bytes = bucket(limits->bytes, limits->bytes_burst),
        .ops = bucket(limits->ops, limits->ops_burst),
    };
}

uint64_t pk_limiter_opens_at(struct pk_limiter *limiter)
{
    if (limiter->bytes.rate == 0 && limiter->ops.rate == 0)
        return 0; /* most devices: not even a look at the clock */
    pthread_mutex_lock(&limiter->lock);
    uint64_t now = pk_now_ns();
    uint64_t bytes = pk_bucket_opens_at(&limiter->bytes, now);
    uint64_t ops = pk_bucket_opens_at(&limiter->ops, now);
    pthread_mutex_unlock(&limiter->lock);
    return bytes > ops ? bytes : ops;
}

void pk_limiter_take(struct pk_limiter *limiter, uint64_t ops, uint64_t bytes)
{
    if (limiter->bytes.rate == 0 && limiter->ops.rate == 0)
        return;
    pthread_mutex_lock(&limiter->lock);
    uint64_t now = pk_now_ns();
    pk_bucket_take(&limiter->bytes, bytes, now);
    pk_bucket_take(&limiter->ops, ops, now);
    pthread_mutex_unlock(&limiter->lock);
}

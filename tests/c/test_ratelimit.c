/* Token buckets: what passes, and when the next may. */
#include "ratelimit.h"

#include "check.h"

#include <pthread.h>

#define SECOND 1000000000ull
#define START  (5 * SECOND)

static struct pk_limiter limiter;

static void setup(uint64_t rate, uint64_t burst)
{
    pk_limiter_init(&limiter, &(struct pk_limits){.ops = rate, .ops_burst = burst});
}

/* How many single operations pass at `now`. */
static uint32_t pass(uint64_t now)
{
    uint32_t count = 0;
    while (count < 1000000 && pk_bucket_opens_at(&limiter.ops, now) == 0) {
        pk_bucket_take(&limiter.ops, 1, now);
        count++;
    }
    return count;
}

static void after_a_rest_a_burst_passes_and_no_more(void)
{
    setup(100, 10);
    CHECK_EQ(pass(START), 10);
    CHECK_EQ(pass(START), 0);
    CHECK_EQ(pass(START + SECOND / 100), 1);
    CHECK_EQ(pass(START + 60 * SECOND), 10);
}

static void the_rate_is_kept_for_as_long_as_it_takes(void)
{
    setup(1000, 1);
    uint64_t count = 0, now = START;
    while (now < START + 10 * SECOND) {
        count += pass(now);
        now = pk_bucket_opens_at(&limiter.ops, now);
        CHECK(now > START);
    }
    CHECK_EQ(count, 10000);
}

static void odd_rates_lose_less_than_a_thousandth(void)
{
    setup(999983, 1);
    uint64_t count = 0;
    for (uint64_t now = START; now < START + SECOND; now = pk_bucket_opens_at(&limiter.ops, now))
        count += pass(now);
    CHECK(count <= 999984);
    CHECK(count >= 998000);
}

static void what_is_larger_than_the_bucket_is_paid_for_afterwards(void)
{
    setup(1000, 10);
    CHECK_EQ(pk_bucket_opens_at(&limiter.ops, START), 0);
    pk_bucket_take(&limiter.ops, 5000, START);
    uint64_t at = pk_bucket_opens_at(&limiter.ops, START);
    CHECK_EQ(at, START + 4991 * SECOND / 1000); /* the debt of 4990, and one */
    CHECK_EQ(pk_bucket_opens_at(&limiter.ops, at), 0);
}

static void both_limits_hold(void)
{
    pk_limiter_init(&limiter, &(struct pk_limits){
                                  .bytes = 1, .bytes_burst = 1, .ops = 1000000, .ops_burst = 1000});
    CHECK_EQ(pk_limiter_opens_at(&limiter), 0);
    pk_limiter_take(&limiter, 1, 3600);
    CHECK(pk_limiter_opens_at(&limiter) > pk_now_ns() + 3000 * SECOND);
}

static void no_limit_is_no_wait(void)
{
    pk_limiter_init(&limiter, &(struct pk_limits){0});
    pk_limiter_take(&limiter, UINT64_MAX, UINT64_MAX);
    CHECK_EQ(pk_limiter_opens_at(&limiter), 0);
}

static void no_number_is_too_large(void)
{
    setup(1, UINT64_MAX);
    pk_bucket_take(&limiter.ops, UINT64_MAX, START);
    pk_bucket_take(&limiter.ops, UINT64_MAX, START);
    setup(1, 1);
    pk_bucket_take(&limiter.ops, UINT64_MAX, START);
    pk_bucket_take(&limiter.ops, UINT64_MAX, START);
    CHECK(pk_bucket_opens_at(&limiter.ops, START) > START);
}

static void *pass_all(void *count)
{
    for (; pk_limiter_opens_at(&limiter) == 0; ++*(uint32_t *)count)
        pk_limiter_take(&limiter, 1, 0);
    return NULL;
}

static void threads_share_what_a_limiter_lets_pass(void)
{
    enum { THREADS = 4, BURST = 10000, LATE_S = 600 };
    uint32_t counts[THREADS] = {0}, count = 0;
    pthread_t threads[THREADS];
    setup(1, BURST);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, pass_all, &counts[i]), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        count += counts[i];
    }
    /* One that each may have taken after another took the last, and what a slow machine waited. */
    CHECK(count >= BURST && count < BURST + THREADS + LATE_S);
}

int main(void)
{
    RUN(after_a_rest_a_burst_passes_and_no_more);
    RUN(the_rate_is_kept_for_as_long_as_it_takes);
    RUN(odd_rates_lose_less_than_a_thousandth);
    RUN(what_is_larger_than_the_bucket_is_paid_for_afterwards);
    RUN(both_limits_hold);
    RUN(no_limit_is_no_wait);
    RUN(no_number_is_too_large);
    RUN(threads_share_what_a_limiter_lets_pass);
    return 0;
}

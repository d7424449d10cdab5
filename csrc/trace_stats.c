/* Exits counted by reason and address, with a histogram of the time each took to serve.
 *
 * A hash table of fixed size for each vCPU, written by its thread alone; another thread may read it
 * meanwhile (--stats=live), so counters are stored atomically. Addresses that find no room
 * share its last row: memory is bounded, no exit goes uncounted.
 */
#include "trace.h"

#include <errno.h>

/* Log-linear buckets: 8 to each power of two, so a figure read from one is at most 1/8 off. */
enum { SUB_BITS = 3, SUB = 1 << SUB_BITS };

enum { PROBES = 16 }; /* places a row may be in: what an exit costs stays bounded, too */

uint32_t pk_stats_bucket(uint64_t ns)
{
    if (ns < SUB)
        return (uint32_t)ns;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(ns);
    uint32_t bucket = (octave - SUB_BITS + 1) * SUB + (uint32_t)(ns >> (octave - SUB_BITS)) % SUB;
    return bucket < PK_STATS_BUCKETS ? bucket : PK_STATS_BUCKETS - 1;
}

uint64_t pk_stats_bucket_start(uint32_t bucket)
{
    if (bucket < SUB)
        return bucket;
    return (uint64_t)(SUB + bucket % SUB) << (bucket / SUB - 1);
}

static int matches(const struct pk_exit_stats *s, const struct pk_trace_record *r)
{
    return s->addr == r->addr && s->kind == r->kind && s->reason == r->reason &&
           s->is_write == r->is_write;
}

/* The row of exits like `r`; a new one if there is room, else the last, shared by all others. */
static struct pk_exit_stats *row(struct pk_trace *t, const struct pk_trace_record *r)
{
    uint64_t key = r->addr << 17 ^ (uint64_t)r->kind << 9 ^ (uint64_t)r->reason << 1 ^ r->is_write;
    uint64_t hash = key * 0x9e3779b97f4a7c15u >> 32; /* Fibonacci hashing */
    for (uint32_t i = 0; i < PROBES; i++) {
        struct pk_exit_stats *s = &t->stats[(hash + i) % PK_STATS_MAX];
        if (s->count > 0) {
            if (matches(s, r))
                return s;
            continue;
        }
        *s = (struct pk_exit_stats){
            .addr = r->addr, .kind = r->kind, .reason = r->reason, .is_write = r->is_write};
        return s;
    }
    return &t->stats[PK_STATS_MAX];
}

static void add(uint64_t *counter, uint64_t value)
{
    /* Relaxed: a statistic; one writer, so no atomic addition. */
    __atomic_store_n(counter, *counter + value, __ATOMIC_RELAXED);
}

void pk_trace_count(struct pk_trace *t, const struct pk_trace_record *r)
{
    struct pk_exit_stats *s = row(t, r);
    uint32_t *bucket = &s->histogram[pk_stats_bucket(r->handler_ns)];
    __atomic_store_n(bucket, *bucket + 1, __ATOMIC_RELAXED);
    add(&s->handler_ns, r->handler_ns);
    add(&s->guest_ns, r->guest_ns);
    add(&s->in_c, r->in_c);
    if (r->handler_ns > s->max_ns)
        __atomic_store_n(&s->max_ns, r->handler_ns, __ATOMIC_RELAXED);
    /* Release: a reader that sees the first count sees what it counts. Partner in
     * pk_trace_stats(). */
    __atomic_store_n(&s->count, s->count + 1, __ATOMIC_RELEASE);
}

int pk_trace_stats(const struct pk_trace *t, uint32_t index, struct pk_exit_stats *ret)
{
    if (t->stats == NULL || index > PK_STATS_MAX)
        return -EINVAL;
    const struct pk_exit_stats *s = &t->stats[index];
    ret->count = __atomic_load_n(&s->count, __ATOMIC_ACQUIRE);
    if (ret->count == 0)
        return 0;
    ret->addr = s->addr;
    ret->kind = s->kind;
    ret->reason = s->reason;
    ret->is_write = s->is_write;
    ret->handler_ns = __atomic_load_n(&s->handler_ns, __ATOMIC_RELAXED);
    ret->guest_ns = __atomic_load_n(&s->guest_ns, __ATOMIC_RELAXED);
    ret->in_c = __atomic_load_n(&s->in_c, __ATOMIC_RELAXED);
    ret->max_ns = __atomic_load_n(&s->max_ns, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < PK_STATS_BUCKETS; i++)
        ret->histogram[i] = __atomic_load_n(&s->histogram[i], __ATOMIC_RELAXED);
    return 1;
}

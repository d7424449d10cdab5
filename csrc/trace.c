/* Tracing: what happened, in rings of fixed-size records, until somebody takes it.
 *
 *   vCPU thread ── pk_trace_enter(), pk_trace_exit() ──> its own ring ──┐
 *   iothreads, devices ── pk_trace_event() ──> the machine's ring ──────┴──> pk_trace_take()
 *
 * A ring has one producer and one consumer and no lock; the machine's ring has many producers, who
 * take turns by `events_lock`. A full ring loses new records, or the oldest, and counts them. Where
 * nothing is traced, a vCPU pays a test of its `trace` pointer and everybody else one of
 * `pk_tracing`.
 *
 * Lock order: events_lock is a leaf; it is taken with a device's lock held.
 */
#include "trace.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define SECOND_NS 1000000000ull

int pk_tracing;

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pk_trace *machines; /* the rings of events, one a traced machine */

uint64_t pk_trace_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

int pk_trace_create(const struct pk_trace_config *config, struct pk_trace **ret)
{
    if ((config->num & (config->num - 1)) != 0)
        return -EINVAL;
    struct pk_trace *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return -ENOMEM;
    t->config = *config;
    t->vm_fd = -1;
    if (config->num > 0)
        t->records = calloc(config->num, sizeof(*t->records));
    if (config->stats)
        t->stats = calloc(PK_STATS_MAX + 1, sizeof(*t->stats));
    if ((config->num > 0 && t->records == NULL) || (config->stats && t->stats == NULL)) {
        pk_trace_destroy(t);
        return -ENOMEM;
    }
    *ret = t;
    return 0;
}

void pk_trace_destroy(struct pk_trace *t)
{
    pk_trace_finish(t);
    free(t->records);
    free(t->stats);
    free(t);
}

/* ── the ring ───────────────────────────────────────────────────────────────────────────────── */

static void push(struct pk_trace *t, const struct pk_trace_record *record)
{
    if (t->config.num == 0)
        return;
    uint64_t head = t->head; /* only we write it */
    /* Acquire: the consumer has copied the record that we are about to overwrite. */
    uint64_t used = head - __atomic_load_n(&t->tail, __ATOMIC_ACQUIRE);
    if (used == t->config.num) {
        __atomic_store_n(&t->lost, t->lost + 1, __ATOMIC_RELAXED);
        if (!t->config.newest)
            return;
        __atomic_store_n(&t->tail, t->tail + 1, __ATOMIC_RELAXED); /* there is no consumer now */
    }
    t->records[head & (t->config.num - 1)] = *record;
    /* Release: the record is whole before the consumer can see it. Partner in pk_trace_take(). */
    __atomic_store_n(&t->head, head + 1, __ATOMIC_RELEASE);
    if (used + 1 == t->config.num / 2 && t->config.event_fd >= 0) {
        uint64_t one = 1;
        ssize_t result = write(t->config.event_fd, &one, sizeof(one));
        (void)result; /* a full counter is readable already */
    }
}

int pk_trace_take(struct pk_trace *t, struct pk_trace_record *ret, uint32_t num)
{
    uint64_t tail = t->tail; /* only we write it */
    uint64_t count = __atomic_load_n(&t->head, __ATOMIC_ACQUIRE) - tail;
    if (count > num)
        count = num;
    for (uint64_t i = 0; i < count; i++)
        ret[i] = t->records[(tail + i) & (t->config.num - 1)];
    __atomic_store_n(&t->tail, tail + count, __ATOMIC_RELEASE); /* partner in push() */
    return (int)count;
}

uint64_t pk_trace_lost(const struct pk_trace *t)
{
    return __atomic_load_n(&t->lost, __ATOMIC_RELAXED);
}

/* ── a vCPU ─────────────────────────────────────────────────────────────────────────────────── */

/* A timer that sends the kick signal to this thread: KVM_RUN returns, the trace gets a sample. */
static void start_sampling(struct pk_trace *t)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = pk_kick_signal()};
    event.sigev_notify_thread_id = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &t->timer) < 0)
        return; /* a trace without samples is one all the same */
    t->has_timer = 1;
    uint64_t ns = SECOND_NS / t->config.hz;
    struct timespec period = {(time_t)(ns / SECOND_NS), (long)(ns % SECOND_NS)};
    struct itimerspec times = {.it_interval = period, .it_value = period};
    timer_settime(t->timer, 0, &times, NULL);
}

/* The first element of the access that ended the last KVM_RUN: written by the guest, or answered
 * by us by now. It lies where KVM wants it. */
static uint64_t first_element(const struct kvm_run *run)
{
    uint64_t data = 0;
    if (run->exit_reason == KVM_EXIT_IO)
        memcpy(&data, (const uint8_t *)run + run->io.data_offset, run->io.size);
    else if (run->exit_reason == KVM_EXIT_MMIO)
        memcpy(&data, run->mmio.data, run->mmio.len < 8 ? run->mmio.len : 8);
    return data;
}

static void finish_exit(struct pk_trace *t, uint64_t now)
{
    t->is_open = 0;
    t->open.handler_ns = now - t->open.time;
    if (t->stats != NULL)
        pk_trace_count(t, &t->open);
    push(t, &t->open);
}

void pk_trace_enter(struct pk_trace *t, const struct kvm_run *run, int in_c)
{
    uint64_t now = pk_trace_now();
    if (t->is_open) {
        if (t->open.kind == PK_TRACE_EXIT && t->open.size > 0)
            t->open.data = first_element(run);
        t->open.in_c = in_c != 0;
        finish_exit(t, now);
    }
    if (t->config.hz > 0 && !t->has_timer)
        start_sampling(t);
    t->entered = now;
}

void pk_trace_exit(struct pk_trace *t, const struct kvm_run *run, enum pk_trace_kind kind)
{
    uint64_t now = pk_trace_now();
    struct pk_trace_record *r = &t->open;
    *r = (struct pk_trace_record){
        .time = now,
        .guest_ns = now - t->entered,
        .rip = run->s.regs.regs.rip,
        .source = t->config.source,
        .kind = (uint8_t)kind,
        .reason = kind == PK_TRACE_EXIT ? (uint8_t)run->exit_reason : KVM_EXIT_INTR,
    };
    t->is_open = 1;
    if (kind != PK_TRACE_EXIT)
        return;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        r->addr = run->io.port;
        r->size = run->io.size;
        r->count = run->io.count;
        r->is_write = run->io.direction == KVM_EXIT_IO_OUT;
        break;
    case KVM_EXIT_MMIO:
        r->addr = run->mmio.phys_addr;
        r->size = (uint8_t)run->mmio.len;
        r->count = 1;
        r->is_write = run->mmio.is_write;
        break;
    case KVM_EXIT_DEBUG:
        r->addr = run->debug.arch.pc;
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        r->data = run->internal.suberror;
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        r->data = run->system_event.type;
        break;
    default:
        break;
    }
}

void pk_trace_finish(struct pk_trace *t)
{
    if (t->has_timer)
        timer_delete(t->timer);
    t->has_timer = 0;
    if (t->is_open)
        finish_exit(t, pk_trace_now());
    pk_trace_watch(t, -1);
}

/* ── the machine ────────────────────────────────────────────────────────────────────────────── */

void pk_trace_watch(struct pk_trace *t, int vm_fd)
{
    pthread_mutex_lock(&events_lock);
    struct pk_trace **link = &machines;
    while (*link != NULL && *link != t)
        link = &(*link)->next;
    if (*link != NULL)
        *link = t->next;
    t->vm_fd = vm_fd;
    if (vm_fd >= 0) {
        t->next = machines;
        machines = t;
    }
    /* Relaxed: whoever sees it a moment later misses a moment's events. */
    __atomic_store_n(&pk_tracing, machines != NULL, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&events_lock);
}

void pk_trace_note(int vm_fd, enum pk_trace_kind kind, uint64_t addr, uint64_t data, uint32_t count)
{
    struct pk_trace_record record = {
        .time = pk_trace_now(), .addr = addr, .data = data, .count = count, .kind = (uint8_t)kind};
    pthread_mutex_lock(&events_lock);
    for (struct pk_trace *t = machines; t != NULL; t = t->next)
        if (t->vm_fd == vm_fd)
            push(t, &record);
    pthread_mutex_unlock(&events_lock);
}

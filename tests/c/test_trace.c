/* Rings, counts and text of traces. No KVM: kvm_run is a page of our own. */
#include "trace.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"

#define VM    5 /* no descriptor is used, only its number */
#define OTHER 6
#define EVENT PK_TRACE_QUEUE_KICK

static struct pk_trace *make(uint32_t num, uint32_t stats, int event_fd)
{
    struct pk_trace_config config = {.num = num, .stats = stats, .event_fd = event_fd};
    struct pk_trace *trace;
    CHECK_EQ(pk_trace_create(&config, &trace), 0);
    return trace;
}

/* ── rings ──────────────────────────────────────────────────────────────────────────────────── */

static void records_come_out_in_order_also_around_the_end(void)
{
    struct pk_trace *trace = make(4, 0, -1);
    struct pk_trace_record records[4];
    pk_trace_watch(trace, VM);
    for (uint64_t i = 0; i < 100; i += 3) {
        for (uint64_t j = i; j < i + 3; j++)
            pk_trace_event(VM, EVENT, 16, j, 1);
        CHECK_EQ(pk_trace_take(trace, records, 4), 3);
        for (uint64_t j = 0; j < 3; j++)
            CHECK_EQ(records[j].data, i + j);
    }
    CHECK_EQ(pk_trace_take(trace, records, 4), 0);
    CHECK_EQ(pk_trace_lost(trace), 0);
    pk_trace_destroy(trace);
}

static void a_full_ring_loses_the_new_and_counts_them(void)
{
    struct pk_trace *trace = make(4, 0, -1);
    struct pk_trace_record records[8];
    pk_trace_watch(trace, VM);
    for (uint64_t i = 0; i < 10; i++)
        pk_trace_event(VM, EVENT, 16, i, 1);
    CHECK_EQ(pk_trace_lost(trace), 6);
    CHECK_EQ(pk_trace_take(trace, records, 8), 4);
    CHECK_EQ(records[0].data, 0);
    CHECK_EQ(records[3].data, 3);
    pk_trace_event(VM, EVENT, 16, 10, 1);
    CHECK_EQ(pk_trace_take(trace, records, 8), 1);
    CHECK_EQ(records[0].data, 10);
    pk_trace_destroy(trace);
}

static void a_full_ring_of_the_newest_loses_the_oldest(void)
{
    struct pk_trace_config config = {.num = 4, .newest = 1, .event_fd = -1};
    struct pk_trace *trace;
    struct pk_trace_record records[8];
    CHECK_EQ(pk_trace_create(&config, &trace), 0);
    pk_trace_watch(trace, VM);
    for (uint64_t i = 0; i < 10; i++)
        pk_trace_event(VM, EVENT, 16, i, 1);
    CHECK_EQ(pk_trace_lost(trace), 6);
    CHECK_EQ(pk_trace_take(trace, records, 8), 4);
    CHECK_EQ(records[0].data, 6);
    CHECK_EQ(records[3].data, 9);
    pk_trace_destroy(trace);
}

static void a_half_full_ring_says_so_once(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct pk_trace *trace = make(8, 0, fd);
    uint64_t count;
    pk_trace_watch(trace, VM);
    for (uint64_t i = 0; i < 3; i++)
        pk_trace_event(VM, EVENT, 16, i, 1);
    CHECK(read(fd, &count, sizeof(count)) < 0);
    for (uint64_t i = 0; i < 4; i++)
        pk_trace_event(VM, EVENT, 16, i, 1);
    CHECK_EQ(read(fd, &count, sizeof(count)), sizeof(count));
    CHECK_EQ(count, 1);
    pk_trace_destroy(trace);
    close(fd);
}

static void a_machine_sees_its_own_events_alone(void)
{
    struct pk_trace *trace = make(8, 0, -1), *other = make(8, 0, -1);
    struct pk_trace_record records[8];
    CHECK_EQ(pk_tracing, 0);
    pk_trace_event(VM, EVENT, 16, 1, 1); /* nobody listens */
    pk_trace_watch(trace, VM);
    pk_trace_watch(other, OTHER);
    pk_trace_event(VM, EVENT, 16, 2, 1);
    pk_trace_event(OTHER, EVENT, 16, 3, 1);
    CHECK_EQ(pk_trace_take(trace, records, 8), 1);
    CHECK_EQ(records[0].data, 2);
    CHECK_EQ(pk_trace_take(other, records, 8), 1);
    CHECK_EQ(records[0].data, 3);
    pk_trace_watch(other, -1);
    pk_trace_event(OTHER, EVENT, 16, 4, 1);
    CHECK_EQ(pk_trace_take(other, records, 8), 0);
    pk_trace_destroy(trace);
    pk_trace_destroy(other);
    CHECK_EQ(pk_tracing, 0);
}

static void a_size_that_is_no_power_of_two_is_refused(void)
{
    struct pk_trace_config config = {.num = 12};
    struct pk_trace *trace;
    CHECK_EQ(pk_trace_create(&config, &trace), -EINVAL);
}

#define PRODUCERS 3u
#define EACH      20000u

static void *produce(void *argument)
{
    for (uint64_t i = 0; i < EACH; i++)
        pk_trace_event(VM, EVENT, (uint64_t)(uintptr_t)argument, i, 1);
    return NULL;
}

static void several_threads_lose_nothing_uncounted_and_keep_their_order(void)
{
    struct pk_trace *trace = make(256, 0, -1);
    struct pk_trace_record records[64];
    pthread_t threads[PRODUCERS];
    uint64_t next[PRODUCERS] = {0}, taken = 0;
    pk_trace_watch(trace, VM);
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, produce, (void *)i), 0);
    while (taken + pk_trace_lost(trace) < (uint64_t)PRODUCERS * EACH) {
        int count = pk_trace_take(trace, records, 64);
        for (int i = 0; i < count; i++) {
            CHECK(records[i].data >= next[records[i].addr]);
            next[records[i].addr] = records[i].data + 1;
        }
        taken += (uint64_t)count;
    }
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    taken += (uint64_t)pk_trace_take(trace, records, 64);
    CHECK_EQ(taken + pk_trace_lost(trace), (uint64_t)PRODUCERS * EACH);
    pk_trace_destroy(trace);
}

/* ── a vCPU's exits ─────────────────────────────────────────────────────────────────────────── */

static uint64_t page[1024];
static struct kvm_run *const run = (struct kvm_run *)page;

static void leave_by_port(uint16_t port, uint8_t size, int is_out, uint32_t value)
{
    run->exit_reason = KVM_EXIT_IO;
    run->io.direction = is_out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    run->io.port = port;
    run->io.size = size;
    run->io.count = 1;
    run->io.data_offset = 4096;
    memcpy((uint8_t *)page + 4096, &value, sizeof(value));
    run->s.regs.regs.rip = 0x1234;
}

static void an_exit_is_recorded_when_it_has_been_served(void)
{
    struct pk_trace *trace = make(8, 0, -1);
    struct pk_trace_record record;
    pk_trace_enter(trace, run, 0);
    leave_by_port(0x71, 1, 0, 0);
    pk_trace_exit(trace, run, PK_TRACE_EXIT);
    CHECK_EQ(pk_trace_take(trace, &record, 1), 0);
    ((uint8_t *)page)[4096] = 0x42; /* the device's answer */
    pk_trace_enter(trace, run, 1);
    CHECK_EQ(pk_trace_take(trace, &record, 1), 1);
    CHECK_EQ(record.kind, PK_TRACE_EXIT);
    CHECK_EQ(record.reason, KVM_EXIT_IO);
    CHECK_EQ(record.addr, 0x71);
    CHECK_EQ(record.data, 0x42);
    CHECK_EQ(record.size, 1);
    CHECK_EQ(record.is_write, 0);
    CHECK_EQ(record.in_c, 1);
    CHECK_EQ(record.rip, 0x1234);
    CHECK(record.time <= pk_trace_now());
    pk_trace_destroy(trace);
}

static void the_last_exit_is_recorded_at_the_end(void)
{
    struct pk_trace *trace = make(8, 1, -1);
    struct pk_trace_record record;
    pk_trace_enter(trace, run, 0);
    run->exit_reason = KVM_EXIT_SHUTDOWN;
    pk_trace_exit(trace, run, PK_TRACE_EXIT);
    pk_trace_finish(trace);
    pk_trace_finish(trace);
    CHECK_EQ(pk_trace_take(trace, &record, 1), 1);
    CHECK_EQ(record.reason, KVM_EXIT_SHUTDOWN);
    CHECK_EQ(record.size, 0);
    pk_trace_destroy(trace);
}

/* ── counts ─────────────────────────────────────────────────────────────────────────────────── */

static void buckets_are_in_order_and_an_eighth_wide_at_most(void)
{
    for (uint32_t bucket = 0; bucket + 1 < PK_STATS_BUCKETS; bucket++) {
        uint64_t start = pk_stats_bucket_start(bucket), end = pk_stats_bucket_start(bucket + 1);
        CHECK(start < end);
        CHECK((end - start) * 8 <= start || end - start == 1);
        CHECK_EQ(pk_stats_bucket(start), bucket);
        CHECK_EQ(pk_stats_bucket(end - 1), bucket);
    }
    CHECK_EQ(pk_stats_bucket(UINT64_MAX), PK_STATS_BUCKETS - 1);
}

static uint64_t total(struct pk_trace *trace, uint32_t *rows)
{
    struct pk_exit_stats stats;
    uint64_t count = 0;
    *rows = 0;
    for (uint32_t i = 0; pk_trace_stats(trace, i, &stats) >= 0; i++)
        if (pk_trace_stats(trace, i, &stats) == 1) {
            uint64_t in_histogram = 0;
            for (uint32_t bucket = 0; bucket < PK_STATS_BUCKETS; bucket++)
                in_histogram += stats.histogram[bucket];
            CHECK_EQ(in_histogram, stats.count);
            count += stats.count;
            ++*rows;
        }
    return count;
}

static void exits_are_counted_by_what_they_are(void)
{
    struct pk_trace *trace = make(0, 1, -1);
    uint32_t rows;
    for (uint32_t i = 0; i < 30; i++) {
        struct pk_trace_record record = {.kind = PK_TRACE_EXIT,
                                         .reason = KVM_EXIT_IO,
                                         .addr = i % 3,
                                         .is_write = i % 2,
                                         .handler_ns = i * 1000,
                                         .in_c = 1};
        pk_trace_count(trace, &record);
    }
    CHECK_EQ(total(trace, &rows), 30);
    CHECK_EQ(rows, 6);
    pk_trace_destroy(trace);
}

static void no_exit_goes_uncounted_when_there_are_many_addresses(void)
{
    struct pk_trace *trace = make(0, 1, -1);
    uint32_t rows;
    for (uint64_t i = 0; i < 100000; i++) {
        struct pk_trace_record record = {
            .kind = PK_TRACE_EXIT, .reason = KVM_EXIT_MMIO, .addr = 0xd0000000 + i * 4096};
        pk_trace_count(trace, &record);
    }
    CHECK_EQ(total(trace, &rows), 100000);
    CHECK(rows <= PK_STATS_MAX + 1);
    struct pk_exit_stats rest;
    CHECK_EQ(pk_trace_stats(trace, PK_STATS_MAX, &rest), 1);
    CHECK_EQ(rest.kind, 0);
    pk_trace_destroy(trace);
}

/* ── text ───────────────────────────────────────────────────────────────────────────────────── */

static void the_longest_record_fits(void)
{
    struct pk_trace_name names[] = {{.base = 0, .len = UINT64_MAX, .space = PK_PIO},
                                    {.base = 0, .len = UINT64_MAX, .space = PK_MMIO},
                                    {.base = 0, .len = UINT64_MAX, .space = PK_GSI}};
    for (uint32_t i = 0; i < 3; i++)
        memset(names[i].name, 'x', sizeof(names[i].name) - 1);
    char text[PK_TRACE_TEXT_MAX];
    for (uint8_t kind = PK_TRACE_EXIT; kind <= PK_TRACE_QUEUE_USED; kind++)
        for (uint32_t reason = 0; reason < 256; reason++)
            for (uint32_t csv = 0; csv < 2; csv++) {
                struct pk_trace_record record;
                memset(&record, 0xff, sizeof(record));
                record.kind = kind;
                record.reason = (uint8_t)reason;
                record.addr--; /* inside of the names' ranges */
                struct pk_trace_text how = {
                    .names = names, .num_names = 3, .pid = UINT32_MAX, .csv = csv};
                int used = pk_trace_format(&how, &record, 1, text, sizeof(text));
                CHECK(used > 0 && (size_t)used < sizeof(text));
                CHECK_EQ(strlen(text), used);
            }
}

int main(void)
{
    RUN(records_come_out_in_order_also_around_the_end);
    RUN(a_full_ring_loses_the_new_and_counts_them);
    RUN(a_full_ring_of_the_newest_loses_the_oldest);
    RUN(a_half_full_ring_says_so_once);
    RUN(a_machine_sees_its_own_events_alone);
    RUN(a_size_that_is_no_power_of_two_is_refused);
    RUN(several_threads_lose_nothing_uncounted_and_keep_their_order);
    RUN(an_exit_is_recorded_when_it_has_been_served);
    RUN(the_last_exit_is_recorded_at_the_end);
    RUN(buckets_are_in_order_and_an_eighth_wide_at_most);
    RUN(exits_are_counted_by_what_they_are);
    RUN(no_exit_goes_uncounted_when_there_are_many_addresses);
    RUN(the_longest_record_fits);
    return 0;
}

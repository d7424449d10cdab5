/* The split virtqueue: what a sound driver gets, and that no other can do harm. */
#include "driver.h"

#include <errno.h>

static struct pk_chain chain;

static void expect_fault(enum pk_virtq_fault fault)
{
    CHECK_EQ(pk_virtq_pop(&queue, &chain), -EINVAL);
    CHECK_EQ(queue.fault, fault);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), -EINVAL); /* and for good */
    pk_mem_destroy(&memory);
}

static void an_empty_ring_gives_nothing(void)
{
    setup_queue(8);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 0);
    pk_mem_destroy(&memory);
}

static void a_chain_comes_with_its_buffers_in_order(void)
{
    setup_queue(8);
    describe(3, BUFFERS, 16, NEXT, 5);
    describe(5, BUFFERS + 0x100, 512, NEXT | WRITE, 0);
    describe(0, BUFFERS + 0x800, 1, WRITE, 7);
    make_available(3);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 1);
    CHECK_EQ(chain.head, 3);
    CHECK_EQ(chain.out_num, 1);
    CHECK_EQ(chain.in_num, 2);
    CHECK_EQ(chain.out_len, 16);
    CHECK_EQ(chain.in_len, 513);
    CHECK(chain.iov[1].iov_base == memory.hva + BUFFERS + 0x100);
    CHECK_EQ(chain.iov[2].iov_len, 1);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 0);
    pk_mem_destroy(&memory);
}

static void an_indirect_table_may_end_a_chain(void)
{
    setup_queue(4);
    describe(0, BUFFERS, 16, NEXT, 1);
    describe(1, 0x8000, 32, INDIRECT, 0);
    describe_at(0x8000, BUFFERS + 16, 8, NEXT, 1);
    describe_at(0x8010, BUFFERS + 32, 9, WRITE, 0);
    make_available(0);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 1);
    CHECK_EQ(chain.out_len, 24);
    CHECK_EQ(chain.in_len, 9);
    pk_mem_destroy(&memory);
}

static void a_chain_as_long_as_the_ring_is_taken(void)
{
    setup_queue(4);
    for (unsigned i = 0; i < 4; i++)
        describe(i, BUFFERS, 1, i < 3 ? NEXT : 0, i + 1);
    make_available(0);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 1);
    CHECK_EQ(chain.out_num, 4);
    pk_mem_destroy(&memory);
}

static void a_loop_is_a_fault(void)
{
    setup_queue(4);
    describe(0, BUFFERS, 1, NEXT, 1);
    describe(1, BUFFERS, 1, NEXT, 0);
    make_available(0);
    expect_fault(PK_VIRTQ_TOO_LONG);
}

static void a_loop_in_an_indirect_table_is_a_fault(void)
{
    setup_queue(4);
    describe(0, 0x8000, 16, INDIRECT, 0);
    describe_at(0x8000, BUFFERS, 1, NEXT, 0);
    make_available(0);
    expect_fault(PK_VIRTQ_TOO_LONG);
}

static void an_index_outside_the_table_is_a_fault(void)
{
    setup_queue(4);
    make_available(4);
    expect_fault(PK_VIRTQ_BAD_INDEX);
    setup_queue(4);
    describe(0, BUFFERS, 1, NEXT, 0xffff);
    make_available(0);
    expect_fault(PK_VIRTQ_BAD_INDEX);
}

static void a_buffer_that_is_not_guest_memory_is_a_fault(void)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
    } BAD[] = {
        {MEMORY - 1, 2}, {MEMORY, 1},           {UINT64_MAX, 1},         {UINT64_MAX - 7, 16},
        {BUFFERS, 0},    {BUFFERS, UINT32_MAX}, {0x8000000000000000, 1},
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        setup_queue(4);
        describe(0, BAD[i].addr, BAD[i].len, 0, 0);
        make_available(0);
        expect_fault(PK_VIRTQ_BAD_BUFFER);
    }
}

static void a_readable_buffer_after_a_writable_one_is_a_fault(void)
{
    setup_queue(4);
    describe(0, BUFFERS, 1, NEXT | WRITE, 1);
    describe(1, BUFFERS, 1, 0, 0);
    make_available(0);
    expect_fault(PK_VIRTQ_BAD_ORDER);
}

static void bad_indirect_tables_are_faults(void)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
        unsigned flags;
        enum pk_virtq_fault fault;
    } BAD[] = {
        {0x8000, 0, INDIRECT, PK_VIRTQ_BAD_INDIRECT},
        {0x8000, 17, INDIRECT, PK_VIRTQ_BAD_INDIRECT},
        {0x8000, 16, INDIRECT | NEXT, PK_VIRTQ_BAD_INDIRECT},
        {MEMORY - 8, 16, INDIRECT, PK_VIRTQ_BAD_INDIRECT},
        {0x8000, 80, INDIRECT, PK_VIRTQ_TOO_LONG},
        {0x8000, 0xfffffff0, INDIRECT, PK_VIRTQ_TOO_LONG},
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        setup_queue(4);
        describe(0, BAD[i].addr, BAD[i].len, BAD[i].flags, 0);
        make_available(0);
        expect_fault(BAD[i].fault);
    }
    setup_queue(4); /* a table in a table */
    describe(0, 0x8000, 16, INDIRECT, 0);
    describe_at(0x8000, 0x9000, 16, INDIRECT, 0);
    make_available(0);
    expect_fault(PK_VIRTQ_BAD_INDIRECT);
    setup_queue(4); /* not negotiated */
    queue.indirect = 0;
    describe(0, 0x8000, 16, INDIRECT, 0);
    make_available(0);
    expect_fault(PK_VIRTQ_BAD_INDIRECT);
}

static void more_chains_than_the_ring_holds_are_a_fault(void)
{
    setup_queue(4);
    put16(AVAIL + 2, 5);
    expect_fault(PK_VIRTQ_BAD_AVAIL);
    setup_queue(4);
    put16(AVAIL + 2, 0xffff); /* the index went back */
    expect_fault(PK_VIRTQ_BAD_AVAIL);
}

static void bad_places_and_sizes_are_refused(void)
{
    setup_queue(4);
    struct pk_virtq q = queue;
    for (uint32_t size = 0; size <= 32768; size = size ? size * 2 : 3) {
        q.size = size;
        int allowed = size > 0 && size <= PK_VIRTQ_SIZE_MAX && size % 3 != 0;
        CHECK_EQ(pk_virtq_start(&q), allowed ? 0 : -EINVAL);
    }
    q.size = 32768;
    CHECK_EQ(pk_virtq_start(&q), -EINVAL);
    CHECK_EQ(q.fault, PK_VIRTQ_BAD_SIZE);
    static const uint64_t PLACES[][3] = {
        {8, AVAIL, USED},
        {DESC, AVAIL + 1, USED},
        {DESC, AVAIL, USED + 2},
        {MEMORY - 32, AVAIL, USED},
        {DESC, MEMORY - 2, USED},
        {DESC, AVAIL, MEMORY - 4},
        {UINT64_MAX - 15, AVAIL, USED},
        {DESC, UINT64_MAX - 1, USED},
        {DESC, AVAIL, UINT64_MAX - 3},
    };
    for (size_t i = 0; i < sizeof(PLACES) / sizeof(PLACES[0]); i++) {
        q = queue;
        q.desc_gpa = PLACES[i][0];
        q.avail_gpa = PLACES[i][1];
        q.used_gpa = PLACES[i][2];
        CHECK_EQ(pk_virtq_start(&q), -EINVAL);
        CHECK_EQ(q.fault, PK_VIRTQ_BAD_RING);
    }
    pk_mem_destroy(&memory);
}

static void pushed_chains_appear_in_the_used_ring(void)
{
    setup_queue(4);
    for (uint32_t i = 0; i < 6; i++)
        pk_virtq_push(&queue, i, 100 + i);
    CHECK_EQ(get16(USED + 2), 6);
    CHECK_EQ(get32(USED + 4 + 8 * 1), 5); /* the sixth, where the second was */
    CHECK_EQ(get32(USED + 8 + 8 * 1), 105);
    CHECK_EQ(get32(USED + 4 + 8 * 2), 2);
    pk_mem_destroy(&memory);
}

static void indices_wrap_around(void)
{
    setup_queue(4);
    describe(0, BUFFERS, 1, 0, 0);
    for (uint32_t i = 0; i < 0x10005; i++) {
        make_available(0);
        CHECK_EQ(pk_virtq_pop(&queue, &chain), 1);
        pk_virtq_push(&queue, 0, 0);
    }
    CHECK_EQ(get16(USED + 2), 5);
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 0);
    pk_mem_destroy(&memory);
}

static void interrupts_follow_the_flag(void)
{
    setup_queue(4);
    CHECK(!pk_virtq_wants_interrupt(&queue));
    pk_virtq_push(&queue, 0, 0);
    CHECK(pk_virtq_wants_interrupt(&queue));
    CHECK(!pk_virtq_wants_interrupt(&queue));
    put16(AVAIL, 1);
    pk_virtq_push(&queue, 0, 0);
    CHECK(!pk_virtq_wants_interrupt(&queue));
    pk_mem_destroy(&memory);
}

static void interrupts_follow_the_used_event(void)
{
    setup_queue(4);
    queue.event_idx = 1;
    put16(AVAIL + 4 + 2 * 4, 2); /* when the third has been used */
    for (int i = 0; i < 5; i++) {
        pk_virtq_push(&queue, 0, 0);
        CHECK_EQ(pk_virtq_wants_interrupt(&queue), i == 2);
    }
    put16(AVAIL + 4 + 2 * 4, 6);
    for (int i = 0; i < 4; i++) /* several at once, the wanted one among them */
        pk_virtq_push(&queue, 0, 0);
    CHECK(pk_virtq_wants_interrupt(&queue));
    pk_mem_destroy(&memory);
}

static void kicks_are_asked_for_and_refused(void)
{
    setup_queue(4);
    describe(0, BUFFERS, 1, 0, 0);
    pk_virtq_refuse_kicks(&queue);
    CHECK_EQ(get16(USED), 1);
    CHECK(!pk_virtq_ask_kicks(&queue));
    CHECK_EQ(get16(USED), 0);
    make_available(0);
    CHECK(pk_virtq_ask_kicks(&queue));
    CHECK_EQ(pk_virtq_pop(&queue, &chain), 1);
    queue.event_idx = 1;
    CHECK(!pk_virtq_ask_kicks(&queue));
    CHECK_EQ(get16(USED + 4 + 8 * 4), 1);
    pk_mem_destroy(&memory);
}

int main(void)
{
    RUN(an_empty_ring_gives_nothing);
    RUN(a_chain_comes_with_its_buffers_in_order);
    RUN(an_indirect_table_may_end_a_chain);
    RUN(a_chain_as_long_as_the_ring_is_taken);
    RUN(a_loop_is_a_fault);
    RUN(a_loop_in_an_indirect_table_is_a_fault);
    RUN(an_index_outside_the_table_is_a_fault);
    RUN(a_buffer_that_is_not_guest_memory_is_a_fault);
    RUN(a_readable_buffer_after_a_writable_one_is_a_fault);
    RUN(bad_indirect_tables_are_faults);
    RUN(more_chains_than_the_ring_holds_are_a_fault);
    RUN(bad_places_and_sizes_are_refused);
    RUN(pushed_chains_appear_in_the_used_ring);
    RUN(indices_wrap_around);
    RUN(interrupts_follow_the_flag);
    RUN(interrupts_follow_the_used_event);
    RUN(kicks_are_asked_for_and_refused);
    return 0;
}

/* The console device's data plane, through its thread: port 1's queues on one side, pipes of the
 * host's on the other. The transmit queue is driver.h's, the receive queue at 0x10000.
 */
#include "driver.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RX_DESC  0x10000u
#define RX_AVAIL 0x11000u
#define RX_USED  0x12000u
#define RX_BYTES 0x20000u

enum { QUEUES = 6, RX = 4, TX = 5 };

static struct pk_console *console;
static struct pk_interrupt *irq;
static struct pk_queue queues[QUEUES];
static int to_guest[2], from_guest[2], event_fd, call_fd;

static void kick(uint32_t number)
{
    uint64_t one = 1;
    CHECK_EQ(write(queues[number].kick_fd, &one, 8), 8);
}

static void start(void)
{
    for (uint32_t i = 0; i < QUEUES; i++)
        queues[i].kick_fd = i == 2 || i == 3 ? -1 : eventfd(0, EFD_NONBLOCK);
    queues[TX].virtq = queue;
    queues[RX].virtq = (struct pk_virtq){
        .mem = &memory,
        .desc_gpa = RX_DESC,
        .avail_gpa = RX_AVAIL,
        .used_gpa = RX_USED,
        .size = 8,
    };
    CHECK_EQ(pk_virtq_start(&queues[RX].virtq), 0);
    CHECK_EQ(pk_console_start(console, queues, QUEUES, irq), 0);
}

static void stop(void)
{
    pk_console_stop(console);
    for (uint32_t i = 0; i < QUEUES; i++)
        if (queues[i].kick_fd >= 0)
            close(queues[i].kick_fd);
}

static void set_up(void)
{
    struct pk_console_port ports[2] = {{.in_fd = -1, .out_fd = -1, .listen_fd = -1}};

    setup_queue(8);
    for (uint32_t i = 0; i < QUEUES; i++) {
        queues[i] = (struct pk_queue){.kick_fd = -1, .virtq = {.mem = &memory}};
        CHECK(pk_virtq_start(&queues[i].virtq) != 0); /* the driver does without these */
    }
    CHECK_EQ(pipe2(to_guest, O_NONBLOCK), 0);
    CHECK_EQ(pipe2(from_guest, 0), 0);
    event_fd = eventfd(0, 0);
    call_fd = eventfd(0, 0);
    CHECK_EQ(pk_interrupt_create(-1, 0, &irq), 0);
    pk_interrupt_set_fd(irq, 1 + RX, call_fd);
    ports[1] =
        (struct pk_console_port){.in_fd = to_guest[0], .out_fd = from_guest[1], .listen_fd = -1};
    CHECK_EQ(pk_console_create(ports, 2, event_fd, &console), 0);
    close(to_guest[0]);
    close(from_guest[1]);
}

static void tear_down(void)
{
    pk_console_destroy(console);
    pk_interrupt_destroy(irq);
    close(to_guest[1]);
    close(from_guest[0]);
    close(event_fd);
    close(call_fd);
    pk_mem_destroy(&memory);
}

static void wait_for(int fd)
{
    uint64_t count;
    CHECK_EQ(read(fd, &count, 8), 8);
}

static void bytes_reach_a_port_that_a_program_has_opened(void)
{
    set_up();
    describe_at(RX_DESC, RX_BYTES, 64, WRITE, 0);
    describe_at(RX_DESC + 16, RX_BYTES + 64, 64, WRITE, 0);
    put16(RX_AVAIL + 6, 1);
    put16(RX_AVAIL + 2, 2);
    CHECK_EQ(write(to_guest[1], "a\0c", 3), 3);
    start();
    CHECK_EQ(get16(RX_USED + 2), 0); /* no program has opened it */
    pk_console_open(console, 1, 1);
    kick(RX);
    wait_for(call_fd);
    CHECK_EQ(get16(RX_USED + 2), 1);
    CHECK_EQ(get32(RX_USED + 8), 3);
    CHECK(memcmp(pk_mem_ptr(&memory, RX_BYTES, 3), "a\0c", 3) == 0);
    CHECK_EQ(pk_console_host(console, 1), 1);
    stop();
    tear_down();
}

static void what_was_sent_before_the_stop_is_written(void)
{
    char bytes[8];

    set_up();
    memcpy(pk_mem_ptr(&memory, BUFFERS, 4), "\0\377\r\n", 4);
    describe(0, BUFFERS, 2, NEXT, 1);
    describe(1, BUFFERS + 2, 2, 0, 0);
    make_available(0);
    start();
    stop();
    CHECK_EQ(read(from_guest[0], bytes, sizeof(bytes)), 4);
    CHECK(memcmp(bytes, "\0\377\r\n", 4) == 0);
    tear_down();
}

static void a_flush_waits_for_a_reader(void)
{
    static char bytes[8192];
    size_t left = 80000;

    set_up();
    start();
    for (unsigned i = 0; i < 8; i++) { /* more than the pipe holds */
        describe(i, BUFFERS + 10000 * i, 10000, 0, 0);
        make_available(i);
    }
    uint32_t flush = pk_console_flush(console);
    kick(TX);
    while (left > 0) {
        CHECK(!pk_console_flushed(console, flush) || left <= 65536);
        ssize_t len = read(from_guest[0], bytes, sizeof(bytes));
        CHECK(len > 0);
        left -= (size_t)len;
    }
    while (!pk_console_flushed(console, flush))
        usleep(1000);
    CHECK_EQ(get16(USED + 2), 8);
    stop();
    tear_down();
}

static void a_broken_ring_is_served_no_more(void)
{
    set_up();
    describe(0, BUFFERS, 2, NEXT, 99);
    make_available(0);
    start();
    stop();
    CHECK_EQ(queues[TX].virtq.fault, PK_VIRTQ_BAD_INDEX);
    tear_down();
}

int main(void)
{
    RUN(bytes_reach_a_port_that_a_program_has_opened);
    RUN(what_was_sent_before_the_stop_is_written);
    RUN(a_flush_waits_for_a_reader);
    RUN(a_broken_ring_is_served_no_more);
    return 0;
}

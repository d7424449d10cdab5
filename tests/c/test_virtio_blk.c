/* The disk's data plane, through its thread: a driver's requests and the answers, by io_uring,
 * without it, and of a file in memory. */
#include "driver.h"

#include "ratelimit.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/virtio_blk.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTORS 64u
#define HEADER  BUFFERS
#define DATA    (BUFFERS + 0x1000u)
#define STATUS  (BUFFERS + 0x20000u)

static struct pk_blk_config config;
static struct pk_blk *blk;
static struct pk_interrupt *irq;
static struct pk_queue queues[1];
static int call_fd;
static int no_uring;
static const char *folder;
static char path[32];

static void create(void)
{
    queues[0] = (struct pk_queue){.virtq = queue, .kick_fd = eventfd(0, EFD_NONBLOCK)};
    call_fd = eventfd(0, 0);
    CHECK_EQ(pk_interrupt_create(-1, 0, &irq), 0);
    pk_interrupt_set_fd(irq, 0, call_fd);
    pk_interrupt_set_fd(irq, 1, call_fd);
    CHECK_EQ(pk_blk_create(&config, &blk), 0);
}

static void start(void)
{
    create();
    CHECK_EQ(pk_blk_start(blk, queues, 1, irq), 0);
}

static void setup(void)
{
    snprintf(path, sizeof(path), "%s/disk-XXXXXX", folder);
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    for (uint32_t sector = 0; sector < SECTORS; sector++) {
        uint8_t bytes[512];
        memset(bytes, (int)sector, sizeof(bytes));
        CHECK_EQ(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
    }
    setup_queue(16);
    config = (struct pk_blk_config){.fd = fd,
                                    .sectors = SECTORS,
                                    .align = 1,
                                    .no_uring = (uint32_t)no_uring,
                                    .id = "serial",
                                    .name = "disk.img"};
}

static void teardown(void)
{
    pk_blk_stop(blk);
    pk_blk_destroy(blk);
    pk_interrupt_destroy(irq);
    close(queues[0].kick_fd);
    close(call_fd);
    close(config.fd);
    unlink(path);
    pk_mem_destroy(&memory);
}

static void kick(void)
{
    uint64_t one = 1;
    CHECK_EQ(write(queues[0].kick_fd, &one, 8), 8);
}

static void wait_for_interrupt(void)
{
    uint64_t count;
    CHECK_EQ(read(call_fd, &count, 8), 8);
}

static void write_header_at(uint64_t gpa, uint32_t type, uint64_t sector)
{
    uint8_t *header = pk_mem_ptr(&memory, gpa, 16);
    memset(header, 0, 16);
    memcpy(header, &type, 4);
    memcpy(header + 8, &sector, 8);
}

static void write_header(uint32_t type, uint64_t sector)
{
    write_header_at(HEADER, type, sector);
}

static uint8_t *data(void)
{
    return pk_mem_ptr(&memory, DATA, 0x10000);
}

/* One request of a header, `len` bytes of data and a status; returns the status. */
static uint8_t request(uint32_t type, uint64_t sector, uint32_t len)
{
    uint8_t *status = pk_mem_ptr(&memory, STATUS, 1);
    uint16_t used = get16(USED + 2);
    unsigned device_writes = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID ? WRITE : 0;

    write_header(type, sector);
    *status = 0xff;
    describe(0, HEADER, 16, NEXT, len ? 1 : 2);
    describe(1, DATA, len, NEXT | device_writes, 2);
    describe(2, STATUS, 1, WRITE, 0);
    make_available(0);
    kick();
    while (get16(USED + 2) == used)
        wait_for_interrupt();
    return *status;
}

static void a_read_gives_the_files_bytes(void)
{
    setup();
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 5, 1024), VIRTIO_BLK_S_OK);
    CHECK_EQ(data()[0], 5);
    CHECK_EQ(data()[1023], 6);
    CHECK_EQ(get32(USED + 8), 1025);
    teardown();
}

static void a_write_is_in_the_file(void)
{
    setup();
    start();
    memset(data(), 0xab, 1024);
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, 62, 1024), VIRTIO_BLK_S_OK);
    CHECK_EQ(request(VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
    uint8_t bytes[1024];
    CHECK_EQ(pread(config.fd, bytes, 1024, 62 * 512), 1024);
    CHECK(memcmp(bytes, data(), 1024) == 0);
    pk_blk_set_writeback(blk, 0);
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
    teardown();
}

static void what_is_outside_the_disk_is_an_error(void)
{
    setup();
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_IN, SECTORS, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, SECTORS - 1, 1024), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, UINT64_MAX / 512 + 1, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 0, 0), VIRTIO_BLK_S_IOERR);
    struct stat status;
    CHECK_EQ(fstat(config.fd, &status), 0);
    CHECK_EQ(status.st_size, SECTORS * 512);
    teardown();
}

static void a_file_that_became_shorter_is_an_error(void)
{
    setup();
    start();
    CHECK_EQ(ftruncate(config.fd, 512 * 3 + 100), 0);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 2, 512), VIRTIO_BLK_S_OK);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 3, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 9, 512), VIRTIO_BLK_S_IOERR);
    teardown();
}

static void a_full_disk_is_an_error_and_the_next_request_is_served(void)
{
    setup();
    int file = config.fd, full = open("/dev/full", O_RDWR);
    CHECK(full >= 0);
    config.fd = full; /* every write to it is ENOSPC, every read zeros */
    start();
    data()[0] = 0xff;
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
    CHECK_EQ(data()[0], 0);
    config.fd = file;
    teardown();
    close(full);
}

static uint8_t clear(uint32_t type, uint64_t sector, uint32_t num, uint32_t flags)
{
    struct virtio_blk_discard_write_zeroes segment = {sector, num, flags};
    memcpy(data(), &segment, sizeof(segment));
    return request(type, 0, sizeof(segment));
}

static void what_the_host_cannot_read_is_an_error(void)
{
    setup();
    int file = config.fd, bad = open("/proc/self/mem", O_RDWR);
    CHECK(bad >= 0);
    config.fd = bad; /* EIO for every address at which there is nothing: the first ones */
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, 1, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 2, 512), VIRTIO_BLK_S_IOERR);
    config.fd = file;
    teardown();
    close(bad);
}

static void a_discard_gives_blocks_back_and_zeroes_need_not(void)
{
    enum { BIG = 2048 };
    setup();
    static uint8_t bytes[BIG * 512];
    memset(bytes, 0x5a, sizeof(bytes));
    CHECK_EQ(pwrite(config.fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    CHECK_EQ(fsync(config.fd), 0);
    config.sectors = BIG;
    start();
    struct stat before, after;
    CHECK_EQ(fstat(config.fd, &before), 0);
    CHECK(before.st_blocks >= BIG);
    if (clear(VIRTIO_BLK_T_DISCARD, 512, 1024, 0) == VIRTIO_BLK_S_OK) {
        CHECK_EQ(fstat(config.fd, &after), 0);
        CHECK(before.st_blocks - after.st_blocks >= 1024 - 16);
        CHECK_EQ(after.st_size, before.st_size);
        CHECK_EQ(request(VIRTIO_BLK_T_IN, 511, 1024), VIRTIO_BLK_S_OK);
        CHECK_EQ(data()[511], 0x5a);
        CHECK_EQ(data()[512], 0);
        /* The same through write zeroes with its unmap flag; without, the blocks may stay. */
        CHECK_EQ(clear(VIRTIO_BLK_T_WRITE_ZEROES, 1536, 512, 1), VIRTIO_BLK_S_OK);
        before = after;
        CHECK_EQ(fstat(config.fd, &after), 0);
        CHECK(before.st_blocks - after.st_blocks >= 512 - 16);
    }
    teardown();
}

static void a_read_only_disk_takes_no_writes(void)
{
    setup();
    config.read_only = 1;
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 1, 512), VIRTIO_BLK_S_OK);
    CHECK_EQ(data()[0], 1);
    teardown();
}

static void the_id_is_twenty_bytes(void)
{
    setup();
    start();
    memset(data(), 0xff, 32);
    CHECK_EQ(request(VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
    CHECK(memcmp(data(), "serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20) == 0);
    CHECK_EQ(data()[20], 0xff);
    teardown();
}

static void an_unknown_request_is_unsupported(void)
{
    setup();
    start();
    CHECK_EQ(request(77, 0, 0), VIRTIO_BLK_S_UNSUPP);
    teardown();
}

static void zeroes_are_written_and_holes_punched(void)
{
    setup();
    start();
    CHECK_EQ(clear(VIRTIO_BLK_T_WRITE_ZEROES, 3, 2, 0), VIRTIO_BLK_S_OK);
    CHECK_EQ(clear(VIRTIO_BLK_T_WRITE_ZEROES, 40, 1, 1), VIRTIO_BLK_S_OK);
    uint8_t status = clear(VIRTIO_BLK_T_DISCARD, 8, 8, 0);
    CHECK(status == VIRTIO_BLK_S_OK || status == VIRTIO_BLK_S_UNSUPP);
    uint8_t zeroes[1024] = {0}, bytes[1024];
    CHECK_EQ(pread(config.fd, bytes, 1024, 3 * 512), 1024);
    CHECK(memcmp(bytes, zeroes, 1024) == 0);
    CHECK_EQ(pread(config.fd, bytes, 512, 40 * 512), 512);
    CHECK(memcmp(bytes, zeroes, 512) == 0);
    CHECK_EQ(pread(config.fd, bytes, 512, 5 * 512), 512);
    CHECK_EQ(bytes[0], 5);
    CHECK_EQ(clear(VIRTIO_BLK_T_DISCARD, 0, 1, 1), VIRTIO_BLK_S_UNSUPP);
    CHECK_EQ(clear(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2), VIRTIO_BLK_S_UNSUPP);
    CHECK_EQ(clear(VIRTIO_BLK_T_DISCARD, SECTORS, 1, 0), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(clear(VIRTIO_BLK_T_DISCARD, UINT64_MAX, 2, 0), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_DISCARD, 0, 17), VIRTIO_BLK_S_IOERR);
    CHECK_EQ(request(VIRTIO_BLK_T_DISCARD, 0, 16 * 17), VIRTIO_BLK_S_IOERR);
    teardown();
}

static void the_framing_is_the_drivers_choice(void)
{
    setup();
    start();
    /* Header in two pieces, the second with data behind it; data in two; status in a buffer of
     * its own in the write, behind the data in the read. */
    write_header(VIRTIO_BLK_T_OUT, 7);
    memset((uint8_t *)pk_mem_ptr(&memory, HEADER + 16, 100), 0x11, 100);
    memset(data(), 0x22, 412);
    describe(0, HEADER, 3, NEXT, 1);
    describe(1, HEADER + 3, 113, NEXT, 2);
    describe(2, DATA, 412, NEXT, 3);
    describe(3, STATUS, 1, WRITE, 0);
    make_available(0);
    kick();
    while (get16(USED + 2) != 1)
        wait_for_interrupt();
    CHECK_EQ(*(uint8_t *)pk_mem_ptr(&memory, STATUS, 1), VIRTIO_BLK_S_OK);
    write_header(VIRTIO_BLK_T_IN, 7);
    describe(0, HEADER, 16, NEXT, 1);
    describe(1, DATA, 100, NEXT | WRITE, 2);
    describe(2, DATA + 0x1000, 413, WRITE, 0);
    data()[0x1000 + 412] = 0xff;
    make_available(0);
    kick();
    while (get16(USED + 2) != 2)
        wait_for_interrupt();
    CHECK_EQ(data()[0], 0x11);
    CHECK_EQ(data()[99], 0x11);
    CHECK_EQ(data()[0x1000], 0x22);
    CHECK_EQ(data()[0x1000 + 411], 0x22);
    CHECK_EQ(data()[0x1000 + 412], VIRTIO_BLK_S_OK);
    teardown();
}

static void unaligned_buffers_are_bounced(void)
{
    setup();
    config.align = 512;
    start();
    write_header(VIRTIO_BLK_T_IN, 9);
    describe(0, HEADER, 16, NEXT, 1);
    describe(1, DATA + 3, 100, NEXT | WRITE, 2);
    describe(2, DATA + 0x1001, 413, WRITE, 0);
    make_available(0);
    kick();
    while (get16(USED + 2) != 1)
        wait_for_interrupt();
    CHECK_EQ(data()[3], 9);
    CHECK_EQ(data()[0x1001 + 411], 9);
    CHECK_EQ(data()[0x1001 + 412], VIRTIO_BLK_S_OK);
    teardown();
}

static void any_buffer_reaches_a_disk_without_page_cache(void)
{
    setup();
    int file = config.fd, direct = open(path, O_RDWR | O_DIRECT);
    if (direct >= 0) { /* else a file system that has none */
        config.fd = direct;
        config.align = 4096;
        start();
        memset(data(), 0x77, 4096);
        CHECK_EQ(request(VIRTIO_BLK_T_OUT, 8, 4096), VIRTIO_BLK_S_OK); /* aligned, as it happens */
        write_header(VIRTIO_BLK_T_IN, 8);
        describe(0, HEADER, 16, NEXT, 1);
        describe(1, DATA + 0x2003, 1000, NEXT | WRITE, 2);
        describe(2, DATA + 0x4001, 3097, WRITE, 0);
        make_available(0);
        kick();
        while (get16(USED + 2) != 2)
            wait_for_interrupt();
        CHECK_EQ(data()[0x2003], 0x77);
        CHECK_EQ(data()[0x2003 + 999], 0x77);
        CHECK_EQ(data()[0x4001 + 3095], 0x77);
        CHECK_EQ(data()[0x4001 + 3096], VIRTIO_BLK_S_OK);
        config.fd = file;
        teardown();
        close(direct);
    } else {
        start();
        teardown();
    }
}

static void a_chain_without_room_for_an_answer_is_a_fault(void)
{
    static const unsigned FLAGS[] = {0, WRITE};
    for (int i = 0; i < 2; i++) { /* no status; no header */
        setup();
        start();
        write_header(VIRTIO_BLK_T_FLUSH, 0);
        describe(0, HEADER, 16, FLAGS[i], 0);
        make_available(0);
        kick();
        while (pk_interrupt_pending(irq) != PK_ISR_CONFIG)
            wait_for_interrupt();
        CHECK_EQ(__atomic_load_n(&queues[0].virtq.fault, __ATOMIC_RELAXED), PK_VIRTQ_BAD_REQUEST);
        CHECK_EQ(get16(USED + 2), 0);
        teardown();
    }
}

static void many_requests_are_all_answered(void)
{
    enum { ROUNDS = 200, DEPTH = 5 }; /* five chains of three descriptors in a ring of 16 */
    setup();
    queue.event_idx = 1;
    start();
    write_header(VIRTIO_BLK_T_IN, 2);
    for (unsigned i = 0; i < DEPTH; i++) {
        describe(3 * i, HEADER, 16, NEXT, 3 * i + 1);
        describe(3 * i + 1, DATA + 512 * i, 512, NEXT | WRITE, 3 * i + 2);
        describe(3 * i + 2, STATUS + i, 1, WRITE, 0);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint16_t wanted = (uint16_t)(made_available + DEPTH);
        put16(AVAIL + 4 + 2 * 16, (uint16_t)(wanted - 1)); /* used_event: the last of them */
        for (unsigned i = 0; i < DEPTH; i++)
            make_available(3 * i);
        kick();
        while (get16(USED + 2) != wanted)
            wait_for_interrupt();
    }
    CHECK_EQ(data()[512 * (DEPTH - 1)], 2);
    teardown();
}

/* Let whoever reads these bytes of guest memory wait until the descriptor is closed; -1: this user
 * may not make the kernel itself wait (userfaultfd(2)). */
static int withhold(uint64_t gpa, uint64_t len)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    struct uffdio_api api = {.api = UFFD_API};
    CHECK_EQ(ioctl(fd, UFFDIO_API, &api), 0);
    struct uffdio_register range = {
        .range = {.start = (uintptr_t)pk_mem_ptr(&memory, gpa, len), .len = len},
        .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK_EQ(ioctl(fd, UFFDIO_REGISTER, &range), 0);
    return fd;
}

static void a_small_request_does_not_wait_behind_a_large_one(void)
{
    enum { LARGE = 0x40000, LEN = 0x10000 };
    setup();
    config.sectors = LEN / 512;
    CHECK_EQ(ftruncate(config.fd, LEN), 0);
    start();
    int withheld = no_uring ? -1 : withhold(LARGE, LEN); /* without io_uring, it does wait */
    if (withheld >= 0) {
        write_header(VIRTIO_BLK_T_OUT, 0);
        describe(0, HEADER, 16, NEXT, 1);
        describe(1, LARGE, LEN, NEXT, 2);
        describe(2, STATUS, 1, WRITE, 0);
        write_header_at(HEADER + 16, VIRTIO_BLK_T_GET_ID, 0);
        describe(3, HEADER + 16, 16, NEXT, 4);
        describe(4, DATA, 20, NEXT | WRITE, 5);
        describe(5, STATUS + 1, 1, WRITE, 0);
        make_available(0);
        make_available(3);
        kick();
        while (get16(USED + 2) == 0)
            wait_for_interrupt();
        CHECK_EQ(get32(USED + 4), 3);
        CHECK(memcmp(data(), "serial", 6) == 0);
        close(withheld);
        while (get16(USED + 2) == 1)
            wait_for_interrupt();
        CHECK_EQ(get32(USED + 12), 0);
        uint8_t byte;
        CHECK_EQ(pread(config.fd, &byte, 1, 5 * 512), 1);
        CHECK_EQ(byte, 0);
    }
    teardown();
}

static void as_many_requests_as_there_can_be_are_all_answered(void)
{
    enum { CHAINS = PK_VIRTQ_SIZE_MAX };
    setup();
    pk_mem_destroy(&memory);
    setup_queue(CHAINS);
    start();
    write_header(VIRTIO_BLK_T_IN, 2);
    for (unsigned i = 0; i < CHAINS; i++) { /* each a table of three, at 0x30000 and on */
        uint64_t table = 0x30000 + 48 * i;
        describe_at(table, HEADER, 16, NEXT, 1);
        describe_at(table + 16, DATA, 512, NEXT | WRITE, 2);
        describe_at(table + 32, STATUS + i, 1, WRITE, 0);
        describe(i, table, 48, INDIRECT, 0);
    }
    for (unsigned round = 0; round < 20; round++) {
        uint16_t wanted = (uint16_t)(made_available + CHAINS);
        for (unsigned i = 0; i < CHAINS; i++)
            make_available(i);
        kick();
        while (get16(USED + 2) != wanted)
            wait_for_interrupt();
    }
    teardown();
}

static void requests_made_before_the_start_are_served(void)
{
    setup();
    write_header(VIRTIO_BLK_T_FLUSH, 0);
    describe(0, HEADER, 16, NEXT, 1);
    describe(1, STATUS, 1, WRITE, 0);
    make_available(0);
    start();
    while (get16(USED + 2) != 1)
        wait_for_interrupt();
    teardown();
}

static void a_stopped_disk_starts_again_where_it_was(void)
{
    setup();
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 1, 512), VIRTIO_BLK_S_OK);
    pk_blk_stop(blk);
    CHECK_EQ(queues[0].virtq.avail_idx, 1);
    CHECK_EQ(pk_virtq_start(&queues[0].virtq), 0);
    CHECK_EQ(pk_blk_start(blk, queues, 1, irq), 0);
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 4, 512), VIRTIO_BLK_S_OK);
    CHECK_EQ(data()[0], 4);
    teardown();
}

static uint32_t over; /* atomic: the other thread shall end */

static void *change_settings(void *argument)
{
    (void)argument;
    for (int on = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); on = !on) {
        pk_blk_set_writeback(blk, on);
        CHECK_EQ(__atomic_load_n(&queues[0].virtq.fault, __ATOMIC_RELAXED), 0);
        pk_interrupt_ack(irq, pk_interrupt_pending(irq));
    }
    return NULL;
}

/* A vCPU's thread does so; for the thread sanitizer. */
static void settings_change_while_requests_are_served(void)
{
    pthread_t thread;
    setup();
    start();
    over = 0;
    CHECK_EQ(pthread_create(&thread, NULL, change_settings, NULL), 0);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(request(i % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, 3, 512), VIRTIO_BLK_S_OK);
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    teardown();
}

#ifndef __SANITIZE_THREAD__ /* a guest may race with us; that is the point */
static void *scribble(void *argument)
{
    uint32_t seed = 1;
    (void)argument;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
        seed = seed * 1664525 + 1013904223;
        uint32_t at = seed >> 16, value = seed * 2654435761u;
        if (at % 3 == 0)
            put16(AVAIL + 2, get16(AVAIL + 2) + 1);
        else if (at % 3 == 1)
            put16(DESC + (at % 48 & ~1u), (uint16_t)value);
        else
            put16(HEADER + (at % 16 & ~1u), (uint16_t)(value & 0xf));
    }
    return NULL;
}

static void a_ring_that_never_stands_still_does_no_harm(void)
{
    pthread_t thread;
    setup();
    fence_memory();
    start();
    over = 0;
    CHECK_EQ(pthread_create(&thread, NULL, scribble, NULL), 0);
    for (int i = 0; i < 300; i++) {
        pk_blk_stop(blk);
        queues[0].virtq.avail_idx = get16(AVAIL + 2);
        describe(0, HEADER, 16, NEXT, 1);
        describe(1, DATA, 512, NEXT | (i & 1 ? WRITE : 0), 2);
        describe(2, STATUS, 1, WRITE, 0);
        CHECK_EQ(pk_virtq_start(&queues[0].virtq), 0);
        CHECK_EQ(pk_blk_start(blk, queues, 1, irq), 0);
        kick();
        usleep(200); /* a while to race in; whatever happens is right */
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    struct stat status;
    CHECK_EQ(fstat(config.fd, &status), 0);
    CHECK_EQ(status.st_size, SECTORS * 512);
    teardown();
}
#endif

static void a_limited_disk_lets_requests_wait(void)
{
    setup();
    config.limits = (struct pk_limits){.ops = 50, .ops_burst = 1};
    start();
    uint64_t started = pk_now_ns();
    for (int i = 0; i < 6; i++)
        CHECK_EQ(request(VIRTIO_BLK_T_IN, 1, 512), VIRTIO_BLK_S_OK);
    CHECK(pk_now_ns() - started >= 5 * (1000000000u / 50));
    teardown();
}

static void a_disk_that_waits_is_stopped_at_once_and_loses_nothing(void)
{
    setup();
    config.limits = (struct pk_limits){.bytes = 1, .bytes_burst = 1};
    start();
    CHECK_EQ(request(VIRTIO_BLK_T_IN, 1, 4096), VIRTIO_BLK_S_OK); /* an hour and more to pay for */
    make_available(0);
    kick();
    pk_blk_stop(blk);
    CHECK_EQ(queues[0].virtq.avail_idx, 1);
    CHECK_EQ(pk_virtq_start(&queues[0].virtq), 0);
    CHECK_EQ(pk_blk_start(blk, queues, 1, irq), 0);
    teardown();
}

static void every_queue_gets_its_turn_at_a_limited_disk(void)
{
    enum { CHAINS = 5, SECOND = 0x40000 };
    setup();
    config.limits = (struct pk_limits){.ops = 200, .ops_burst = 1};
    struct pk_virtq second = queue;
    second.desc_gpa += SECOND;
    second.avail_gpa += SECOND;
    second.used_gpa += SECOND;
    CHECK_EQ(pk_virtq_start(&second), 0);
    write_header(VIRTIO_BLK_T_FLUSH, 0);
    for (uint64_t at = 0; at <= SECOND; at += SECOND) {
        describe_at(DESC + at, HEADER, 16, NEXT, 1);
        describe_at(DESC + at + 16, STATUS, 1, WRITE, 0);
        put16(AVAIL + at + 2, CHAINS); /* head 0, five times */
    }
    create();
    struct pk_queue both[2] = {queues[0], {.virtq = second, .kick_fd = queues[0].kick_fd}};
    CHECK_EQ(pk_blk_start(blk, both, 2, irq), 0);
    while (get16(USED + 2) + get16(USED + SECOND + 2) < CHAINS)
        wait_for_interrupt();
    CHECK(get16(USED + 2) >= 1);
    CHECK(get16(USED + SECOND + 2) >= 1);
    teardown();
}

int main(void)
{
    for (int way = 0; way < 3; way++) {
        no_uring = way == 1;
        folder = way == 2 ? "/dev/shm" : "/tmp";
        RUN(a_read_gives_the_files_bytes);
        RUN(a_write_is_in_the_file);
        RUN(what_is_outside_the_disk_is_an_error);
        RUN(a_file_that_became_shorter_is_an_error);
        RUN(a_full_disk_is_an_error_and_the_next_request_is_served);
        RUN(what_the_host_cannot_read_is_an_error);
        RUN(a_discard_gives_blocks_back_and_zeroes_need_not);
        RUN(a_read_only_disk_takes_no_writes);
        RUN(the_id_is_twenty_bytes);
        RUN(an_unknown_request_is_unsupported);
        RUN(zeroes_are_written_and_holes_punched);
        RUN(the_framing_is_the_drivers_choice);
        RUN(unaligned_buffers_are_bounced);
        RUN(any_buffer_reaches_a_disk_without_page_cache);
        RUN(a_chain_without_room_for_an_answer_is_a_fault);
        RUN(many_requests_are_all_answered);
        RUN(a_small_request_does_not_wait_behind_a_large_one);
        RUN(as_many_requests_as_there_can_be_are_all_answered);
        RUN(requests_made_before_the_start_are_served);
        RUN(a_stopped_disk_starts_again_where_it_was);
        RUN(settings_change_while_requests_are_served);
#ifndef __SANITIZE_THREAD__
        RUN(a_ring_that_never_stands_still_does_no_harm);
#endif
        RUN(a_limited_disk_lets_requests_wait);
        RUN(a_disk_that_waits_is_stopped_at_once_and_loses_nothing);
        RUN(every_queue_gets_its_turn_at_a_limited_disk);
    }
    return 0;
}

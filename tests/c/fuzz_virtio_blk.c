/* A hostile driver: any bytes as descriptors, rings, request headers and segments, the rings on top
 * of one another. What must hold: the disk ends every round, keeps its size and its last sector
 * (which no sound request reaches), answers no more than was asked, and touches nothing outside the
 * guest's memory, which has unmapped pages around it.
 *
 * Each input is one guest memory.
 */
#include "hostile.h"

#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTORS 32u /* of the file; the disk has one less */
#define SIZE    16u

static int file = -1;

/* With io_uring, where there is one, and without; past the page cache; not to be written; and the
 * last one with an overlay. */
static const struct pk_blk_config CONFIGS[] = {
    {.align = 1},
    {.align = 512, .no_uring = 1},
    {.align = 512, .unsafe = 1},
    {.align = 1, .read_only = 1, .limits = {.ops = 1000000000, .ops_burst = 1000000}},
    {.align = 1},
};
#define DISKS (sizeof(CONFIGS) / sizeof(CONFIGS[0]))
static struct pk_blk *disks[DISKS];

static struct pk_overlay *new_overlay(void)
{
    struct pk_overlay_config config = {
        .base_fd = file,
        .fd = memfd_create("overlay", MFD_CLOEXEC),
        .size = (SECTORS - 1) * 512,
    };
    struct pk_overlay *overlay;
    CHECK_EQ(ftruncate(config.fd, SECTORS * 512), 0);
    CHECK_EQ(pk_overlay_create(&config, &overlay), 0);
    return overlay;
}

static void setup(void)
{
    setup_queue(SIZE);
    fence_memory();
    file = memfd_create("disk", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(file, SECTORS * 512), 0);
    CHECK_EQ(pwrite(file, "last", 4, (SECTORS - 1) * 512), 4);
    for (uint32_t i = 0; i < DISKS; i++) {
        struct pk_blk_config config = CONFIGS[i];
        config.fd = file;
        config.sectors = SECTORS - 1;
        if (i == DISKS - 1)
            config.overlay = new_overlay();
        CHECK_EQ(pk_blk_create(&config, &disks[i]), 0);
    }
}

/* A request of three descriptors at `table`, the first of which has number `first` there. */
static void fill_request(struct input *in, uint64_t table, unsigned first, uint64_t header)
{
    static const uint32_t TYPES[] = {0, 0, 0, 1, 1, 1, 4, 8, 8, 11, 11, 13, 13, 13, 99, 2};
    static const uint32_t LENGTHS[] = {512, 512, 1024, 4096, 20, 16, 32, 100};
    uint32_t type = TYPES[take(in) % 16], len = LENGTHS[take(in) % 8];
    uint32_t num = (uint32_t)pick(in, take(in) % 8);
    uint64_t sector = pick(in, take(in) % SECTORS), data = header + 0x1000 + take(in) % 2;
    uint8_t *bytes = pk_mem_ptr(&memory, header, 16), *segment = pk_mem_ptr(&memory, data, 16);

    memset(bytes, 0, 16);
    memcpy(bytes, &type, 4);
    memcpy(bytes + 8, &sector, 8);
    memcpy(segment, &sector, 8); /* to clear, should it be taken for that */
    memcpy(segment + 8, &num, 4);
    memset(segment + 12, 0, 4);
    segment[12] = (uint8_t)pick(in, take(in) & 1);
    fill_descriptor(in, table + 16 * first, header, 16, NEXT, first + 1);
    fill_descriptor(in, table + 16 * (first + 1), data, len,
                    NEXT | (type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID ? WRITE : 0),
                    first + 2);
    fill_descriptor(in, table + 16 * (first + 2), header + 16, 1, WRITE, 0);
}

/* Move a ring now and then; returns whether what the device writes is still its own. */
static int place_rings(struct input *in, struct pk_virtq *q)
{
    static const uint64_t PLACES[] = {AVAIL,          DESC,  BUFFERS, BUFFERS + 0x1000,
                                      MEMORY - 0x200, 0x2800};
    uint32_t choice = take(in);

    if (choice < 0xc0)
        return 1;
    q->used_gpa = PLACES[choice % 6];
    if (choice & 0x20)
        q->size = 1u << (choice % 10); /* 512 is too large */
    pk_virtq_start(q);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (file < 0)
        setup();
    struct input in = {data, size};
    struct pk_blk *disk = disks[take(&in) % DISKS];
    memset(pk_mem_ptr(&memory, 0, BUFFERS), 0, BUFFERS); /* a round depends on its input alone */
    for (unsigned i = 0; i < SIZE / 3; i++)
        fill_request(&in, DESC, 3 * i, BUFFERS + 0x4000 * i);
    fill_request(&in, 0x2800, 0, BUFFERS + 0x4000 * (SIZE / 3));
    fill_descriptor(&in, DESC + 16 * (SIZE - 1), 0x2800, 48, INDIRECT, 0);
    for (uint32_t i = 0; i < SIZE; i++)
        put16(AVAIL + 4 + 2 * i, (uint16_t)pick(&in, i == 3 ? SIZE - 1 : i % (SIZE / 3) * 3));
    uint16_t asked = (uint16_t)pick(&in, take(&in) % (SIZE + 1));
    put16(AVAIL + 2, asked);
    put16(USED + 2, 0);

    struct pk_queue queues[1] = {{.virtq = queue, .kick_fd = -1}};
    queues[0].virtq.indirect = take(&in) & 1;
    queues[0].virtq.event_idx = take(&in) & 1;
    int apart = place_rings(&in, &queues[0].virtq);
    faults = looks = 0;
    CHECK_EQ(pk_blk_start(disk, queues, 1, NULL), 0);
    io->serve(io->device, 0);
    pk_blk_stop(disk); /* reaps what is in flight */

    struct stat status;
    char last[4];
    CHECK_EQ(fstat(file, &status), 0);
    CHECK_EQ(status.st_size, SECTORS * 512);
    CHECK_EQ(pread(file, last, 4, (SECTORS - 1) * 512), 4);
    CHECK(memcmp(last, "last", 4) == 0);
    if (!apart)
        return 0;
    CHECK(queues[0].virtq.used_idx <= (asked <= SIZE ? asked : 0));
    CHECK_EQ(queues[0].virtq.used_idx,
             queues[0].virtq.avail_idx - (faults && queues[0].virtq.fault == PK_VIRTQ_BAD_REQUEST));
    return 0;
}

FUZZ_MAIN(3000, 1024)

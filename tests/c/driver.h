/* A mock driver: it lays out a queue in guest memory, writes descriptors, makes chains available
 * and looks at what came back. Included by the tests of virtqueues and of devices.
 *
 *   0x0000 descriptor table   0x1000 available ring   0x2000 used ring   0x4000 … buffers
 */
#ifndef DRIVER_H
#define DRIVER_H

#include "core.h"

#include <string.h>
#include <sys/mman.h>

#include "check.h"

#define MEMORY  0x100000u
#define DESC    0x0000u
#define AVAIL   0x1000u
#define USED    0x2000u
#define BUFFERS 0x4000u

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

static struct pk_mem memory;
static struct pk_virtq queue;
static uint16_t made_available;

static inline void put16(uint64_t gpa, uint16_t value)
{
    /* Release: as a driver's barrier before it writes idx. */
    __atomic_store_n((uint16_t *)pk_mem_ptr(&memory, gpa, 2), value, __ATOMIC_RELEASE);
}

static inline uint16_t get16(uint64_t gpa)
{
    return __atomic_load_n((uint16_t *)pk_mem_ptr(&memory, gpa, 2), __ATOMIC_ACQUIRE);
}

static inline uint32_t get32(uint64_t gpa)
{
    uint32_t value;
    memcpy(&value, pk_mem_ptr(&memory, gpa, 4), 4);
    return value;
}

static inline void setup_queue(uint32_t size)
{
    CHECK_EQ(pk_mem_create(MEMORY, MEMORY, 1ull << 32, &memory), 0);
    made_available = 0;
    queue = (struct pk_virtq){
        .mem = &memory,
        .desc_gpa = DESC,
        .avail_gpa = AVAIL,
        .used_gpa = USED,
        .size = size,
        .indirect = 1,
    };
    CHECK_EQ(pk_virtq_start(&queue), 0);
}

/* Let what is next to guest memory be unmapped, so that no byte too many goes unseen: the kernel
 * (io_uring, preadv) gets EFAULT there, and we a signal. */
static inline void fence_memory(void)
{
    size_t page = 4096;
    uint8_t *room = mmap(NULL, MEMORY + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(room != MAP_FAILED);
    munmap(memory.hva, MEMORY);
    memory.hva =
        mmap(room + page, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.fd, 0);
    CHECK(memory.hva == room + page);
    CHECK_EQ(pk_virtq_start(&queue), 0);
}

static inline void describe_at(uint64_t gpa, uint64_t addr, uint32_t len, unsigned flags,
                               unsigned next)
{
    uint8_t *d = pk_mem_ptr(&memory, gpa, 16);
    memcpy(d, &addr, 8);
    memcpy(d + 8, &len, 4);
    memcpy(d + 12, &(uint16_t){(uint16_t)flags}, 2);
    memcpy(d + 14, &(uint16_t){(uint16_t)next}, 2);
}

static inline void describe(unsigned index, uint64_t addr, uint32_t len, unsigned flags,
                            unsigned next)
{
    describe_at(DESC + 16 * index, addr, len, flags, next);
}

static inline void make_available(unsigned head)
{
    put16(AVAIL + 4 + 2 * (made_available % queue.size), (uint16_t)head);
    put16(AVAIL + 2, ++made_available);
}

#endif

/* Private memory: what was written is found, whoever wrote it, and can be undone. */
#include "core.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

#define PAGE 0x1000u
#define SIZE (64 * PAGE)

/* Memory whose pages each begin with their number, frozen. */
static struct pk_mem frozen(void)
{
    struct pk_mem mem;
    CHECK_EQ(pk_mem_create(SIZE, SIZE, SIZE, &mem), 0);
    for (uint32_t page = 0; page < SIZE / PAGE; page++)
        mem.hva[page * PAGE] = (uint8_t)page;
    CHECK_EQ(pk_mem_freeze(&mem), 0);
    return mem;
}

static void frozen_memory_keeps_its_content_and_its_place(void)
{
    struct pk_mem mem = frozen();
    struct pk_mem_range range;
    CHECK_EQ(mem.fd, -1);
    for (uint32_t page = 0; page < SIZE / PAGE; page++)
        CHECK_EQ(mem.hva[page * PAGE], (uint8_t)page);
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 1, &range), 0); /* reading is no change */
    pk_mem_destroy(&mem);
}

static void the_file_of_frozen_memory_cannot_be_written(void)
{
    struct pk_mem mem = frozen();
    CHECK_EQ(pwrite(mem.base_fd, "x", 1, 0), -1);
    CHECK_EQ(errno, EPERM);
    CHECK_EQ(ftruncate(mem.base_fd, PAGE), -1);
    mem.hva[0] = 77;
    uint8_t byte = 1;
    CHECK_EQ(pread(mem.base_fd, &byte, 1, 0), 1);
    CHECK_EQ(byte, 0);
    pk_mem_destroy(&mem);
}

static void written_pages_are_found_as_ranges(void)
{
    struct pk_mem mem = frozen();
    struct pk_mem_range ranges[4];
    mem.hva[3 * PAGE] = 1;
    mem.hva[4 * PAGE + 5] = 1;
    mem.hva[9 * PAGE] = 9; /* the same as before: it counts, for it has a copy now */
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 4, ranges), 2);
    CHECK_EQ(ranges[0].offset, 3 * PAGE);
    CHECK_EQ(ranges[0].size, 2 * PAGE);
    CHECK_EQ(ranges[1].offset, 9 * PAGE);
    CHECK_EQ(ranges[1].size, PAGE);
    CHECK_EQ(pk_mem_private_ranges(&mem, 5 * PAGE, 4, ranges), 1);
    CHECK_EQ(ranges[0].offset, 9 * PAGE);
    pk_mem_destroy(&mem);
}

static void a_revert_undoes_every_write(void)
{
    for (int drop = 0; drop <= 1; drop++) {
        struct pk_mem mem = frozen();
        struct pk_mem_range range;
        for (uint32_t page = 0; page < SIZE / PAGE; page += 2)
            memset(mem.hva + page * PAGE, 0xAA, PAGE);
        CHECK_EQ(pk_mem_revert(&mem, drop), SIZE / PAGE / 2);
        for (uint32_t page = 0; page < SIZE / PAGE; page++) {
            CHECK_EQ(mem.hva[page * PAGE], (uint8_t)page);
            CHECK_EQ(mem.hva[page * PAGE + PAGE - 1], 0);
        }
        CHECK_EQ(pk_mem_private_ranges(&mem, 0, 1, &range), drop ? 0 : 1);
        pk_mem_destroy(&mem);
    }
}

static void two_memories_of_one_file_do_not_see_each_other(void)
{
    struct pk_mem one = frozen(), other;
    CHECK_EQ(pk_mem_map(one.base_fd, SIZE, SIZE, SIZE, &other), 0);
    one.hva[PAGE] = 100;
    other.hva[2 * PAGE] = 200;
    CHECK_EQ(other.hva[PAGE], 1);
    CHECK_EQ(one.hva[2 * PAGE], 2);
    pk_mem_destroy(&one);
    CHECK_EQ(other.hva[3 * PAGE], 3); /* its descriptor is its own */
    pk_mem_destroy(&other);
}

static void shared_memory_has_nothing_to_undo(void)
{
    struct pk_mem mem;
    struct pk_mem_range range;
    CHECK_EQ(pk_mem_create(SIZE, SIZE, SIZE, &mem), 0);
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 1, &range), -EINVAL);
    CHECK_EQ(pk_mem_revert(&mem, 0), -EINVAL);
    CHECK_EQ(pk_mem_rebase(&mem, mem.fd), -EINVAL);
    pk_mem_destroy(&mem);
}

static void pages_of_another_file_lie_over_it(void)
{
    struct pk_mem mem = frozen(), other;
    struct pk_mem_range places[2] = {{2 * PAGE, 2 * PAGE}, {8 * PAGE, PAGE}}, found[4];
    CHECK_EQ(pk_mem_create(SIZE, SIZE, SIZE, &other), 0);
    memset(other.hva, 0xBB, SIZE);
    mem.hva[3 * PAGE] = 77; /* what is written before is hidden */
    CHECK_EQ(pk_mem_lay(&mem, other.fd, places, 2, 0), 0);
    CHECK_EQ(mem.hva[3 * PAGE], 0xBB);
    CHECK_EQ(mem.hva[8 * PAGE], 0xBB);
    CHECK_EQ(mem.hva[9 * PAGE], 9);
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 4, found), 0); /* it is no change */
    mem.hva[2 * PAGE] = 1;
    CHECK_EQ(other.hva[2 * PAGE], 0xBB);
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 4, found), 1);
    CHECK_EQ(pk_mem_revert(&mem, 1), 1);
    CHECK_EQ(mem.hva[2 * PAGE], 0xBB);
    places[0].offset = 20 * PAGE;
    CHECK_EQ(pk_mem_lay(&mem, other.fd, places, 1, 1), 0);
    CHECK_EQ(mem.hva[21 * PAGE], 0xBB);
    CHECK_EQ(pk_mem_private_ranges(&mem, 0, 4, found), 1); /* a copy is */
    CHECK_EQ(found[0].offset, 20 * PAGE);
    pk_mem_destroy(&other);
    CHECK_EQ(mem.hva[8 * PAGE], 0xBB); /* a mapping keeps the file */
    pk_mem_destroy(&mem);
}

static void pages_that_are_not_of_the_memory_are_refused(void)
{
    struct pk_mem mem = frozen(), other;
    CHECK_EQ(pk_mem_create(SIZE, SIZE, SIZE, &other), 0);
    struct pk_mem_range wrong[] = {
        {1, PAGE}, {0, 1}, {SIZE, PAGE}, {0, SIZE + PAGE}, {-(uint64_t)PAGE, 2 * PAGE},
    };
    for (int i = 0; i < 5; i++)
        for (int copied = 0; copied <= 1; copied++)
            CHECK_EQ(pk_mem_lay(&mem, other.fd, &wrong[i], 1, copied), -EINVAL);
    CHECK_EQ(pk_mem_lay(&other, mem.base_fd, wrong, 0, 0), -EINVAL); /* it is not private */
    pk_mem_destroy(&other);
    pk_mem_destroy(&mem);
}

int main(void)
{
    RUN(frozen_memory_keeps_its_content_and_its_place);
    RUN(the_file_of_frozen_memory_cannot_be_written);
    RUN(written_pages_are_found_as_ranges);
    RUN(a_revert_undoes_every_write);
    RUN(two_memories_of_one_file_do_not_see_each_other);
    RUN(shared_memory_has_nothing_to_undo);
    RUN(pages_of_another_file_lie_over_it);
    RUN(pages_that_are_not_of_the_memory_are_refused);
    return 0;
}

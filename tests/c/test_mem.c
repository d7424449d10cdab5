/* Guest memory: what the one checked accessor gives out, and what it never does. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

#define PAGE     0x1000u
#define HOLE     0x3000u  /* low memory ends here at the latest */
#define HOLE_END 0x10000u /* high memory starts here */

static struct pk_mem make(uint64_t size)
{
    struct pk_mem mem;
    CHECK_EQ(pk_mem_create(size, HOLE, HOLE_END, &mem), 0);
    return mem;
}

static void memory_smaller_than_the_hole_is_all_low(void)
{
    struct pk_mem mem = make(PAGE);
    CHECK_EQ(mem.low_size, PAGE);
    CHECK(pk_mem_ptr(&mem, 0, PAGE) == mem.hva);
    CHECK(pk_mem_ptr(&mem, HOLE_END, 0) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END, 1) == NULL);
    pk_mem_destroy(&mem);
}

static void memory_as_large_as_the_hole_has_no_high_part(void)
{
    struct pk_mem mem = make(HOLE);
    CHECK_EQ(mem.low_size, HOLE);
    CHECK(pk_mem_ptr(&mem, HOLE - 1, 1) == mem.hva + HOLE - 1);
    CHECK(pk_mem_ptr(&mem, HOLE_END, 1) == NULL);
    pk_mem_destroy(&mem);
}

static void memory_beyond_the_hole_continues_above_it(void)
{
    struct pk_mem mem = make(HOLE + 2 * PAGE);
    CHECK_EQ(mem.low_size, HOLE);
    CHECK_EQ(mem.high_base, HOLE_END);
    CHECK(pk_mem_ptr(&mem, HOLE_END, 2 * PAGE) == mem.hva + HOLE);
    CHECK(pk_mem_ptr(&mem, HOLE_END + 2 * PAGE - 1, 1) == mem.hva + HOLE + 2 * PAGE - 1);
    pk_mem_destroy(&mem);
}

static void a_range_ends_exactly_at_the_last_byte(void)
{
    struct pk_mem mem = make(HOLE + PAGE);
    CHECK(pk_mem_ptr(&mem, 0, HOLE) != NULL);
    CHECK(pk_mem_ptr(&mem, 0, HOLE + 1) == NULL);
    CHECK(pk_mem_ptr(&mem, 1, HOLE) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END, PAGE) != NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END, PAGE + 1) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END + 1, PAGE) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END + PAGE, 1) == NULL);
    pk_mem_destroy(&mem);
}

static void the_hole_is_not_memory(void)
{
    struct pk_mem mem = make(HOLE + PAGE);
    CHECK(pk_mem_ptr(&mem, HOLE, 0) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE, 1) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END - 1, 1) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE_END - 1, 2) == NULL);
    CHECK(pk_mem_ptr(&mem, HOLE - 1, 2) == NULL); /* though the bytes are neighbours in the memfd */
    pk_mem_destroy(&mem);
}

static void a_sum_that_wraps_around_is_refused(void)
{
    struct pk_mem mem = make(HOLE + PAGE);
    CHECK(pk_mem_ptr(&mem, PAGE, UINT64_MAX) == NULL);
    CHECK(pk_mem_ptr(&mem, PAGE, UINT64_MAX - PAGE + 1) == NULL); /* gpa + len == 0 */
    CHECK(pk_mem_ptr(&mem, HOLE_END, UINT64_MAX - HOLE_END + 1) == NULL);
    CHECK(pk_mem_ptr(&mem, UINT64_MAX, 1) == NULL);
    CHECK(pk_mem_ptr(&mem, UINT64_MAX, UINT64_MAX) == NULL);
    CHECK(pk_mem_ptr(&mem, UINT64_MAX - 1, 4) == NULL);
    pk_mem_destroy(&mem);
}

static void an_empty_range_inside_memory_has_an_address(void)
{
    struct pk_mem mem = make(PAGE);
    CHECK(pk_mem_ptr(&mem, 0, 0) == mem.hva);
    CHECK(pk_mem_ptr(&mem, PAGE - 1, 0) == mem.hva + PAGE - 1);
    pk_mem_destroy(&mem);
}

static void new_memory_is_zero_and_keeps_what_is_written(void)
{
    struct pk_mem mem = make(PAGE);
    uint8_t *byte = pk_mem_ptr(&mem, PAGE - 1, 1);
    CHECK_EQ(*byte, 0);
    *byte = 0x5a;
    CHECK_EQ(mem.hva[PAGE - 1], 0x5a);
    pk_mem_destroy(&mem);
}

static void the_memfd_holds_the_same_bytes_and_is_closed_on_exec(void)
{
    struct pk_mem mem = make(HOLE + PAGE);
    struct stat status;
    CHECK_EQ(fstat(mem.fd, &status), 0);
    CHECK_EQ(status.st_size, HOLE + PAGE);
    CHECK(fcntl(mem.fd, F_GETFD) & FD_CLOEXEC);
    memcpy(pk_mem_ptr(&mem, HOLE_END, 4), "high", 4);
    char bytes[4];
    CHECK_EQ(pread(mem.fd, bytes, 4, HOLE), 4);
    CHECK(memcmp(bytes, "high", 4) == 0);
    pk_mem_destroy(&mem);
}

static void impossible_sizes_are_refused(void)
{
    struct pk_mem mem;
    CHECK_EQ(pk_mem_create(0, HOLE, HOLE_END, &mem), -EINVAL);
    CHECK_EQ(pk_mem_create(UINT64_MAX, HOLE, HOLE_END, &mem), -EINVAL);
    CHECK_EQ(pk_mem_create(1ull << 63, HOLE, HOLE_END, &mem), -EINVAL);
}

static void memory_that_the_host_cannot_map_is_refused_without_leaking(void)
{
    struct pk_mem mem;
    int next = dup(0);
    close(next);
    CHECK(pk_mem_create(1ull << 55, HOLE, HOLE_END, &mem) < 0); /* more than any address space */
    int same = dup(0);
    CHECK_EQ(same, next);
    close(same);
}

static void destroying_twice_is_harmless_and_leaves_no_memory(void)
{
    struct pk_mem mem = make(PAGE);
    pk_mem_destroy(&mem);
    CHECK(pk_mem_ptr(&mem, 0, 0) == NULL);
    CHECK(pk_mem_ptr(&mem, 0, 1) == NULL);
    pk_mem_destroy(&mem);
    CHECK_EQ(mem.fd, -1);
}

int main(void)
{
    RUN(memory_smaller_than_the_hole_is_all_low);
    RUN(memory_as_large_as_the_hole_has_no_high_part);
    RUN(memory_beyond_the_hole_continues_above_it);
    RUN(a_range_ends_exactly_at_the_last_byte);
    RUN(the_hole_is_not_memory);
    RUN(a_sum_that_wraps_around_is_refused);
    RUN(an_empty_range_inside_memory_has_an_address);
    RUN(new_memory_is_zero_and_keeps_what_is_written);
    RUN(the_memfd_holds_the_same_bytes_and_is_closed_on_exec);
    RUN(impossible_sizes_are_refused);
    RUN(memory_that_the_host_cannot_map_is_refused_without_leaking);
    RUN(destroying_twice_is_harmless_and_leaves_no_memory);
    return 0;
}

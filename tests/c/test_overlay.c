/* The copy-on-write overlay, against a model: an array that is written as the disk is. */
#include "overlay.h"

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (37u * PK_OVERLAY_CLUSTER + 512u) /* the last cluster is not a whole one */
#define DATA 8192u                             /* where a kept overlay has the disk */

static uint8_t base[SIZE], model[SIZE];
static struct pk_overlay_config config;
static struct pk_overlay *overlay;

static int new_file(void)
{
    char path[] = "/tmp/overlay-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_EQ(unlink(path), 0);
    return fd;
}

static void setup(int kept)
{
    for (uint32_t i = 0; i < SIZE; i++)
        base[i] = (uint8_t)(i / 512 + 1);
    memcpy(model, base, SIZE);
    config = (struct pk_overlay_config){
        .base_fd = new_file(),
        .fd = new_file(),
        .size = SIZE,
        .bitmap_at = kept ? 4096 : 0,
        .data_at = kept ? DATA : 0,
    };
    CHECK_EQ(write(config.base_fd, base, SIZE), SIZE);
    CHECK_EQ(ftruncate(config.fd, (off_t)config.data_at + SIZE), 0);
    CHECK_EQ(pk_overlay_create(&config, &overlay), 0);
}

static void teardown(void)
{
    uint8_t bytes[SIZE];
    CHECK_EQ(pread(config.base_fd, bytes, SIZE, 0), SIZE); /* whatever was done */
    CHECK(memcmp(bytes, base, SIZE) == 0);
    pk_overlay_destroy(overlay);
    close(config.base_fd);
    close(config.fd);
}

/* As after the end of the process: what the file does not have is gone. */
static void open_again(void)
{
    pk_overlay_destroy(overlay);
    CHECK_EQ(pk_overlay_create(&config, &overlay), 0);
}

static void write_bytes(uint64_t at, uint64_t len, uint8_t value)
{
    static uint8_t bytes[SIZE];
    memset(bytes, value, len);
    memset(model + at, value, len);
    struct iovec iov = {bytes, len};
    CHECK_EQ(pk_overlay_write(overlay, &iov, 1, at), 0);
}

static void check_all(void)
{
    static uint8_t bytes[SIZE];
    struct iovec iov = {bytes, SIZE};
    memset(bytes, 0xee, SIZE);
    CHECK_EQ(pk_overlay_read(overlay, &iov, 1, 0), 0);
    CHECK(memcmp(bytes, model, SIZE) == 0);
    int copy = new_file();
    CHECK_EQ(write(copy, base, SIZE), SIZE);
    CHECK_EQ(pk_overlay_copy(overlay, copy), 0);
    CHECK_EQ(pread(copy, bytes, SIZE, 0), SIZE);
    CHECK(memcmp(bytes, model, SIZE) == 0);
    close(copy);
    struct pk_overlay_config other_config = config;
    struct pk_overlay *other;
    other_config.fd = new_file();
    other_config.bitmap_at = other_config.data_at = 0;
    CHECK_EQ(ftruncate(other_config.fd, SIZE), 0);
    CHECK_EQ(pk_overlay_create(&other_config, &other), 0);
    CHECK_EQ(pk_overlay_clear(other, 0, SIZE), 0); /* which is forgotten */
    CHECK_EQ(pk_overlay_assign(other, overlay), 0);
    CHECK_EQ(pk_overlay_count(other), pk_overlay_count(overlay));
    CHECK_EQ(pk_overlay_read(other, &iov, 1, 0), 0);
    CHECK(memcmp(bytes, model, SIZE) == 0);
    pk_overlay_destroy(other);
    close(other_config.fd);
}

static void what_is_not_written_is_the_base(void)
{
    setup(0);
    check_all();
    CHECK_EQ(pk_overlay_count(overlay), 0);
    teardown();
}

static void a_part_of_a_cluster_is_written_and_the_rest_copied_up(void)
{
    setup(0);
    write_bytes(4096 + 512, 512, 0xa1);
    CHECK_EQ(pk_overlay_count(overlay), 1);
    check_all();
    write_bytes(3 * 4096 - 512, 4096 + 1024, 0xa2); /* the end of one, one, the start of another */
    CHECK_EQ(pk_overlay_count(overlay), 4);
    check_all();
    write_bytes(SIZE - 512, 512, 0xa3); /* all of the last one, which is short */
    check_all();
    teardown();
}

static void whole_clusters_are_written_though_the_base_cannot_be_read(void)
{
    setup(0);
    CHECK_EQ(ftruncate(config.base_fd, 4096), 0);
    write_bytes(4096, 8192, 0xb1);
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};
    CHECK_EQ(pk_overlay_write(overlay, &iov, 1, 5 * 4096 + 7), -EIO);
    CHECK_EQ(pk_overlay_read(overlay, &iov, 1, 5 * 4096), -EIO);
    CHECK_EQ(pk_overlay_read(overlay, &iov, 1, 4096), 0);
    CHECK_EQ(byte, 0xb1);
    CHECK_EQ(pk_overlay_count(overlay), 2);
    CHECK_EQ(pwrite(config.base_fd, base, SIZE, 0), SIZE);
    check_all();
    teardown();
}

static void zeroes_are_of_the_overlay_and_no_hole_to_the_base(void)
{
    setup(0);
    write_bytes(0, 3 * 4096, 0xc1);
    CHECK_EQ(pk_overlay_clear(overlay, 512, 5 * 4096), 0);
    memset(model + 512, 0, 5 * 4096);
    check_all();
    CHECK_EQ(pk_overlay_count(overlay), 6);
    CHECK_EQ(pk_overlay_clear(overlay, 0, SIZE), 0);
    memset(model, 0, SIZE);
    check_all();
    teardown();
}

static void a_full_disk_is_an_error_and_the_base_is_still_seen(void)
{
    setup(0);
    int file = config.fd, full = open("/dev/full", O_RDWR);
    CHECK(full >= 0);
    config.fd = full;
    open_again();
    struct iovec iov = {base, 4096};
    CHECK_EQ(pk_overlay_write(overlay, &iov, 1, 4096), -ENOSPC);
    CHECK_EQ(pk_overlay_write(overlay, &iov, 1, 512), -ENOSPC);
    CHECK_EQ(pk_overlay_clear(overlay, 512, 512), -ENOSPC);
    CHECK_EQ(pk_overlay_count(overlay), 0);
    check_all();
    config.fd = file;
    teardown();
    close(full);
}

static void anything_in_any_order_is_as_the_model_has_it(void)
{
    enum { STEPS = 4000 };
    uint64_t seed = 1;
    setup(1);
    for (int step = 0; step < STEPS; step++) {
        uint8_t bytes[64 * 512];
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t at = (seed >> 33) % (SIZE / 512) * 512, len = ((seed >> 20) % 64 + 1) * 512;
        len = len < SIZE - at ? len : SIZE - at;
        /* In up to 20 buffers, more than one system call takes; some of no bytes, all at odd
         * places. */
        struct iovec iov[20];
        uint64_t used = 0, piece = len / 17 + 1;
        uint32_t num = 0;
        for (; used < len; num++) {
            uint64_t here = num == 2 ? 0 : piece < len - used ? piece : len - used;
            iov[num] = (struct iovec){bytes + used, here};
            used += here;
        }
        switch (seed >> 60) {
        case 0:
            CHECK_EQ(pk_overlay_clear(overlay, at, len), 0);
            memset(model + at, 0, len);
            break;
        case 1:
            CHECK_EQ(pk_overlay_flush(overlay, step & 1), 0);
            open_again();
            break;
        case 2:
        case 3:
        case 4:
        case 5:
            for (uint64_t i = 0; i < len; i++)
                bytes[i] = (uint8_t)(seed + i * 7);
            CHECK_EQ(pk_overlay_write(overlay, iov, num, at), 0);
            memcpy(model + at, bytes, len);
            break;
        default:
            CHECK_EQ(pk_overlay_read(overlay, iov, num, at), 0);
            CHECK(memcmp(bytes, model + at, len) == 0);
        }
        if (step % 400 == 399) { /* begin again, else all is written soon */
            check_all();
            CHECK_EQ(pk_overlay_empty(overlay), 0);
            open_again();
            memcpy(model, base, SIZE);
            check_all();
        }
    }
    check_all();
    teardown();
}

/* An overlay of nothing, as a checkpoint has it. */
static struct pk_overlay *another(int *fd)
{
    struct pk_overlay_config own = {.base_fd = config.base_fd, .size = SIZE, .fd = new_file()};
    struct pk_overlay *o;
    CHECK_EQ(ftruncate(own.fd, SIZE), 0);
    CHECK_EQ(pk_overlay_create(&own, &o), 0);
    *fd = own.fd;
    return o;
}

static void check_reads_as(struct pk_overlay *o, const uint8_t *expected)
{
    static uint8_t bytes[SIZE];
    struct iovec iov = {bytes, SIZE};
    CHECK_EQ(pk_overlay_read(o, &iov, 1, 0), 0);
    CHECK(memcmp(bytes, expected, SIZE) == 0);
}

static void what_is_taken_each_time_adds_up_to_each_moment(void)
{
    enum { MOMENTS = 40 };
    uint64_t seed = 7;
    int sum_fd, fd, place;
    setup(0);
    struct pk_overlay *sum = another(&sum_fd);
    for (int moment = 0; moment < MOMENTS; moment++) {
        for (int step = 0; step < moment % 5; step++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            uint64_t at = (seed >> 33) % (SIZE / 512) * 512, found = at;
            uint64_t len = 512;
            if (seed >> 63 && pk_overlay_find(overlay, len, 1, &place, &found)) {
                uint8_t bytes[512]; /* as io_uring does, behind its back */
                memset(bytes, moment, len);
                CHECK_EQ(pwrite(place, bytes, len, (off_t)found), 512);
                memset(model + at, moment, len);
            } else if (seed >> 62 & 1) {
                CHECK_EQ(pk_overlay_clear(overlay, at, len), 0);
                memset(model + at, 0, len);
            } else {
                write_bytes((uint32_t)at, (uint32_t)len, (uint8_t)~moment);
            }
        }
        if (moment == 23) { /* as a reset does it */
            CHECK_EQ(pk_overlay_empty(overlay), 0);
            memcpy(model, base, SIZE);
            write_bytes(512, 512, 0xab);
        }
        struct pk_overlay *taken = another(&fd);
        int is_all = pk_overlay_take(taken, overlay, moment == 31);
        CHECK_EQ(is_all, moment == 0 || moment == 23 || moment == 31);
        CHECK(is_all || pk_overlay_count(taken) <= 8);
        CHECK_EQ(is_all ? pk_overlay_assign(sum, taken) : pk_overlay_add(sum, taken), 0);
        check_reads_as(sum, model);
        pk_overlay_destroy(taken);
        close(fd);
    }
    pk_overlay_destroy(sum);
    close(sum_fd);
    teardown();
}

static void what_could_not_be_taken_is_taken_whole(void)
{
    int fd, full = open("/dev/full", O_RDWR);
    CHECK(full >= 0);
    setup(0);
    write_bytes(0, 512, 1);
    struct pk_overlay *one = another(&fd), *none;
    struct pk_overlay_config nowhere = {.base_fd = config.base_fd, .size = SIZE, .fd = full};
    CHECK_EQ(pk_overlay_create(&nowhere, &none), 0);
    CHECK_EQ(pk_overlay_take(one, overlay, 0), 1);
    write_bytes(8192, 512, 2);
    CHECK_EQ(pk_overlay_take(none, overlay, 0), -ENOSPC);
    CHECK_EQ(pk_overlay_take(one, overlay, 0), 1);
    check_reads_as(one, model);
    pk_overlay_destroy(one);
    pk_overlay_destroy(none);
    close(fd);
    close(full);
    teardown();
}

static void a_kept_overlay_has_what_was_flushed_and_no_half_clusters(void)
{
    setup(1);
    write_bytes(512, 512, 0xd1);
    CHECK_EQ(pk_overlay_flush(overlay, 1), 0);
    uint8_t flushed[SIZE];
    memcpy(flushed, model, SIZE);
    write_bytes(20 * 4096 + 512, 512, 0xd2); /* and its bit is nowhere but in memory */
    open_again();
    memcpy(model, flushed, SIZE);
    check_all();
    CHECK_EQ(pk_overlay_count(overlay), 1);
    teardown();
}

static void after_a_failed_flush_none_succeeds(void)
{
    setup(1);
    int file = config.fd, pipes[2];
    CHECK_EQ(pipe(pipes), 0);
    CHECK_EQ(dup2(file, 900), 900);
    config.fd = 900;
    open_again();
    write_bytes(4096, 4096, 0xe1);
    CHECK_EQ(dup2(pipes[1], 900), 900); /* which cannot be synced */
    CHECK_EQ(pk_overlay_flush(overlay, 1), -EINVAL);
    CHECK_EQ(dup2(file, 900), 900);
    CHECK_EQ(pk_overlay_flush(overlay, 1), -EINVAL);
    close(900);
    close(pipes[0]);
    close(pipes[1]);
    config.fd = file;
    open_again();
    CHECK_EQ(pk_overlay_count(overlay), 0);
    teardown();
}

int main(void)
{
    RUN(what_is_not_written_is_the_base);
    RUN(a_part_of_a_cluster_is_written_and_the_rest_copied_up);
    RUN(whole_clusters_are_written_though_the_base_cannot_be_read);
    RUN(zeroes_are_of_the_overlay_and_no_hole_to_the_base);
    RUN(a_full_disk_is_an_error_and_the_base_is_still_seen);
    RUN(anything_in_any_order_is_as_the_model_has_it);
    RUN(what_is_taken_each_time_adds_up_to_each_moment);
    RUN(what_could_not_be_taken_is_taken_whole);
    RUN(a_kept_overlay_has_what_was_flushed_and_no_half_clusters);
    RUN(after_a_failed_flush_none_succeeds);
    return 0;
}

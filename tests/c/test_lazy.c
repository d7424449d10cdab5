/* Lazy memory: pages are read and checked when they are needed; what cannot be had ends a machine,
 * and neither a thread nor the process. */
#include "lazy.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE   0x1000u
#define PIECE  (16 * PAGE)
#define PIECES 8
#define SIZE   (PIECES * PIECE - 4 * PAGE) /* the last one is shorter */
#define ZEROS  5                           /* the piece that is */

static int64_t crcs[PIECES];

/* A memory's file: each page begins with its number. Its checksums go to `crcs`. */
static int make_file(void)
{
    static uint8_t data[PIECES * PIECE];
    int fd = memfd_create("source", MFD_CLOEXEC);
    for (uint32_t page = 0; page < SIZE / PAGE; page++)
        data[page * PAGE] = page / (PIECE / PAGE) == ZEROS ? 0 : (uint8_t)(page + 1);
    CHECK_EQ(pwrite(fd, data, SIZE, 0), SIZE);
    for (uint32_t i = 0; i < PIECES; i++) {
        uint32_t size = i + 1 < PIECES ? PIECE : SIZE - i * PIECE;
        crcs[i] = i == ZEROS ? -1 : (int64_t)pk_crc32(data + i * PIECE, size);
    }
    return fd;
}

struct memory {
    struct pk_mem mem;
    struct pk_lazy *lazy;
};

static int make_cache(void)
{
    int fd = memfd_create("cache", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd, SIZE), 0);
    return fd;
}

static struct memory *map(int fd, int cache_fd)
{
    struct pk_lazy_source source = {fd, cache_fd, PIECE, crcs};
    struct memory *memory = calloc(1, sizeof(*memory));
    CHECK_EQ(pk_mem_map(cache_fd, SIZE, SIZE, SIZE, &memory->mem), 0);
    int result = pk_lazy_create(&memory->mem, &source, &memory->lazy);
    if (result == -EPERM || result == -ENOSYS)
        SKIP("no userfaultfd here that is told of the kernel's faults");
    CHECK_EQ(result, 0);
    return memory;
}

static void unmap(struct memory *memory)
{
    pk_lazy_destroy(memory->lazy);
    pk_mem_destroy(&memory->mem);
    free(memory);
}

static void checksums_are_those_of_zlib(void)
{
    CHECK_EQ(pk_crc32((const uint8_t *)"123456789", 9), 0xCBF43926); /* the usual check value */
    CHECK_EQ(pk_crc32((const uint8_t *)"", 0), 0);
    uint8_t data[100];
    for (uint32_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    CHECK_EQ(pk_crc32(data, sizeof(data)), 0x821D3E85);
}

static void pages_are_read_when_they_are_needed(void)
{
    int fd = make_file(), cache_fd = make_cache();
    struct memory *memory = map(fd, cache_fd);
    CHECK_EQ(pk_lazy_pieces(memory->lazy), 0);
    CHECK_EQ(memory->mem.hva[3 * PAGE], 4);
    CHECK_EQ(memory->mem.hva[4 * PAGE], 5);
    CHECK_EQ(pk_lazy_pieces(memory->lazy), 1); /* the same piece */
    CHECK_EQ(memory->mem.hva[SIZE - PAGE], SIZE / PAGE);
    CHECK_EQ(memory->mem.hva[ZEROS * PIECE], 0);
    CHECK_EQ(memory->mem.hva[(ZEROS + 1) * PIECE - PAGE], 0);
    CHECK_EQ(pk_lazy_pieces(memory->lazy), 2); /* zeros are not read */
    unmap(memory);
    close(fd);
    close(cache_fd);
}

static void a_page_that_was_read_is_no_change_and_a_written_one_is(void)
{
    int fd = make_file(), cache_fd = make_cache();
    struct memory *memory = map(fd, cache_fd);
    struct pk_mem_range ranges[4];
    for (uint32_t page = 0; page < SIZE / PAGE; page += 3)
        CHECK_EQ(memory->mem.hva[page * PAGE],
                 page / (PIECE / PAGE) == ZEROS ? 0 : (uint8_t)(page + 1));
    CHECK_EQ(pk_mem_private_ranges(&memory->mem, 0, 4, ranges), 0);
    memory->mem.hva[7 * PAGE] = 77;
    memory->mem.hva[ZEROS * PIECE] = 77;
    CHECK_EQ(pk_mem_private_ranges(&memory->mem, 0, 4, ranges), 2);
    CHECK_EQ(ranges[0].offset, 7 * PAGE);
    CHECK_EQ(pk_mem_revert(&memory->mem, 0), 2);
    CHECK_EQ(memory->mem.hva[7 * PAGE], 8);
    CHECK_EQ(memory->mem.hva[ZEROS * PIECE], 0);
    memory->mem.hva[6 * PAGE] = 77;
    CHECK_EQ(pk_mem_revert(&memory->mem, 1), 3);
    CHECK_EQ(memory->mem.hva[6 * PAGE], 7);
    unmap(memory);
    close(fd);
    close(cache_fd);
}

static void memories_share_what_was_read(void)
{
    int fd = make_file(), cache_fd = make_cache();
    struct memory *one = map(fd, cache_fd), *other = map(fd, cache_fd);
    CHECK_EQ(one->mem.hva[0], 1);
    one->mem.hva[0] = 77;
    CHECK_EQ(other->mem.hva[0], 1);
    CHECK_EQ(pk_lazy_pieces(one->lazy), 1);
    CHECK_EQ(pk_lazy_pieces(other->lazy), 0);
    unmap(one);
    CHECK_EQ(other->mem.hva[PIECE], PIECE / PAGE + 1);
    unmap(other);
    close(fd);
    close(cache_fd);
}

static void *touch_all(void *argument)
{
    const uint8_t *hva = argument;
    uint64_t sum = 0;
    for (uint32_t page = 0; page < SIZE / PAGE; page++)
        sum += hva[(page * 37) % (SIZE / PAGE) * PAGE];
    return (void *)(uintptr_t)sum;
}

static void threads_may_want_the_same_pages_at_once(void)
{
    int fd = make_file(), cache_fd = make_cache();
    struct memory *memory = map(fd, cache_fd);
    pthread_t threads[4];
    void *sums[4];
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, touch_all, memory->mem.hva), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], &sums[i]);
    for (int i = 1; i < 4; i++)
        CHECK_EQ((uintptr_t)sums[i], (uintptr_t)sums[0]);
    CHECK_EQ(pk_lazy_pieces(memory->lazy), PIECES - 1);
    unmap(memory);
    close(fd);
    close(cache_fd);
}

/* What the kernel may have of a page: a byte of it into a pipe, or -errno. */
static int kernel_reads(const uint8_t *hva)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    int result = write(ends[1], hva, 1) < 0 ? -errno : 0;
    close(ends[0]);
    close(ends[1]);
    return result;
}

/* A source that became other than it was, in piece 2: what is wrong there. */
static void loses(int fd, int err)
{
    int cache_fd = make_cache();
    struct memory *memory = map(fd, cache_fd);
    uint64_t offset = 0;
    CHECK_EQ(memory->mem.hva[0], 1); /* of the rest nothing is wrong */
    CHECK_EQ(pk_lazy_lost(memory->lazy, &offset), 0);
    CHECK_EQ(kernel_reads(memory->mem.hva + 2 * PIECE + PAGE), -EFAULT);
    CHECK_EQ(pk_lazy_lost(memory->lazy, &offset), err);
    CHECK_EQ(offset, 2 * PIECE + PAGE);
    /* Our own code goes on, with zeros; so do those who come after the first loss. */
    CHECK_EQ(memory->mem.hva[2 * PIECE + PAGE + 5], 0);
    CHECK_EQ(kernel_reads(memory->mem.hva + 3 * PIECE), -EFAULT);
    memory->mem.hva[3 * PIECE] = 1;
    CHECK_EQ(memory->mem.hva[3 * PIECE], 1);
    CHECK_EQ(pk_lazy_lost(memory->lazy, &offset), err);
    CHECK_EQ(offset, 2 * PIECE + PAGE);
    unmap(memory);
    close(fd);
    close(cache_fd);
}

static void a_piece_that_does_not_match_its_checksum_is_lost(void)
{
    int fd = make_file();
    CHECK_EQ(pwrite(fd, "x", 1, 2 * PIECE + 9 * PAGE), 1);
    loses(fd, -EBADMSG);
}

static void a_piece_behind_the_end_of_its_file_is_lost(void)
{
    int fd = make_file();
    CHECK_EQ(ftruncate(fd, 2 * PIECE + 5), 0);
    loses(fd, -EIO);
}

static void other_faults_than_a_loss_still_end_the_process(void)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        volatile uint8_t *nowhere = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        close(2); /* what a sanitizer says of it */
        _exit(nowhere[0]);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
}

static void a_child_has_none_of_it(void)
{
    int fd = make_file(), cache_fd = make_cache(), status;
    struct memory *memory = map(fd, cache_fd);
    pid_t child = fork();
    if (child == 0)
        _exit(kernel_reads(memory->mem.hva) == -EFAULT ? 0 : 1);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    unmap(memory);
    close(fd);
    close(cache_fd);
}

static void a_vcpu_runs_no_further_after_a_loss(void)
{
    int fd = make_file(), cache_fd = make_cache();
    struct memory *memory = map(fd, cache_fd);
    struct pk_vcpu vcpu = {.fd = -1}, gone = {.fd = -1}, other = {.fd = -1};
    pk_lazy_add_vcpu(memory->lazy, &vcpu);
    pk_lazy_add_vcpu(memory->lazy, &gone);
    pk_lazy_add_vcpu(memory->lazy, &other);
    pk_vcpu_destroy(&gone);
    CHECK_EQ(ftruncate(fd, 0), 0);
    CHECK_EQ(kernel_reads(memory->mem.hva), -EFAULT);
    CHECK_EQ(pk_vcpu_run(&vcpu), -EIO);
    CHECK_EQ(pk_vcpu_run(&other), -EIO);
    unmap(memory);
    CHECK(vcpu.lazy == NULL && other.lazy == NULL && gone.lazy == NULL);
    close(fd);
    close(cache_fd);
}

static void a_user_without_rights_is_told(void)
{
    int fd = make_file(), cache_fd = make_cache(), status;
    unmap(map(fd, cache_fd)); /* skips where root may not */
    pid_t child = fork();
    if (child == 0) {
        struct pk_lazy_source source = {fd, cache_fd, PIECE, crcs};
        struct pk_lazy *lazy;
        struct pk_mem mem;
        if (setresuid(65534, 65534, 65534) < 0)
            _exit(SKIPPED);
        CHECK_EQ(pk_mem_map(cache_fd, SIZE, SIZE, SIZE, &mem), 0);
        int result = pk_lazy_create(&mem, &source, &lazy);
        pk_mem_destroy(&mem);
        _exit(result == -EPERM ? 0 : result == 0 ? SKIPPED : 1);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(status == 0 || WEXITSTATUS(status) == SKIPPED);
    close(fd);
    close(cache_fd);
}

int main(void)
{
    RUN(checksums_are_those_of_zlib);
    RUN(pages_are_read_when_they_are_needed);
    RUN(a_page_that_was_read_is_no_change_and_a_written_one_is);
    RUN(memories_share_what_was_read);
    RUN(threads_may_want_the_same_pages_at_once);
    RUN(a_piece_that_does_not_match_its_checksum_is_lost);
    RUN(a_piece_behind_the_end_of_its_file_is_lost);
    RUN(other_faults_than_a_loss_still_end_the_process);
    RUN(a_child_has_none_of_it);
    RUN(a_vcpu_runs_no_further_after_a_loss);
    RUN(a_user_without_rights_is_told);
    return 0;
}

/* A copy-on-write overlay over a disk that is only read; overlay.h has the picture. */
#include "overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLUSTER PK_OVERLAY_CLUSTER
#define PIECES  16u /* buffers of one system call */

struct pk_overlay {
    struct pk_overlay_config config;
    uint8_t *bitmap; /* a bit for each cluster: it is in the overlay */
    uint64_t bitmap_len;
    uint64_t dirty_from, dirty_to; /* bytes of the bitmap that the file does not have yet */
    uint8_t *since;                /* as `bitmap`: written since pk_overlay_take(); NULL: all was */
    int error;                     /* of a flush: what it was to keep may be lost for good */
    uint8_t buffer[CLUSTER];
};

static uint64_t min64(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

/* ── the bitmap ─────────────────────────────────────────────────────────────────────────────── */

static int has(const uint8_t *bitmap, uint64_t cluster)
{
    return (bitmap[cluster / 8] >> (cluster % 8)) & 1;
}

static int is_there(const struct pk_overlay *o, uint64_t cluster)
{
    return has(o->bitmap, cluster);
}

static void mark(struct pk_overlay *o, uint64_t from, uint64_t to)
{
    for (uint64_t cluster = from; cluster < to; cluster++) {
        uint64_t byte = cluster / 8;
        if (is_there(o, cluster))
            continue;
        o->bitmap[byte] |= (uint8_t)(1u << (cluster % 8));
        if (o->dirty_from >= o->dirty_to) {
            o->dirty_from = byte;
            o->dirty_to = byte + 1;
        }
        o->dirty_from = min64(o->dirty_from, byte);
        if (o->dirty_to <= byte)
            o->dirty_to = byte + 1;
    }
}

/* Bytes from `at` to `end` are about to be written. */
static void note(struct pk_overlay *o, uint64_t at, uint64_t end)
{
    if (o->since != NULL)
        for (uint64_t cluster = at / CLUSTER; cluster * CLUSTER < end; cluster++)
            o->since[cluster / 8] |= (uint8_t)(1u << (cluster % 8));
}

/* Bytes from `at` to `end` at most, all of clusters that are there, or all of clusters that are
 * not. */
static uint64_t run_at(const struct pk_overlay *o, uint64_t at, uint64_t end)
{
    uint64_t cluster = at / CLUSTER;
    int there = is_there(o, cluster);
    do
        cluster++;
    while (cluster * CLUSTER < end && is_there(o, cluster) == there);
    return min64(cluster * CLUSTER, end) - at;
}

/* ── moving bytes ───────────────────────────────────────────────────────────────────────────── */

/* A place in the buffers of a request. */
struct cursor {
    const struct iovec *iov;
    uint32_t num;
    uint64_t used; /* of the first buffer */
};

/* The next buffers, `len` bytes at most: how many they are, and their bytes in `moved`. */
static uint32_t next_pieces(const struct cursor *c, uint64_t len, struct iovec *pieces,
                            uint64_t *moved)
{
    uint64_t used = c->used;
    uint32_t count = 0;

    *moved = 0;
    for (uint32_t i = 0; i < c->num && count < PIECES && *moved < len; i++) {
        uint64_t piece = min64(c->iov[i].iov_len - used, len - *moved);
        pieces[count++] = (struct iovec){(uint8_t *)c->iov[i].iov_base + used, piece};
        *moved += piece;
        used = 0;
    }
    return count;
}

static void advance(struct cursor *c, uint64_t len)
{
    c->used += len;
    while (c->num > 0 && c->used >= c->iov->iov_len) {
        c->used -= c->iov->iov_len;
        c->iov++;
        c->num--;
    }
}

enum { READ, WRITE };

static int move(int is_write, int fd, struct cursor *c, uint64_t at, uint64_t len)
{
    while (len > 0) {
        struct iovec pieces[PIECES];
        uint64_t moved;
        uint32_t num = next_pieces(c, len, pieces, &moved);
        int result = pk_file_transfer(fd, is_write, pieces, num, (off_t)at, 0);
        if (result < 0)
            return result;
        advance(c, moved);
        at += moved;
        len -= moved;
    }
    return 0;
}

static int move_buffer(int is_write, int fd, uint8_t *buffer, uint64_t at, uint64_t len)
{
    struct iovec whole = {buffer, len};
    struct cursor c = {&whole, 1, 0};
    return move(is_write, fd, &c, at, len);
}

/* ── copy on write ──────────────────────────────────────────────────────────────────────────── */

static int copy_up(struct pk_overlay *o, uint64_t cluster)
{
    uint64_t at = cluster * CLUSTER, len = min64(CLUSTER, o->config.size - at);
    if (is_there(o, cluster))
        return 0;
    int result = move_buffer(READ, o->config.base_fd, o->buffer, at, len);
    if (result == 0)
        result = move_buffer(WRITE, o->config.fd, o->buffer, o->config.data_at + at, len);
    if (result == 0)
        mark(o, cluster, cluster + 1);
    return result;
}

/* Before `at` to `end` is written: copy up the clusters that it covers in part. */
static int copy_up_edges(struct pk_overlay *o, uint64_t at, uint64_t end)
{
    int result = 0;
    if (at % CLUSTER != 0)
        result = copy_up(o, at / CLUSTER);
    if (result == 0 && end % CLUSTER != 0 && end != o->config.size)
        result = copy_up(o, end / CLUSTER);
    return result;
}

static uint64_t total(const struct iovec *iov, uint32_t num)
{
    uint64_t len = 0;
    for (uint32_t i = 0; i < num; i++)
        len += iov[i].iov_len;
    return len;
}

int pk_overlay_fd(const struct pk_overlay *o)
{
    return o->config.fd;
}

int pk_overlay_find(struct pk_overlay *o, uint64_t len, int to_write, int *fd, uint64_t *at)
{
    int there = is_there(o, *at / CLUSTER);
    if (run_at(o, *at, *at + len) != len || (to_write && !there))
        return 0;
    if (to_write)
        note(o, *at, *at + len);
    *fd = there ? o->config.fd : o->config.base_fd;
    *at += there ? o->config.data_at : 0;
    return 1;
}

int pk_overlay_read(struct pk_overlay *o, const struct iovec *iov, uint32_t num, uint64_t at)
{
    struct cursor c = {iov, num, 0};
    uint64_t end = at + total(iov, num);
    int result = 0;

    advance(&c, 0); /* past buffers of no bytes */
    for (uint64_t len; at < end && result == 0; at += len) {
        len = run_at(o, at, end);
        if (is_there(o, at / CLUSTER))
            result = move(READ, o->config.fd, &c, o->config.data_at + at, len);
        else
            result = move(READ, o->config.base_fd, &c, at, len);
    }
    return result;
}

int pk_overlay_write(struct pk_overlay *o, const struct iovec *iov, uint32_t num, uint64_t at)
{
    struct cursor c = {iov, num, 0};
    uint64_t len = total(iov, num);

    advance(&c, 0);
    note(o, at, at + len);
    int result = copy_up_edges(o, at, at + len);
    if (result == 0)
        result = move(WRITE, o->config.fd, &c, o->config.data_at + at, len);
    if (result == 0)
        mark(o, at / CLUSTER, (at + len + CLUSTER - 1) / CLUSTER);
    return result;
}

int pk_overlay_clear(struct pk_overlay *o, uint64_t at, uint64_t len)
{
    note(o, at, at + len);
    int result = copy_up_edges(o, at, at + len);
    if (result == 0)
        result = pk_file_clear(o->config.fd, (off_t)(o->config.data_at + at), (off_t)len, 1);
    if (result == 0)
        mark(o, at / CLUSTER, (at + len + CLUSTER - 1) / CLUSTER);
    return result;
}

/* ── for Python ─────────────────────────────────────────────────────────────────────────────── */

int pk_overlay_create(const struct pk_overlay_config *config, struct pk_overlay **ret)
{
    struct pk_overlay *o = calloc(1, sizeof(*o));
    if (o == NULL)
        return -ENOMEM;
    o->config = *config;
    o->bitmap_len = (config->size + CLUSTER * 8 - 1) / (CLUSTER * 8);
    o->bitmap = calloc(1, o->bitmap_len + 1);
    int result = o->bitmap == NULL ? -ENOMEM : 0;
    if (result == 0 && config->bitmap_at != 0)
        result = move_buffer(READ, config->fd, o->bitmap, config->bitmap_at, o->bitmap_len);
    if (result < 0) {
        pk_overlay_destroy(o);
        return result;
    }
    *ret = o;
    return 0;
}

void pk_overlay_destroy(struct pk_overlay *o)
{
    free(o->since);
    free(o->bitmap);
    free(o);
}

uint64_t pk_overlay_count(const struct pk_overlay *o)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < o->bitmap_len; i++)
        count += (uint64_t)__builtin_popcount(o->bitmap[i]);
    return count;
}

int pk_overlay_empty(struct pk_overlay *o)
{
    uint64_t len = o->config.data_at + o->config.size;
    memset(o->bitmap, 0, o->bitmap_len);
    free(o->since); /* what it had is not there any more: the next to take it takes all */
    o->since = NULL;
    if (ftruncate(o->config.fd, 0) < 0 || ftruncate(o->config.fd, (off_t)len) < 0)
        return -errno;
    return 0;
}

static int flush_bitmap(struct pk_overlay *o, int durable)
{
    if (durable && fdatasync(o->config.fd) < 0)
        return -errno;
    if (o->dirty_from >= o->dirty_to)
        return 0;
    int result = move_buffer(WRITE, o->config.fd, o->bitmap + o->dirty_from,
                             o->config.bitmap_at + o->dirty_from, o->dirty_to - o->dirty_from);
    if (result == 0 && durable && fdatasync(o->config.fd) < 0)
        result = -errno;
    if (result == 0)
        o->dirty_from = o->dirty_to = 0;
    return result;
}

int pk_overlay_flush(struct pk_overlay *o, int durable)
{
    if (o->config.bitmap_at == 0)
        return 0; /* nobody will read it again */
    /* After one failure the kernel takes lost pages for written ones; their bits must not follow.
     */
    if (o->error == 0)
        o->error = flush_bitmap(o, durable);
    return o->error;
}

/* Write one cluster that is in `o` to `at` of `fd`. */
static int copy_cluster(struct pk_overlay *o, uint64_t cluster, int fd, uint64_t at)
{
    uint64_t from = cluster * CLUSTER, len = min64(CLUSTER, o->config.size - from);
    int result = move_buffer(READ, o->config.fd, o->buffer, o->config.data_at + from, len);

    return result < 0 ? result : move_buffer(WRITE, fd, o->buffer, at, len);
}

int pk_overlay_copy(struct pk_overlay *o, int fd)
{
    int result = 0;

    for (uint64_t i = 0; i * CLUSTER < o->config.size && result == 0; i++)
        if (is_there(o, i))
            result = copy_cluster(o, i, fd, i * CLUSTER);
    return result;
}

/* Let `to` have the clusters of `from` that `chosen` has, and whatever else it has. */
static int add(struct pk_overlay *to, struct pk_overlay *from, const uint8_t *chosen)
{
    int result = 0;

    for (uint64_t i = 0; i * CLUSTER < from->config.size && result == 0; i++)
        if (is_there(from, i) && has(chosen, i)) {
            result = copy_cluster(from, i, to->config.fd, to->config.data_at + i * CLUSTER);
            mark(to, i, i + 1);
        }
    return result;
}

int pk_overlay_add(struct pk_overlay *to, struct pk_overlay *from)
{
    return add(to, from, from->bitmap);
}

int pk_overlay_assign(struct pk_overlay *to, struct pk_overlay *from)
{
    int result = pk_overlay_empty(to);

    return result < 0 ? result : add(to, from, from->bitmap);
}

int pk_overlay_take(struct pk_overlay *to, struct pk_overlay *from, int all)
{
    int is_all = all || from->since == NULL;

    if (from->since == NULL)
        from->since = calloc(1, from->bitmap_len + 1);
    if (from->since == NULL)
        return -ENOMEM;
    int result = add(to, from, is_all ? from->bitmap : from->since);
    memset(from->since, 0, from->bitmap_len);
    if (result < 0) {
        free(from->since);
        from->since = NULL;
    }
    return result < 0 ? result : is_all;
}

/* A disk's requests: what each is, and how it is done. Source: virtio 1.2 §5.2.6 Device Operation.
 *
 *   chain:   header (type, sector) │ data to write          the driver wrote
 *            data read             │ status, 1 byte         we write
 *
 * Reached from virtio_blk.c, which takes them from the queues. What the queue copied and checked is
 * the chain; the bytes of the header are copied once, here. "The framing is not assumed" (§2.7.4
 * Message Framing): header and data may share a buffer, the status may be the end of any. Reads,
 * and writes that may wait, go by io_uring where there is one; what is rare (discard, write zeroes,
 * the rest of a short transfer) waits in the thread.
 */
#include "blk.h"
#include "iov.h"
#include "overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTOR       512u
#define BOUNCE_ALIGN 4096u
#define BOUNCE_MAX   (64u << 20)
#define LOGGED_MAX   10u /* a bad disk must not fill the log */
#define PAGE         4096u
#define COPY_LARGE   65536u
#define COPY_MAX_NS  100000000u  /* a copy that took longer has waited */
#define WAITS_NS     1000000000u /* and so may the next ones */
#define MAX_SEGMENTS 16u /* of a discard or write zeroes; pykvm/virtio/blk.py offers as many */

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};
_Static_assert(sizeof(struct header) == 16, "the driver's layout");
_Static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "the driver's layout");

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vdprintf(STDERR_FILENO, format, arguments);
    va_end(arguments);
}

/* ── the end of a request ───────────────────────────────────────────────────────────────────── */

static void finish(struct pk_blk *b, struct pk_blk_request *r, uint8_t status)
{
    *r->status = status;
    pk_virtq_push(&b->io.queues[r->queue].virtq, r->chain.head, (uint32_t)r->chain.in_len);
    r->next = b->free;
    b->free = r;
}

static const char *type_name(uint32_t type)
{
    switch (type) {
    case VIRTIO_BLK_T_IN:
        return "read";
    case VIRTIO_BLK_T_OUT:
        return "write";
    case VIRTIO_BLK_T_FLUSH:
        return "flush";
    case VIRTIO_BLK_T_DISCARD:
        return "discard";
    default:
        return "write zeroes";
    }
}

/* `result` is the request's: not negative, or -errno, which is the host's trouble. */
static void finish_with(struct pk_blk *b, struct pk_blk_request *r, int64_t result)
{
    if (result < 0 && b->logged < LOGGED_MAX) {
        b->logged++;
        complain("pykvm: --disk: %s: %s, sector %llu, %llu bytes: %s%s\n", b->config.name,
                 type_name(r->type), (unsigned long long)r->sector, (unsigned long long)r->len,
                 strerror((int)-result),
                 b->logged == LOGGED_MAX ? "; later errors are not reported" : "");
    }
    finish(b, r, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
}

/* ── reads and writes ───────────────────────────────────────────────────────────────────────── */

static int write_flags(const struct pk_blk *b)
{
    return __atomic_load_n(&b->writeback, __ATOMIC_RELAXED) || b->config.unsafe ? 0 : RWF_DSYNC;
}

/* Make what was written durable, here and now. */
static int sync_data(struct pk_blk *b)
{
    if (b->config.overlay != NULL)
        return pk_overlay_flush(b->config.overlay, 1);
    return fdatasync(b->config.fd) < 0 ? -errno : 0;
}

/* Transfer all of the data from byte `done` on, here and now. */
static int64_t transfer_rest(struct pk_blk *b, struct pk_blk_request *r, uint64_t done)
{
    int is_write = r->type == VIRTIO_BLK_T_OUT;

    pk_iov_advance(&r->iov, &r->iov_num, done);
    return pk_file_transfer(r->fd, is_write, r->iov, r->iov_num, (off_t)(r->at + done),
                            is_write ? write_flags(b) : 0);
}

static int is_in_memory(const struct pk_blk *b, const struct pk_blk_request *r)
{
    return r->fd == b->config.fd ? b->in_memory : b->overlay_in_memory;
}

/* Whether a transfer is but a copy: of whole pages into the page cache, when nobody waits for the
 * disk, or to and from a file in memory. Most file systems cannot promise io_uring that such a
 * write will not wait, nor tmpfs that a read will not: it wakes a thread for each, which costs more
 * than the copy. */
static int is_copy(const struct pk_blk *b, const struct pk_blk_request *r)
{
    if (b->config.align != 1)
        return 0;
    return is_in_memory(b, r) || (r->type == VIRTIO_BLK_T_OUT && (r->at | r->len) % PAGE == 0 &&
                                  write_flags(b) == 0 && pk_now_ns() >= b->waits_until_ns);
}

/* Whether a copy had better be left to io_uring's thread all the same: it is large, and others
 * would wait behind it. Also, the driver gets their answers and makes new requests meanwhile. */
static int is_in_the_way(struct pk_blk *b, const struct pk_blk_request *r)
{
    return r->len >= COPY_LARGE &&
           (b->in_flight > 0 || pk_virtq_has_chains(&b->io.queues[r->queue].virtq));
}

/* When the host makes those wait that write faster than its disk does, leave the waiting to
 * io_uring's threads for a while: other requests are behind this one. */
static void copy_now(struct pk_blk *b, struct pk_blk_request *r)
{
    uint64_t before = pk_now_ns();
    int64_t result = transfer_rest(b, r, 0);
    uint64_t now = pk_now_ns();

    if (now - before > COPY_MAX_NS)
        b->waits_until_ns = now + WAITS_NS;
    finish_with(b, r, result);
}

/* Without io_uring. Tell of a large transfer at once: the driver can make its next request during
 * the next one. */
static void transfer_now(struct pk_blk *b, struct pk_blk_request *r)
{
    finish_with(b, r, transfer_rest(b, r, 0));
    if (r->len >= COPY_LARGE)
        pk_iothread_notify(&b->io, r->queue);
}

/* Transfer what is in several places of an overlay or its base, or has to be copied up before. */
static int64_t transfer_overlaid(struct pk_blk *b, struct pk_blk_request *r)
{
    struct pk_overlay *overlay = b->config.overlay;
    uint64_t at = r->sector * SECTOR;
    if (r->type == VIRTIO_BLK_T_IN)
        return pk_overlay_read(overlay, r->iov, r->iov_num, at);
    int result = pk_overlay_write(overlay, r->iov, r->iov_num, at);
    return result == 0 && write_flags(b) != 0 ? sync_data(b) : result;
}

/* Find the one file that has the data; 0: an overlay has to do it by itself. */
static int find_place(struct pk_blk *b, struct pk_blk_request *r)
{
    r->fd = b->config.fd;
    r->at = r->sector * SECTOR;
    if (b->config.overlay == NULL)
        return 1;
    if (r->type == VIRTIO_BLK_T_IN)
        return pk_overlay_find(b->config.overlay, r->len, 0, &r->fd, &r->at);
    /* Durable at once takes more than a write. */
    return write_flags(b) == 0 && pk_overlay_find(b->config.overlay, r->len, 1, &r->fd, &r->at);
}

static int is_aligned(const struct pk_blk *b, const struct pk_blk_request *r)
{
    for (uint32_t i = 0; i < r->iov_num; i++)
        if (((uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len) & (b->config.align - 1))
            return 0;
    return 1;
}

static void copy_data(struct pk_blk_request *r, uint8_t *buffer, int to_guest)
{
    for (uint32_t i = 0; i < r->iov_num; i++) {
        if (to_guest)
            memcpy(r->iov[i].iov_base, buffer, r->iov[i].iov_len);
        else
            memcpy(buffer, r->iov[i].iov_base, r->iov[i].iov_len);
        buffer += r->iov[i].iov_len;
    }
}

/* O_DIRECT takes aligned buffers only, and the guest's need not be. */
static int64_t transfer_bounced(struct pk_blk *b, struct pk_blk_request *r)
{
    void *buffer;
    if (r->len > BOUNCE_MAX) /* a driver may name the same memory many times over */
        return -EINVAL;
    if (posix_memalign(&buffer, BOUNCE_ALIGN, r->len) != 0)
        return -ENOMEM;
    struct iovec whole = {.iov_base = buffer, .iov_len = r->len}, *iov = r->iov;
    uint32_t iov_num = r->iov_num;
    if (r->type == VIRTIO_BLK_T_OUT)
        copy_data(r, buffer, 0);
    r->iov = &whole;
    r->iov_num = 1;
    int64_t result = transfer_rest(b, r, 0);
    r->iov = iov;
    r->iov_num = iov_num;
    if (r->type == VIRTIO_BLK_T_IN && result == 0)
        copy_data(r, buffer, 1);
    free(buffer);
    return result;
}

/* An entry of the ring for `r`, or NULL to do it here and now. */
static struct io_uring_sqe *next_entry(struct pk_blk *b, struct pk_blk_request *r, uint8_t opcode)
{
    struct io_uring_sqe *sqe = b->ring.fd >= 0 ? pk_uring_next(&b->ring) : NULL;
    if (sqe == NULL)
        return NULL;
    sqe->opcode = opcode;
    sqe->fd = r->fd;
    sqe->user_data = (uint64_t)(uintptr_t)r;
    b->in_flight++;
    return sqe;
}

static void transfer(struct pk_blk *b, struct pk_blk_request *r)
{
    int is_write = r->type == VIRTIO_BLK_T_OUT;
    uint64_t sectors = r->len / SECTOR;
    if (r->len % SECTOR != 0 || sectors == 0 || sectors > b->config.sectors ||
        r->sector > b->config.sectors - sectors || (is_write && b->config.read_only)) {
        finish(b, r, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (!find_place(b, r)) {
        finish_with(b, r, transfer_overlaid(b, r));
        return;
    }
    if (!is_aligned(b, r)) {
        finish_with(b, r, transfer_bounced(b, r));
        return;
    }
    int copies = is_copy(b, r);
    if (copies && !is_in_the_way(b, r)) {
        copy_now(b, r);
        return;
    }
    struct io_uring_sqe *sqe = next_entry(b, r, is_write ? IORING_OP_WRITEV : IORING_OP_READV);
    if (sqe == NULL) {
        transfer_now(b, r);
        return;
    }
    if (copies)
        sqe->flags = IOSQE_ASYNC; /* else some file systems would copy while we submit */
    sqe->addr = (uint64_t)(uintptr_t)r->iov;
    sqe->len = r->iov_num;
    sqe->off = r->at;
    if (is_write)
        sqe->rw_flags = (uint32_t)write_flags(b);
}

static void flush(struct pk_blk *b, struct pk_blk_request *r)
{
    if (b->config.unsafe) {
        finish(b, r, VIRTIO_BLK_S_OK);
        return;
    }
    r->fd = b->config.fd;
    struct io_uring_sqe *sqe = b->config.overlay == NULL ? next_entry(b, r, IORING_OP_FSYNC) : NULL;
    if (sqe == NULL)
        finish_with(b, r, sync_data(b));
    else
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
}

/* ── discard and write zeroes ───────────────────────────────────────────────────────────────── */

static int punch_hole(struct pk_blk *b, off_t at, off_t len)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(b->config.fd, mode, at, len) < 0 ? -errno : 0;
}

/* One segment. Returns a status; a host's failure is in *error. */
static uint8_t clear_segment(struct pk_blk *b, uint32_t type,
                             const struct virtio_blk_discard_write_zeroes *segment, int *error)
{
    uint32_t unmap = segment->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    /* §5.2.6.2: unknown flags, and unmap for a discard, are not supported. */
    if (segment->flags != unmap || (unmap && type == VIRTIO_BLK_T_DISCARD))
        return VIRTIO_BLK_S_UNSUPP;
    uint64_t num = segment->num_sectors;
    if (num > b->config.sectors || segment->sector > b->config.sectors - num)
        return VIRTIO_BLK_S_IOERR;
    if (num == 0)
        return VIRTIO_BLK_S_OK;
    off_t at = (off_t)(segment->sector * SECTOR), len = (off_t)(num * SECTOR);
    int result;
    if (b->config.overlay != NULL)
        result = pk_overlay_clear(b->config.overlay, (uint64_t)at, (uint64_t)len);
    else if (type == VIRTIO_BLK_T_DISCARD)
        result = punch_hole(b, at, len);
    else
        result = pk_file_clear(b->config.fd, at, len, unmap != 0);
    if (result == 0)
        return VIRTIO_BLK_S_OK;
    if (result == -EOPNOTSUPP)
        return VIRTIO_BLK_S_UNSUPP;
    *error = -result;
    return VIRTIO_BLK_S_IOERR;
}

static void clear(struct pk_blk *b, struct pk_blk_request *r)
{
    struct virtio_blk_discard_write_zeroes segments[MAX_SEGMENTS];
    int error = 0;
    uint8_t status = VIRTIO_BLK_S_OK;

    if (b->config.read_only || r->len == 0 || r->len % sizeof(segments[0]) != 0 ||
        r->len > sizeof(segments)) {
        finish(b, r, VIRTIO_BLK_S_IOERR);
        return;
    }
    copy_data(r, (uint8_t *)segments, 0); /* once; the guest may change its own */
    for (uint64_t i = 0; i < r->len / sizeof(segments[0]) && status == VIRTIO_BLK_S_OK; i++)
        status = clear_segment(b, r->type, &segments[i], &error);
    if (status == VIRTIO_BLK_S_OK && write_flags(b) != 0)
        error = -sync_data(b);
    if (error)
        finish_with(b, r, -error);
    else
        finish(b, r, status);
}

static void get_id(struct pk_blk *b, struct pk_blk_request *r)
{
    uint8_t id[VIRTIO_BLK_ID_BYTES];
    size_t left = sizeof(id);

    _Static_assert(sizeof(id) == sizeof(b->config.id), "one id");
    memcpy(id, b->config.id, sizeof(id));
    for (uint32_t i = 0; i < r->iov_num && left > 0; i++) {
        size_t len = r->iov[i].iov_len < left ? r->iov[i].iov_len : left;
        memcpy(r->iov[i].iov_base, id + sizeof(id) - left, len);
        left -= len;
    }
    finish(b, r, VIRTIO_BLK_S_OK);
}

/* ── the start of a request ─────────────────────────────────────────────────────────────────── */

/* Take the header off the front of the chain and the status off its end. */
static int unpack(struct pk_blk_request *r)
{
    struct pk_chain *chain = &r->chain;
    struct header header;

    if (chain->out_len < sizeof(header) || chain->in_len < 1)
        return -EINVAL;
    r->iov = chain->iov;
    r->iov_num = chain->out_num;
    pk_iov_take(&r->iov, &r->iov_num, &header, sizeof(header));
    r->type = header.type;
    r->sector = header.sector;
    r->len = chain->out_len - sizeof(header);

    struct iovec *last = &chain->iov[chain->out_num + chain->in_num - 1];
    last->iov_len--;
    r->status = (uint8_t *)last->iov_base + last->iov_len;
    if (r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_GET_ID) {
        r->iov = &chain->iov[chain->out_num];
        r->iov_num = chain->in_num - (last->iov_len == 0);
        r->len = chain->in_len - 1;
    }
    return 0;
}

int pk_blk_begin(struct pk_blk *b, struct pk_blk_request *r)
{
    int result = unpack(r);
    if (result < 0)
        return result;
    int moves = r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_OUT;
    pk_limiter_take(&b->limiter, 1, moves ? r->len : 0);
    switch (r->type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        transfer(b, r);
        break;
    case VIRTIO_BLK_T_FLUSH:
        flush(b, r);
        break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        clear(b, r);
        break;
    case VIRTIO_BLK_T_GET_ID:
        get_id(b, r);
        break;
    default:
        finish(b, r, VIRTIO_BLK_S_UNSUPP);
        break;
    }
    return 0;
}

void pk_blk_complete(struct pk_blk *b, struct pk_blk_request *r, int32_t result)
{
    if (result == -EINTR || result == -EAGAIN)
        result = 0; /* as if nothing had been transferred yet */
    if (result >= 0 && r->type != VIRTIO_BLK_T_FLUSH && (uint64_t)result < r->len)
        finish_with(b, r, transfer_rest(b, r, (uint64_t)result));
    else
        finish_with(b, r, result);
}

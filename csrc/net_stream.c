/* A unix stream socket as the wire of a network card, in QEMU's framing, which passt speaks too:
 *
 *   size, 32 bits, big-endian │ frame │ size │ frame │ …
 *
 * Many short frames a system call, both ways. What is read waits in `buffer` until the driver has
 * room for it, so the other end waits, too; nothing is dropped while there is an other end.
 */
#include "virtio_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE 4u /* of a size */
/* A header is put in front of each frame, over its size and 8 bytes of what came before. */
#define MARGIN      (NET_HEADER - SIZE)
#define BUFFER_SIZE (MARGIN + (256u << 10))
/* What is sent at once, if it is more than one frame. The kernel queues up to this in one piece
 * (unix_stream_sendmsg() in net/unix/af_unix.c), which a reader then sees whole. passt of 2023
 * loses its place in the stream when a frame comes in three pieces, or a size in two. */
#define PIECE (32u << 10)

static void set_empty(struct pk_wire *wire)
{
    wire->start = wire->end = MARGIN;
}

static int open_stream(struct pk_wire *wire, uint32_t pair)
{
    wire->fd = wire->config->fds[pair];
    wire->link = !wire->config->listening;
    wire->buffer = malloc(BUFFER_SIZE);
    wire->cut = malloc(SIZE + NET_FRAME_MAX);
    set_empty(wire);
    return wire->buffer == NULL || wire->cut == NULL ? -ENOMEM : 0;
}

static void hang_up(struct pk_wire *wire)
{
    if (wire->config->listening && wire->fd != wire->config->fds[0])
        close(wire->fd);
    wire->fd = wire->config->listening ? wire->config->fds[0] : -1;
    pk_wire_set_link(wire, 0);
    wire->cut_start = wire->cut_end = 0;
    wire->emptied = 0;
    set_empty(wire);
}

static void close_stream(struct pk_wire *wire)
{
    hang_up(wire);
    free(wire->buffer);
    free(wire->cut);
    pk_orphans_destroy(wire->orphans);
}

static void accept_other_end(struct pk_wire *wire)
{
    int fd = accept4(wire->config->fds[0], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    wire->fd = fd;
    pk_wire_set_link(wire, 1);
}

/* ── from the other end ─────────────────────────────────────────────────────────────────────── */

/* Make room behind `end` for the rest of a frame, and read. Returns 0 when nothing came. */
static int read_more(struct pk_wire *wire)
{
    uint32_t have = wire->end - wire->start;
    if (wire->emptied) {
        wire->emptied = 0;
        return 0;
    }
    if (have == 0)
        set_empty(wire);
    else if (BUFFER_SIZE - wire->start < SIZE + NET_FRAME_MAX) {
        memmove(wire->buffer + MARGIN, wire->buffer + wire->start, have);
        wire->start = MARGIN;
        wire->end = MARGIN + have;
    }
    ssize_t len = recv(wire->fd, wire->buffer + wire->end, BUFFER_SIZE - wire->end, MSG_DONTWAIT);
    wire->emptied = len > 0 && (size_t)len < BUFFER_SIZE - wire->end;
    if (len > 0)
        wire->end += (uint32_t)len;
    else if (len == 0 || (errno != EAGAIN && errno != EINTR))
        hang_up(wire);
    return len > 0;
}

static int receive(struct pk_wire *wire, struct iovec *iov, uint32_t num, struct pk_packet *ret)
{
    (void)iov, (void)num;
    if (wire->orphans && pk_orphans_receive(wire->orphans, ret))
        return 1;
    while (pk_wire_link(wire)) {
        uint32_t have = wire->end - wire->start, size = 0;
        uint8_t *at = wire->buffer + wire->start;

        if (have >= SIZE) {
            memcpy(&size, at, SIZE);
            size = ntohl(size);
            if (size > NET_FRAME_MAX) { /* where would the next one begin? */
                hang_up(wire);
                return 0;
            }
        }
        if (have < SIZE || have - SIZE < size) {
            if (!read_more(wire))
                return 0;
            continue;
        }
        wire->start += SIZE + size;
        if (size < NET_FRAME_MIN) {
            pk_wire_drop(wire);
            continue;
        }
        memset(at - MARGIN, 0, NET_HEADER);
        *ret = (struct pk_packet){.len = NET_HEADER + size, .rest = at - MARGIN};
        return 1;
    }
    return 0;
}

/* ── to the other end ───────────────────────────────────────────────────────────────────────── */

static ssize_t send_some(struct pk_wire *wire, struct iovec *iov, uint32_t num)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = num};
    ssize_t result;

    do
        result = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (result < 0 && errno == EINTR);
    if (result < 0 && errno != EAGAIN)
        hang_up(wire);
    return result;
}

/* The end of the frame that a stop cut in two. Returns whether it is gone. */
static int send_cut(struct pk_wire *wire)
{
    while (wire->cut_start < wire->cut_end) {
        struct iovec rest = {wire->cut + wire->cut_start, wire->cut_end - wire->cut_start};
        ssize_t result = send_some(wire, &rest, 1);
        if (result < 0)
            return !pk_wire_link(wire);
        wire->cut_start += (uint32_t)result;
    }
    return 1;
}

/* Drop `len` bytes from the front of the frames. */
static void advance(struct pk_outgoing *out, uint64_t len)
{
    while (out->next < out->num) {
        struct pk_frame *frame = &out->frames[out->next];
        while (frame->num > 0 && len >= out->iov[frame->first].iov_len) {
            len -= out->iov[frame->first].iov_len;
            frame->first++;
            frame->num--;
        }
        if (frame->num > 0) {
            struct iovec *iov = &out->iov[frame->first];
            iov->iov_base = (uint8_t *)iov->iov_base + len;
            iov->iov_len -= len;
            return;
        }
        out->next++;
    }
}

/* How many buffers are sent at once: those of the next frame, and of more if they are short. */
static uint32_t in_one_piece(const struct pk_outgoing *out)
{
    uint32_t num = 0, len = 0;

    for (uint32_t i = out->next; i < out->num; i++) {
        const struct pk_frame *frame = &out->frames[i];
        len += frame->num > 0 ? SIZE + ntohl(frame->size) : 0;
        if (i > out->next && len > PIECE)
            break;
        num += frame->num;
    }
    return num;
}

static void send_frames(struct pk_wire *wire, struct pk_outgoing *out)
{
    if (!send_cut(wire))
        return;
    advance(out, 0); /* past frames that are not sent */
    while (out->next < out->num && pk_wire_link(wire)) {
        struct iovec *iov = out->iov + out->frames[out->next].first;
        ssize_t result = send_some(wire, iov, in_one_piece(out));
        if (result < 0)
            return;
        advance(out, (uint64_t)result);
    }
}

static void forget(struct pk_wire *wire, struct pk_outgoing *out)
{
    if (out->next == out->num)
        return;
    const struct pk_frame *frame = &out->frames[out->next];
    const struct iovec *iov = out->iov + frame->first;
    if (frame->num == 0 || iov->iov_base == &frame->size)
        return; /* none of it is sent */
    wire->cut_start = wire->cut_end = 0;
    for (uint32_t i = 0; i < frame->num; i++) {
        memcpy(wire->cut + wire->cut_end, iov[i].iov_base, iov[i].iov_len);
        wire->cut_end += (uint32_t)iov[i].iov_len;
    }
    out->next++;
}

const struct pk_wire_ops pk_wire_stream = {
    .has_size = 1,
    .open = open_stream,
    .close = close_stream,
    .accept = accept_other_end,
    .receive = receive,
    .send = send_frames,
    .forget = forget,
};

/* Frames from a network card's driver, on the thread of a pair of queues. Source: virtio 1.2
 * §5.1.6.2 Packet Transmission.
 *
 *   kick ─> gather: pop chains ─> send ─> used ring ─> interrupt, one a batch
 *
 * Where the wire is full no chain is taken.
 */
#include "net_pair.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define ODD_IOVS 4u /* a frame may need more than its chain: header or size, a checksum between */

static void append(struct pk_outgoing *out, void *data, size_t len)
{
    out->iov[out->iov_num++] = (struct iovec){.iov_base = data, .iov_len = len};
}

/* Append the bytes [from, to) of the chain at hand. */
static void append_slice(struct pk_net_pair *p, uint64_t from, uint64_t to)
{
    struct pk_outgoing *out = &p->out;
    out->iov_num += pk_iov_slice(p->chain.iov, from, to - from, out->iov + out->iov_num);
}

/* Append the frame with its checksum, which the driver left to us: §5.1.6.2. Returns 0 when the
 * header says nonsense. */
static int append_with_checksum(struct pk_net_pair *p, struct pk_frame *frame)
{
    const struct pk_chain *chain = &p->chain;
    uint64_t start = NET_HEADER + (uint64_t)frame->header.csum_start;
    uint64_t at = start + frame->header.csum_offset;

    if (at + sizeof(frame->checksum) > chain->out_len)
        return 0;
    frame->checksum = pk_iov_checksum(chain->iov, chain->out_num, start);
    if (frame->checksum == 0) /* to UDP, zero means that there is none (RFC 768) */
        frame->checksum = 0xffff;
    append_slice(p, NET_HEADER, at);
    append(&p->out, &frame->checksum, sizeof(frame->checksum));
    append_slice(p, at + sizeof(frame->checksum), chain->out_len);
    return 1;
}

/* Whether a frame that is for a wire with sizes belongs to a connection that is no more; then it is
 * answered. */
static int is_orphan(struct pk_net_pair *p, const struct pk_frame *frame)
{
    uint32_t first = frame->first + 1; /* its size is in front */
    return pk_orphans_answer(p->wire.orphans, p->out.iov + first, p->out.iov_num - first);
}

/* Put the chain at hand into `out`, behind what the wire wants in front. What cannot be sent
 * becomes a frame without buffers. */
static void add_frame(struct pk_net_pair *p)
{
    struct pk_outgoing *out = &p->out;
    const struct pk_chain *chain = &p->chain;
    struct pk_frame *frame = &out->frames[out->num++];
    uint64_t len = chain->out_len - NET_HEADER;
    struct iovec header[NET_HEADER];
    uint8_t *to = (uint8_t *)&frame->header;

    frame->head = chain->head;
    frame->first = out->iov_num;
    frame->num = 0;
    uint32_t pieces = pk_iov_slice(chain->iov, 0, NET_HEADER, header);
    for (uint32_t i = 0; i < pieces; to += header[i].iov_len, i++)
        memcpy(to, header[i].iov_base, header[i].iov_len);
    int sound = len >= NET_FRAME_MIN && len <= NET_FRAME_MAX;
    if (sound && p->wire.ops->has_header)
        append(out, &frame->header, NET_HEADER);
    frame->size = htonl((uint32_t)len);
    if (sound && p->wire.ops->has_size)
        append(out, &frame->size, sizeof(frame->size));
    if (sound && !p->wire.ops->has_header && frame->header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        sound = append_with_checksum(p, frame);
    else if (sound)
        append_slice(p, NET_HEADER, chain->out_len);
    if (!sound) {
        out->iov_num = frame->first;
        pk_wire_drop(&p->wire);
    }
    if (sound && p->wire.orphans && is_orphan(p, frame))
        out->iov_num = frame->first;
    frame->num = out->iov_num - frame->first;
}

/* Take chains while there are any and there is room. Returns -EINVAL with a fault. */
static int gather(struct pk_net_pair *p)
{
    struct pk_outgoing *out = &p->out;

    while (out->num < NET_BATCH && out->iov_num + PK_VIRTQ_SIZE_MAX + ODD_IOVS <= NET_IOVS &&
           may_pass(p, TX)) {
        int result = pk_virtq_pop(virtq(p, TX), &p->chain);
        if (result <= 0)
            return result;
        if (p->chain.out_len < NET_HEADER) {
            __atomic_store_n(&virtq(p, TX)->fault, PK_VIRTQ_BAD_REQUEST, __ATOMIC_RELAXED);
            return -EINVAL;
        }
        add_frame(p);
        pk_limiter_take(&p->net->limiters[TX], 1, p->chain.out_len - NET_HEADER);
    }
    return 0;
}

/* Send what was gathered, and give the driver its chains back. Returns 0 when the wire is full. */
static int send_gathered(struct pk_net_pair *p)
{
    struct pk_outgoing *out = &p->out;
    uint32_t before = out->next;

    if (pk_wire_link(&p->wire))
        p->wire.ops->send(&p->wire, out);
    if (!pk_wire_link(&p->wire)) { /* the cable is out */
        __atomic_fetch_add(&p->wire.dropped, out->num - out->next, __ATOMIC_RELAXED);
        out->next = out->num;
    }
    for (uint32_t i = before; i < out->next; i++)
        pk_virtq_put(virtq(p, TX), i - before, out->frames[i].head, 0);
    pk_virtq_publish(virtq(p, TX), out->next - before);
    if (out->next < out->num)
        return 0;
    out->num = out->next = out->iov_num = 0;
    return 1;
}

void pk_net_transmit(struct pk_net_pair *p)
{
    struct pk_virtq *q = virtq(p, TX);
    uint32_t taken = 0;
    int result = 0;

    if (q->fault)
        return;
    do {
        pk_virtq_refuse_kicks(q);
        do {
            result = gather(p);
            uint32_t num = p->out.num - p->out.next;
            p->blocked = num > 0 && !send_gathered(p);
            taken += num;
            if (num == 0)
                break;
        } while (result == 0 && !p->blocked && taken < FRAMES_MAX);
        if (taken >= FRAMES_MAX) { /* come back when the other direction has had its turn */
            uint64_t one = 1;
            ssize_t written = write(p->io.queues[TX].kick_fd, &one, sizeof(one));
            (void)written; /* a full counter is a kick, too */
            break;
        }
    } while (result == 0 && !p->blocked && !p->waits_ns[TX] && !pk_iothread_stopping(&p->io) &&
             pk_virtq_ask_kicks(q));
    if (result < 0)
        pk_iothread_report_fault(&p->io);
    else
        pk_iothread_notify(&p->io, TX);
}

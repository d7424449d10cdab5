/* Frames to a network card's driver, on the thread of a pair of queues. Source: virtio 1.2 §5.1.6.3
 * Setting Up Receive Buffers, §5.1.6.4 Processing of Incoming Packets.
 *
 *   wire ─> receive ─> the window: buffers that the driver gave ─> used ring ─> interrupt
 *
 * Where no buffer is free the wire is not read.
 */
#include "net_pair.h"

#include <errno.h>
#include <string.h>

static int can_hold_more(struct pk_net_pair *p)
{
    const struct pk_net_window *w = &p->window;
    /* One iovec stays free, for the wire. */
    return w->num < virtq(p, RX)->size && w->iov_num + PK_VIRTQ_SIZE_MAX < NET_IOVS;
}

/* Hold receive buffers for `len` bytes, or as many as there are. Returns -EINVAL with a fault. */
static int hold(struct pk_net_pair *p, uint64_t len)
{
    struct pk_net_window *w = &p->window;
    struct pk_chain *chain = &p->chain;

    while (w->room < len && (w->num == 0 || p->net->mergeable) && can_hold_more(p)) {
        int result = pk_virtq_pop(virtq(p, RX), chain);
        if (result <= 0)
            return result;
        /* §5.1.6.3.1: each has room for a header, for any may be a packet's first. */
        if (chain->in_len < NET_HEADER) {
            __atomic_store_n(&virtq(p, RX)->fault, PK_VIRTQ_BAD_REQUEST, __ATOMIC_RELAXED);
            return -EINVAL;
        }
        memcpy(w->iov + w->iov_num, chain->iov + chain->out_num, chain->in_num * sizeof(w->iov[0]));
        w->iov_num += chain->in_num;
        w->chains[w->num].head = chain->head;
        w->chains[w->num].iov_num = chain->in_num;
        w->chains[w->num].len = (uint32_t)chain->in_len;
        w->num++;
        w->room += chain->in_len;
    }
    return 0;
}

/* Copy as much of the packet as there is room for. Returns whether all of it is placed now. */
static int place(struct pk_net_pair *p)
{
    struct pk_packet *packet = &p->packet;
    uint64_t room = p->window.room - packet->placed;
    uint32_t rest = packet->len - packet->placed, len = rest < room ? rest : (uint32_t)room;

    if (len > 0) {
        pk_iov_write(p->window.iov, p->window.iov_num, packet->placed, packet->rest, len);
        packet->placed += len;
        packet->rest += len;
    }
    return packet->placed == packet->len;
}

/* Give the driver the packet, which is in the first of its buffers. */
static void deliver(struct pk_net_pair *p)
{
    struct pk_net_window *w = &p->window;
    uint32_t left = p->packet.len, num = 0, iov_num = 0;

    while (left > 0) {
        uint32_t len = left < w->chains[num].len ? left : w->chains[num].len;
        pk_virtq_put(virtq(p, RX), num, w->chains[num].head, len);
        left -= len;
        w->room -= w->chains[num].len;
        iov_num += w->chains[num].iov_num;
        num++;
    }
    /* §5.1.6.4.1: what was not negotiated is zero, and num_buffers is 1 or more. */
    if (!__atomic_load_n(&p->net->guest_checksums, __ATOMIC_RELAXED))
        pk_iov_write(w->iov, w->iov_num, offsetof(struct virtio_net_hdr_v1, flags), "", 1);
    uint16_t num_buffers = (uint16_t)num;
    pk_iov_write(w->iov, w->iov_num, offsetof(struct virtio_net_hdr_v1, num_buffers), &num_buffers,
                 sizeof(num_buffers));
    pk_virtq_publish(virtq(p, RX), num);
    w->num -= num;
    w->iov_num -= iov_num;
    memmove(w->chains, w->chains + num, w->num * sizeof(w->chains[0]));
    memmove(w->iov, w->iov + iov_num, w->iov_num * sizeof(w->iov[0]));
    p->has_packet = 0;
    pk_limiter_take(&p->net->limiters[RX], 1, p->packet.len - NET_HEADER);
}

enum received { DELIVERED, NO_PACKET, NO_BUFFERS, BROKEN };

static enum received receive_one(struct pk_net_pair *p)
{
    const struct pk_wire_ops *ops = p->wire.ops;
    struct pk_net_window *w = &p->window;
    /* A TAP places what it reads, so it gets buffers for the longest packet there may be. */
    uint32_t len = p->has_packet ? p->packet.len : ops->has_header ? NET_HEADER + NET_FRAME_MAX : 1;

    if (hold(p, len) < 0)
        return BROKEN;
    if (w->num == 0)
        return NO_BUFFERS;
    if (!p->has_packet) {
        if (!ops->receive(&p->wire, w->iov, w->iov_num, &p->packet))
            return NO_PACKET;
        p->has_packet = 1;
        if (hold(p, p->packet.len) < 0)
            return BROKEN;
    }
    if (place(p)) {
        deliver(p);
        return DELIVERED;
    }
    if (p->net->mergeable && can_hold_more(p))
        return NO_BUFFERS;
    /* It is longer than all buffers the driver will ever give for one packet. */
    pk_wire_drop(&p->wire);
    p->has_packet = 0;
    return DELIVERED;
}

void pk_net_receive(struct pk_net_pair *p)
{
    struct pk_virtq *q = virtq(p, RX);
    enum received received = DELIVERED;

    if (q->fault || !__atomic_load_n(&p->active, __ATOMIC_RELAXED))
        return;
    do {
        pk_virtq_refuse_kicks(q);
        for (uint32_t i = 0; i < FRAMES_MAX && !pk_iothread_stopping(&p->io); i++)
            if (!may_pass(p, RX) || (received = receive_one(p)) != DELIVERED)
                break;
        p->starved = received == NO_BUFFERS;
    } while (p->starved && !pk_iothread_stopping(&p->io) && pk_virtq_ask_kicks(q));
    if (received == BROKEN)
        pk_iothread_report_fault(&p->io);
    else
        pk_iothread_notify(&p->io, RX);
}

/* The data plane of a network card. Source: virtio 1.2 §5.1 Network Device.
 *
 *   to the driver     wire ─> receive ─> buffers the driver gave ─> interrupt
 *   from the driver   kick ─> pop ─> gather ─> send ─> push
 *
 * A thread for each pair of queues, with a wire of its own (virtio_net.h). Nothing is allocated for
 * a frame. Where no buffer is free the wire is not read, and where the wire is full no chain is
 * taken: the side that is too fast waits. A driver is interrupted at most once for a batch.
 */
#include "iothread.h"
#include "ratelimit.h"
#include "virtio_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RX, TX, DIRECTIONS };

#define FRAMES_MAX 256u /* of one direction, before the other has its turn */
#define ODD_IOVS   4u /* a frame may need more than its chain: header or size, a checksum between */

/* Receive buffers that the driver gave and we hold, in order. */
struct window {
    struct {
        uint32_t head, iov_num, len;
    } chains[PK_VIRTQ_SIZE_MAX];
    uint32_t num;
    struct iovec iov[NET_IOVS];
    uint32_t iov_num;
    uint64_t room; /* bytes of them all */
};

struct pair {
    struct pk_net *net;
    struct pk_iothread io;
    struct pk_wire wire;
    uint32_t active;         /* atomic: it receives */
    uint32_t told_link;      /* as the driver knows it */
    int starved;             /* the driver's next receive buffer comes with a kick */
    int blocked;             /* the wire is full */
    int has_packet;          /* `packet` waits for buffers */
    struct pk_packet packet; /* received, not delivered */
    struct window window;
    struct pk_outgoing out;
    struct pk_chain chain;         /* the one at hand */
    uint64_t waits_ns[DIRECTIONS]; /* until a limiter lets frames pass; 0: it does */
};

struct pk_net {
    struct pk_net_config config;
    uint32_t mergeable;       /* a packet may fill several chains: VIRTIO_NET_F_MRG_RXBUF */
    uint32_t guest_checksums; /* atomic: VIRTIO_NET_F_GUEST_CSUM */
    uint32_t running;         /* pairs with a thread */
    struct pk_limiter limiters[DIRECTIONS]; /* of all pairs together */
    struct pair *pairs;
};

static struct pk_virtq *virtq(struct pair *p, uint32_t direction)
{
    return &p->io.queues[direction].virtq;
}

/* Whether a frame may pass. When not, `ready` is called once one may. */
static int may_pass(struct pair *p, uint32_t direction)
{
    p->waits_ns[direction] = pk_limiter_opens_at(&p->net->limiters[direction]);
    return p->waits_ns[direction] == 0;
}

/* ── to the driver ──────────────────────────────────────────────────────────────────────────── */

static int can_hold_more(struct pair *p)
{
    const struct window *w = &p->window;
    /* One iovec stays free, for the wire. */
    return w->num < virtq(p, RX)->size && w->iov_num + PK_VIRTQ_SIZE_MAX < NET_IOVS;
}

/* Hold receive buffers for `len` bytes, or as many as there are. Returns -EINVAL with a fault. */
static int hold(struct pair *p, uint64_t len)
{
    struct window *w = &p->window;
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
static int place(struct pair *p)
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
static void deliver(struct pair *p)
{
    struct window *w = &p->window;
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

static enum received receive_one(struct pair *p)
{
    const struct pk_wire_ops *ops = p->wire.ops;
    struct window *w = &p->window;
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

static void receive(struct pair *p)
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

/* ── from the driver ────────────────────────────────────────────────────────────────────────── */

static void append(struct pk_outgoing *out, void *data, size_t len)
{
    out->iov[out->iov_num++] = (struct iovec){.iov_base = data, .iov_len = len};
}

/* Append the bytes [from, to) of the chain at hand. */
static void append_slice(struct pair *p, uint64_t from, uint64_t to)
{
    struct pk_outgoing *out = &p->out;
    out->iov_num += pk_iov_slice(p->chain.iov, from, to - from, out->iov + out->iov_num);
}

/* Append the frame with its checksum, which the driver left to us: §5.1.6.2. Returns 0 when the
 * header says nonsense. */
static int append_with_checksum(struct pair *p, struct pk_frame *frame)
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
static int is_orphan(struct pair *p, const struct pk_frame *frame)
{
    uint32_t first = frame->first + 1; /* its size is in front */
    return pk_orphans_answer(p->wire.orphans, p->out.iov + first, p->out.iov_num - first);
}

/* Put the chain at hand into `out`, behind what the wire wants in front. What cannot be sent
 * becomes a frame without buffers. */
static void add_frame(struct pair *p)
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
static int gather(struct pair *p)
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
static int send_gathered(struct pair *p)
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

static void transmit(struct pair *p)
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

/* ── the thread ─────────────────────────────────────────────────────────────────────────────── */

/* Say what to poll the wire for, and tell the driver when its link has changed. */
static void settle(struct pair *p)
{
    uint32_t link = pk_wire_link(&p->wire);
    int receives = !p->starved && !virtq(p, RX)->fault && !p->waits_ns[RX];

    p->io.ready_fd = p->wire.fd;
    p->io.ready_events = 0;
    if (!link && p->net->config.listening)
        p->io.ready_events = POLLIN;
    if (link && receives && __atomic_load_n(&p->active, __ATOMIC_RELAXED))
        p->io.ready_events |= POLLIN;
    if (link && p->blocked)
        p->io.ready_events |= POLLOUT;
    p->io.wake_ns = p->waits_ns[RX];
    if (p->waits_ns[TX] && (!p->io.wake_ns || p->waits_ns[TX] < p->io.wake_ns))
        p->io.wake_ns = p->waits_ns[TX];
    if (link == p->told_link)
        return;
    p->told_link = link;
    if (!link)
        dprintf(STDERR_FILENO, "pykvm: net %s: the other end is gone\n", p->net->config.name);
    pk_interrupt_raise(p->io.irq, 0);
}

static void serve(void *device, uint32_t direction)
{
    struct pair *p = device;

    if (direction == RX)
        receive(p);
    else if (!p->blocked || !pk_wire_link(&p->wire)) {
        transmit(p);
        if (p->wire.orphans && pk_orphans_waiting(p->wire.orphans) && !p->starved)
            receive(p);
    }
    settle(p);
}

static void ready(void *device)
{
    struct pair *p = device;

    if (!pk_wire_link(&p->wire) && p->net->config.listening)
        p->wire.ops->accept(&p->wire);
    if (!p->starved)
        receive(p);
    if (p->blocked || p->waits_ns[TX])
        transmit(p);
    settle(p);
}

static void begin_thread(void *device)
{
    struct pair *p = device;

    p->starved = p->blocked = p->has_packet = 0;
    p->waits_ns[RX] = p->waits_ns[TX] = 0;
    settle(p);
}

/* Leave the queues as if what we hold had never been taken. */
static void end_thread(void *device)
{
    struct pair *p = device;
    struct pk_outgoing *out = &p->out;

    if (p->wire.ops->forget && out->next < out->num) {
        uint32_t before = out->next;
        p->wire.ops->forget(&p->wire, out);
        if (out->next > before)
            pk_virtq_push(virtq(p, TX), out->frames[before].head, 0);
    }
    virtq(p, TX)->avail_idx = (uint16_t)(virtq(p, TX)->avail_idx - (out->num - out->next));
    virtq(p, RX)->avail_idx = (uint16_t)(virtq(p, RX)->avail_idx - p->window.num);
    out->num = out->next = out->iov_num = 0;
    p->window.num = p->window.iov_num = 0;
    p->window.room = 0;
}

/* ── for Python ─────────────────────────────────────────────────────────────────────────────── */

static const struct pk_wire_ops *const WIRES[] = {
    [PK_NET_TAP] = &pk_wire_tap,
    [PK_NET_STREAM] = &pk_wire_stream,
    [PK_NET_DGRAM] = &pk_wire_dgram,
};

int pk_net_create(const struct pk_net_config *config, struct pk_net **ret)
{
    struct pk_net *net = calloc(1, sizeof(*net));
    if (net == NULL)
        return -ENOMEM;
    net->config = *config;
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++)
        pk_limiter_init(&net->limiters[direction], &config->limits);
    net->pairs = calloc(config->pairs, sizeof(*net->pairs));
    for (uint32_t i = 0; net->pairs != NULL && i < config->pairs; i++) {
        struct pair *p = &net->pairs[i];
        p->net = net;
        p->active = 1; /* a TAP's files are attached from the start */
        p->wire = (struct pk_wire){.ops = WIRES[config->kind], .config = &net->config, .link = 1};
        if (p->wire.ops->open(&p->wire, i) < 0) {
            pk_net_destroy(net);
            return -ENOMEM;
        }
        p->told_link = p->wire.link;
    }
    if (net->pairs == NULL) {
        free(net);
        return -ENOMEM;
    }
    *ret = net;
    return 0;
}

void pk_net_destroy(struct pk_net *net)
{
    for (uint32_t i = 0; i < net->config.pairs; i++)
        if (net->pairs[i].wire.ops)
            net->pairs[i].wire.ops->close(&net->pairs[i].wire);
    free(net->pairs);
    free(net);
}

int pk_net_start(struct pk_net *net, struct pk_queue *queues, uint64_t features,
                 struct pk_interrupt *irq)
{
    uint32_t pairs = features & 1ull << VIRTIO_NET_F_MQ ? net->config.pairs : 1;

    net->mergeable = (features & 1ull << VIRTIO_NET_F_MRG_RXBUF) != 0;
    for (net->running = 0; net->running < pairs; net->running++) {
        struct pair *p = &net->pairs[net->running];
        p->io = (struct pk_iothread){
            .queues = queues + DIRECTIONS * net->running,
            .num = DIRECTIONS,
            .first = DIRECTIONS * net->running,
            .irq = irq,
            .device = p,
            .begin = begin_thread,
            .serve = serve,
            .ready = ready,
            .end = end_thread,
        };
        int result = pk_iothread_start(&p->io, "virtio-net");
        if (result < 0) {
            pk_net_stop(net);
            return result;
        }
    }
    return 0;
}

void pk_net_stop(struct pk_net *net)
{
    while (net->running > 0)
        pk_iothread_stop(&net->pairs[--net->running].io);
}

int pk_net_set_pairs(struct pk_net *net, uint32_t pairs)
{
    int failed = 0;

    for (uint32_t i = 0; i < net->config.pairs && net->config.pairs > 1; i++) {
        struct pair *p = &net->pairs[i];
        uint32_t active = i < pairs;
        if (__atomic_exchange_n(&p->active, active, __ATOMIC_SEQ_CST) == active)
            continue;
        int result = pk_tap_set_attached(net->config.fds[i], (int)active);
        failed = result < 0 ? result : failed;
        pk_wire_set_link(&p->wire, 1);
        if (i < net->running) { /* its thread learns of it by a kick */
            uint64_t one = 1;
            ssize_t written = write(p->io.queues[RX].kick_fd, &one, sizeof(one));
            (void)written;
        }
    }
    return failed;
}

int pk_net_set_offloads(struct pk_net *net, uint64_t features)
{
    uint32_t checksums = (features & 1ull << VIRTIO_NET_F_GUEST_CSUM) != 0;

    __atomic_store_n(&net->guest_checksums, checksums, __ATOMIC_RELAXED);
    return net->config.kind == PK_NET_TAP ? pk_tap_set_offloads(net->config.fds[0], features) : 0;
}

int pk_net_forget_connections(struct pk_net *net)
{
    struct pk_wire *wire = &net->pairs[0].wire;

    if (net->config.kind != PK_NET_STREAM)
        return -EINVAL;
    if (wire->orphans == NULL)
        return pk_orphans_create(&wire->orphans);
    pk_orphans_forget(wire->orphans);
    return 0;
}

int pk_net_link(const struct pk_net *net)
{
    return (int)pk_wire_link(&net->pairs[0].wire);
}

uint64_t pk_net_dropped(const struct pk_net *net)
{
    uint64_t dropped = 0;

    for (uint32_t i = 0; i < net->config.pairs; i++)
        dropped += __atomic_load_n(&net->pairs[i].wire.dropped, __ATOMIC_RELAXED);
    return dropped;
}

/* The data plane of a socket device. Source: virtio 1.2 §5.10 Socket Device.
 *
 *   guest: AF_VSOCK ── tx ring ─> take_packets() ──> the host's unix socket, or a buffer of ours
 *                   <─ rx ring ── give_packets() <── what is due: a list of connections
 *
 * Nothing grows. Towards the guest we take no more from a socket than the guest has room for
 * (credit) and than fits the buffers in its rx ring; then the host's program waits. Towards the
 * host the guest has credit for PK_VSOCK_BUFFER bytes; then it waits. Answers to packets of no
 * connection are kept in a short queue: while that is full, no packet is taken (§5.10.6.1 Virtqueue
 * Flow Control).
 *
 * The host's sockets are in vsock_host.c, the table of connections in vsock_table.c.
 */
#include "vsock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST_CID 2u /* §5.10.4 Device configuration layout */
#define HEADER   ((uint32_t)sizeof(struct virtio_vsock_hdr))
#define BATCH    256u /* packets, before the other direction has its turn */

enum { RX, TX, EVENT };

/* Answer a packet that belongs to no connection. There is room: take_packets() saw to that. */
static void refuse(struct pk_vsock *v, const struct virtio_vsock_hdr *packet)
{
    if (packet->op == VIRTIO_VSOCK_OP_RST)
        return;
    v->strays[v->stray_num++] = (struct virtio_vsock_hdr){
        .src_cid = packet->dst_cid,
        .dst_cid = packet->src_cid,
        .src_port = packet->dst_port,
        .dst_port = packet->src_port,
        .type = packet->type,
        .op = VIRTIO_VSOCK_OP_RST,
    };
}

/* ── packets of the guest's ─────────────────────────────────────────────────────────────────── */

/* Copy up to `len` bytes from the front of the chain's buffers, and drop them there. */
static void take_front(struct iovec **iov, uint32_t *num, void *to, size_t len)
{
    uint8_t *at = to;
    while (len > 0 && *num > 0) {
        size_t piece = (*iov)->iov_len < len ? (*iov)->iov_len : len;
        memcpy(at, (*iov)->iov_base, piece);
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + piece;
        (*iov)->iov_len -= piece;
        at += piece;
        len -= piece;
        if ((*iov)->iov_len == 0) {
            (*iov)++;
            (*num)--;
        }
    }
}

/* Let `iov` end after `len` bytes; returns how many of its buffers that are. */
static uint32_t limit(struct iovec *iov, uint32_t num, size_t len)
{
    uint32_t i = 0;
    for (; i < num && len > 0; i++) {
        if (iov[i].iov_len > len)
            iov[i].iov_len = len;
        len -= iov[i].iov_len;
    }
    return i;
}

/* Bytes that the guest has room for. A guest that says nonsense has none. */
static uint32_t credit(const struct pk_vsock_connection *c)
{
    uint32_t waiting = c->sent - c->peer_fwd;
    return waiting < c->peer_alloc ? c->peer_alloc - waiting : 0;
}

/* What the header says of the guest's buffer (§5.10.6.3). */
static void note_credit(struct pk_vsock *v, struct pk_vsock_connection *c,
                        const struct virtio_vsock_hdr *packet)
{
    c->peer_alloc = packet->buf_alloc;
    c->peer_fwd = packet->fwd_cnt;
    if (c->blocked && credit(c) > 0) {
        c->blocked = 0;
        pk_vsock_owe(v, c, DUE_DATA);
    }
}

static void accept_response(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    char text[24];
    int len = snprintf(text, sizeof(text), "OK %u\n", c->host_port);

    if (c->state != PK_VSOCK_REQUESTED ||
        send(c->fd, text, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) != len) {
        pk_vsock_reset(v, c);
        return;
    }
    c->state = PK_VSOCK_OPEN;
    pk_vsock_arm(v, c);
}

/* Data for the host: to its socket, as far as there is room, and the rest into the buffer. */
static void forward(struct pk_vsock *v, struct pk_vsock_connection *c, struct iovec *iov,
                    uint32_t num, uint32_t len)
{
    ssize_t sent = 0;

    /* More than there was credit for, or after it said that no more would come. */
    if (c->state != PK_VSOCK_OPEN || (c->peer_shut & SHUT_SEND) ||
        len > PK_VSOCK_BUFFER - c->buffered) {
        pk_vsock_reset(v, c);
        return;
    }
    num = limit(iov, num, len);
    if (c->buffered == 0 && !(c->host_shut & SHUT_RCV)) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = num};
        sent = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            pk_vsock_lose_host(v, c);
        if (sent < 0)
            sent = 0;
    }
    if (c->host_shut & SHUT_RCV)
        sent = (ssize_t)len;
    pk_vsock_forwarded(v, c, (uint32_t)sent);
    if ((uint32_t)sent == len)
        return;
    while (num > 0 && (size_t)sent >= iov->iov_len) {
        sent -= (ssize_t)iov->iov_len;
        iov++;
        num--;
    }
    iov->iov_base = (uint8_t *)iov->iov_base + sent;
    iov->iov_len -= (size_t)sent;
    if (pk_vsock_keep(c, iov, num) < 0)
        pk_vsock_reset(v, c);
    else
        pk_vsock_arm(v, c);
}

static void shut_down(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t flags)
{
    if (c->state != PK_VSOCK_OPEN) {
        pk_vsock_reset(v, c);
        return;
    }
    c->peer_shut |= flags & SHUT_BOTH; /* §5.10.6.5: permanent once sent */
    if (c->peer_shut & SHUT_RCV) {
        c->due &= ~(uint32_t)DUE_DATA;
        c->blocked = 0;
        shutdown(c->fd, SHUT_RD);
    }
    pk_vsock_settle(v, c);
}

/* The guest forgets the connection. What it had sent before a clean end still reaches the host. */
static void forget(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    if (c->state != PK_VSOCK_OPEN || c->buffered == 0 || !(c->peer_shut & SHUT_SEND)) {
        pk_vsock_end(v, c);
        return;
    }
    pk_vsock_unhash(&v->table, c);
    pk_vsock_delist(&v->table, c);
    c->due = 0;
    c->state = PK_VSOCK_LINGERING;
}

static void dispatch(struct pk_vsock *v, struct pk_vsock_connection *c,
                     const struct virtio_vsock_hdr *packet, struct iovec *iov, uint32_t num)
{
    note_credit(v, c, packet);
    switch (packet->op) {
    case VIRTIO_VSOCK_OP_RESPONSE:
        accept_response(v, c);
        break;
    case VIRTIO_VSOCK_OP_RST:
        forget(v, c);
        break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        shut_down(v, c, packet->flags);
        break;
    case VIRTIO_VSOCK_OP_RW:
        forward(v, c, iov, num, packet->len);
        break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        pk_vsock_owe(v, c, DUE_CREDIT_UPDATE);
        break;
    default: /* a second REQUEST, or nothing that we know */
        pk_vsock_reset(v, c);
        break;
    }
}

static int take_packet(struct pk_vsock *v, struct pk_chain *chain)
{
    struct virtio_vsock_hdr packet;
    struct iovec *iov = chain->iov;
    uint32_t num = chain->out_num;

    if (chain->out_len < HEADER)
        return -EINVAL;
    take_front(&iov, &num, &packet, HEADER);
    if (packet.len > chain->out_len - HEADER)
        return -EINVAL;
    if (packet.src_cid != v->config.cid)
        return 0; /* nobody to answer */
    if (packet.dst_cid != HOST_CID || packet.type != VIRTIO_VSOCK_TYPE_STREAM) {
        refuse(v, &packet); /* §5.10.6.4 Receive and Transmit: an unknown type is answered so */
        return 0;
    }
    struct pk_vsock_connection *c = pk_vsock_find(&v->table, packet.dst_port, packet.src_port);
    if (c != NULL && c->state == PK_VSOCK_RESET) {
        if (packet.op == VIRTIO_VSOCK_OP_RST)
            pk_vsock_end(v, c); /* it knows */
    } else if (c != NULL) {
        dispatch(v, c, &packet, iov, num);
    } else if (packet.op != VIRTIO_VSOCK_OP_REQUEST || pk_vsock_connect(v, &packet) < 0) {
        refuse(v, &packet);
    }
    return 0;
}

static int fail(struct pk_vsock *v, struct pk_virtq *q)
{
    if (!q->fault)
        __atomic_store_n(&q->fault, PK_VIRTQ_BAD_REQUEST, __ATOMIC_RELAXED);
    pk_iothread_report_fault(&v->io);
    return 0;
}

/* Take the packets that the guest has made available. Returns whether more are there. */
static int take_packets(struct pk_vsock *v)
{
    struct pk_virtq *q = &v->io.queues[TX].virtq;
    int more = 1;

    if (q->fault)
        return 0;
    v->stalled = 0;
    pk_virtq_refuse_kicks(q);
    for (uint32_t i = 0; i < BATCH && more; i++) {
        if (v->stray_num == PK_VSOCK_STRAYS) {
            v->stalled = 1;
            break;
        }
        int result = pk_virtq_pop(q, &v->chain);
        if (result > 0)
            result = take_packet(v, &v->chain) < 0 ? -EINVAL : 1;
        if (result > 0)
            pk_virtq_push(q, v->chain.head, 0);
        else if (result == 0)
            more = pk_virtq_ask_kicks(q);
        else
            return fail(v, q);
    }
    pk_iothread_notify(&v->io, TX);
    return more && !v->stalled;
}

/* ── packets for the guest ──────────────────────────────────────────────────────────────────── */

/* A buffer of the guest's for a packet, in v->chain. Returns 0 when there is none. */
static int take_buffer(struct pk_vsock *v)
{
    struct pk_virtq *q = &v->io.queues[RX].virtq;
    int result;

    if (q->fault)
        return 0;
    while ((result = pk_virtq_pop(q, &v->chain)) == 0)
        if (!pk_virtq_ask_kicks(q) || pk_iothread_stopping(&v->io))
            return 0;
    if (result < 0 || v->chain.out_num > 0 || v->chain.in_len <= HEADER)
        return fail(v, q);
    pk_virtq_refuse_kicks(q);
    return 1;
}

static void put_packet(struct pk_vsock *v, const struct virtio_vsock_hdr *packet)
{
    const uint8_t *from = (const uint8_t *)packet;
    size_t left = HEADER;

    for (uint32_t i = 0; left > 0; i++) {
        size_t piece = v->chain.iov[i].iov_len < left ? v->chain.iov[i].iov_len : left;
        memcpy(v->chain.iov[i].iov_base, from, piece);
        from += piece;
        left -= piece;
    }
    pk_virtq_push(&v->io.queues[RX].virtq, v->chain.head, HEADER + packet->len);
}

/* Read from the host's socket into the guest's buffer, behind the header. Returns the bytes read;
 * 0 when there is nothing to read now or ever, or no room. */
static uint32_t read_host(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    struct iovec copy[PK_VIRTQ_SIZE_MAX], *iov = copy;
    uint32_t num = v->chain.in_num, room = credit(c);
    uint8_t header[HEADER];

    c->due &= ~(uint32_t)DUE_DATA;
    if (room == 0) {
        c->blocked = 1;
        pk_vsock_owe(v, c, DUE_CREDIT_REQUEST);
        return 0;
    }
    if (v->chain.in_len - HEADER < room)
        room = (uint32_t)v->chain.in_len - HEADER;
    memcpy(copy, v->chain.iov, num * sizeof(*copy));
    take_front(&iov, &num, header, HEADER);
    ssize_t len = readv(c->fd, iov, (int)limit(iov, num, room));
    if (len < 0 && (errno == EAGAIN || errno == EINTR)) {
        pk_vsock_arm(v, c);
        return 0;
    }
    if (len <= 0) {
        pk_vsock_host_shuts(v, c, pk_vsock_is_closed(c) ? SHUT_BOTH : (uint32_t)SHUT_SEND);
        pk_vsock_arm(v, c);
        return 0;
    }
    c->sent += (uint32_t)len;
    if ((uint32_t)len == room)
        c->due |= DUE_DATA; /* and probably more */
    else
        pk_vsock_arm(v, c);
    return (uint32_t)len;
}

/* The packet that is due first, without data; 0: none. */
static uint16_t next_op(struct pk_vsock_connection *c)
{
    static const struct {
        uint32_t due;
        uint16_t op;
    } ORDER[] = {
        {DUE_RST, VIRTIO_VSOCK_OP_RST},
        {DUE_REQUEST, VIRTIO_VSOCK_OP_REQUEST},
        {DUE_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE},
        {DUE_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN},
        {DUE_CREDIT_REQUEST, VIRTIO_VSOCK_OP_CREDIT_REQUEST},
        {DUE_CREDIT_UPDATE, VIRTIO_VSOCK_OP_CREDIT_UPDATE},
    };
    for (size_t i = 0; i < sizeof(ORDER) / sizeof(ORDER[0]); i++)
        if (c->due & ORDER[i].due) {
            c->due &= ~ORDER[i].due;
            return ORDER[i].op;
        }
    return 0;
}

/* Give one packet of the connection that is first; while more is due it goes to the list's end. */
static void give_packet(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    uint32_t len = 0, due = c->due;
    uint16_t op = next_op(c);

    if (op == 0 && (due & DUE_DATA)) {
        len = read_host(v, c);
        op = len > 0 ? VIRTIO_VSOCK_OP_RW : next_op(c);
    }
    if (op != 0) {
        struct virtio_vsock_hdr packet = {
            .src_cid = HOST_CID,
            .dst_cid = v->config.cid,
            .src_port = c->host_port,
            .dst_port = c->guest_port,
            .len = len,
            .type = VIRTIO_VSOCK_TYPE_STREAM,
            .op = op,
            .flags = op == VIRTIO_VSOCK_OP_SHUTDOWN ? c->host_shut : 0,
            .buf_alloc = PK_VSOCK_BUFFER,
            .fwd_cnt = c->fwd,
        };
        c->told_fwd = c->fwd;
        c->due &= ~(uint32_t)DUE_CREDIT_UPDATE; /* every packet tells it */
        put_packet(v, &packet);
    } else {
        pk_virtq_unpop(&v->io.queues[RX].virtq);
    }
    if (op == VIRTIO_VSOCK_OP_RST)
        pk_vsock_end(v, c);
    else if (c->due != 0)
        pk_vsock_enlist(&v->table, c);
    else
        pk_vsock_delist(&v->table, c);
}

/* Give what is due, each connection a packet in its turn. Returns whether that is not all. */
static int give_packets(struct pk_vsock *v)
{
    uint32_t given = 0;

    while (given < BATCH && (v->stray_num > 0 || v->table.first != NULL)) {
        if (!take_buffer(v))
            break;
        given++;
        if (v->stray_num > 0) {
            put_packet(v, &v->strays[0]);
            v->stray_num--;
            memmove(v->strays, v->strays + 1, v->stray_num * sizeof(v->strays[0]));
        } else {
            give_packet(v, v->table.first);
        }
    }
    if (given > 0 && !v->io.queues[RX].virtq.fault)
        pk_iothread_notify(&v->io, RX);
    return given == BATCH;
}

/* §5.10.6.7 Device Events: the guest's connections are gone. */
static void give_event(struct pk_vsock *v)
{
    struct pk_virtq *q = &v->io.queues[EVENT].virtq;
    struct virtio_vsock_event event = {.id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET};

    while (!q->fault && __atomic_load_n(&v->event_due, __ATOMIC_RELAXED)) {
        int result = pk_virtq_pop(q, &v->chain);
        if (result == 0 && !pk_virtq_ask_kicks(q))
            return;
        if (result == 0)
            continue;
        if (result < 0 || v->chain.out_num > 0 || v->chain.iov[0].iov_len < sizeof(event)) {
            fail(v, q);
            return;
        }
        memcpy(v->chain.iov[0].iov_base, &event, sizeof(event));
        pk_virtq_push(q, v->chain.head, sizeof(event));
        __atomic_store_n(&v->event_due, 0, __ATOMIC_RELAXED);
        pk_iothread_notify(&v->io, EVENT);
    }
}

/* ── the thread ─────────────────────────────────────────────────────────────────────────────── */

static void exchange(struct pk_vsock *v)
{
    int more;
    do {
        more = take_packets(v);
        more |= give_packets(v);
        more |= v->stalled && v->stray_num < PK_VSOCK_STRAYS;
        if (more)
            pk_vsock_look(v);
    } while (more && !pk_iothread_stopping(&v->io));
}

static void begin(void *device)
{
    struct pk_vsock *v = device;
    v->io.ready_fd = v->epoll_fd;
}

static void serve(void *device, uint32_t queue)
{
    if (queue == EVENT)
        give_event(device);
    else
        exchange(device);
}

static void ready(void *device)
{
    pk_vsock_look(device);
    exchange(device);
}

/* What the guest sent before it went still reaches the host: the ring's packets, once around. */
static void end(void *device)
{
    take_packets(device);
}

/* ── for Python ─────────────────────────────────────────────────────────────────────────────── */

int pk_vsock_create(const struct pk_vsock_config *config, struct pk_vsock **ret)
{
    struct pk_vsock *v = calloc(1, sizeof(*v));
    if (v == NULL)
        return -ENOMEM;
    v->config = *config;
    int result = pk_vsock_table_create(&v->table);
    if (result < 0) {
        free(v);
        return result;
    }
    result = pk_vsock_open_host(v);
    if (result < 0)
        pk_vsock_destroy(v);
    else
        *ret = v;
    return result;
}

void pk_vsock_destroy(struct pk_vsock *v)
{
    pk_vsock_table_destroy(&v->table);
    pk_vsock_close_host(v);
    free(v);
}

int pk_vsock_start(struct pk_vsock *v, struct pk_queue *queues, uint32_t num,
                   struct pk_interrupt *irq)
{
    v->io = (struct pk_iothread){
        .queues = queues,
        .num = num,
        .irq = irq,
        .device = v,
        .begin = begin,
        .serve = serve,
        .ready = ready,
        .end = end,
        .ready_events = POLLIN,
    };
    return pk_iothread_start(&v->io, "virtio-vsock");
}

void pk_vsock_stop(struct pk_vsock *v)
{
    pk_iothread_stop(&v->io);
}

void pk_vsock_forget(struct pk_vsock *v)
{
    for (uint32_t i = 0; i < PK_VSOCK_CONNECTIONS; i++)
        if (v->table.connections[i].state != PK_VSOCK_FREE)
            pk_vsock_end(v, &v->table.connections[i]);
    v->stray_num = 0;
    __atomic_store_n(&v->event_due, 0, __ATOMIC_RELAXED);
}

void pk_vsock_set_cid(struct pk_vsock *v, uint64_t cid)
{
    v->config.cid = cid;
}

void pk_vsock_announce_reset(struct pk_vsock *v)
{
    __atomic_store_n(&v->event_due, 1, __ATOMIC_RELAXED);
}

uint32_t pk_vsock_count(const struct pk_vsock *v)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < PK_VSOCK_CONNECTIONS; i++)
        count += v->table.connections[i].state != PK_VSOCK_FREE;
    return count;
}

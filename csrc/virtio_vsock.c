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
 * What the guest's packets ask for is in vsock_packet.c, the host's sockets in vsock_host.c, the
 * table of connections in vsock_table.c.
 */
#include "iov.h"
#include "vsock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 256u /* packets, before the other direction has its turn */

enum { RX, TX, EVENT };

/* ── packets of the guest's ─────────────────────────────────────────────────────────────────── */

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
            result = pk_vsock_take_packet(v, &v->chain) < 0 ? -EINVAL : 1;
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
    if (result < 0 || v->chain.out_num > 0 || v->chain.in_len <= PK_VSOCK_HEADER)
        return fail(v, q);
    pk_virtq_refuse_kicks(q);
    return 1;
}

static void put_packet(struct pk_vsock *v, const struct virtio_vsock_hdr *packet)
{
    const uint8_t *from = (const uint8_t *)packet;
    size_t left = PK_VSOCK_HEADER;

    for (uint32_t i = 0; left > 0; i++) {
        size_t piece = v->chain.iov[i].iov_len < left ? v->chain.iov[i].iov_len : left;
        memcpy(v->chain.iov[i].iov_base, from, piece);
        from += piece;
        left -= piece;
    }
    pk_virtq_push(&v->io.queues[RX].virtq, v->chain.head, PK_VSOCK_HEADER + packet->len);
}

/* Read from the host's socket into the guest's buffer, behind the header. Returns the bytes read;
 * 0 when there is nothing to read now or ever, or no room. */
static uint32_t read_host(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    struct iovec copy[PK_VIRTQ_SIZE_MAX], *iov = copy;
    uint32_t num = v->chain.in_num, room = pk_vsock_credit(c);
    uint8_t header[PK_VSOCK_HEADER];

    c->due &= ~(uint32_t)DUE_DATA;
    if (room == 0) {
        c->blocked = 1;
        pk_vsock_owe(v, c, DUE_CREDIT_REQUEST);
        return 0;
    }
    if (v->chain.in_len - PK_VSOCK_HEADER < room)
        room = (uint32_t)v->chain.in_len - PK_VSOCK_HEADER;
    memcpy(copy, v->chain.iov, num * sizeof(*copy));
    pk_iov_take(&iov, &num, header, PK_VSOCK_HEADER);
    ssize_t len = readv(c->fd, iov, (int)pk_iov_limit(iov, num, room));
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
            .src_cid = PK_VSOCK_HOST_CID,
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

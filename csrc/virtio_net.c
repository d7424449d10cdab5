/* The data plane of a network card. Source: virtio 1.2 §5.1 Network Device.
 *
 *   to the driver     wire ─> pk_net_receive() ─> buffers the driver gave ─> interrupt
 *   from the driver   kick ─> pk_net_transmit() ─> wire
 *
 * A thread for each pair of queues, with a wire of its own (virtio_net.h). Nothing is allocated for
 * a frame. Where no buffer is free the wire is not read, and where the wire is full no chain is
 * taken: the side that is too fast waits. A driver is interrupted at most once for a batch.
 */
#include "net_pair.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ── the thread ─────────────────────────────────────────────────────────────────────────────── */

/* Say what to poll the wire for, and tell the driver when its link has changed. */
static void settle(struct pk_net_pair *p)
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
    struct pk_net_pair *p = device;

    if (direction == RX)
        pk_net_receive(p);
    else if (!p->blocked || !pk_wire_link(&p->wire)) {
        pk_net_transmit(p);
        if (p->wire.orphans && pk_orphans_waiting(p->wire.orphans) && !p->starved)
            pk_net_receive(p);
    }
    settle(p);
}

static void ready(void *device)
{
    struct pk_net_pair *p = device;

    if (!pk_wire_link(&p->wire) && p->net->config.listening)
        p->wire.ops->accept(&p->wire);
    if (!p->starved)
        pk_net_receive(p);
    if (p->blocked || p->waits_ns[TX])
        pk_net_transmit(p);
    settle(p);
}

static void begin_thread(void *device)
{
    struct pk_net_pair *p = device;

    p->starved = p->blocked = p->has_packet = 0;
    p->waits_ns[RX] = p->waits_ns[TX] = 0;
    settle(p);
}

/* Leave the queues as if what we hold had never been taken. */
static void end_thread(void *device)
{
    struct pk_net_pair *p = device;
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
        struct pk_net_pair *p = &net->pairs[i];
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
        struct pk_net_pair *p = &net->pairs[net->running];
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
        struct pk_net_pair *p = &net->pairs[i];
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

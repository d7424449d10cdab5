/* A pair of a network card's queues, of one thread: what virtio_net.c (the thread itself),
 * net_receive.c and net_transmit.c share. */
#ifndef PK_NET_PAIR_H
#define PK_NET_PAIR_H

#include "iothread.h"
#include "ratelimit.h"
#include "virtio_net.h"

enum { RX, TX, DIRECTIONS };

#define FRAMES_MAX 256u /* of one direction, before the other has its turn */

/* Receive buffers that the driver gave and we hold, in order. */
struct pk_net_window {
    struct {
        uint32_t head, iov_num, len;
    } chains[PK_VIRTQ_SIZE_MAX];
    uint32_t num;
    struct iovec iov[NET_IOVS];
    uint32_t iov_num;
    uint64_t room; /* bytes of them all */
};

struct pk_net_pair {
    struct pk_net *net;
    struct pk_iothread io;
    struct pk_wire wire;
    uint32_t active;         /* atomic: it receives */
    uint32_t told_link;      /* as the driver knows it */
    int starved;             /* the driver's next receive buffer comes with a kick */
    int blocked;             /* the wire is full */
    int has_packet;          /* `packet` waits for buffers */
    struct pk_packet packet; /* received, not delivered */
    struct pk_net_window window;
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
    struct pk_net_pair *pairs;
};

static inline struct pk_virtq *virtq(struct pk_net_pair *p, uint32_t direction)
{
    return &p->io.queues[direction].virtq;
}

/* Whether a frame may pass. When not, `ready` is called once one may. */
static inline int may_pass(struct pk_net_pair *p, uint32_t direction)
{
    p->waits_ns[direction] = pk_limiter_opens_at(&p->net->limiters[direction]);
    return p->waits_ns[direction] == 0;
}

/* Fill the driver's buffers from the wire, as long as there are any of both. */
void pk_net_receive(struct pk_net_pair *p);
/* Send what the driver has made available, as long as the wire takes it. */
void pk_net_transmit(struct pk_net_pair *p);

#endif

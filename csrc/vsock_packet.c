/* What the guest's packets ask for: connections made, data forwarded, ends, credit. Source:
 * virtio 1.2 §5.10.6 Device Operation.
 *
 * Reached from virtio_vsock.c with each packet that was sent. What the guest is to get for it is
 * noted on the connection (DUE_*), or among the answers to packets of none.
 */
#include "iov.h"
#include "vsock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Answer a packet that belongs to no connection. There is room: the caller saw to that. */
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

/* What the header says of the guest's buffer (§5.10.6.3). */
static void note_credit(struct pk_vsock *v, struct pk_vsock_connection *c,
                        const struct virtio_vsock_hdr *packet)
{
    c->peer_alloc = packet->buf_alloc;
    c->peer_fwd = packet->fwd_cnt;
    if (c->blocked && pk_vsock_credit(c) > 0) {
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
    num = pk_iov_limit(iov, num, len);
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
    pk_iov_advance(&iov, &num, (size_t)sent);
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

int pk_vsock_take_packet(struct pk_vsock *v, struct pk_chain *chain)
{
    struct virtio_vsock_hdr packet;
    struct iovec *iov = chain->iov;
    uint32_t num = chain->out_num;

    if (chain->out_len < PK_VSOCK_HEADER)
        return -EINVAL;
    pk_iov_take(&iov, &num, &packet, PK_VSOCK_HEADER);
    if (packet.len > chain->out_len - PK_VSOCK_HEADER)
        return -EINVAL;
    if (packet.src_cid != v->config.cid)
        return 0; /* nobody to answer */
    if (packet.dst_cid != PK_VSOCK_HOST_CID || packet.type != VIRTIO_VSOCK_TYPE_STREAM) {
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

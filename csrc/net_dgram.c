/* A unix datagram socket as the wire of a network card: a frame is a datagram, as QEMU has it.
 *
 * It is connected to the other end's when that is there: only then does poll() tell whether it has
 * room. Frames for nobody are dropped, as by a cable that hangs loose.
 */
#include "virtio_net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define MESSAGES 32u /* a system call */
#define SLOT     (NET_HEADER + NET_FRAME_MAX)

static int open_dgram(struct pk_wire *wire, uint32_t pair)
{
    wire->fd = wire->config->fds[pair];
    wire->connected = wire->config->peer[0] == 0;
    /* 2 MiB, of which short frames touch little. */
    wire->buffer = calloc(MESSAGES, SLOT);
    wire->messages = calloc(MESSAGES, sizeof(struct mmsghdr) + sizeof(struct iovec));
    if (wire->buffer == NULL || wire->messages == NULL)
        return -ENOMEM;
    struct iovec *iov = (struct iovec *)(wire->messages + MESSAGES);
    for (uint32_t i = 0; i < MESSAGES; i++) {
        iov[i].iov_base = wire->buffer + (size_t)i * SLOT + NET_HEADER;
        iov[i].iov_len = NET_FRAME_MAX;
        wire->messages[i].msg_hdr.msg_iov = &iov[i];
        wire->messages[i].msg_hdr.msg_iovlen = 1;
    }
    return 0;
}

static void close_dgram(struct pk_wire *wire)
{
    free(wire->buffer);
    free(wire->messages);
}

static int receive(struct pk_wire *wire, struct iovec *iov, uint32_t num, struct pk_packet *ret)
{
    (void)iov, (void)num;
    for (;;) {
        if (wire->message == wire->message_num) {
            if (wire->emptied) {
                wire->emptied = 0;
                return 0;
            }
            int count = recvmmsg(wire->fd, wire->messages, MESSAGES, MSG_DONTWAIT, NULL);
            if (count < 0 && errno == ECONNRESET) { /* the other end has closed its socket */
                wire->connected = 0;
                continue;
            }
            if (count <= 0)
                return 0;
            wire->message = 0;
            wire->message_num = (uint32_t)count;
            wire->emptied = wire->message_num < MESSAGES;
        }
        const struct mmsghdr *message = &wire->messages[wire->message];
        uint8_t *slot = wire->buffer + (size_t)wire->message * SLOT;
        wire->message++;
        if (message->msg_len < NET_FRAME_MIN || message->msg_hdr.msg_flags & MSG_TRUNC) {
            pk_wire_drop(wire);
            continue;
        }
        memset(slot, 0, NET_HEADER);
        *ret = (struct pk_packet){.len = NET_HEADER + message->msg_len, .rest = slot};
        return 1;
    }
}

static int connect_to_peer(struct pk_wire *wire)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    _Static_assert(sizeof(address.sun_path) == sizeof(wire->config->peer), "a path's size");
    memcpy(address.sun_path, wire->config->peer, sizeof(address.sun_path));
    wire->connected = connect(wire->fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    return wire->connected;
}

/* The other end's socket is no more; one that takes its place may send to us before we do. */
static void disconnect(struct pk_wire *wire)
{
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    connect(wire->fd, &nobody, sizeof(nobody));
    wire->connected = 0;
}

static void send_frames(struct pk_wire *wire, struct pk_outgoing *out)
{
    while (out->next < out->num) {
        const struct pk_frame *frame = &out->frames[out->next];
        struct msghdr message = {.msg_iov = out->iov + frame->first, .msg_iovlen = frame->num};
        ssize_t result = -1;

        if (frame->num == 0)
            result = 0;
        else if (wire->connected || connect_to_peer(wire))
            result = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (result < 0 && wire->connected) {
            if (errno == EAGAIN)
                return;
            if (errno == EINTR)
                continue;
            if (errno != EMSGSIZE && errno != ENOBUFS)
                disconnect(wire);
        }
        if (result < 0)
            pk_wire_drop(wire);
        out->next++;
    }
}

const struct pk_wire_ops pk_wire_dgram = {
    .open = open_dgram,
    .close = close_dgram,
    .receive = receive,
    .send = send_frames,
};

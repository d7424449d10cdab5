/* A TAP as the wire of a network card: frames go in and out with their virtio_net_hdr_v1.
 *
 *   readv()  straight into the driver's buffers; what they have no room for, into `buffer`
 *   writev() straight from them, behind the copied header
 *
 * The kernel checks the header and does for each frame what the other end cannot: checksums, and
 * cutting it into segments. Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/
 * if_tun.h.
 */
#include "virtio_net.h"

#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef TUN_F_USO4 /* since Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_F_GUEST_USO4
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#endif

#define BUFFER_SIZE (NET_HEADER + NET_FRAME_MAX)

int pk_tap_set_attached(int fd, int on)
{
    struct ifreq request = {.ifr_flags = (short)(on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE)};
    return ioctl(fd, TUNSETQUEUE, &request) < 0 ? -errno : 0;
}

int pk_tap_set_offloads(int fd, uint64_t features)
{
    static const struct {
        unsigned bit;
        unsigned long flag;
    } OFFLOADS[] = {
        {VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4},   {VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6},
        {VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN}, {VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO},
        {VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4},   {VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6},
    };
    unsigned long flags = 0;

    if (features & 1ull << VIRTIO_NET_F_GUEST_CSUM) { /* the others need it, here as in §5.1.3.1 */
        flags = TUN_F_CSUM;
        for (size_t i = 0; i < sizeof(OFFLOADS) / sizeof(OFFLOADS[0]); i++)
            if (features & 1ull << OFFLOADS[i].bit)
                flags |= OFFLOADS[i].flag;
    }
    return ioctl(fd, TUNSETOFFLOAD, flags) < 0 ? -errno : 0;
}

static int open_tap(struct pk_wire *wire, uint32_t pair)
{
    wire->fd = wire->config->fds[pair];
    wire->buffer = malloc(BUFFER_SIZE);
    return wire->buffer == NULL ? -ENOMEM : 0;
}

static void close_tap(struct pk_wire *wire)
{
    free(wire->buffer);
}

static int receive(struct pk_wire *wire, struct iovec *iov, uint32_t num, struct pk_packet *ret)
{
    uint64_t room = 0;
    ssize_t len;

    for (uint32_t i = 0; i < num; i++)
        room += iov[i].iov_len;
    iov[num] = (struct iovec){.iov_base = wire->buffer, .iov_len = BUFFER_SIZE};
    do
        len = readv(wire->fd, iov, (int)num + 1);
    while (len < 0 && errno == EINTR);
    if (len < 0 && errno != EAGAIN)
        pk_wire_set_link(wire, 0); /* EBADFD: there is no such TAP any more */
    if (len < (ssize_t)(NET_HEADER + NET_FRAME_MIN))
        return 0;
    ret->len = (uint32_t)len;
    ret->placed = (uint64_t)len < room ? (uint32_t)len : (uint32_t)room;
    ret->rest = wire->buffer;
    return 1;
}

static void send_frames(struct pk_wire *wire, struct pk_outgoing *out)
{
    while (out->next < out->num) {
        const struct pk_frame *frame = &out->frames[out->next];
        ssize_t result =
            frame->num ? writev(wire->fd, out->iov + frame->first, (int)frame->num) : 0;
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0 && errno == EAGAIN)
            return;
        /* EINVAL: no sound header. EIO: the interface is down. Else the kernel lacks something. */
        if (result < 0)
            pk_wire_drop(wire);
        out->next++;
    }
}

const struct pk_wire_ops pk_wire_tap = {
    .has_header = 1,
    .open = open_tap,
    .close = close_tap,
    .receive = receive,
    .send = send_frames,
};

/* Between a network card's queues (virtio_net.c) and where its cable leads (net_tap.c,
 * net_stream.c, net_dgram.c): one `struct pk_wire` a pair of queues, used by that pair's thread. */
#ifndef PK_VIRTIO_NET_H
#define PK_VIRTIO_NET_H

#include "core.h"

#include <linux/virtio_net.h>
#include <sys/socket.h>

#define NET_HEADER    ((uint32_t)sizeof(struct virtio_net_hdr_v1)) /* in front of every frame */
#define NET_FRAME_MIN 14u                                          /* an Ethernet header */
/* An IP packet of 65,535 bytes behind an Ethernet header with a VLAN tag. */
#define NET_FRAME_MAX 65553u
/* Frames to send that are held at once, and the buffers they are in (IOV_MAX). */
#define NET_BATCH 64u
#define NET_IOVS  1024u
_Static_assert(sizeof(struct virtio_net_hdr_v1) == 12, "virtio 1.2 §5.1.6: with num_buffers");

/* Connections that the other end knows nothing of: net_orphans.c. */
struct pk_orphans;

/* A frame on its way from the driver. */
struct pk_frame {
    uint32_t head;                   /* of its chain */
    uint32_t first, num;             /* its buffers, in pk_outgoing.iov; none: it is not sent */
    struct virtio_net_hdr_v1 header; /* copied once */
    uint32_t size;                   /* of the frame, big-endian, for wires that want it */
    uint16_t checksum;               /* stands in the frame where the header says */
};

/* Frames taken from the driver, in order; those before `next` are sent. */
struct pk_outgoing {
    struct pk_frame frames[NET_BATCH];
    uint32_t num, next;
    struct iovec iov[NET_IOVS];
    uint32_t iov_num;
};

/* A frame on its way to the driver, behind its virtio_net_hdr_v1. */
struct pk_packet {
    uint32_t len;        /* of both */
    uint32_t placed;     /* bytes that are in the driver's buffers already; */
    const uint8_t *rest; /* the rest is here, until the next receive() */
};

struct pk_wire {
    const struct pk_wire_ops *ops;
    const struct pk_net_config *config;
    int fd;           /* to poll; -1: none */
    uint32_t link;    /* atomic: the other end is there */
    uint64_t dropped; /* atomic: frames */
    uint8_t *buffer;  /* what was received and is not delivered yet */
    int emptied;      /* the socket gave less than was asked for: poll() before asking again */
    /* PK_NET_STREAM: the bytes in `buffer`; the rest of a frame that a stop cut in two. */
    uint32_t start, end;
    uint8_t *cut;
    uint32_t cut_start, cut_end;
    struct pk_orphans *orphans; /* NULL: the other end knows the driver's connections */
    /* PK_NET_DGRAM */
    struct mmsghdr *messages;
    uint32_t message, message_num;
    int connected;
};

struct pk_wire_ops {
    int has_header; /* frames go with their virtio_net_hdr_v1, as a TAP takes them, */
    int has_size;   /* or with their size in front */
    int (*open)(struct pk_wire *wire, uint32_t pair);
    void (*close)(struct pk_wire *wire);
    /* `fd` is ready, where the other end will connect to. */
    void (*accept)(struct pk_wire *wire);
    /* The next packet: 1, or 0 when there is none for now. Some of it may be placed into the
     * driver's buffers, `num` of them; there is room for one more iovec. */
    int (*receive)(struct pk_wire *wire, struct iovec *iov, uint32_t num, struct pk_packet *ret);
    /* Send frames from out->next on, until the wire takes no more for now. */
    void (*send)(struct pk_wire *wire, struct pk_outgoing *out);
    /* The frames from out->next on will be forgotten. NULL: that is all the same to the wire. */
    void (*forget)(struct pk_wire *wire, struct pk_outgoing *out);
};

extern const struct pk_wire_ops pk_wire_tap, pk_wire_stream, pk_wire_dgram;

int pk_tap_set_attached(int fd, int on);
int pk_tap_set_offloads(int fd, uint64_t features);

int pk_orphans_create(struct pk_orphans **ret);
void pk_orphans_destroy(struct pk_orphans *orphans); /* NULL is fine */
/* All connections up to now are of before. */
void pk_orphans_forget(struct pk_orphans *orphans);
/* Look at a frame from the driver: 1 when a reset answers it, so it is not sent. */
int pk_orphans_answer(struct pk_orphans *orphans, const struct iovec *iov, uint32_t num);
int pk_orphans_waiting(const struct pk_orphans *orphans);
/* As `receive` of a wire: the next answer. */
int pk_orphans_receive(struct pk_orphans *orphans, struct pk_packet *ret);

static inline void pk_wire_drop(struct pk_wire *wire)
{
    __atomic_fetch_add(&wire->dropped, 1, __ATOMIC_RELAXED);
}

static inline void pk_wire_set_link(struct pk_wire *wire, uint32_t up)
{
    __atomic_store_n(&wire->link, up, __ATOMIC_RELAXED);
}

static inline uint32_t pk_wire_link(const struct pk_wire *wire)
{
    return __atomic_load_n(&wire->link, __ATOMIC_RELAXED);
}

/* Copy `len` bytes to `offset` of what `num` buffers hold; they have the room. */
void pk_iov_write(const struct iovec *iov, uint32_t num, uint64_t offset, const void *data,
                  uint64_t len);
/* Append to `to` the buffers of bytes [offset, offset + len) of `iov`, which has them. Returns how
 * many buffers these are. */
uint32_t pk_iov_slice(const struct iovec *iov, uint64_t offset, uint64_t len, struct iovec *to);
/* The Internet checksum (RFC 1071) of the bytes of `num` buffers from `offset` on, as it stands in
 * a packet. */
uint16_t pk_iov_checksum(const struct iovec *iov, uint32_t num, uint64_t offset);

#endif

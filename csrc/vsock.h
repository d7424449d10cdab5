/* What the files of the socket device share: virtio_vsock.c, vsock_packet.c, vsock_host.c,
 * vsock_table.c. */
#ifndef PK_VSOCK_H
#define PK_VSOCK_H

#include "iothread.h"

#include <linux/virtio_vsock.h>

#define PK_VSOCK_HOST_CID    2u /* §5.10.4 Device configuration layout */
#define PK_VSOCK_HEADER      ((uint32_t)sizeof(struct virtio_vsock_hdr))
#define PK_VSOCK_CONNECTIONS 4096u
#define PK_VSOCK_BUFFER      (128u << 10) /* bytes of one connection that the host has no room for */
#define PK_VSOCK_GREETING    32u          /* bytes of the longest "CONNECT port\n" */

#define PK_VSOCK_STRAYS 64u /* answers to packets of no connection that are kept */

enum { /* a connection's `due`: what the guest is to get */
       DUE_RST = 1,
       DUE_REQUEST = 2,
       DUE_RESPONSE = 4,
       DUE_SHUTDOWN = 8,
       DUE_CREDIT_REQUEST = 16,
       DUE_CREDIT_UPDATE = 32,
       DUE_DATA = 64 /* the host's socket may be readable */
};
enum { SHUT_RCV = VIRTIO_VSOCK_SHUTDOWN_RCV, SHUT_SEND = VIRTIO_VSOCK_SHUTDOWN_SEND };
#define SHUT_BOTH ((uint32_t)SHUT_RCV | SHUT_SEND)

enum pk_vsock_state {
    PK_VSOCK_FREE = 0,
    PK_VSOCK_NEW,        /* a host's program has connected and not yet said to which port */
    PK_VSOCK_REQUESTED,  /* the guest has been asked */
    PK_VSOCK_CONNECTING, /* the guest asks; the host's listener has no room for now */
    PK_VSOCK_OPEN,
    PK_VSOCK_LINGERING, /* over for the guest; the host has not taken all bytes yet */
    PK_VSOCK_RESET      /* over; the guest is to be told */
};

struct pk_vsock_connection {
    enum pk_vsock_state state;
    uint32_t host_port, guest_port;
    int fd;         /* the host's socket, or -1 */
    uint32_t armed; /* what epoll waits for, EPOLLONESHOT included; 0: nothing */
    uint32_t tries; /* of PK_VSOCK_CONNECTING */
    uint32_t due;   /* DUE_*, several; with any, it is in the list */
    /* virtio 1.2 §5.10.6.3 Buffer Space Management: the guest's buffer, which we fill, … */
    uint32_t sent, peer_alloc, peer_fwd;
    int blocked; /* the host may have bytes for it, and it has no room */
    /* … and ours: a ring, allocated while there is something in it. */
    uint8_t *buffer;
    uint32_t head, buffered, fwd, told_fwd;
    uint32_t peer_shut, host_shut; /* SHUT_*: the guest has, the host's program has */
    char greeting[PK_VSOCK_GREETING];
    uint32_t greeting_len;
    struct pk_vsock_connection *hash_next;       /* or the next free one */
    struct pk_vsock_connection *previous, *next; /* in the list of those with something due */
};

struct pk_vsock_table {
    struct pk_vsock_connection *connections, *free;
    struct pk_vsock_connection *buckets[PK_VSOCK_CONNECTIONS];
    struct pk_vsock_connection *first, *last; /* with something due, in the order they are served */
    uint32_t next_port;
};

struct pk_vsock {
    struct pk_vsock_config config;
    struct pk_iothread io;
    struct pk_vsock_table table;
    int epoll_fd, timer_fd;
    int listening;         /* for connections; not while the process has too many files */
    uint32_t connecting;   /* connections in that state */
    uint32_t event_due;    /* atomic: Python sets it */
    struct pk_chain chain; /* of the packet that is being taken or given */
    struct virtio_vsock_hdr strays[PK_VSOCK_STRAYS]; /* packets for the guest */
    uint32_t stray_num;
    int stalled; /* packets were left, for lack of room for answers */
};

/* Bytes that the guest has room for. A guest that says nonsense has none. */
static inline uint32_t pk_vsock_credit(const struct pk_vsock_connection *c)
{
    uint32_t waiting = c->sent - c->peer_fwd;
    return waiting < c->peer_alloc ? c->peer_alloc - waiting : 0;
}

/* ── vsock_packet.c ─────────────────────────────────────────────────────────────────────────── */

/* Take a packet that the guest has sent. There is room for an answer among the strays. Returns 0,
 * or -EINVAL for one that is none. */
int pk_vsock_take_packet(struct pk_vsock *v, struct pk_chain *chain);

/* ── vsock_host.c ───────────────────────────────────────────────────────────────────────────── */

int pk_vsock_open_host(struct pk_vsock *v);
void pk_vsock_close_host(struct pk_vsock *v);
/* Do what the sockets that are ready allow. */
void pk_vsock_look(struct pk_vsock *v);
/* Connect to the host's listener for the port that the guest wants. Returns -EMFILE when there are
 * too many connections; how it ends else, the guest is told. */
int pk_vsock_connect(struct pk_vsock *v, const struct virtio_vsock_hdr *packet);
/* The guest is to get packets. */
void pk_vsock_owe(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t due);
/* End a connection: at once, or with a reset that the guest gets. */
void pk_vsock_end(struct pk_vsock *v, struct pk_vsock_connection *c);
void pk_vsock_reset(struct pk_vsock *v, struct pk_vsock_connection *c);
void pk_vsock_arm(struct pk_vsock *v, struct pk_vsock_connection *c);
int pk_vsock_is_closed(const struct pk_vsock_connection *c);
void pk_vsock_host_shuts(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t flags);
void pk_vsock_forwarded(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t len);
void pk_vsock_settle(struct pk_vsock *v, struct pk_vsock_connection *c);
void pk_vsock_lose_host(struct pk_vsock *v, struct pk_vsock_connection *c);

/* ── vsock_table.c ──────────────────────────────────────────────────────────────────────────── */

int pk_vsock_table_create(struct pk_vsock_table *t);
void pk_vsock_table_destroy(struct pk_vsock_table *t);
/* A connection of no ports yet, or NULL when there are too many. It owns `fd`. */
struct pk_vsock_connection *pk_vsock_take(struct pk_vsock_table *t, int fd);
/* Close and forget it. */
void pk_vsock_release(struct pk_vsock_table *t, struct pk_vsock_connection *c);
/* Close its socket and drop what waits for it; the connection stays. */
void pk_vsock_close(struct pk_vsock_connection *c);
/* Let it be found by its ports, or not any more. */
void pk_vsock_hash(struct pk_vsock_table *t, struct pk_vsock_connection *c);
void pk_vsock_unhash(struct pk_vsock_table *t, struct pk_vsock_connection *c);
struct pk_vsock_connection *pk_vsock_find(struct pk_vsock_table *t, uint32_t host_port,
                                          uint32_t guest_port);
/* A port of the host's that no connection to `guest_port` has. */
uint32_t pk_vsock_new_port(struct pk_vsock_table *t, uint32_t guest_port);
/* Put it at the end of the list, wherever it was; or take it off. */
void pk_vsock_enlist(struct pk_vsock_table *t, struct pk_vsock_connection *c);
void pk_vsock_delist(struct pk_vsock_table *t, struct pk_vsock_connection *c);

/* Keep bytes for the host, which fit: returns -ENOMEM, or 0. */
int pk_vsock_keep(struct pk_vsock_connection *c, const struct iovec *iov, uint32_t num);
/* Send what is kept, as far as the host takes it. Returns bytes sent, or -errno when there is
 * nobody any more. */
int64_t pk_vsock_flush(struct pk_vsock_connection *c);

#endif

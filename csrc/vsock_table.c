/* The connections of a socket device: found by their ports, listed when something is due, with the
 * bytes that wait for the host. There are so many at most, and each keeps so many bytes at most.
 */
#include "vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_PORT (1u << 30) /* of the host's side, where Firecracker begins too */

int pk_vsock_table_create(struct pk_vsock_table *t)
{
    *t = (struct pk_vsock_table){.next_port = FIRST_PORT};
    t->connections = calloc(PK_VSOCK_CONNECTIONS, sizeof(*t->connections));
    if (t->connections == NULL)
        return -ENOMEM;
    for (uint32_t i = PK_VSOCK_CONNECTIONS; i-- > 0;) {
        t->connections[i].fd = -1;
        t->connections[i].hash_next = t->free;
        t->free = &t->connections[i];
    }
    return 0;
}

void pk_vsock_table_destroy(struct pk_vsock_table *t)
{
    for (uint32_t i = 0; i < PK_VSOCK_CONNECTIONS; i++)
        pk_vsock_close(&t->connections[i]);
    free(t->connections);
}

struct pk_vsock_connection *pk_vsock_take(struct pk_vsock_table *t, int fd)
{
    struct pk_vsock_connection *c = t->free;
    if (c == NULL)
        return NULL;
    t->free = c->hash_next;
    *c = (struct pk_vsock_connection){.fd = fd};
    return c;
}

void pk_vsock_close(struct pk_vsock_connection *c)
{
    if (c->fd >= 0)
        close(c->fd); /* which takes it out of the epoll set */
    c->fd = -1;
    c->armed = 0;
    free(c->buffer);
    c->buffer = NULL;
    c->buffered = 0;
}

void pk_vsock_release(struct pk_vsock_table *t, struct pk_vsock_connection *c)
{
    pk_vsock_close(c);
    pk_vsock_unhash(t, c);
    pk_vsock_delist(t, c);
    c->state = PK_VSOCK_FREE;
    c->hash_next = t->free;
    t->free = c;
}

/* ── by ports ───────────────────────────────────────────────────────────────────────────────── */

static struct pk_vsock_connection **bucket(struct pk_vsock_table *t, uint32_t host_port,
                                           uint32_t guest_port)
{
    /* Knuth's multiplicative hash: ports are handed out one after the other. */
    uint32_t hash = (host_port ^ guest_port * 31) * 2654435761u;
    return &t->buckets[hash >> 20];
}
_Static_assert(PK_VSOCK_CONNECTIONS == 1u << 12, "a hash of 12 bits");

void pk_vsock_hash(struct pk_vsock_table *t, struct pk_vsock_connection *c)
{
    struct pk_vsock_connection **at = bucket(t, c->host_port, c->guest_port);
    c->hash_next = *at;
    *at = c;
}

void pk_vsock_unhash(struct pk_vsock_table *t, struct pk_vsock_connection *c)
{
    struct pk_vsock_connection **at = bucket(t, c->host_port, c->guest_port);
    while (*at != NULL && *at != c)
        at = &(*at)->hash_next;
    if (*at == c)
        *at = c->hash_next;
}

struct pk_vsock_connection *pk_vsock_find(struct pk_vsock_table *t, uint32_t host_port,
                                          uint32_t guest_port)
{
    struct pk_vsock_connection *c = *bucket(t, host_port, guest_port);
    while (c != NULL && (c->host_port != host_port || c->guest_port != guest_port))
        c = c->hash_next;
    return c;
}

uint32_t pk_vsock_new_port(struct pk_vsock_table *t, uint32_t guest_port)
{
    uint32_t port;
    do { /* there are more ports than connections, so this ends */
        port = t->next_port++;
        if (t->next_port == UINT32_MAX)
            t->next_port = FIRST_PORT;
    } while (pk_vsock_find(t, port, guest_port) != NULL);
    return port;
}

/* ── the list ───────────────────────────────────────────────────────────────────────────────── */

void pk_vsock_delist(struct pk_vsock_table *t, struct pk_vsock_connection *c)
{
    if (t->first != c && c->previous == NULL)
        return; /* it is in no list */
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        t->first = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    else
        t->last = c->previous;
    c->previous = c->next = NULL;
}

void pk_vsock_enlist(struct pk_vsock_table *t, struct pk_vsock_connection *c)
{
    pk_vsock_delist(t, c);
    c->previous = t->last;
    if (t->last != NULL)
        t->last->next = c;
    else
        t->first = c;
    t->last = c;
}

/* ── bytes for the host ─────────────────────────────────────────────────────────────────────── */

int pk_vsock_keep(struct pk_vsock_connection *c, const struct iovec *iov, uint32_t num)
{
    if (c->buffer == NULL) {
        c->buffer = malloc(PK_VSOCK_BUFFER);
        if (c->buffer == NULL)
            return -ENOMEM;
        c->head = 0;
    }
    for (uint32_t i = 0; i < num; i++) {
        const uint8_t *from = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        while (left > 0) {
            uint32_t at = (c->head + c->buffered) % PK_VSOCK_BUFFER;
            size_t len = left < PK_VSOCK_BUFFER - at ? left : PK_VSOCK_BUFFER - at;
            memcpy(c->buffer + at, from, len);
            c->buffered += (uint32_t)len;
            from += len;
            left -= len;
        }
    }
    return 0;
}

int64_t pk_vsock_flush(struct pk_vsock_connection *c)
{
    int64_t sent = 0;
    while (c->buffered > 0) {
        uint32_t len = PK_VSOCK_BUFFER - c->head;
        if (len > c->buffered)
            len = c->buffered;
        ssize_t result = send(c->fd, c->buffer + c->head, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0)
            return errno == EAGAIN ? sent : -errno;
        c->head = (c->head + (uint32_t)result) % PK_VSOCK_BUFFER;
        c->buffered -= (uint32_t)result;
        sent += result;
    }
    free(c->buffer);
    c->buffer = NULL;
    return sent;
}

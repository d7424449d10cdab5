/* The host's side of a socket device: unix sockets, watched by epoll, with connections that are
 * made, wait, end halfway and end.
 *
 * Reached from virtio_vsock.c, on the device's thread. Firecracker's convention: docs/vsock.md
 * there.
 */
#include "vsock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#define EVENTS    64 /* of epoll, at a time */
#define RETRY_MS  10
#define TRIES_MAX 200u                  /* of a listener without room: two seconds */
#define TOLD_LATE (PK_VSOCK_BUFFER / 4) /* freed bytes that are worth a packet of their own */

/* ── what the guest is to get ───────────────────────────────────────────────────────────────── */

void pk_vsock_owe(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t due)
{
    if (c->due == 0)
        pk_vsock_enlist(&v->table, c);
    c->due |= due;
}

void pk_vsock_end(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    if (c->state == PK_VSOCK_CONNECTING)
        v->connecting--;
    pk_vsock_release(&v->table, c);
}

/* End a connection at once; the guest is told. */
void pk_vsock_reset(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    if (c->state == PK_VSOCK_CONNECTING)
        v->connecting--;
    pk_vsock_close(c);
    c->state = PK_VSOCK_RESET;
    pk_vsock_owe(v, c, DUE_RST);
    c->due = DUE_RST;
}

/* ── the host's sockets ─────────────────────────────────────────────────────────────────────── */

/* Wait for what the connection can go on with. One report each time, so that a socket whose turn
 * has not come yet does not report again and again. */
void pk_vsock_arm(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    int can_read = c->state == PK_VSOCK_NEW ||
                   (c->state == PK_VSOCK_OPEN && !c->blocked && !(c->due & DUE_DATA) &&
                    !(c->host_shut & SHUT_SEND) && !(c->peer_shut & SHUT_RCV));
    /* EPOLLHUP comes without asking: the program has closed its socket. */
    int can_hang_up =
        c->state == PK_VSOCK_REQUESTED || (c->state == PK_VSOCK_OPEN && c->host_shut == SHUT_SEND);
    uint32_t events = (can_read ? EPOLLIN : 0u) | (c->buffered > 0 ? EPOLLOUT : 0u);

    if (events == 0 && !can_hang_up)
        return;
    events |= EPOLLONESHOT;
    if (c->armed == events)
        return;
    struct epoll_event event = {.events = events, .data = {.ptr = c}};
    if (epoll_ctl(v->epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0 &&
        (errno != ENOENT || epoll_ctl(v->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0))
        c->state == PK_VSOCK_NEW ? pk_vsock_end(v, c) : pk_vsock_reset(v, c); /* no memory for it */
    else
        c->armed = events;
}

int pk_vsock_is_closed(const struct pk_vsock_connection *c)
{
    struct pollfd pollfd = {.fd = c->fd};
    return poll(&pollfd, 1, 0) > 0 && (pollfd.revents & (POLLHUP | POLLERR));
}

/* The host's side will not send any more (SHUT_SEND), or not receive (SHUT_RCV). */
void pk_vsock_host_shuts(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t flags)
{
    if ((c->host_shut | flags) == c->host_shut)
        return;
    c->host_shut |= flags;
    pk_vsock_owe(v, c, DUE_SHUTDOWN);
}

/* Bytes of the guest's have left our buffer, or never needed it. */
void pk_vsock_forwarded(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t len)
{
    c->fwd += len;
    if (c->fwd - c->told_fwd >= TOLD_LATE && c->state == PK_VSOCK_OPEN)
        pk_vsock_owe(v, c, DUE_CREDIT_UPDATE);
}

/* The guest has shut down, or the buffer become empty: do what had to wait for the other. */
void pk_vsock_settle(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    if (c->buffered > 0)
        return;
    if (c->state == PK_VSOCK_LINGERING)
        pk_vsock_end(v, c);
    else if (c->peer_shut == SHUT_BOTH)
        pk_vsock_reset(v, c); /* §5.10.6.5 Stream Sockets: so ends a clean disconnect */
    else if (c->peer_shut & SHUT_SEND)
        shutdown(c->fd, SHUT_WR);
}

/* Nobody will take the guest's bytes any more: those that wait and those to come are dropped. */
void pk_vsock_lose_host(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    uint32_t dropped = c->buffered;
    free(c->buffer);
    c->buffer = NULL;
    c->buffered = 0;
    pk_vsock_forwarded(v, c, dropped);
    if (c->state == PK_VSOCK_OPEN)
        pk_vsock_host_shuts(v, c, SHUT_RCV);
}

static void flush(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    int64_t sent = pk_vsock_flush(c);
    if (sent < 0)
        pk_vsock_lose_host(v, c);
    else
        pk_vsock_forwarded(v, c, (uint32_t)sent);
    pk_vsock_settle(v, c);
}

/* The port of "CONNECT port\n", or -1. */
static int64_t parse_greeting(struct pk_vsock_connection *c)
{
    char *end, *text = c->greeting;
    text[c->greeting_len - 1] = 0; /* in place of the newline */
    if (strncasecmp(text, "CONNECT ", 8) != 0 || text[8] < '0' || text[8] > '9')
        return -1;
    unsigned long long port = strtoull(text + 8, &end, 10);
    if (*end == '\r')
        end++;
    return *end == 0 && port < UINT32_MAX ? (int64_t)port : -1;
}

/* A host's program says which port it wants; nothing that follows the line is taken yet. */
static void hear(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    char *at = c->greeting + c->greeting_len;
    ssize_t len = recv(c->fd, at, PK_VSOCK_GREETING - c->greeting_len, MSG_PEEK | MSG_DONTWAIT);
    if (len < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    const char *newline = len > 0 ? memchr(at, '\n', (size_t)len) : NULL;
    if (newline != NULL)
        len = newline + 1 - at;
    if (len <= 0 || recv(c->fd, at, (size_t)len, MSG_DONTWAIT) != len) {
        pk_vsock_end(v, c);
        return;
    }
    c->greeting_len += (uint32_t)len;
    if (newline == NULL && c->greeting_len < PK_VSOCK_GREETING)
        return;
    int64_t port = newline != NULL ? parse_greeting(c) : -1;
    if (port < 0) {
        pk_vsock_end(v, c);
        return;
    }
    c->guest_port = (uint32_t)port;
    c->host_port = pk_vsock_new_port(&v->table, c->guest_port);
    pk_vsock_hash(&v->table, c);
    c->state = PK_VSOCK_REQUESTED;
    pk_vsock_owe(v, c, DUE_REQUEST);
}

static void handle(struct pk_vsock *v, struct pk_vsock_connection *c, uint32_t events)
{
    c->armed = 0;
    if (c->state == PK_VSOCK_NEW)
        hear(v, c);
    else if (c->state == PK_VSOCK_REQUESTED && pk_vsock_is_closed(c))
        pk_vsock_reset(v, c);
    if (c->buffered > 0)
        flush(v, c);
    if (c->state == PK_VSOCK_OPEN && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        if (!(c->host_shut & SHUT_SEND))
            pk_vsock_owe(v, c, DUE_DATA);
        else if (pk_vsock_is_closed(c))
            pk_vsock_host_shuts(v, c, SHUT_RCV);
    }
    if (c->fd >= 0)
        pk_vsock_arm(v, c);
}

/* ── new connections ────────────────────────────────────────────────────────────────────────── */

static void set_timer(struct pk_vsock *v)
{
    struct itimerspec soon = {.it_value = {.tv_nsec = RETRY_MS * 1000000}};
    timerfd_settime(v->timer_fd, 0, &soon, NULL);
}

static void listen_for_connections(struct pk_vsock *v, int on)
{
    struct epoll_event event = {.events = on ? EPOLLIN : 0u, .data = {.ptr = &v->listening}};
    epoll_ctl(v->epoll_fd, EPOLL_CTL_MOD, v->config.listen_fd, &event);
    v->listening = on;
}

static void accept_connections(struct pk_vsock *v)
{
    for (int i = 0; i < EVENTS; i++) {
        int fd = accept4(v->config.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
                listen_for_connections(v, 0); /* too many files: the timer tries again */
                set_timer(v);
            }
            return;
        }
        struct pk_vsock_connection *c = pk_vsock_take(&v->table, fd);
        if (c == NULL) {
            close(fd);
            continue;
        }
        c->state = PK_VSOCK_NEW;
        pk_vsock_arm(v, c);
    }
}

/* Connect to the host's listener for the port that the guest wants. */
static void try_connect(struct pk_vsock *v, struct pk_vsock_connection *c)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int len = snprintf(address.sun_path, sizeof(address.sun_path), "%.*s_%u",
                       (int)sizeof(v->config.path), v->config.path, c->host_port);

    if (len < 0 || (size_t)len >= sizeof(address.sun_path)) {
        pk_vsock_reset(v, c);
    } else if (connect(c->fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
        if (c->state == PK_VSOCK_CONNECTING)
            v->connecting--;
        c->state = PK_VSOCK_OPEN;
        pk_vsock_owe(v, c, DUE_RESPONSE);
        pk_vsock_arm(v, c);
    } else if (errno != EAGAIN || c->tries++ == TRIES_MAX) {
        pk_vsock_reset(v, c);
    } else {
        if (c->state != PK_VSOCK_CONNECTING)
            v->connecting++;
        c->state = PK_VSOCK_CONNECTING;
        set_timer(v);
    }
}

static void try_again(struct pk_vsock *v)
{
    uint64_t count;
    ssize_t result = read(v->timer_fd, &count, sizeof(count));
    (void)result; /* how late it is does not matter */
    if (!v->listening)
        listen_for_connections(v, 1);
    for (uint32_t i = 0; i < PK_VSOCK_CONNECTIONS && v->connecting > 0; i++)
        if (v->table.connections[i].state == PK_VSOCK_CONNECTING)
            try_connect(v, &v->table.connections[i]);
}

/* The guest asks for a connection to the host. */
int pk_vsock_connect(struct pk_vsock *v, const struct virtio_vsock_hdr *packet)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct pk_vsock_connection *c = fd >= 0 ? pk_vsock_take(&v->table, fd) : NULL;
    if (c == NULL) {
        if (fd >= 0)
            close(fd);
        return -EMFILE;
    }
    c->host_port = packet->dst_port;
    c->guest_port = packet->src_port;
    c->peer_alloc = packet->buf_alloc;
    c->peer_fwd = packet->fwd_cnt;
    pk_vsock_hash(&v->table, c);
    try_connect(v, c);
    return 0;
}

/* ── all of them ────────────────────────────────────────────────────────────────────────────── */

void pk_vsock_look(struct pk_vsock *v)
{
    struct epoll_event events[EVENTS];
    int num = epoll_wait(v->epoll_fd, events, EVENTS, 0);

    for (int i = 0; i < num; i++) {
        if (events[i].data.ptr == &v->listening)
            accept_connections(v);
        else if (events[i].data.ptr == &v->timer_fd)
            try_again(v);
        else /* perhaps another connection's by now: then it finds nothing to do */
            handle(v, events[i].data.ptr, events[i].events);
    }
}

static int watch(struct pk_vsock *v, int fd, void *data)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = data}};
    return epoll_ctl(v->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int pk_vsock_open_host(struct pk_vsock *v)
{
    v->listening = 1;
    v->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    v->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (v->epoll_fd < 0 || v->timer_fd < 0)
        return -errno;
    int result = watch(v, v->timer_fd, &v->timer_fd);
    return result < 0 ? result : watch(v, v->config.listen_fd, &v->listening);
}

void pk_vsock_close_host(struct pk_vsock *v)
{
    if (v->timer_fd >= 0)
        close(v->timer_fd);
    if (v->epoll_fd >= 0)
        close(v->epoll_fd);
}

/* The data plane of a console device: bytes between its ports and files of the host. Source: virtio
 * 1.2 §5.3 Console Device. What the control queues say is pykvm/virtio/console.py's.
 *
 *   port's input file  ── receive()  ──> receiveq
 *   port's output file <── transmit() ── transmitq
 *
 * Nothing is kept here that can grow: without a buffer of the driver's the file is not read, and a
 * chain that the file has no room for stays where it is, so that the guest's writer waits. A port
 * whose program has not opened it gets nothing. The files themselves are console_file.c's.
 */
#include "console_file.h"
#include "iothread.h"
#include "ratelimit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH    64u /* chains, before other ports have their turn */
#define EVENTS   32
#define RETRY_NS 100000000u  /* when a client could not be accepted */
#define KEPT_MAX (64u << 10) /* bytes of a chain that is kept when stopped; Linux sends 32 KiB */

enum { CONTROL_RX = 2, CONTROL_TX = 3 };
enum busy { IDLE, CHAIN, KEPT };

struct port {
    struct pk_console_file in, out, listener;
    uint32_t number;
    uint32_t guest_open; /* atomic: Python sets it */
    uint32_t host;       /* atomic: odd while somebody is connected; counts comings and goings */
    enum busy busy;      /* what waits for room in the output file: */
    struct pk_chain chain;
    uint8_t *kept;
    struct iovec kept_iov;
    struct iovec *iov;
    uint32_t iov_num;
};

struct pk_console {
    struct pk_iothread io;
    struct port ports[PK_CONSOLE_PORTS_MAX];
    uint32_t num;
    int epoll_fd;
    int event_fd;                     /* tells Python that some port's `host` has changed */
    uint32_t flush_asked, flush_done; /* atomic; counters */
    struct pk_chain chain;
};

static void self_kick(int fd)
{
    uint64_t one = 1;
    ssize_t result = write(fd, &one, sizeof(one));
    (void)result; /* it can only be full, which is as good */
}

static uint32_t rx_queue(const struct port *p)
{
    return p->number == 0 ? 0 : 2 + 2 * p->number;
}

/* ── the host's files ───────────────────────────────────────────────────────────────────────── */

static int is_connected(const struct port *p)
{
    return (__atomic_load_n(&p->host, __ATOMIC_RELAXED) & 1) != 0;
}

/* Compare what Python knows with what is so, and tell it. */
static void update_host(struct pk_console *c, struct port *p)
{
    int connected = p->in.fd >= 0 || p->out.fd >= 0;
    if (connected == is_connected(p))
        return;
    /* Release: the bytes that were given to the guest before are seen in its ring. */
    __atomic_fetch_add(&p->host, 1, __ATOMIC_RELEASE);
    self_kick(c->event_fd);
    if (!connected)
        pk_console_file_arm(&p->listener, EPOLLIN); /* for the next client */
}

static void receive(struct pk_console *c, struct port *p);

static void lose_output(struct pk_console *c, struct port *p)
{
    pk_console_file_drop(&p->out);
    update_host(c, p);
}

/* A client of a port that listens. */
static void accept_client(struct pk_console *c, struct port *p)
{
    int fd = accept4(p->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1; /* epoll has an entry for each */

    if (copy < 0 || pk_console_file_take(&p->in, fd) < 0 ||
        pk_console_file_take(&p->out, copy) < 0) {
        if (copy < 0 && fd >= 0)
            close(fd);
        pk_console_file_drop(&p->in);
        pk_console_file_drop(&p->out);
        c->io.wake_ns = pk_now_ns() + RETRY_NS;
        return;
    }
    update_host(c, p);
    pk_console_file_arm(&p->out, 0); /* EPOLLHUP comes without asking */
    receive(c, p); /* the guest may have the port open already, and not kick again */
}

/* ── to the guest ───────────────────────────────────────────────────────────────────────────── */

static void fail(struct pk_console *c, struct pk_virtq *q)
{
    if (!q->fault)
        __atomic_store_n(&q->fault, PK_VIRTQ_BAD_REQUEST, __ATOMIC_RELAXED);
    pk_iothread_report_fault(&c->io);
}

static void receive(struct pk_console *c, struct port *p)
{
    uint32_t number = rx_queue(p);
    struct pk_virtq *q = &c->io.queues[number].virtq;

    for (uint32_t i = 0;; i++) {
        if (q->fault || p->in.fd < 0 || !__atomic_load_n(&p->guest_open, __ATOMIC_RELAXED))
            break;
        if (i == BATCH) {
            self_kick(c->io.queues[number].kick_fd);
            break;
        }
        int result = pk_virtq_pop(q, &c->chain);
        if (result == 0 && pk_virtq_ask_kicks(q))
            continue;
        if (result == 0)
            break; /* a kick will bring us here again */
        if (result < 0 || c->chain.out_num > 0) {
            fail(c, q);
            return;
        }
        ssize_t len = pk_console_file_read(&p->in, c->chain.iov, c->chain.in_num);
        if (len > 0) {
            pk_virtq_push(q, c->chain.head, (uint32_t)len);
            continue;
        }
        pk_virtq_unpop(q);
        if (len < 0) {
            pk_console_file_arm(&p->in, EPOLLIN);
            break;
        }
        pk_iothread_notify(&c->io, number);
        pk_console_file_drop(&p->in);
        update_host(c, p);
    }
    if (!q->fault)
        pk_iothread_notify(&c->io, number);
}

/* ── from the guest ─────────────────────────────────────────────────────────────────────────── */

/* Write what waits. Returns 0 when the file has no room. With no file, or one that fails, the bytes
 * are gone: nobody listens. */
static int write_out(struct pk_console *c, struct port *p)
{
    if (p->out.fd < 0)
        return 1;
    int result = pk_console_file_write(&p->out, &p->iov, &p->iov_num);
    if (result == -EAGAIN) {
        pk_console_file_arm(&p->out, EPOLLOUT);
        return 0;
    }
    if (result < 0)
        lose_output(c, p);
    return 1;
}

/* Write what the guest has made available. Returns whether that is all of it. */
static int transmit(struct pk_console *c, struct port *p)
{
    uint32_t number = rx_queue(p) + 1;
    struct pk_virtq *q = &c->io.queues[number].virtq;
    int done = 0;

    if (q->fault)
        return 1;
    pk_virtq_refuse_kicks(q);
    for (uint32_t i = 0; !done; i++) {
        if (i == BATCH) {
            self_kick(c->io.queues[number].kick_fd);
            break;
        }
        if (p->busy == IDLE) {
            int result = pk_virtq_pop(q, &p->chain);
            if (result < 0) {
                fail(c, q);
                return 1;
            }
            if (result == 0) {
                done = !pk_virtq_ask_kicks(q);
                continue;
            }
            p->busy = CHAIN;
            p->iov = p->chain.iov;
            p->iov_num = p->chain.out_num;
        }
        if (!write_out(c, p))
            break;
        if (p->busy == CHAIN)
            pk_virtq_push(q, p->chain.head, 0);
        else
            free(p->kept);
        p->busy = IDLE;
    }
    pk_iothread_notify(&c->io, number);
    return done;
}

/* The device stops and the file has no room: keep the rest of the chain, and give it back. */
static void keep(struct pk_console *c, struct port *p)
{
    struct pk_virtq *q = &c->io.queues[rx_queue(p) + 1].virtq;
    size_t len = 0;

    p->kept = malloc(KEPT_MAX);
    for (; p->kept != NULL && p->iov_num > 0 && len < KEPT_MAX; p->iov++, p->iov_num--) {
        size_t piece = p->iov->iov_len < KEPT_MAX - len ? p->iov->iov_len : KEPT_MAX - len;
        memcpy(p->kept + len, p->iov->iov_base, piece);
        len += piece;
    }
    pk_virtq_push(q, p->chain.head, 0);
    p->kept_iov = (struct iovec){.iov_base = p->kept, .iov_len = len};
    p->iov = &p->kept_iov;
    p->iov_num = 1;
    p->busy = p->kept != NULL ? KEPT : IDLE;
}

/* ── the thread ─────────────────────────────────────────────────────────────────────────────── */

/* Somebody waits until all that the guest has sent is with the host. */
static void flush(struct pk_console *c)
{
    uint32_t asked = __atomic_load_n(&c->flush_asked, __ATOMIC_ACQUIRE);
    int done = 1;

    if (asked == __atomic_load_n(&c->flush_done, __ATOMIC_RELAXED))
        return;
    for (uint32_t i = 0; i < c->num; i++)
        done &= transmit(c, &c->ports[i]);
    if (done)
        __atomic_store_n(&c->flush_done, asked, __ATOMIC_RELEASE);
}

static void begin(void *device)
{
    struct pk_console *c = device;

    c->io.ready_fd = c->epoll_fd;
    for (uint32_t i = 0; i < c->num; i++) {
        pk_console_file_arm(&c->ports[i].out, 0);
        if (!is_connected(&c->ports[i]))
            pk_console_file_arm(&c->ports[i].listener, EPOLLIN);
    }
}

static void serve(void *device, uint32_t queue)
{
    struct pk_console *c = device;

    if (queue == CONTROL_RX || queue == CONTROL_TX)
        return;
    struct port *p = &c->ports[queue < 2 ? 0 : queue / 2 - 1];
    if (queue & 1)
        transmit(c, p);
    else
        receive(c, p);
    flush(c);
}

static void handle(struct pk_console *c, struct pk_console_file *f, uint32_t events)
{
    struct port *p = f->port;

    f->armed = 0;
    if (f->fd < 0)
        return;
    if (f == &p->listener) {
        accept_client(c, p);
    } else if (f == &p->in) {
        receive(c, p);
    } else {
        if (events & (EPOLLHUP | EPOLLERR)) /* nobody will read it any more */
            lose_output(c, p);
        if (p->busy != IDLE)
            transmit(c, p);
        if (p->busy == IDLE)
            pk_console_file_arm(&p->out, 0);
    }
}

static void ready(void *device)
{
    struct pk_console *c = device;
    struct epoll_event events[EVENTS];
    int num = epoll_wait(c->epoll_fd, events, EVENTS, 0);

    for (int i = 0; i < num; i++)
        handle(c, events[i].data.ptr, events[i].events);
    for (uint32_t i = 0; num == 0 && i < c->num; i++) /* the time has come to accept again */
        if (!is_connected(&c->ports[i]))
            pk_console_file_arm(&c->ports[i].listener, EPOLLIN);
    flush(c);
}

/* What the guest sent before it went still reaches the host, as far as there is room. */
static void end(void *device)
{
    struct pk_console *c = device;

    for (uint32_t i = 0; i < c->num; i++) {
        transmit(c, &c->ports[i]);
        if (c->ports[i].busy == CHAIN)
            keep(c, &c->ports[i]);
    }
}

/* ── for Python ─────────────────────────────────────────────────────────────────────────────── */

int pk_console_create(const struct pk_console_port *ports, uint32_t num, int event_fd,
                      struct pk_console **ret)
{
    struct pk_console *c = num <= PK_CONSOLE_PORTS_MAX ? calloc(1, sizeof(*c)) : NULL;
    if (c == NULL)
        return -ENOMEM;
    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int result = c->epoll_fd < 0 ? -errno : 0;
    c->event_fd = event_fd;
    c->num = num;
    for (uint32_t i = 0; i < num; i++) {
        struct port *p = &c->ports[i];
        p->number = i;
        p->in = p->out = p->listener =
            (struct pk_console_file){.port = p, .epoll_fd = c->epoll_fd, .fd = -1};
        if (result == 0)
            result = pk_console_file_copy(&p->in, ports[i].in_fd);
        if (result == 0)
            result = pk_console_file_copy(&p->out, ports[i].out_fd);
        if (result == 0)
            result = pk_console_file_copy(&p->listener, ports[i].listen_fd);
        p->host = p->in.fd >= 0 || p->out.fd >= 0;
    }
    if (result < 0)
        pk_console_destroy(c);
    else
        *ret = c;
    return result;
}

void pk_console_destroy(struct pk_console *c)
{
    for (uint32_t i = 0; i < c->num; i++) {
        pk_console_file_drop(&c->ports[i].in);
        pk_console_file_drop(&c->ports[i].out);
        pk_console_file_drop(&c->ports[i].listener);
        if (c->ports[i].busy == KEPT)
            free(c->ports[i].kept);
    }
    if (c->epoll_fd >= 0)
        close(c->epoll_fd);
    free(c);
}

void pk_console_open(struct pk_console *c, uint32_t port, int on)
{
    __atomic_store_n(&c->ports[port].guest_open, (uint32_t)on, __ATOMIC_RELAXED);
}

uint32_t pk_console_host(const struct pk_console *c, uint32_t port)
{
    return __atomic_load_n(&c->ports[port].host, __ATOMIC_ACQUIRE);
}

uint32_t pk_console_flush(struct pk_console *c)
{
    return __atomic_add_fetch(&c->flush_asked, 1, __ATOMIC_RELEASE);
}

int pk_console_flushed(const struct pk_console *c, uint32_t flush)
{
    return (int32_t)(__atomic_load_n(&c->flush_done, __ATOMIC_ACQUIRE) - flush) >= 0;
}

int pk_console_start(struct pk_console *c, struct pk_queue *queues, uint32_t num,
                     struct pk_interrupt *irq)
{
    c->io = (struct pk_iothread){
        .queues = queues,
        .num = num,
        .irq = irq,
        .device = c,
        .ready_events = POLLIN,
        .begin = begin,
        .serve = serve,
        .ready = ready,
        .end = end,
    };
    return pk_iothread_start(&c->io, "virtio-console");
}

void pk_console_stop(struct pk_console *c)
{
    pk_iothread_stop(&c->io);
}

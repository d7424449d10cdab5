/* The thread of a virtio device, or of some of its queues: it sleeps until one is kicked, and lets
 * the device serve it.
 *
 *   guest writes the notify register ── ioeventfd ──> kick_fd ──> serve() ──> interrupt
 *
 * No exit to user space, no Python, no GIL. Stopping: set the flag, write the stop eventfd, join.
 */
#include "iothread.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "ratelimit.h"

enum { STOP, READY, KICKS }; /* places in the poll set */

static void clear_event(int fd)
{
    uint64_t count;
    /* EAGAIN: it was not set. Nothing else can fail here. */
    ssize_t result = read(fd, &count, sizeof(count));
    (void)result;
}

/* Sleep until something is to do; returns whether `wake_ns` has passed. */
static int sleep_until_event(struct pk_iothread *io, struct pollfd *fds)
{
    nfds_t num = KICKS + io->num;

    if (io->wake_ns == 0) {
        while (poll(fds, num, -1) < 0)
            continue; /* EINTR, or no memory for now */
        return 0;
    }
    uint64_t now = pk_now_ns(), left = io->wake_ns > now ? io->wake_ns - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u),
                               .tv_nsec = (long)(left % 1000000000u)};
    if (ppoll(fds, num, &timeout, NULL) < 0)
        for (nfds_t i = 0; i < num; i++)
            fds[i].revents = 0;
    if (pk_now_ns() < io->wake_ns)
        return 0;
    io->wake_ns = 0;
    return 1;
}

static void *run(void *argument)
{
    struct pk_iothread *io = argument;
    struct pollfd fds[KICKS + PK_QUEUES_MAX];

    io->begin(io->device);
    fds[STOP] = (struct pollfd){.fd = io->stop_fd, .events = POLLIN};
    for (uint32_t i = 0; i < io->num; i++)
        fds[KICKS + i] = (struct pollfd){.fd = io->queues[i].kick_fd, .events = POLLIN};
    /* The driver may have made chains available before anybody listened. */
    for (uint32_t i = 0; i < io->num; i++)
        io->serve(io->device, i);
    while (!pk_iothread_stopping(io)) {
        /* Without a wish not at all: poll() would report a hang-up again and again. */
        int ready_fd = io->ready_events ? io->ready_fd : -1;
        fds[READY] = (struct pollfd){.fd = ready_fd, .events = io->ready_events};
        int is_due = sleep_until_event(io, fds);
        if (is_due || fds[READY].revents)
            io->ready(io->device);
        for (uint32_t i = 0; i < io->num; i++) {
            if (!fds[KICKS + i].revents)
                continue;
            clear_event(io->queues[i].kick_fd);
            pk_interrupt_trace(io->irq, PK_TRACE_QUEUE_KICK, io->first + i, 1);
            io->serve(io->device, i);
        }
    }
    io->end(io->device);
    /* So that the rings are the same whenever it is stopped: a machine at rest does not change. */
    for (uint32_t i = 0; i < io->num; i++)
        if (io->queues[i].virtq.used != NULL)
            pk_virtq_ask_kicks(&io->queues[i].virtq);
    return NULL;
}

int pk_iothread_start(struct pk_iothread *io, const char *name)
{
    if (io->num > PK_QUEUES_MAX)
        return -EINVAL;
    io->stopping = 0;
    io->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (io->stop_fd < 0)
        return -errno;
    /* Signals are for the main thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&io->thread, NULL, run, io);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0)
        close(io->stop_fd);
    else
        pthread_setname_np(io->thread, name);
    return -result;
}

void pk_iothread_stop(struct pk_iothread *io)
{
    uint64_t one = 1;
    /* Relaxed: the thread acts on the flag alone. */
    __atomic_store_n(&io->stopping, 1, __ATOMIC_RELAXED);
    ssize_t result = write(io->stop_fd, &one, sizeof(one));
    (void)result; /* an eventfd at zero takes it */
    pthread_join(io->thread, NULL);
    close(io->stop_fd);
}

int pk_iothread_stopping(const struct pk_iothread *io)
{
    return __atomic_load_n(&io->stopping, __ATOMIC_RELAXED) != 0;
}

void pk_iothread_notify(struct pk_iothread *io, uint32_t queue)
{
    struct pk_virtq *virtq = &io->queues[queue].virtq;
    uint32_t count = (uint16_t)(virtq->used_idx - virtq->signalled_idx);
    if (count > 0)
        pk_interrupt_trace(io->irq, PK_TRACE_QUEUE_USED, io->first + queue, count);
    if (pk_virtq_wants_interrupt(virtq))
        pk_interrupt_raise(io->irq, 1 + io->first + queue);
}

void pk_iothread_report_fault(struct pk_iothread *io)
{
    pk_interrupt_raise(io->irq, 0);
}

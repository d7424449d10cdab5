/* Lets another process interrupt the driver: it writes an eventfd, this thread raises the cause.
 *
 *   back end ── call eventfd ──> serve() ──> pk_interrupt_raise(): ISR bit, then the line
 *
 * Needed where the driver asks the ISR which cause it was: virtio-mmio and PCI's INTx. With MSI-X
 * the back end writes the vector's own eventfd, and this thread sleeps.
 */
#include "iothread.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct pk_relay {
    struct pk_iothread io;
    struct pk_queue queues[PK_QUEUES_MAX]; /* of each only the eventfd */
    uint32_t first_round;
};

/* The thread looks at every queue once before it sleeps. Here that would be an interrupt nobody
 * sent: what was written before is still in the eventfd. */
static void begin(void *device)
{
    struct pk_relay *relay = device;
    relay->first_round = relay->io.num;
}

static void serve(void *device, uint32_t queue)
{
    struct pk_relay *relay = device;
    if (relay->first_round != 0)
        relay->first_round--;
    else
        pk_interrupt_raise(relay->io.irq, 1 + queue);
}

static void end(void *device)
{
    (void)device;
}

int pk_relay_create(struct pk_interrupt *irq, const int *call_fds, uint32_t num,
                    struct pk_relay **ret)
{
    if (num > PK_QUEUES_MAX)
        return -EINVAL;
    struct pk_relay *relay = calloc(1, sizeof(*relay));
    if (relay == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < num; i++)
        relay->queues[i].kick_fd = call_fds[i];
    relay->io = (struct pk_iothread){
        .queues = relay->queues,
        .num = num,
        .irq = irq,
        .device = relay,
        .begin = begin,
        .serve = serve,
        .end = end,
        .ready_fd = -1,
    };
    int result = pk_iothread_start(&relay->io, "vhost-relay");
    if (result < 0)
        free(relay);
    else
        *ret = relay;
    return result;
}

void pk_relay_destroy(struct pk_relay *relay)
{
    pk_iothread_stop(&relay->io);
    free(relay);
}

/* How a virtio device interrupts: a vector of its own for each cause, or one line for all.
 *
 *   MSI-X          each cause has an eventfd; KVM makes a message of it (irqfd)
 *   virtio-mmio    all causes share one eventfd and one edge-triggered GSI; the driver asks which
 *                  cause it was (InterruptStatus) and acknowledges it: two exits, served here in C
 *   PCI INTx       a level: raised with the first cause, lowered when the driver reads the ISR
 *
 * Any thread may call. Lock order: irq->lock is a leaf; the irqchip is called with it held, so that
 * two threads cannot leave the line in the wrong state.
 */
#include "trace.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

struct pk_interrupt {
    int vm_fd;
    uint32_t gsi;
    int fds[1 + PK_QUEUES_MAX]; /* atomic */
    uint32_t isr;               /* atomic; changed with the lock held while the line is in use */
    pthread_mutex_t lock;
    int use_line, line;
};

int pk_interrupt_create(int vm_fd, uint32_t gsi, struct pk_interrupt **ret)
{
    struct pk_interrupt *irq = calloc(1, sizeof(*irq));
    if (irq == NULL)
        return -ENOMEM;
    irq->vm_fd = vm_fd;
    irq->gsi = gsi;
    for (uint32_t cause = 0; cause <= PK_QUEUES_MAX; cause++)
        irq->fds[cause] = -1;
    pthread_mutex_init(&irq->lock, NULL);
    *ret = irq;
    return 0;
}

void pk_interrupt_destroy(struct pk_interrupt *irq)
{
    pthread_mutex_destroy(&irq->lock);
    free(irq);
}

static int bus_access(void *device, uint64_t offset, uint32_t size, int is_write, uint64_t *value)
{
    struct pk_interrupt *irq = device;
    if (size != 4) /* Python answers as for any other register */
        return 0;
    if (offset == 0 && !is_write)
        *value = pk_interrupt_pending(irq);
    else if (offset == 4 && is_write)
        pk_interrupt_ack(irq, (uint32_t)*value);
    else
        return 0;
    return 1;
}

int pk_interrupt_serve(struct pk_interrupt *irq, struct pk_bus *bus, uint64_t gpa)
{
    return pk_bus_add(bus, PK_MMIO, gpa, 8, bus_access, irq);
}

void pk_interrupt_set_fd(struct pk_interrupt *irq, uint32_t cause, int fd)
{
    __atomic_store_n(&irq->fds[cause], fd, __ATOMIC_RELAXED);
}

static void update_line(struct pk_interrupt *irq)
{
    int level = irq->use_line && __atomic_load_n(&irq->isr, __ATOMIC_RELAXED) != 0;
    if (irq->line == level)
        return;
    irq->line = level;
    pk_vm_irq_line(irq->vm_fd, irq->gsi, level);
}

void pk_interrupt_use_line(struct pk_interrupt *irq, int on)
{
    pthread_mutex_lock(&irq->lock);
    irq->use_line = on;
    update_line(irq);
    pthread_mutex_unlock(&irq->lock);
}

void pk_interrupt_trace(const struct pk_interrupt *irq, uint32_t kind, uint32_t queue,
                        uint32_t count)
{
    pk_trace_event(irq->vm_fd, kind, irq->gsi, queue, count);
}

void pk_interrupt_raise(struct pk_interrupt *irq, uint32_t cause)
{
    int fd = __atomic_load_n(&irq->fds[cause], __ATOMIC_RELAXED);
    uint32_t bit = cause == 0 ? PK_ISR_CONFIG : PK_ISR_QUEUE;
    if (fd < 0) {
        pthread_mutex_lock(&irq->lock);
        __atomic_fetch_or(&irq->isr, bit, __ATOMIC_RELAXED);
        update_line(irq);
        pthread_mutex_unlock(&irq->lock);
        return;
    }
    pk_trace_event(irq->vm_fd, PK_TRACE_INTERRUPT, irq->gsi, cause, 1);
    /* Release: a driver that reads the bit in pending() sees the used ring behind it. */
    __atomic_fetch_or(&irq->isr, bit, __ATOMIC_RELEASE);
    uint64_t one = 1;
    /* It can fail only when the counter is full: then an interrupt is due already. */
    ssize_t result = write(fd, &one, sizeof(one));
    (void)result;
}

uint32_t pk_interrupt_pending(struct pk_interrupt *irq)
{
    return __atomic_load_n(&irq->isr, __ATOMIC_ACQUIRE); /* partner: the release in raise() */
}

uint32_t pk_interrupt_ack(struct pk_interrupt *irq, uint32_t bits)
{
    pthread_mutex_lock(&irq->lock);
    uint32_t before = __atomic_fetch_and(&irq->isr, ~bits, __ATOMIC_ACQ_REL);
    update_line(irq);
    pthread_mutex_unlock(&irq->lock);
    return before;
}

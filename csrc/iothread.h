/* The thread of a virtio device's data plane; for the devices in C. */
#ifndef PK_IOTHREAD_H
#define PK_IOTHREAD_H

#include "core.h"

#include <pthread.h>

struct pk_iothread {
    /* Set by the device before it starts. */
    struct pk_queue *queues;
    uint32_t num;
    uint32_t first; /* the device's number of queues[0] */
    struct pk_interrupt *irq;
    void *device;
    void (*begin)(void *device);                 /* first on the thread; sets ready_fd */
    void (*serve)(void *device, uint32_t queue); /* there may be chains */
    void (*ready)(void *device);                 /* ready_fd is ready, or it is wake_ns */
    void (*end)(void *device);                   /* last on the thread */
    /* Polled beside the kicks, unless -1; what for, unless 0. The device may change both. */
    int ready_fd;
    short ready_events;
    uint64_t wake_ns; /* when to call `ready` once, CLOCK_MONOTONIC; 0: never. The thread's own */

    pthread_t thread;
    int stop_fd;
    uint32_t stopping; /* atomic */
};

int pk_iothread_start(struct pk_iothread *io, const char *name);
/* Stop, join; the device is idle then. */
void pk_iothread_stop(struct pk_iothread *io);
/* Whether `serve` should return, chains or not. */
int pk_iothread_stopping(const struct pk_iothread *io);
/* Interrupt the driver when it wants that for what was pushed to `queue`. */
void pk_iothread_notify(struct pk_iothread *io, uint32_t queue);
/* Tell the driver of a fault: DEVICE_NEEDS_RESET, by a configuration interrupt. */
void pk_iothread_report_fault(struct pk_iothread *io);

#endif

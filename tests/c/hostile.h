/* What hostile drivers of devices share. The functions of iothread.c stand here: there is no
 * thread, so a round is over when serve() returns.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include "driver.h"
#include "fuzz.h"
#include "iothread.h"

/* A driver that puts its used ring over its available ring gets answers to what it never asked, for
 * as long as it likes: until it stops the device. */
#define PATIENCE 300u

/* A size that is nearly right: of a disk's sectors, unless the includer knows better. */
#ifndef ODD_SIZE
#define ODD_SIZE 511
#endif

static struct pk_iothread *io;
static uint32_t faults, looks;

int pk_iothread_start(struct pk_iothread *started, const char *name)
{
    (void)name;
    io = started;
    io->begin(io->device);
    return 0;
}

void pk_iothread_stop(struct pk_iothread *stopped)
{
    stopped->end(stopped->device);
}

int pk_iothread_stopping(const struct pk_iothread *running)
{
    (void)running;
    return ++looks > PATIENCE;
}

void pk_iothread_notify(struct pk_iothread *running, uint32_t number)
{
    (void)pk_virtq_wants_interrupt(&running->queues[number].virtq);
}

void pk_iothread_report_fault(struct pk_iothread *running)
{
    uint32_t broken = 0;
    for (uint32_t i = 0; i < running->num; i++)
        broken += running->queues[i].virtq.fault != 0;
    CHECK(broken > 0);
    faults++;
}

/* A number that is sound most of the time, and else at a boundary or anything. */
static uint64_t pick(struct input *in, uint64_t sound)
{
    static const uint64_t ODD[] = {0,      1,          UINT64_MAX, MEMORY - 1,
                                   MEMORY, UINT32_MAX, 0x8000,     ODD_SIZE};
    uint32_t choice = take(in);
    if (choice < 0xf0)
        return sound;
    if (choice < 0xf8)
        return ODD[choice % 8];
    return (uint64_t)take(in) << 56 | (uint64_t)take(in) << 24 | take(in);
}

static void fill_descriptor(struct input *in, uint64_t gpa, uint64_t addr, uint32_t len,
                            unsigned flags, unsigned next)
{
    describe_at(gpa, pick(in, addr), (uint32_t)pick(in, len), (unsigned)pick(in, flags),
                (unsigned)pick(in, next));
}

#endif

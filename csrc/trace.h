/* Tracing, for the C files that have something to tell. */
#ifndef PK_TRACE_H
#define PK_TRACE_H

#include "core.h"

#include <time.h>

struct pk_trace {
    struct pk_trace_config config;
    struct pk_trace_record *records;
    uint64_t head, tail, lost; /* free-running; atomic */

    /* A vCPU's. */
    struct pk_trace_record open; /* the exit that is being served */
    int is_open;
    uint64_t entered; /* when KVM_RUN was called last */
    timer_t timer;
    int has_timer;
    struct pk_exit_stats *stats; /* PK_STATS_MAX, and one for what did not fit */

    /* The machine's. */
    int vm_fd;
    struct pk_trace *next;
};

/* On the vCPU's thread: KVM_RUN is about to be called; C served the exit before (1), or not. */
void pk_trace_enter(struct pk_trace *trace, const struct kvm_run *run, int in_c);
/* KVM_RUN has returned. */
void pk_trace_exit(struct pk_trace *trace, const struct kvm_run *run, enum pk_trace_kind kind);
/* Add an exit to trace->stats. */
void pk_trace_count(struct pk_trace *trace, const struct pk_trace_record *record);

extern int pk_tracing; /* whether any machine's events are wanted; atomic */

void pk_trace_note(int vm_fd, enum pk_trace_kind kind, uint64_t addr, uint64_t data,
                   uint32_t count);

/* Something happened in a machine, without an exit. Any thread. */
static inline void pk_trace_event(int vm_fd, enum pk_trace_kind kind, uint64_t addr, uint64_t data,
                                  uint32_t count)
{
    if (__builtin_expect(__atomic_load_n(&pk_tracing, __ATOMIC_RELAXED), 0))
        pk_trace_note(vm_fd, kind, addr, data, count);
}

#endif

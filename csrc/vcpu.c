/* One vCPU: KVM_RUN, and the decoding of kvm_run into one flat struct pk_exit.
 *
 * Accesses that a C device answers (bus.c) re-enter the guest at once; everything else is left to
 * the caller, one element of a string instruction at a time. A vCPU belongs to one thread; only
 * pk_vcpu_kick() may be called from another.
 */
#include "lazy.h"
#include "trace.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kick only has to interrupt KVM_RUN: the handler does nothing, but there must be one. */
static void on_kick(int signo)
{
    (void)signo;
}

int pk_kick_signal(void)
{
    return SIGRTMIN;
}

int pk_vcpu_create(int kvm_fd, int vm_fd, uint32_t id, struct pk_bus *bus, struct pk_vcpu *ret)
{
    struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART: KVM_RUN must return */
    sigemptyset(&action.sa_mask);
    if (sigaction(pk_kick_signal(), &action, NULL) < 0)
        return -errno;
    int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0)
        return -errno;
    int fd = ioctl(vm_fd, KVM_CREATE_VCPU, (unsigned long)id);
    if (fd < 0)
        return -errno;
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (run == MAP_FAILED) {
        int err = errno;
        close(fd);
        return -err;
    }
    /* RIP at every exit, without an ioctl: what a report of a crash needs. A host without
     * KVM_CAP_SYNC_REGS leaves the field alone. */
    int sync = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS);
    if (sync > 0 && ((unsigned)sync & KVM_SYNC_X86_REGS))
        run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    *ret = (struct pk_vcpu){.fd = fd, .run = run, .run_size = (uint32_t)size, .bus = bus};
    return 0;
}

void pk_vcpu_destroy(struct pk_vcpu *vcpu)
{
    if (vcpu->lazy != NULL)
        pk_lazy_remove_vcpu(vcpu->lazy, vcpu);
    if (vcpu->run != NULL) {
        munmap(vcpu->run, vcpu->run_size);
        close(vcpu->fd);
    }
    *vcpu = (struct pk_vcpu){.fd = -1};
}

/* The data of element `done` of the port access in kvm_run; it lies in the page(s) behind it. */
static uint8_t *io_element(struct pk_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    return (uint8_t *)run + run->io.data_offset + (uint64_t)vcpu->done * run->io.size;
}

/* Present the next element of a port access. Returns 1 when C served it. */
static int serve_io(struct pk_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct pk_exit *e = &vcpu->exit;

    e->kind = PK_EXIT_PIO;
    e->addr = run->io.port;
    e->size = run->io.size;
    e->is_write = run->io.direction == KVM_EXIT_IO_OUT;
    e->data = 0;
    if (e->is_write)
        memcpy(&e->data, io_element(vcpu), e->size);
    return pk_bus_access(vcpu->bus, PK_PIO, e->addr, e->size, (int)e->is_write, &e->data);
}

/* Finish the element just served, by C or by the caller. */
static void complete_io(struct pk_vcpu *vcpu)
{
    if (!vcpu->exit.is_write)
        memcpy(io_element(vcpu), &vcpu->exit.data, vcpu->exit.size);
    vcpu->done++;
    vcpu->pending--;
}

static int serve_mmio(struct pk_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct pk_exit *e = &vcpu->exit;

    e->kind = PK_EXIT_MMIO;
    e->addr = run->mmio.phys_addr;
    e->size = run->mmio.len;
    e->is_write = run->mmio.is_write;
    e->data = 0;
    if (e->is_write)
        memcpy(&e->data, run->mmio.data, e->size);
    return pk_bus_access(vcpu->bus, PK_MMIO, e->addr, e->size, (int)e->is_write, &e->data);
}

static void complete_mmio(struct pk_vcpu *vcpu)
{
    if (!vcpu->exit.is_write)
        memcpy(vcpu->run->mmio.data, &vcpu->exit.data, vcpu->exit.size);
    vcpu->pending = 0;
}

/* Complete what the last exit left open. Returns 1 when another element waits for the caller. */
static int complete(struct pk_vcpu *vcpu)
{
    if (vcpu->pending == 0)
        return 0;
    if (vcpu->exit.kind == PK_EXIT_MMIO) {
        complete_mmio(vcpu);
        return 0;
    }
    complete_io(vcpu);
    while (vcpu->pending > 0) {
        if (!serve_io(vcpu))
            return 1;
        complete_io(vcpu);
    }
    return 0;
}

/* Decode kvm_run into vcpu->exit. Returns 1 when the guest can be entered again at once. */
static int decode(struct pk_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct pk_exit *e = &vcpu->exit;

    e->reason = run->exit_reason;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        vcpu->pending = run->io.count;
        vcpu->done = 0;
        while (vcpu->pending > 0) {
            if (!serve_io(vcpu))
                return 0;
            complete_io(vcpu);
        }
        return 1;
    case KVM_EXIT_MMIO:
        vcpu->pending = 1;
        if (!serve_mmio(vcpu))
            return 0;
        complete_mmio(vcpu);
        return 1;
    case KVM_EXIT_HLT:
        e->kind = PK_EXIT_HLT;
        return 0;
    case KVM_EXIT_SHUTDOWN:
        e->kind = PK_EXIT_SHUTDOWN;
        return 0;
    case KVM_EXIT_DEBUG:
        e->kind = PK_EXIT_DEBUG;
        e->addr = run->debug.arch.pc;
        e->data = run->debug.arch.dr6 << 32 | run->debug.arch.exception;
        return 0;
    case KVM_EXIT_FAIL_ENTRY:
        e->kind = PK_EXIT_FAIL_ENTRY;
        e->data = run->fail_entry.hardware_entry_failure_reason;
        return 0;
    case KVM_EXIT_INTERNAL_ERROR:
        e->kind = PK_EXIT_INTERNAL;
        e->data = run->internal.suberror;
        e->detail_count = run->internal.ndata < 16 ? run->internal.ndata : 16;
        memcpy(e->detail, run->internal.data, e->detail_count * sizeof(e->detail[0]));
        return 0;
    case KVM_EXIT_SYSTEM_EVENT:
        e->kind = PK_EXIT_SYSTEM;
        e->data = run->system_event.type;
        return 0;
    case KVM_EXIT_INTR:
        return 1;
    default:
        e->kind = PK_EXIT_OTHER;
        return 0;
    }
}

static int is_lost(const struct pk_vcpu *vcpu)
{
    return vcpu->lazy != NULL && pk_lazy_is_lost(vcpu->lazy);
}

int pk_vcpu_run(struct pk_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (is_lost(vcpu))
        return -EIO;
    if (complete(vcpu))
        return 0;
    /* Release: a kicker that reads tid sees a thread that will notice immediate_exit. */
    __atomic_store_n(&vcpu->tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    struct pk_trace *trace = vcpu->trace;
    int result = 0;
    for (int again = 0;; again = 1) {
        if (trace != NULL)
            pk_trace_enter(trace, run, again);
        int left = ioctl(vcpu->fd, KVM_RUN, 0);
        if (is_lost(vcpu)) { /* then nothing that KVM says is the guest's doing */
            result = -EIO;
            break;
        }
        if (left < 0) {
            if (errno == EAGAIN) /* an application processor was woken; it is not running yet */
                continue;
            if (errno != EINTR) {
                result = -errno;
                break;
            }
            /* Also any other signal of this process: the caller looks and runs again. */
            /* Acquire: what a kicker that comes just now wants is seen after this kick. */
            int kicked = __atomic_exchange_n(&run->immediate_exit, 0, __ATOMIC_ACQUIRE);
            if (trace != NULL) {
                pk_trace_exit(trace, run, kicked ? PK_TRACE_KICK : PK_TRACE_SAMPLE);
                if (!kicked) /* the trace's timer, who wants nothing more */
                    continue;
            }
            vcpu->exit.kind = PK_EXIT_KICK;
            break;
        }
        if (trace != NULL)
            pk_trace_exit(trace, run, PK_TRACE_EXIT);
        __atomic_store_n(&vcpu->exits, vcpu->exits + 1, __ATOMIC_RELAXED);
        vcpu->exit.last_rip = vcpu->exit.rip;
        vcpu->exit.rip = run->s.regs.regs.rip;
        if (!decode(vcpu))
            break;
    }
    __atomic_store_n(&vcpu->tid, 0, __ATOMIC_RELEASE);
    return result;
}

int pk_vcpu_kick(struct pk_vcpu *vcpu)
{
    if (vcpu->run == NULL) /* destroyed: nothing runs */
        return 0;
    /* immediate_exit first: whether the signal comes before, in or after KVM_RUN, one of the two
     * is seen (Linux Documentation/virt/kvm/api.rst, section 5, "immediate_exit"). */
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    int tid = __atomic_load_n(&vcpu->tid, __ATOMIC_ACQUIRE);
    if (tid == 0)
        return 0;
    if (syscall(SYS_tgkill, getpid(), tid, pk_kick_signal()) < 0 && errno != ESRCH)
        return -errno;
    return 0;
}

int pk_thread_name(const char *name)
{
    return -pthread_setname_np(pthread_self(), name);
}

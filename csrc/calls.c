/* Ioctls made in one go: a machine's whole state, when it is forked or taken back.
 *
 * The list names descriptors by their place in a table, so that one list, made once, does for every
 * machine that goes on from there, on any thread.
 */
#include "core.h"

#include <errno.h>
#include <sys/ioctl.h>

/* Whether KVM takes an MSR, or has it as wanted although it refuses it. */
static int set_msr(int fd, const struct kvm_msr_entry *wanted)
{
    struct { /* kvm_msrs, with room for one */
        uint32_t nmsrs, pad;
        struct kvm_msr_entry entry;
    } one = {.nmsrs = 1, .entry = *wanted};

    int result = ioctl(fd, KVM_SET_MSRS, &one);
    if (result == 1)
        return 0;
    if (result == 0 && ioctl(fd, KVM_GET_MSRS, &one) == 1 && one.entry.data == wanted->data)
        return 0;
    return result < 0 ? -errno : -EINVAL;
}

/* KVM stops at the first MSR that it refuses. */
static int set_msrs(int fd, const struct kvm_msrs *msrs)
{
    int done = ioctl(fd, KVM_SET_MSRS, msrs);
    if (done < 0)
        return -errno;
    for (uint32_t i = (uint32_t)done; i < msrs->nmsrs; i++) {
        int result = set_msr(fd, &msrs->entries[i]);
        if (result < 0)
            return result;
    }
    return 0;
}

int pk_calls_make(const int *fds, const struct pk_call *calls, uint32_t num, uint32_t *done)
{
    for (*done = 0; *done < num; ++*done) {
        const struct pk_call *call = &calls[*done];
        int fd = fds[call->fd];
        int result = call->request == KVM_SET_MSRS ? set_msrs(fd, call->arg)
                                                   : pk_ioctl(fd, call->request, call->arg);
        if (result < 0)
            return result;
    }
    return 0;
}

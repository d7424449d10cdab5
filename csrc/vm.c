/* Ioctls on /dev/kvm and on a VM. Python fills the structures; C makes the call and keeps errno.
 *
 * Lock order: none; every call here is one system call.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

int pk_open_kvm(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int pk_ioctl(int fd, unsigned long request, void *arg)
{
    int result = ioctl(fd, request, arg);
    return result < 0 ? -errno : result;
}

int pk_ioctl_val(int fd, unsigned long request, unsigned long arg)
{
    int result = ioctl(fd, request, arg);
    return result < 0 ? -errno : result;
}

int pk_vm_map(int vm_fd, const struct pk_mem *mem, uint32_t flags)
{
    struct kvm_userspace_memory_region low = {
        .slot = 0,
        .flags = flags,
        .guest_phys_addr = 0,
        .memory_size = mem->low_size,
        .userspace_addr = (uint64_t)(uintptr_t)mem->hva,
    };
    int result = pk_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &low);
    if (result < 0 || mem->size == mem->low_size)
        return result;
    struct kvm_userspace_memory_region high = {
        .slot = 1,
        .flags = flags,
        .guest_phys_addr = mem->high_base,
        .memory_size = mem->size - mem->low_size,
        .userspace_addr = (uint64_t)(uintptr_t)mem->hva + mem->low_size,
    };
    return pk_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &high);
}

int pk_vm_irq_line(int vm_fd, uint32_t gsi, int level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level != 0};
    return pk_ioctl(vm_fd, KVM_IRQ_LINE, &line);
}

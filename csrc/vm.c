/* Ioctls on /dev/kvm and on a VM. Python fills the structures; C makes the call and keeps errno.
 *
 * Lock order: none; every call here is one system call.
 */
#include "trace.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>

enum { PIC_PINS = 16, IOAPIC_PINS = 24 };

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

void pk_cpuid(uint32_t function, uint32_t index, uint32_t *ret)
{
    __cpuid_count(function, index, ret[0], ret[1], ret[2], ret[3]);
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
    pk_trace_event(vm_fd, PK_TRACE_LINE, gsi, line.level, 1);
    return pk_ioctl(vm_fd, KVM_IRQ_LINE, &line);
}

static struct kvm_irq_routing_entry pin_route(uint32_t gsi, uint32_t irqchip, uint32_t pin)
{
    return (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = irqchip, .pin = pin},
    };
}

int pk_vm_set_messages(int vm_fd, const struct pk_message *messages, uint32_t num)
{
    if (num > PK_MESSAGES_MAX)
        return -EINVAL;
    struct kvm_irq_routing *table =
        calloc(1, sizeof(*table) + (PIC_PINS + IOAPIC_PINS + num) * sizeof(table->entries[0]));
    if (table == NULL)
        return -ENOMEM;
    struct kvm_irq_routing_entry *entry = table->entries;
    /* As Linux arch/x86/kvm/irq_comm.c, default_routing: the table replaces that one. */
    for (uint32_t gsi = 0; gsi < IOAPIC_PINS; gsi++)
        *entry++ = pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi);
    for (uint32_t gsi = 0; gsi < PIC_PINS; gsi++)
        *entry++ =
            pin_route(gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8);
    for (uint32_t i = 0; i < num; i++)
        *entry++ = (struct kvm_irq_routing_entry){
            .gsi = messages[i].gsi,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)messages[i].address,
                      .address_hi = (uint32_t)(messages[i].address >> 32),
                      .data = messages[i].data},
        };
    table->nr = (uint32_t)(entry - table->entries);
    int result = pk_ioctl(vm_fd, KVM_SET_GSI_ROUTING, table);
    free(table);
    return result;
}

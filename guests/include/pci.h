/* A virtio device on a PCI bus: found by its ids, its registers by its capabilities.
 *
 * Included by guests that drive one. Sources: PCI Local Bus Specification 3.0, §6 Configuration
 * Space; virtio 1.2 §4.1 Virtio Over PCI Bus.
 */
#include "bare.h"

#define PORT_PCI_ADDRESS 0xCF8
#define PORT_PCI_DATA    0xCFC

enum { CAP_VENDOR = 0x09, CAP_MSIX = 0x11 };
enum { CFG_COMMON = 1, CFG_NOTIFY = 2, CFG_ISR = 3, CFG_DEVICE = 4, CFG_TYPES = 6 };

/* §4.1.4.3 Common configuration structure layout */
struct common {
    uint32_t device_feature_select, device_feature;
    uint32_t driver_feature_select, driver_feature;
    uint16_t config_msix_vector, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint64_t queue_desc, queue_driver, queue_device;
};

struct pci_device {
    uint32_t address; /* of its configuration space */
    uintptr_t parts[CFG_TYPES];
    uint32_t notify_multiplier;
    uint8_t msix; /* offset of the capability */
};

static uint32_t pci_read(uint32_t address)
{
    uint32_t value;

    __asm__ volatile("outl %0, %1" : : "a"(1u << 31 | address), "Nd"((uint16_t)PORT_PCI_ADDRESS));
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"((uint16_t)PORT_PCI_DATA));
    return value;
}

static void pci_write(uint32_t address, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(1u << 31 | address), "Nd"((uint16_t)PORT_PCI_ADDRESS));
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"((uint16_t)PORT_PCI_DATA));
}

/* The first virtio device: its slot, BAR 0 switched on, where its parts are. */
static int pci_find(struct pci_device *device)
{
    uint32_t slot = 0, bar;

    while (slot < 32 && (pci_read(slot << 11) & 0xffff) != 0x1af4)
        slot++;
    if (slot == 32)
        return 0;
    device->address = slot << 11;
    pci_write(device->address | 0x04, 1 << 2 | 1 << 1); /* bus master, memory */
    bar = pci_read(device->address | 0x10) & ~0xfu;
    for (uint32_t at = pci_read(device->address | 0x34) & 0xfc; at;) {
        uint32_t header = pci_read(device->address | at), type = header >> 24;

        if ((header & 0xff) == CAP_MSIX)
            device->msix = (uint8_t)at;
        if ((header & 0xff) == CAP_VENDOR && type < CFG_TYPES)
            device->parts[type] = bar + pci_read(device->address | (at + 8));
        if ((header & 0xff) == CAP_VENDOR && type == CFG_NOTIFY)
            device->notify_multiplier = pci_read(device->address | (at + 16));
        at = header >> 8 & 0xfc;
    }
    return 1;
}

/* Let MSI-X vector `entry` send `vector` to the first CPU (§6.8.2; Intel SDM vol. 3A §10.11 Message
 * Signalled Interrupts). */
static void pci_enable_vector(const struct pci_device *device, uint32_t entry, uint8_t vector)
{
    uint32_t bar = pci_read(device->address | 0x10) & ~0xfu;
    uint32_t table = bar + (pci_read(device->address | (device->msix + 4u)) & ~7u);
    volatile uint32_t *words = (volatile uint32_t *)(uintptr_t)(table + 16 * entry);

    pci_write(device->address | device->msix, 1u << 31); /* enable, in the upper half */
    words[0] = 0xFEE00000;
    words[1] = 0;
    words[2] = vector;
    words[3] = 0; /* not masked */
}

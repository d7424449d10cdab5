/* A driver of one virtio disk, by mmio or PCI: one queue, one request at a time, a sleep until its
 * interrupt. Included by main.c alone.
 *
 * It walks the steps of virtio 1.2 §3.1 Device Initialization; each answer is an interrupt, through
 * the IOAPIC or by a message.
 */
#include "interrupts.h"
#include "pci.h"

/* virtio 1.2 §4.2.2 MMIO Device Register Layout */
enum reg {
    MAGIC = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030,
    QUEUE_NUM_MAX = 0x034,
    QUEUE_NUM = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080,
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
    CAPACITY = 0x100, /* of a disk: §5.2.4 Device configuration layout */
};

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, READY = 15 };
enum {
    DEVICE_BLOCK = 2,
    FEATURE_FLUSH = 1 << 9,
    FEATURE_VERSION_1 = 1 << 0 /* of the high half */
};
enum { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH = 4, BLK_OK = 0 };

/* §2.7 Split Virtqueues, the three parts of one with eight descriptors. */
#define SIZE 8

enum { DESC_NEXT = 1, DESC_WRITE = 2 };

static struct {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
} desc[SIZE] __attribute__((aligned(16)));

static volatile struct {
    uint16_t flags, idx, ring[SIZE], used_event;
} avail __attribute__((aligned(2)));

static volatile struct {
    uint16_t flags, idx;
    struct {
        uint32_t id, len;
    } ring[SIZE];
    uint16_t avail_event;
} used __attribute__((aligned(4)));

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header;

static uint8_t sector_0[512], sector_1[512];
static volatile uint8_t status;

static uintptr_t registers; /* of virtio-mmio, */
static struct pci_device device;
static int by_pci; /* or of this one */
static volatile unsigned long interrupts;
static uint32_t wanted_features = FEATURE_FLUSH;

static volatile uint32_t *reg(enum reg offset)
{
    return (volatile uint32_t *)(registers + offset);
}

#define VECTOR 0x50

HANDLER on_device(struct frame *frame)
{
    (void)frame;
    if (!by_pci) /* a message says which queue it is about */
        *reg(INTERRUPT_ACK) = *reg(INTERRUPT_STATUS);
    interrupts++;
    *lapic(LAPIC_EOI) = 0;
}

/* One input of the IOAPIC to VECTOR of this CPU, edge-triggered (Intel 82093AA data sheet, "I/O
 * Redirection Table Registers"). */
static void ioapic_enable(uint32_t pin)
{
    volatile uint32_t *select = (volatile uint32_t *)0xFEC00000UL, *window = select + 4;

    *select = 0x10 + 2 * pin + 1;
    *window = 0; /* destination: APIC 0 */
    *select = 0x10 + 2 * pin;
    *window = VECTOR;
}

static void place(enum reg low, const volatile void *part)
{
    *reg(low) = (uint32_t)(uintptr_t)part;
    *reg(low + 4) = 0;
}

static int start_by_mmio(void)
{
    *reg(STATUS) = 0;
    used.idx = avail.idx = 0; /* not before: until it is reset the ring is the device's, too */
    *reg(STATUS) = ACKNOWLEDGE | DRIVER;
    *reg(DEVICE_FEATURES_SEL) = 1;
    if (!(*reg(DEVICE_FEATURES) & FEATURE_VERSION_1))
        return 0;
    *reg(DRIVER_FEATURES_SEL) = 1;
    *reg(DRIVER_FEATURES) = FEATURE_VERSION_1;
    *reg(DRIVER_FEATURES_SEL) = 0;
    *reg(DRIVER_FEATURES) = wanted_features;
    *reg(STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(*reg(STATUS) & FEATURES_OK))
        return 0;
    *reg(QUEUE_SEL) = 0;
    if (*reg(QUEUE_NUM_MAX) < SIZE || *reg(QUEUE_READY))
        return 0;
    *reg(QUEUE_NUM) = SIZE;
    place(QUEUE_DESC, desc);
    place(QUEUE_DRIVER, &avail);
    place(QUEUE_DEVICE, &used);
    *reg(QUEUE_READY) = 1;
    *reg(STATUS) = READY;
    return *reg(STATUS) == READY;
}

static int start_by_pci(void)
{
    volatile struct common *common = (volatile struct common *)device.parts[CFG_COMMON];

    common->device_status = 0;
    used.idx = avail.idx = 0;
    common->device_status = ACKNOWLEDGE | DRIVER;
    common->device_feature_select = 1;
    if (!(common->device_feature & FEATURE_VERSION_1))
        return 0;
    common->driver_feature_select = 1;
    common->driver_feature = FEATURE_VERSION_1;
    common->driver_feature_select = 0;
    common->driver_feature = wanted_features;
    common->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(common->device_status & FEATURES_OK))
        return 0;
    common->queue_select = 0;
    if (common->queue_size < SIZE || common->queue_enable)
        return 0;
    common->queue_size = SIZE;
    common->queue_desc = (uintptr_t)desc;
    common->queue_driver = (uintptr_t)&avail;
    common->queue_device = (uintptr_t)&used;
    common->queue_msix_vector = 1;
    if (common->queue_msix_vector != 1)
        return 0;
    common->queue_enable = 1;
    common->device_status = READY;
    return common->device_status == READY;
}

static int start_device(void)
{
    return by_pci ? start_by_pci() : start_by_mmio();
}

static uint32_t capacity(void)
{
    return by_pci ? *(volatile uint32_t *)device.parts[CFG_DEVICE] : *reg(CAPACITY);
}

static void kick(void)
{
    if (by_pci)
        *(volatile uint16_t *)device.parts[CFG_NOTIFY] = 0; /* queue 0's is the first register */
    else
        *reg(QUEUE_NOTIFY) = 0;
}

static void find_by_mmio(const char *cmdline)
{
    registers = option(cmdline, "mmio", 0xd0000000);
    check(*reg(MAGIC) == 0x74726976 && *reg(VERSION) == 2, "there is a virtio device");
    check(*reg(DEVICE_ID) == DEVICE_BLOCK, "it is a disk");
    ioapic_enable((uint32_t)option(cmdline, "gsi", 16));
}

static void find_by_pci(void)
{
    by_pci = 1;
    check(pci_find(&device), "there is a virtio device");
    check(pci_read(device.address) >> 16 == 0x1040 + DEVICE_BLOCK, "it is a disk");
    check(device.parts[CFG_COMMON] && device.parts[CFG_NOTIFY] && device.parts[CFG_DEVICE] &&
              device.msix,
          "its capabilities are there");
    if (!failures)
        pci_enable_vector(&device, 1, VECTOR);
}

/* Do one request and sleep until it is done; returns its status. */
static uint8_t request(uint32_t type, uint64_t sector, void *data)
{
    uint16_t before = used.idx;

    header.type = type;
    header.sector = sector;
    status = 0xff;
    desc[0].addr = (uintptr_t)&header;
    desc[0].len = sizeof(header);
    desc[0].flags = DESC_NEXT;
    desc[0].next = data ? 1 : 2;
    desc[1].addr = (uintptr_t)data;
    desc[1].len = 512;
    desc[1].flags = DESC_NEXT | (type == BLK_IN ? DESC_WRITE : 0);
    desc[1].next = 2;
    desc[2].addr = (uintptr_t)&status;
    desc[2].len = 1;
    desc[2].flags = DESC_WRITE;
    avail.ring[avail.idx % SIZE] = 0;
    __atomic_thread_fence(__ATOMIC_RELEASE); /* §2.7.13.3: the entry before idx */
    avail.idx++;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* §2.7.13.4: idx before the look at flags */
    if (!(used.flags & 1))
        kick();
    while (used.idx == before)
        wait_for_interrupt();
    return status;
}

/* A driver of one virtio network card, by PCI: a queue of buffers for what comes, a queue for what
 * goes, and a sleep until the card has something to say. Included by main.c alone.
 *
 * It offers the card nothing but VERSION_1: each frame is whole, in one buffer, behind a header of
 * zeroes. Source: virtio 1.2 §5.1 Network Device.
 */
#include "interrupts.h"
#include "pci.h"

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, READY = 15 };
enum { DEVICE_NETWORK = 1, FEATURE_MAC = 1 << 5, FEATURE_VERSION_1 = 1 /* of the high half */ };

/* §2.7 Split Virtqueues. Descriptor n of both queues is buffer n: who has it is in their rings. */
#define SIZE 8

enum { DESC_WRITE = 2, NO_NOTIFY = 1 };

struct virtqueue {
    struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } desc[SIZE] __attribute__((aligned(16)));
    volatile struct {
        uint16_t flags, idx, ring[SIZE], used_event;
    } avail;
    volatile struct {
        uint16_t flags, idx;
        struct {
            uint32_t id, len;
        } ring[SIZE];
        uint16_t avail_event;
    } used __attribute__((aligned(4)));
    uint16_t seen; /* of used.idx */
};

enum queue { RECEIVE, TRANSMIT, QUEUES };

static struct virtqueue queues[QUEUES];

/* §5.1.6 Device Operation: in front of each frame. */
struct header {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

#define FRAME_MAX 65550 /* an Ethernet header and an IP packet; no longer one will ever come */

static struct {
    struct header header;
    uint8_t frame[FRAME_MAX];
} __attribute__((aligned(16))) buffers[SIZE];

static struct pci_device device;
static uint8_t mac[6];

#define VECTOR 0x50

HANDLER on_card(struct frame *frame)
{
    (void)frame;
    *lapic(LAPIC_EOI) = 0; /* waking up is all there is to do */
}

static volatile struct common *common(void)
{
    return (volatile struct common *)device.parts[CFG_COMMON];
}

static int start_queue(enum queue number)
{
    struct virtqueue *q = &queues[number];

    common()->queue_select = (uint16_t)number;
    if (common()->queue_size < SIZE)
        return 0;
    common()->queue_size = SIZE;
    common()->queue_desc = (uintptr_t)q->desc;
    common()->queue_driver = (uintptr_t)&q->avail;
    common()->queue_device = (uintptr_t)&q->used;
    common()->queue_msix_vector = 0;
    common()->queue_enable = 1;
    return common()->queue_msix_vector == 0;
}

/* The steps of §3.1 Device Initialization. */
static int start_card(void)
{
    on_interrupt(VECTOR, on_card, 0);
    pci_enable_vector(&device, 0, VECTOR);
    common()->device_status = 0;
    common()->device_status = ACKNOWLEDGE | DRIVER;
    common()->driver_feature_select = 0;
    common()->driver_feature = FEATURE_MAC;
    common()->driver_feature_select = 1;
    common()->driver_feature = FEATURE_VERSION_1;
    common()->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(common()->device_status & FEATURES_OK))
        return 0;
    for (size_t i = 0; i < sizeof(mac); i++)
        mac[i] = ((volatile uint8_t *)device.parts[CFG_DEVICE])[i];
    if (!start_queue(RECEIVE) || !start_queue(TRANSMIT))
        return 0;
    common()->device_status = READY;
    return common()->device_status == READY;
}

/* Put buffer `index` into a queue: `len` bytes to send behind the header, or room for as many. */
static void make_available(enum queue number, uint16_t index, uint32_t len)
{
    struct virtqueue *q = &queues[number];

    q->desc[index].addr = (uintptr_t)&buffers[index];
    q->desc[index].len = (uint32_t)sizeof(struct header) + len;
    q->desc[index].flags = number == RECEIVE ? DESC_WRITE : 0;
    q->avail.ring[q->avail.idx % SIZE] = index;
    __atomic_thread_fence(__ATOMIC_RELEASE); /* §2.7.13.3: the entry before idx */
    q->avail.idx++;
}

/* Tell the device of what was made available (§4.1.4.4 Notification structure layout). */
static void kick(enum queue number)
{
    common()->queue_select = (uint16_t)number;
    uintptr_t offset = common()->queue_notify_off * device.notify_multiplier;

    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* §2.7.13.4: idx before the look at flags */
    if (!(queues[number].used.flags & NO_NOTIFY))
        *(volatile uint16_t *)(device.parts[CFG_NOTIFY] + offset) = (uint16_t)number;
}

/* A buffer that the device is done with: its index, and in `len` the length of its frame. -1: there
 * is none. */
static int take_used(enum queue number, uint32_t *len)
{
    struct virtqueue *q = &queues[number];

    if (__atomic_load_n(&q->used.idx, __ATOMIC_ACQUIRE) == q->seen)
        return -1;
    uint32_t index = q->used.ring[q->seen % SIZE].id;
    *len = q->used.ring[q->seen % SIZE].len - (uint32_t)sizeof(struct header);
    q->seen++;
    return (int)index;
}

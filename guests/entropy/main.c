/* A virtqueue by hand, from the driver's side: sixteen random bytes, please.
 *
 *     pykvm boot pykvm/guests/entropy --rng --transport mmio
 *
 * The smallest virtio device there is: one queue, whose buffers the device fills (virtio 1.2 §5.4
 * Entropy Device). Everything a driver must do is in main(), in order (§3.1.1 Driver Requirements:
 * Device Initialization). The verdict: the device filled the buffer, and said how far.
 */
#include "bare.h"

#define DEVICE 0xD0000000UL /* pykvm's first device with --transport mmio */

/* §4.2.2 MMIO Device Register Layout */
enum reg {
    MAGIC = 0x000,
    DEVICE_ID = 0x008,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030,
    QUEUE_NUM = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    STATUS = 0x070,
    QUEUE_DESC = 0x080,
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
};

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { ENTROPY = 4, VERSION_1 = 1 /* bit 32: the first of the high half */, WRITE = 2 };

#define SIZE 2 /* of the ring: a power of two */

/* §2.7 Split Virtqueues: the descriptor table and the two rings. */
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

static volatile uint8_t buffer[16];

static volatile uint32_t *reg(enum reg offset)
{
    return (volatile uint32_t *)(DEVICE + offset);
}

static void set_address(enum reg offset, const volatile void *part)
{
    *reg(offset) = (uint32_t)(uintptr_t)part;
    *reg(offset + 4) = 0; /* the high half: this program is below 4 GiB */
}

int main(void)
{
    unsigned sum = 0;

    check(*reg(MAGIC) == 0x74726976, "the magic is \"virt\"");
    check(*reg(DEVICE_ID) == ENTROPY, "the device is an entropy source");
    *reg(STATUS) = 0; /* reset */
    *reg(STATUS) = ACKNOWLEDGE | DRIVER;
    *reg(DRIVER_FEATURES_SEL) = 1;
    *reg(DRIVER_FEATURES) = VERSION_1;
    *reg(STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    check(*reg(STATUS) & FEATURES_OK, "the device agrees on the features");

    *reg(QUEUE_SEL) = 0;
    *reg(QUEUE_NUM) = SIZE;
    set_address(QUEUE_DESC, desc);
    set_address(QUEUE_DRIVER, &avail);
    set_address(QUEUE_DEVICE, &used);
    *reg(QUEUE_READY) = 1;
    *reg(STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

    desc[0].addr = (uintptr_t)buffer;
    desc[0].len = sizeof(buffer);
    desc[0].flags = WRITE; /* for the device to write */

    avail.ring[0] = 0; /* the chain that starts with descriptor 0 */
    /* After the chain and the ring: who sees the index sees them (§2.7.13.3). */
    __atomic_store_n(&avail.idx, 1, __ATOMIC_RELEASE);
    *reg(QUEUE_NOTIFY) = 0;
    while (__atomic_load_n(&used.idx, __ATOMIC_ACQUIRE) == 0)
        outb(PORT_POST, 0);

    check(used.ring[0].id == 0 && used.ring[0].len == sizeof(buffer), "all of the buffer was used");
    for (unsigned i = 0; i < sizeof(buffer); i++)
        sum += buffer[i];
    check(sum != 0, "there is something in it");
    return failures;
}

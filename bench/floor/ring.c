/* One request after another through a virtqueue: laps of COUNT reads of sector 0, a write to MARK
 * before each lap. bench/ring.py runs it against pykvm's disk by virtio-mmio, and against a device
 * that only echoes: an ioeventfd at the notify register, an irqfd at the same GSI (floor.c). With
 * NET a request is a frame to a network card, by queue 1, that comes back, by queue 0.
 *
 * So it asks the device nothing that an echo could not answer: features are written, not read; an
 * interrupt is the answer, and is not acknowledged, as with MSI-X. The echo's flags are always 0,
 * which is "do notify". A flat binary for 32-bit protected mode, entered at its first byte.
 */
#include <stddef.h>
#include <stdint.h>

#define MARK   0x540
#define DEVICE 0xD0000000u /* pykvm.layout.VIRTIO_MMIO */
#define GSI    16          /* pykvm.layout.GSI_VIRTIO */
#define VECTOR 0x50
#define SIZE   8
#define SECTOR 512

/* virtio 1.2 §4.2.2 MMIO Device Register Layout */
enum reg {
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

/* §2.7 Split Virtqueues */
static struct queue {
    struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } desc[SIZE] __attribute__((aligned(16)));
    volatile struct {
        uint16_t flags, idx, ring[SIZE];
    } avail __attribute__((aligned(2)));
    volatile struct {
        uint16_t flags, idx;
        struct {
            uint32_t id, len;
        } ring[SIZE];
    } used __attribute__((aligned(4)));
} queues[2];

#ifdef NET
#define LAST 1 /* the queue that is kicked */
static uint8_t frame[12 + BYTES];
static uint8_t data[12 + BYTES];
#else
#define LAST 0
static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header;
static uint8_t data[BYTES] __attribute__((aligned(4096)));
static volatile uint8_t status;
#endif
volatile uint32_t interrupts; /* not static: on_device() is not C */
static uint64_t idt[256];
static uint64_t gdt[4] = {0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff}; /* flat, as entered with */

static volatile uint32_t *reg(uint32_t address)
{
    return (volatile uint32_t *)address;
}

/* Interrupts come at HLT alone, so this need not save a thing. No IRET: KVM's emulator, which runs
 * ring 0 on some hosts, has none for 32-bit code. RET drops CS and EFLAGS, interrupts stay off. */
void on_device(void);
__asm__("on_device: incl interrupts\n"
        "movl $0, 0xFEE000B0\n" /* the local APIC's end of interrupt */
        "ret $8\n");

static void load_tables(void)
{
    struct {
        uint16_t limit;
        const void *base;
    } __attribute__((packed)) gdtr = {sizeof(gdt) - 1, gdt}, idtr = {sizeof(idt) - 1, idt};
    uint32_t handler = (uint32_t)on_device;

    idt[VECTOR] = (handler & 0xffff) | 0x10u << 16 | (uint64_t)(handler & 0xffff0000) << 32 |
                  (uint64_t)0x8e00 << 32; /* an interrupt gate of 32 bits, present */
    __asm__ volatile("lgdt %0; lidt %1" : : "m"(gdtr), "m"(idtr));
}

static void place(enum reg low, const volatile void *part)
{
    *reg(DEVICE + low) = (uint32_t)part;
}

static void describe(struct queue *q, uint32_t i, volatile void *addr, uint32_t len, uint16_t flags)
{
    q->desc[i].addr = (uint32_t)addr;
    q->desc[i].len = len;
    q->desc[i].flags = flags;
    q->desc[i].next = (uint16_t)(i + 1);
}

static void describe_request(void)
{
#ifdef NET
    for (uint32_t i = 0; i < SIZE; i++) { /* all frames come into one buffer, behind a header */
        describe(&queues[0], i, data, sizeof(data), 2);
        queues[0].avail.ring[i] = (uint16_t)i;
    }
    queues[0].avail.idx = SIZE / 2; /* there is always one: the card never asks for more */
    describe(&queues[1], 0, frame, sizeof(frame), 0);
    queues[1].avail.flags = 1; /* that it is sent is no news */
#else
    describe(&queues[0], 0, &header, sizeof(header), 1);
    describe(&queues[0], 1, data, sizeof(data), 1 | 2);
    describe(&queues[0], 2, &status, 1, 2);
#endif
}

static void start(void)
{
    load_tables();
    *reg(0xFEE000F0) = 0x1FF;          /* local APIC: on */
    *reg(0xFEC00000) = 0x10 + 2 * GSI; /* the IOAPIC's entry of this pin: edge, to CPU 0 */
    *reg(0xFEC00010) = VECTOR;
    describe_request();
    *reg(DEVICE + STATUS) = 1 | 2;
    *reg(DEVICE + DRIVER_FEATURES_SEL) = 1;
    *reg(DEVICE + DRIVER_FEATURES) = 1; /* VERSION_1 */
    *reg(DEVICE + STATUS) = 1 | 2 | 8;
    for (uint32_t i = 0; i <= LAST; i++) {
        *reg(DEVICE + QUEUE_SEL) = i;
        *reg(DEVICE + QUEUE_NUM) = SIZE;
        place(QUEUE_DESC, queues[i].desc);
        place(QUEUE_DRIVER, &queues[i].avail);
        place(QUEUE_DEVICE, &queues[i].used);
        *reg(DEVICE + QUEUE_READY) = 1;
    }
    *reg(DEVICE + STATUS) = 1 | 2 | 8 | 4;
}

static void request(void)
{
    uint32_t before = interrupts;

    for (uint32_t i = 0; i <= LAST; i++)
        __atomic_store_n(&queues[i].avail.idx, (uint16_t)(queues[i].avail.idx + 1),
                         __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(queues[LAST].used.flags & 1))
        *reg(DEVICE + QUEUE_NOTIFY) = LAST;
    while (interrupts == before)
        __asm__ volatile("sti; hlt" : : : "memory");
}

/* .text.hot is what ld puts first. */
__attribute__((section(".text.hot"), used, noreturn)) void _start(void)
{
    __asm__ volatile("cli");
    start();
    for (;;) {
        __asm__ volatile("outb %%al, %%dx" : : "a"(0), "d"(MARK));
        for (uint32_t i = 0; i < COUNT; i++)
            request();
    }
}

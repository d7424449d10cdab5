/* A 16550A UART: the registers and both data paths. Source: TI PC16550D data sheet, section 8.
 *
 *   guest ── THR ──> tx ring (64 KiB) ──> pk_serial_take() ──> terminal, file, capture
 *   guest <── RBR ── rx FIFO (16 bytes) <── pk_serial_give() <── terminal, pipe
 *
 * Bytes leave at once, so THR is empty as long as the ring has room; when the host is slow the
 * guest sees a busy transmitter, as on a real line. Nothing is lost in either direction.
 *
 * Lock order: serial->lock is a leaf; the irqchip is called with it held, so that two vCPUs cannot
 * leave the line in the wrong state.
 */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    REG_DATA = 0, /* RBR/THR; DLL with DLAB */
    REG_IER = 1,  /* DLM with DLAB */
    REG_IIR = 2,  /* read; FCR on write */
    REG_LCR = 3,
    REG_MCR = 4,
    REG_LSR = 5,
    REG_MSR = 6,
    REG_SCR = 7,
};

enum {
    IER_RX = 0x01, /* received data available */
    IER_TX = 0x02, /* transmitter holding register empty */
    IER_MASK = 0x0f,
    IIR_NONE = 0x01,
    IIR_TX = 0x02,
    IIR_RX = 0x04,
    IIR_FIFO = 0xc0,
    FCR_ENABLE = 0x01,
    FCR_CLEAR_RX = 0x02,
    LCR_DLAB = 0x80,
    MCR_MASK = 0x1f,
    MCR_LOOP = 0x10,
    LSR_RX = 0x01,
    LSR_TX_EMPTY = 0x60,  /* THRE and TEMT */
    MSR_CONNECTED = 0xb0, /* DCD, DSR, CTS: somebody listens */
    RX_SIZE = 16,         /* the chip's FIFO */
    TX_SIZE = 1 << 16,    /* ours */
    POLLS_THAT_ASK = 16,  /* LSR reads in a row after which the guest is taken to wait for us */
};

struct pk_serial {
    pthread_mutex_t lock;
    int vm_fd;
    uint32_t gsi;
    int event_fd; /* the tx ring was empty and is not any more */
    int input_fd; /* the guest began to want input */
    int line;     /* level last given to the irqchip */

    uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
    uint8_t tx_irq; /* the THRE interrupt is pending: set when THR empties, cleared by IIR or THR */
    uint8_t polls;  /* LSR reads, with the transmitter idle, since the last byte was sent */

    uint8_t rx[RX_SIZE];
    uint32_t rx_head, rx_count;
    uint32_t tx_head, tx_count;
    uint8_t tx[TX_SIZE]; /* the last, for it is not cleared */
};

static void signal_event(int fd)
{
    uint64_t one = 1;
    /* It can fail only when the counter is full: then it is readable already. */
    ssize_t result = write(fd, &one, sizeof(one));
    (void)result;
}

static uint8_t interrupt_id(const struct pk_serial *s)
{
    if ((s->ier & IER_RX) && s->rx_count > 0)
        return IIR_RX;
    if ((s->ier & IER_TX) && s->tx_irq)
        return IIR_TX;
    return IIR_NONE;
}

static void set_line(struct pk_serial *s, int level)
{
    if (s->line == level)
        return;
    s->line = level;
    if (s->vm_fd >= 0)
        pk_vm_irq_line(s->vm_fd, s->gsi, level);
}

static void update_line(struct pk_serial *s)
{
    set_line(s, interrupt_id(s) != IIR_NONE);
}

/* Whether input given now would be read. A driver that opens the port clears the FIFO first, so
 * bytes piped into a guest that is still booting would be lost: they wait until the guest enables
 * the receive interrupt, or polls. */
static int wants_input(const struct pk_serial *s)
{
    return s->rx_count < RX_SIZE && ((s->ier & IER_RX) || s->polls >= POLLS_THAT_ASK) &&
           !(s->mcr & MCR_LOOP);
}

static void rx_push(struct pk_serial *s, uint8_t byte)
{
    if (s->rx_count == RX_SIZE)
        return;
    s->rx[(s->rx_head + s->rx_count++) % RX_SIZE] = byte;
}

static uint8_t rx_pop(struct pk_serial *s)
{
    if (s->rx_count == 0)
        return 0;
    uint8_t byte = s->rx[s->rx_head];
    s->rx_head = (s->rx_head + 1) % RX_SIZE;
    s->rx_count--;
    return byte;
}

static int write_data(struct pk_serial *s, uint8_t byte)
{
    if (s->mcr & MCR_LOOP) {
        rx_push(s, byte);
    } else {
        if (s->tx_count == TX_SIZE)
            return 0;
        if (s->tx_count == 0)
            signal_event(s->event_fd);
        s->tx[(s->tx_head + s->tx_count++) % TX_SIZE] = byte;
    }
    s->polls = 0;
    /* THR fills and empties again: an edge, also for a driver that never reads IIR. */
    s->tx_irq = 0;
    update_line(s);
    s->tx_irq = s->tx_count < TX_SIZE;
    return 1;
}

static void write_ier(struct pk_serial *s, uint8_t byte)
{
    uint8_t before = s->ier;
    s->ier = byte & IER_MASK;
    if (!(before & IER_TX) && (s->ier & IER_TX) && s->tx_count < TX_SIZE)
        s->tx_irq = 1;
}

static int write_register(struct pk_serial *s, uint32_t reg, uint8_t byte)
{
    int dlab = s->lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        if (!dlab)
            return write_data(s, byte);
        s->dll = byte;
        break;
    case REG_IER:
        if (dlab)
            s->dlm = byte;
        else
            write_ier(s, byte);
        break;
    case REG_IIR:
        s->fcr = byte & FCR_ENABLE;
        if (byte & FCR_CLEAR_RX)
            s->rx_count = 0;
        break;
    case REG_LCR:
        s->lcr = byte;
        break;
    case REG_MCR:
        s->mcr = byte & MCR_MASK;
        break;
    case REG_SCR:
        s->scr = byte;
        break;
    default: /* LSR and MSR are read-only */
        break;
    }
    return 1;
}

static uint8_t read_lsr(struct pk_serial *s)
{
    uint8_t lsr = s->rx_count > 0 ? LSR_RX : 0;
    if (s->tx_count == TX_SIZE)
        return lsr; /* the guest waits to send: no question for input */
    if (s->polls < POLLS_THAT_ASK)
        s->polls++;
    return lsr | LSR_TX_EMPTY;
}

static uint8_t read_msr(const struct pk_serial *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_CONNECTED;
    /* Loopback wires the modem outputs to the inputs: DTR RTS OUT1 OUT2 to DSR CTS RI DCD. */
    uint8_t mcr = s->mcr;
    return (uint8_t)((mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4);
}

static uint8_t read_register(struct pk_serial *s, uint32_t reg)
{
    int dlab = s->lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        if (dlab)
            return s->dll;
        return rx_pop(s);
    case REG_IER:
        return dlab ? s->dlm : s->ier;
    case REG_IIR: {
        uint8_t id = interrupt_id(s);
        if (id == IIR_TX)
            s->tx_irq = 0;
        return (uint8_t)(id | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0));
    }
    case REG_LCR:
        return s->lcr;
    case REG_MCR:
        return s->mcr;
    case REG_LSR:
        return read_lsr(s);
    case REG_MSR:
        return read_msr(s);
    default:
        return s->scr;
    }
}

int pk_serial_access(struct pk_serial *s, uint32_t reg, int is_write, uint8_t *value)
{
    int served = 1;

    pthread_mutex_lock(&s->lock);
    int wanted = wants_input(s);
    if (is_write)
        served = write_register(s, reg & 7, *value);
    else
        *value = read_register(s, reg & 7);
    update_line(s);
    if (!wanted && wants_input(s))
        signal_event(s->input_fd);
    pthread_mutex_unlock(&s->lock);
    return served;
}

static int bus_access(void *device, uint64_t offset, uint32_t size, int is_write, uint64_t *value)
{
    if (size != 1) /* two registers at once: rare, Python takes it apart */
        return 0;
    uint8_t byte = (uint8_t)*value;
    int served = pk_serial_access(device, (uint32_t)offset, is_write, &byte);
    *value = byte;
    return served;
}

int pk_serial_create(struct pk_bus *bus, uint64_t base, int vm_fd, uint32_t gsi,
                     struct pk_serial **ret)
{
    struct pk_serial *s = malloc(sizeof(*s));
    if (s == NULL)
        return -ENOMEM;
    memset(s, 0, offsetof(struct pk_serial, tx));
    pthread_mutex_init(&s->lock, NULL);
    s->vm_fd = vm_fd;
    s->gsi = gsi;
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->input_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int result = s->event_fd < 0 || s->input_fd < 0 ? -errno : 0;
    if (result == 0)
        result = pk_bus_add(bus, PK_PIO, base, 8, bus_access, s);
    if (result < 0) {
        pk_serial_destroy(s);
        return result;
    }
    pk_serial_reset(s);
    *ret = s;
    return 0;
}

void pk_serial_destroy(struct pk_serial *s)
{
    if (s->event_fd >= 0)
        close(s->event_fd);
    if (s->input_fd >= 0)
        close(s->input_fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int pk_serial_event_fd(const struct pk_serial *s)
{
    return s->event_fd;
}

int pk_serial_input_fd(const struct pk_serial *s)
{
    return s->input_fd;
}

int pk_serial_take(struct pk_serial *s, uint8_t *buf, uint32_t size)
{
    uint32_t count = 0;

    pthread_mutex_lock(&s->lock);
    int was_full = s->tx_count == TX_SIZE;
    while (count < size && s->tx_count > 0) {
        buf[count++] = s->tx[s->tx_head];
        s->tx_head = (s->tx_head + 1) % TX_SIZE;
        s->tx_count--;
    }
    if (was_full && count > 0)
        s->tx_irq = 1;
    update_line(s);
    pthread_mutex_unlock(&s->lock);
    return (int)count;
}

int pk_serial_give(struct pk_serial *s, const uint8_t *buf, uint32_t size)
{
    uint32_t count = 0;

    pthread_mutex_lock(&s->lock);
    while (count < size && wants_input(s))
        rx_push(s, buf[count++]);
    update_line(s);
    pthread_mutex_unlock(&s->lock);
    return (int)count;
}

void pk_serial_reset(struct pk_serial *s)
{
    pthread_mutex_lock(&s->lock);
    s->ier = s->mcr = s->scr = s->fcr = s->dlm = s->tx_irq = s->polls = 0;
    s->lcr = 0x03; /* 8n1 */
    s->dll = 1;    /* 115200 baud */
    s->rx_count = 0;
    set_line(s, 0);
    pthread_mutex_unlock(&s->lock);
}

/* State: the seven registers, two latches, the FIFO's count and bytes. The tx ring is not part of
 * it: the host takes what is in there before it saves. */
void pk_serial_save(struct pk_serial *s, uint8_t *buf)
{
    pthread_mutex_lock(&s->lock);
    const uint8_t regs[] = {s->ier, s->lcr, s->mcr,    s->scr,   s->fcr,
                            s->dll, s->dlm, s->tx_irq, s->polls, (uint8_t)s->rx_count};
    memset(buf, 0, PK_SERIAL_STATE_SIZE);
    memcpy(buf, regs, sizeof(regs));
    for (uint32_t i = 0; i < s->rx_count; i++)
        buf[sizeof(regs) + i] = s->rx[(s->rx_head + i) % RX_SIZE];
    pthread_mutex_unlock(&s->lock);
}

void pk_serial_load(struct pk_serial *s, const uint8_t *buf)
{
    pthread_mutex_lock(&s->lock);
    s->ier = buf[0] & IER_MASK;
    s->lcr = buf[1];
    s->mcr = buf[2] & MCR_MASK;
    s->scr = buf[3];
    s->fcr = buf[4] & FCR_ENABLE;
    s->dll = buf[5];
    s->dlm = buf[6];
    s->tx_irq = buf[7] & 1;
    s->polls = buf[8] <= POLLS_THAT_ASK ? buf[8] : POLLS_THAT_ASK;
    s->rx_head = 0;
    s->rx_count = buf[9] <= RX_SIZE ? buf[9] : RX_SIZE;
    memcpy(s->rx, buf + 10, RX_SIZE);
    update_line(s);
    if (wants_input(s))
        signal_event(s->input_fd);
    pthread_mutex_unlock(&s->lock);
}

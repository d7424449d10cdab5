/* What the tests of the UART share: its registers by the data sheet's names, and an irqchip that
 * remembers. Source of the names: TI PC16550D data sheet, section 8.
 */
#ifndef UART_H
#define UART_H

#include "core.h"

#include "check.h"

#define BASE 0x3f8u
#define GSI  4u

enum { RBR = 0, THR = 0, DLL = 0, IER = 1, DLM = 1, IIR = 2, FCR = 2, LCR = 3 };
enum { MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

enum {
    RX_FIFO = 16,        /* bytes in the chip's receive FIFO */
    TX_RING = 65536,     /* bytes the host may be late by */
    POLLS_THAT_ASK = 16, /* reads of LSR after which the guest is given input unasked */
    IER_RDA = 0x01,      /* received data available */
    IER_THRE = 0x02,     /* transmitter holding register empty */
    IIR_NONE = 0x01,     /* no interrupt pending */
    IIR_THRE = 0x02,
    IIR_RDA = 0x04,
    LSR_DR = 0x01,        /* data ready */
    LSR_THRE_TEMT = 0x60, /* transmitter empty */
    MCR_LOOP = 0x10,
    LCR_DLAB = 0x80,
};

/* In place of vm.c: the level of the line and how often it rose. */
static int line_level;
static uint32_t line_rises;

int pk_vm_irq_line(int vm_fd, uint32_t gsi, int level)
{
    CHECK_EQ(vm_fd, 0);
    CHECK_EQ(gsi, GSI);
    CHECK(level != line_level); /* KVM is called for changes only */
    line_level = level;
    line_rises += level != 0;
    return 0;
}

static struct pk_bus *bus;
static struct pk_serial *uart;

static void setup(void)
{
    line_level = 0;
    line_rises = 0;
    bus = pk_bus_create();
    CHECK(bus != NULL);
    CHECK_EQ(pk_serial_create(bus, BASE, 0, GSI, &uart), 0);
}

static void teardown(void)
{
    pk_serial_destroy(uart);
    pk_bus_destroy(bus);
}

/* As a vCPU does it, through the bus. Returns 0 when the access is left to Python. */
static int try_out(uint32_t reg, uint8_t byte)
{
    uint64_t value = byte;
    return pk_bus_access(bus, PK_PIO, BASE + reg, 1, 1, &value);
}

static void out(uint32_t reg, uint8_t byte)
{
    CHECK_EQ(try_out(reg, byte), 1);
}

static uint8_t in(uint32_t reg)
{
    uint64_t value = UINT64_MAX;
    CHECK_EQ(pk_bus_access(bus, PK_PIO, BASE + reg, 1, 0, &value), 1);
    CHECK(value <= 0xff);
    return (uint8_t)value;
}

#endif

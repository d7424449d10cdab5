/* The UART's registers, its two data paths and its interrupt line, as a guest and the host see
 * them. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "uart.h"

static int readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

static void clear(int fd)
{
    uint64_t count;
    CHECK_EQ(read(fd, &count, sizeof(count)), sizeof(count));
}

/* Let the guest want input, and give it. */
static void give(const char *text)
{
    size_t len = strlen(text);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)text, (uint32_t)len), len);
}

/* ── registers ──────────────────────────────────────────────────────────────────────────────── */

static void a_new_uart_is_idle_at_115200_8n1(void)
{
    setup();
    CHECK_EQ(in(IER), 0);
    CHECK_EQ(in(IIR), IIR_NONE);
    CHECK_EQ(in(LCR), 0x03);
    CHECK_EQ(in(MCR), 0);
    CHECK_EQ(in(LSR), LSR_THRE_TEMT);
    CHECK_EQ(in(SCR), 0);
    CHECK_EQ(in(RBR), 0);
    out(LCR, LCR_DLAB);
    CHECK_EQ(in(DLL), 1);
    CHECK_EQ(in(DLM), 0);
    teardown();
}

static void ier_keeps_its_four_bits(void)
{
    setup();
    out(IER, 0xff);
    CHECK_EQ(in(IER), 0x0f);
    teardown();
}

static void scratch_lcr_and_mcr_keep_what_is_written(void)
{
    setup();
    for (uint32_t value = 0; value < 0x100; value++) {
        out(SCR, (uint8_t)value);
        out(LCR, (uint8_t)value);
        out(MCR, (uint8_t)value);
        CHECK_EQ(in(SCR), value);
        CHECK_EQ(in(LCR), value);
        CHECK_EQ(in(MCR), value & 0x1f);
    }
    teardown();
}

static void the_divisor_hides_behind_dlab(void)
{
    setup();
    out(IER, 0x05);
    out(LCR, LCR_DLAB | 0x03);
    out(DLL, 0x0c);
    out(DLM, 0x34);
    CHECK_EQ(in(DLL), 0x0c);
    CHECK_EQ(in(DLM), 0x34);
    out(LCR, 0x03);
    CHECK_EQ(in(IER), 0x05);
    CHECK_EQ(in(RBR), 0);
    uint8_t byte;
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 0); /* the divisor was not sent */
    teardown();
}

static void iir_tells_whether_the_fifo_is_enabled(void)
{
    setup();
    CHECK_EQ(in(IIR)&0xc0, 0x00);
    out(FCR, 0x01);
    CHECK_EQ(in(IIR)&0xc0, 0xc0);
    out(FCR, 0x00);
    CHECK_EQ(in(IIR)&0xc0, 0x00);
    teardown();
}

static void status_registers_ignore_writes(void)
{
    setup();
    out(LSR, 0x00);
    out(MSR, 0x00);
    CHECK_EQ(in(LSR), LSR_THRE_TEMT);
    CHECK_EQ(in(MSR), 0xb0); /* DCD, DSR, CTS */
    teardown();
}

/* Linux drivers/tty/serial/8250/8250_port.c, autoconfig(): what makes it believe in a UART. */
static void linux_autoconfig_finds_a_16550a(void)
{
    setup();
    uint8_t ier = in(IER);
    out(IER, 0x00);
    CHECK_EQ(in(IER)&0x0f, 0x00);
    out(IER, 0x0f);
    CHECK_EQ(in(IER)&0x0f, 0x0f);
    out(IER, ier);
    uint8_t mcr = in(MCR);
    out(MCR, MCR_LOOP | 0x0a); /* OUT2 and RTS */
    CHECK_EQ(in(MSR)&0xf0, 0x90);
    out(MCR, mcr);
    out(LCR, 0xbf); /* neither a 16650 nor a 16850: EFR is not there */
    out(FCR, 0x00);
    out(LCR, 0x00);
    out(FCR, 0x01);
    CHECK_EQ(in(IIR) >> 6, 3); /* 16550A */
    out(FCR, 0x21);            /* not a 16750: no 64-byte FIFO */
    CHECK_EQ(in(IIR) >> 5, 6);
    out(IER, 0x40); /* not an XScale: UUE does not stick */
    CHECK_EQ(in(IER)&0x40, 0);
    teardown();
}

/* The same file, serial8250_do_startup(): a UART whose THRE interrupt comes only once has a bug. */
static void linux_startup_finds_no_thre_bug(void)
{
    setup();
    out(IER, IER_THRE);
    CHECK_EQ(in(IIR)&0x0f, IIR_THRE);
    out(IER, 0);
    out(IER, IER_THRE);
    CHECK_EQ(in(IIR)&0x0f, IIR_THRE);
    out(IER, 0);
    CHECK_EQ(in(IIR)&0x0f, IIR_NONE);
    teardown();
}

static void loopback_wires_each_modem_output_to_its_input(void)
{
    static const struct {
        uint8_t mcr, msr;
    } wires[] = {
        {0x01, 0x20}, /* DTR to DSR */
        {0x02, 0x10}, /* RTS to CTS */
        {0x04, 0x40}, /* OUT1 to RI */
        {0x08, 0x80}, /* OUT2 to DCD */
    };
    setup();
    out(MCR, MCR_LOOP);
    CHECK_EQ(in(MSR), 0);
    for (size_t i = 0; i < sizeof(wires) / sizeof(wires[0]); i++) {
        out(MCR, MCR_LOOP | wires[i].mcr);
        CHECK_EQ(in(MSR), wires[i].msr);
    }
    teardown();
}

static void loopback_sends_the_byte_back_and_not_out(void)
{
    setup();
    out(MCR, MCR_LOOP);
    out(THR, 'x');
    CHECK_EQ(in(LSR)&LSR_DR, LSR_DR);
    CHECK_EQ(in(RBR), 'x');
    CHECK_EQ(in(LSR)&LSR_DR, 0);
    uint8_t byte;
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 0);
    teardown();
}

static void loopback_into_a_full_fifo_drops_the_byte(void)
{
    setup();
    out(MCR, MCR_LOOP);
    for (uint8_t i = 0; i <= RX_FIFO; i++)
        out(THR, i);
    for (uint8_t i = 0; i < RX_FIFO; i++)
        CHECK_EQ(in(RBR), i);
    CHECK_EQ(in(LSR)&LSR_DR, 0);
    teardown();
}

static void an_access_wider_than_a_byte_is_left_to_python(void)
{
    setup();
    uint64_t value = 0x4142;
    CHECK_EQ(pk_bus_access(bus, PK_PIO, BASE, 2, 1, &value), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, BASE + LSR, 2, 0, &value), 0);
    CHECK_EQ(value, 0x4142);
    uint8_t byte;
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 0);
    teardown();
}

static void registers_beyond_the_last_are_the_first_again(void)
{
    setup();
    uint8_t byte = 0x77;
    CHECK_EQ(pk_serial_access(uart, 8 + SCR, 1, &byte), 1);
    CHECK_EQ(in(SCR), 0x77);
    teardown();
}

/* ── output ─────────────────────────────────────────────────────────────────────────────────── */

static void bytes_come_out_in_the_order_they_were_sent(void)
{
    setup();
    for (const char *text = "hello"; *text; text++)
        out(THR, (uint8_t)*text);
    uint8_t buf[8];
    CHECK_EQ(pk_serial_take(uart, buf, 3), 3);
    CHECK_EQ(pk_serial_take(uart, buf + 3, 5), 2);
    CHECK(memcmp(buf, "hello", 5) == 0);
    CHECK_EQ(pk_serial_take(uart, buf, 8), 0);
    teardown();
}

static void the_event_tells_that_the_ring_is_no_longer_empty(void)
{
    setup();
    int fd = pk_serial_event_fd(uart);
    uint8_t byte;
    CHECK(!readable(fd));
    out(THR, 'a');
    CHECK(readable(fd));
    clear(fd);
    out(THR, 'b'); /* the host has not taken 'a' yet, so it is on its way */
    CHECK(!readable(fd));
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 1);
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 1);
    out(THR, 'c');
    CHECK(readable(fd));
    teardown();
}

static void fill(void)
{
    for (uint32_t i = 0; i < TX_RING; i++)
        out(THR, (uint8_t)i);
}

static void a_full_ring_looks_busy_and_leaves_the_write_to_the_caller(void)
{
    setup();
    fill();
    CHECK_EQ(in(LSR)&LSR_THRE_TEMT, 0);
    CHECK_EQ(try_out(THR, 0xee), 0);
    uint8_t byte = 0xee;
    CHECK_EQ(pk_serial_access(uart, THR, 1, &byte), 0);
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 1);
    CHECK_EQ(byte, 0);
    CHECK_EQ(in(LSR)&LSR_THRE_TEMT, LSR_THRE_TEMT);
    out(THR, 0xee);
    uint8_t buf[TX_RING];
    CHECK_EQ(pk_serial_take(uart, buf, sizeof(buf)), TX_RING);
    CHECK_EQ(buf[0], 1);
    CHECK_EQ(buf[TX_RING - 1], 0xee); /* nothing was lost, nothing doubled */
    teardown();
}

static void a_full_ring_holds_back_the_thre_interrupt_until_there_is_room(void)
{
    setup();
    fill();
    CHECK_EQ(line_level, 0);
    out(IER, IER_THRE);
    CHECK_EQ(line_level, 0);
    uint8_t byte;
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 1);
    CHECK_EQ(line_level, 1);
    CHECK_EQ(in(IIR)&0x0f, IIR_THRE);
    teardown();
}

static void waiting_for_a_busy_transmitter_does_not_ask_for_input(void)
{
    setup();
    fill();
    for (int i = 0; i < 2 * POLLS_THAT_ASK; i++)
        in(LSR);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"x", 1), 0);
    teardown();
}

/* ── interrupts ─────────────────────────────────────────────────────────────────────────────── */

static void enabling_the_thre_interrupt_raises_it_at_once(void)
{
    setup();
    CHECK_EQ(line_level, 0);
    out(IER, IER_THRE);
    CHECK_EQ(line_level, 1);
    CHECK_EQ(in(IIR), IIR_THRE);
    CHECK_EQ(line_level, 0); /* reading IIR acknowledged it */
    CHECK_EQ(in(IIR), IIR_NONE);
    teardown();
}

static void enabling_what_is_enabled_raises_nothing(void)
{
    setup();
    out(IER, IER_THRE);
    in(IIR);
    out(IER, IER_THRE);
    CHECK_EQ(line_level, 0);
    teardown();
}

static void every_byte_sent_is_an_edge_of_the_thre_interrupt(void)
{
    setup();
    out(IER, IER_THRE);
    CHECK_EQ(line_rises, 1);
    out(THR, 'a'); /* without reading IIR in between */
    CHECK_EQ(line_level, 1);
    CHECK_EQ(line_rises, 2);
    out(THR, 'b');
    CHECK_EQ(line_rises, 3);
    teardown();
}

static void disabling_interrupts_lowers_the_line(void)
{
    setup();
    out(IER, IER_THRE);
    out(IER, 0);
    CHECK_EQ(line_level, 0);
    teardown();
}

static void received_data_interrupts_until_it_is_read(void)
{
    setup();
    out(IER, IER_RDA);
    give("ab");
    CHECK_EQ(line_level, 1);
    CHECK_EQ(in(IIR), IIR_RDA);
    CHECK_EQ(line_level, 1); /* IIR does not acknowledge this one */
    CHECK_EQ(in(RBR), 'a');
    CHECK_EQ(line_level, 1);
    CHECK_EQ(in(RBR), 'b');
    CHECK_EQ(line_level, 0);
    CHECK_EQ(in(IIR), IIR_NONE);
    teardown();
}

static void received_data_comes_before_the_empty_transmitter(void)
{
    setup();
    out(IER, IER_RDA | IER_THRE);
    give("a");
    CHECK_EQ(in(IIR), IIR_RDA);
    in(RBR);
    CHECK_EQ(in(IIR), IIR_THRE);
    CHECK_EQ(in(IIR), IIR_NONE);
    teardown();
}

static void a_uart_without_a_vm_interrupts_nobody(void)
{
    setup();
    struct pk_serial *silent;
    CHECK_EQ(pk_serial_create(bus, 0x2f8, -1, 3, &silent), 0);
    uint8_t byte = IER_THRE;
    CHECK_EQ(pk_serial_access(silent, IER, 1, &byte), 1);
    CHECK_EQ(line_level, 0);
    pk_serial_destroy(silent);
    teardown();
}

/* ── input ──────────────────────────────────────────────────────────────────────────────────── */

static void input_waits_until_the_guest_enables_the_receive_interrupt(void)
{
    setup();
    int fd = pk_serial_input_fd(uart);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"early", 5), 0);
    CHECK(!readable(fd));
    out(IER, IER_RDA);
    CHECK(readable(fd));
    give("early");
    for (const char *text = "early"; *text; text++)
        CHECK_EQ(in(RBR), *text);
    teardown();
}

static void input_also_comes_to_a_guest_that_polls(void)
{
    setup();
    int fd = pk_serial_input_fd(uart);
    for (int i = 1; i < POLLS_THAT_ASK; i++)
        in(LSR);
    CHECK(!readable(fd));
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"x", 1), 0);
    in(LSR);
    CHECK(readable(fd));
    give("x");
    CHECK_EQ(in(LSR)&LSR_DR, LSR_DR);
    CHECK_EQ(in(RBR), 'x');
    give("y"); /* it need not ask again for every byte */
    teardown();
}

static void a_guest_that_prints_by_polling_is_not_asking_for_input(void)
{
    setup();
    for (int i = 0; i < 4 * POLLS_THAT_ASK; i++) {
        in(LSR);
        out(THR, '.');
    }
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"x", 1), 0);
    teardown();
}

static void the_fifo_takes_sixteen_bytes_and_asks_again_when_there_is_room(void)
{
    setup();
    int fd = pk_serial_input_fd(uart);
    out(IER, IER_RDA);
    clear(fd);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"0123456789abcdefgh", 18), RX_FIFO);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"gh", 2), 0);
    CHECK(!readable(fd));
    CHECK_EQ(in(RBR), '0');
    CHECK(readable(fd));
    give("g");
    teardown();
}

static void clearing_the_fifo_drops_its_bytes_and_the_interrupt(void)
{
    setup();
    out(IER, IER_RDA);
    give("abc");
    out(FCR, 0x03);
    CHECK_EQ(line_level, 0);
    CHECK_EQ(in(LSR)&LSR_DR, 0);
    CHECK_EQ(in(RBR), 0);
    give("d");
    CHECK_EQ(in(RBR), 'd');
    teardown();
}

static void no_input_comes_in_loopback(void)
{
    setup();
    out(IER, IER_RDA);
    out(MCR, MCR_LOOP);
    CHECK_EQ(pk_serial_give(uart, (const uint8_t *)"x", 1), 0);
    out(MCR, 0);
    give("x");
    teardown();
}

/* ── reset and state ────────────────────────────────────────────────────────────────────────── */

static void reset_forgets_registers_and_input_but_keeps_output(void)
{
    setup();
    out(THR, 'o');
    out(IER, IER_RDA | IER_THRE);
    out(SCR, 0x11);
    out(LCR, LCR_DLAB);
    out(DLM, 0x22);
    give("i");
    CHECK_EQ(line_level, 1);
    pk_serial_reset(uart);
    CHECK_EQ(line_level, 0);
    CHECK_EQ(in(LCR), 0x03);
    CHECK_EQ(in(IER), 0);
    CHECK_EQ(in(SCR), 0);
    CHECK_EQ(in(LSR), LSR_THRE_TEMT);
    uint8_t byte;
    CHECK_EQ(pk_serial_take(uart, &byte, 1), 1);
    CHECK_EQ(byte, 'o');
    teardown();
}

static void saved_state_makes_the_same_uart_again(void)
{
    uint8_t state[PK_SERIAL_STATE_SIZE], again[PK_SERIAL_STATE_SIZE];
    setup();
    out(LCR, LCR_DLAB);
    out(DLL, 0x0c);
    out(DLM, 0x01);
    out(LCR, 0x1b);
    out(FCR, 0x01);
    out(SCR, 0x5a);
    out(MCR, 0x0b);
    out(IER, IER_RDA | IER_THRE);
    give("0123456789"); /* so that the FIFO's ring has wrapped around below */
    for (int i = 0; i < 10; i++)
        in(RBR);
    give("abcdefghijkl");
    pk_serial_save(uart, state);
    teardown();

    setup();
    pk_serial_load(uart, state);
    CHECK_EQ(line_level, 1);
    pk_serial_save(uart, again);
    CHECK(memcmp(state, again, sizeof(state)) == 0);
    for (const char *text = "abcdefghijkl"; *text; text++)
        CHECK_EQ(in(RBR), *text);
    CHECK_EQ(in(IIR), 0xc0 | IIR_THRE);
    CHECK_EQ(in(IER), IER_RDA | IER_THRE);
    CHECK_EQ(in(LCR), 0x1b);
    CHECK_EQ(in(MCR), 0x0b);
    CHECK_EQ(in(SCR), 0x5a);
    out(LCR, LCR_DLAB);
    CHECK_EQ(in(DLL), 0x0c);
    CHECK_EQ(in(DLM), 0x01);
    teardown();
}

static void a_loaded_uart_that_wants_input_says_so(void)
{
    uint8_t state[PK_SERIAL_STATE_SIZE];
    setup();
    out(IER, IER_RDA);
    pk_serial_save(uart, state);
    teardown();

    setup();
    pk_serial_load(uart, state);
    CHECK(readable(pk_serial_input_fd(uart)));
    teardown();
}

static void damaged_state_is_cut_to_what_fits(void)
{
    uint8_t state[PK_SERIAL_STATE_SIZE];
    memset(state, 0xff, sizeof(state));
    setup();
    pk_serial_load(uart, state);
    out(LCR, 0x03);
    CHECK_EQ(in(IER), 0x0f);
    CHECK_EQ(in(MCR), 0x1f);
    for (int i = 0; i < RX_FIFO; i++)
        CHECK_EQ(in(RBR), 0xff);
    CHECK_EQ(in(LSR)&LSR_DR, 0);
    teardown();
}

static void a_uart_that_does_not_fit_the_bus_is_refused_without_leaking(void)
{
    setup();
    struct pk_serial *extra[64];
    int count = 0, result = 0;
    while (count < 64 && (result = pk_serial_create(bus, 0x1000, -1, 0, &extra[count])) == 0)
        count++;
    CHECK_EQ(result, -ENOSPC);
    while (count > 0)
        pk_serial_destroy(extra[--count]);
    teardown();
}

int main(void)
{
    RUN(a_new_uart_is_idle_at_115200_8n1);
    RUN(ier_keeps_its_four_bits);
    RUN(scratch_lcr_and_mcr_keep_what_is_written);
    RUN(the_divisor_hides_behind_dlab);
    RUN(iir_tells_whether_the_fifo_is_enabled);
    RUN(status_registers_ignore_writes);
    RUN(linux_autoconfig_finds_a_16550a);
    RUN(linux_startup_finds_no_thre_bug);
    RUN(loopback_wires_each_modem_output_to_its_input);
    RUN(loopback_sends_the_byte_back_and_not_out);
    RUN(loopback_into_a_full_fifo_drops_the_byte);
    RUN(an_access_wider_than_a_byte_is_left_to_python);
    RUN(registers_beyond_the_last_are_the_first_again);
    RUN(bytes_come_out_in_the_order_they_were_sent);
    RUN(the_event_tells_that_the_ring_is_no_longer_empty);
    RUN(a_full_ring_looks_busy_and_leaves_the_write_to_the_caller);
    RUN(a_full_ring_holds_back_the_thre_interrupt_until_there_is_room);
    RUN(waiting_for_a_busy_transmitter_does_not_ask_for_input);
    RUN(enabling_the_thre_interrupt_raises_it_at_once);
    RUN(enabling_what_is_enabled_raises_nothing);
    RUN(every_byte_sent_is_an_edge_of_the_thre_interrupt);
    RUN(disabling_interrupts_lowers_the_line);
    RUN(received_data_interrupts_until_it_is_read);
    RUN(received_data_comes_before_the_empty_transmitter);
    RUN(a_uart_without_a_vm_interrupts_nobody);
    RUN(input_waits_until_the_guest_enables_the_receive_interrupt);
    RUN(input_also_comes_to_a_guest_that_polls);
    RUN(a_guest_that_prints_by_polling_is_not_asking_for_input);
    RUN(the_fifo_takes_sixteen_bytes_and_asks_again_when_there_is_room);
    RUN(clearing_the_fifo_drops_its_bytes_and_the_interrupt);
    RUN(no_input_comes_in_loopback);
    RUN(reset_forgets_registers_and_input_but_keeps_output);
    RUN(saved_state_makes_the_same_uart_again);
    RUN(a_loaded_uart_that_wants_input_says_so);
    RUN(damaged_state_is_cut_to_what_fits);
    RUN(a_uart_that_does_not_fit_the_bus_is_refused_without_leaking);
    return 0;
}

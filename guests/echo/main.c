/* Serial input by interrupt: what you type comes back in capitals. Ctrl-D, or a line that says
 * "quit", ends it.
 *
 *     pykvm boot pykvm/guests/echo
 *
 * The 16550A raises IRQ 4 when a byte has come in; between bytes this guest sleeps in HLT.
 */
#include "interrupts.h"

#define IRQ_COM1 4

/* 16550A registers, as offsets, and the bits used of them. */
#define DATA             0
#define INTERRUPT_ENABLE 1
#define ENABLE_RECEIVED  1
#define MODEM_CONTROL    4
#define MODEM_OUT2       8 /* on a PC: lets the interrupt through to the PIC */
#define LINE_STATUS      5
#define LINE_DATA_READY  1

#define CTRL_D 4

static volatile int done;
static char line[8]; /* what matters of it: whether it is "quit" */
static size_t len;

static void take(char c)
{
    if (c == '\r')
        c = '\n'; /* Enter, from a terminal in raw mode */
    if (c == CTRL_D || (c == '\n' && len == 4 && *(const uint32_t *)line == 0x74697571))
        done = 1; /* "quit", read as a number */
    if (c == '\n')
        len = 0;
    else if (len < sizeof(line))
        line[len++] = c;
    if (c >= 'a' && c <= 'z')
        c = (char)(c - 'a' + 'A');
    if (c != CTRL_D)
        put(&c, 1);
}

HANDLER received(struct frame *frame)
{
    (void)frame;
    while (inb(PORT_COM1 + LINE_STATUS) & LINE_DATA_READY)
        take((char)inb(PORT_COM1 + DATA));
    pic_done();
}

int main(void)
{
    on_interrupt(IRQ_VECTOR(IRQ_COM1), received, 0);
    load_idt();
    lapic_enable();
    pic_enable(IRQ_COM1);
    outb(PORT_COM1 + MODEM_CONTROL, MODEM_OUT2);
    outb(PORT_COM1 + INTERRUPT_ENABLE, ENABLE_RECEIVED);

    say("type: it comes back in capitals; \"quit\" or Ctrl-D ends\n");
    while (!done)
        wait_for_interrupt();
    return failures;
}

/* Timer interrupts: ten ticks of the PIT through the PIC, ten of the local APIC's own timer.
 *
 *     pykvm boot pykvm/guests/timer --append ticks=10
 *
 * A program that waits by HLT costs nothing until an interrupt wakes it: KVM takes the vCPU off
 * its processor. Both timers, and both interrupt controllers, are KVM's; no exit reaches pykvm
 * for them. The verdict: all ticks came (if not, this guest sleeps until the host's time-out).
 */
#include <asm/bootparam.h>

#include "interrupts.h"

#define PIT_CHANNEL_0 0x40
#define PIT_COMMAND   0x43
#define PIT_HZ        1193182

#define LAPIC_VECTOR   0x40
#define TIMER_PERIODIC (1 << 17)

static volatile unsigned long ticks;

HANDLER pit_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    pic_done();
}

HANDLER lapic_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    *lapic(LAPIC_EOI) = 0;
}

static void wait_for(unsigned long wanted)
{
    while (ticks < wanted)
        wait_for_interrupt();
}

int main(const struct boot_params *params)
{
    unsigned long wanted = option((const char *)(uintptr_t)params->hdr.cmd_line_ptr, "ticks", 10);
    unsigned divisor = PIT_HZ / 1000; /* a tick is a millisecond */

    on_interrupt(IRQ_VECTOR(0), pit_tick, 0);
    on_interrupt(LAPIC_VECTOR, lapic_tick, 0);
    load_idt();
    lapic_enable();

    pic_enable(0);
    outb(PIT_COMMAND, 0x34); /* channel 0, low then high byte, mode 2: rate generator */
    outb(PIT_CHANNEL_0, (uint8_t)divisor);
    outb(PIT_CHANNEL_0, (uint8_t)(divisor >> 8));
    wait_for(wanted);
    outb(PIC1 + 1, 0xff);
    say("ok: %lu ticks of the PIT\n", ticks);

    ticks = 0;
    *lapic(LAPIC_TIMER_DIVIDE) = 0xb; /* by 1 */
    *lapic(LAPIC_LVT_TIMER) = TIMER_PERIODIC | LAPIC_VECTOR;
    *lapic(LAPIC_TIMER_COUNT) = 1000000; /* KVM's bus runs at 1 GHz: a millisecond */
    wait_for(wanted);
    *lapic(LAPIC_TIMER_COUNT) = 0;
    say("ok: %lu ticks of the local APIC\n", ticks);
    return failures;
}

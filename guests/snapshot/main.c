/* A guest that knows whether it was restored, or booted anew.
 *
 *     pykvm boot pykvm/guests/snapshot --append 'rounds=5 ask=2' --snapshot DIR
 *     pykvm restore DIR
 *
 * A number drawn at the start is nowhere but in its memory. A timer interrupts it a thousand times
 * a second; a round is so many ticks, and a line. In the round `ask` it asks for a snapshot, as
 * fork(2) does: the answer is 0 in the guest that asked and 1 in one that was restored. With
 * `cpus=1` the other CPUs count meanwhile, and the rounds see to it that they do. `touch=N` writes
 * to N pages in every round. `spoil=N` spoils a word of its memory in the round N, without a word.
 * The verdict: nothing that only grows has ever gone back.
 */
#include <asm/bootparam.h>

#include "interrupts.h"

#define PIT_HZ        1193182u
#define PIT_CHANNEL_0 0x40
#define PIT_COMMAND   0x43

#define START_PAGE     0x8000UL
#define ICR_INIT       0xC4500
#define ICR_STARTUP(p) (0xC4600 | (uint32_t)((p) >> 12))

#define TOUCHED 0x800000UL /* pages written to, from here on */
#define WORD    0x7FF000UL /* what is spoilt */
#define SOUND   0x600Du

extern const uint8_t trampoline[], trampoline_end[];
extern const uint32_t trampoline_counter;

static volatile unsigned long ticks;

HANDLER pit_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    pic_done();
}

static unsigned long long tsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (unsigned long long)high << 32 | low;
}

static void start_timer(void)
{
    unsigned divisor = PIT_HZ / 1000;

    on_interrupt(IRQ_VECTOR(0), pit_tick, 0);
    load_idt();
    lapic_enable();
    pic_enable(0);
    outb(PIT_COMMAND, 0x34); /* channel 0, low then high byte, mode 2: rate generator */
    outb(PIT_CHANNEL_0, (uint8_t)divisor);
    outb(PIT_CHANNEL_0, (uint8_t)(divisor >> 8));
}

static void start_cpus(void)
{
    uint8_t *page = (uint8_t *)START_PAGE;

    for (const uint8_t *from = trampoline; from < trampoline_end;)
        *page++ = *from++;
    *lapic(LAPIC_ICR) = ICR_INIT;
    *lapic(LAPIC_ICR) = ICR_STARTUP(START_PAGE);
}

static void play_round(unsigned long wanted, unsigned long pages)
{
    unsigned long end = ticks + wanted;

    for (unsigned long page = 0; page < pages; page++)
        (*(volatile unsigned long *)(TOUCHED + (page << 12)))++;
    while (ticks < end)
        wait_for_interrupt();
}

int main(const struct boot_params *params)
{
    const char *cmdline = (const char *)(uintptr_t)params->hdr.cmd_line_ptr;
    unsigned long rounds = option(cmdline, "rounds", 5), ask = option(cmdline, "ask", 0);
    unsigned long wanted = option(cmdline, "ticks", 5), pages = option(cmdline, "touch", 0);
    unsigned long cpus = option(cmdline, "cpus", 0), spoil = option(cmdline, "spoil", 0);
    volatile uint32_t *counter = (volatile uint32_t *)(START_PAGE + trampoline_counter);
    unsigned long long nonce = tsc(), now = nonce;
    uint32_t count = 0;

    *(volatile unsigned *)WORD = SOUND;
    start_timer();
    if (cpus)
        start_cpus();
    say("nonce %llx\n", nonce);
    for (unsigned long round = 1; round <= rounds; round++) {
        unsigned long long before = now;

        play_round(wanted, pages);
        if (round == spoil)
            *(volatile unsigned *)WORD = round;
        now = tsc();
        say("round %lu of nonce %llx\n", round, nonce);
        if (now <= before)
            check(0, "the time stamp counter grows");
        /* The host may have been busy elsewhere: a second and a half is enough for anybody. */
        for (unsigned patience = 1500; cpus && *counter == count && patience; patience--)
            wait_for_interrupt();
        if (cpus && *counter == count)
            check(0, "the other CPUs count");
        count = *counter;
        if (round == ask) {
            outb(PORT_SNAPSHOT, 0);
            say("generation %u\n", inb(PORT_SNAPSHOT));
        }
    }
    check(1, "all rounds played");
    return failures;
}

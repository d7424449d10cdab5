/* The UART between threads: two vCPUs send, one host thread takes and gives, all at once. Built a
 * second time with the thread sanitizer, which finds what luck hides.
 */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "uart.h"

#define SENT_EACH 34000u /* more than fits the ring: full and empty are both met */
#define GIVEN     20000u

static void *send_numbered(void *argument)
{
    uint8_t mark = *(uint8_t *)argument;
    for (uint32_t i = 0; i < SENT_EACH; i++)
        while (!try_out(THR, (uint8_t)(mark | (i & 0x7f))))
            sched_yield(); /* full: what Python does is wait */
    return NULL;
}

static void *receive(void *argument)
{
    uint32_t *errors = argument;
    out(IER, IER_RDA);
    for (uint32_t i = 0; i < GIVEN; i++) {
        while (!(in(LSR)&LSR_DR))
            sched_yield();
        if (in(RBR) != (uint8_t)i)
            ++*errors;
    }
    return NULL;
}

static void nothing_is_lost_doubled_or_reordered_between_threads(void)
{
    setup();
    uint8_t marks[] = {0x00, 0x80};
    uint32_t errors = 0, next[2] = {0, 0}, taken = 0, given = 0;
    pthread_t senders[2], receiver;
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&senders[i], NULL, send_numbered, &marks[i]), 0);
    CHECK_EQ(pthread_create(&receiver, NULL, receive, &errors), 0);

    while (taken < 2 * SENT_EACH || given < GIVEN) {
        uint8_t buf[4096];
        int count = pk_serial_take(uart, buf, sizeof(buf));
        for (int i = 0; i < count; i++)
            CHECK_EQ(buf[i] & 0x7f, next[buf[i] >> 7]++ & 0x7f);
        taken += (uint32_t)count;
        uint32_t size = GIVEN - given < 7 ? GIVEN - given : 7;
        for (uint32_t i = 0; i < size; i++)
            buf[i] = (uint8_t)(given + i);
        given += (uint32_t)pk_serial_give(uart, buf, size);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(senders[i], NULL);
    pthread_join(receiver, NULL);
    CHECK_EQ(errors, 0);
    CHECK_EQ(next[0], SENT_EACH);
    CHECK_EQ(next[1], SENT_EACH);
    CHECK_EQ(line_level, 0);
    teardown();
}

static void *poke_everything(void *argument)
{
    uint32_t seed = *(uint32_t *)argument;
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525 + 1013904223;
        uint8_t byte = (uint8_t)(seed >> 16);
        pk_serial_access(uart, seed >> 24 & 7, seed >> 30 & 1, &byte);
    }
    return NULL;
}

static void state_is_saved_loaded_and_reset_while_registers_change(void)
{
    setup();
    uint32_t seeds[] = {1, 2};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, poke_everything, &seeds[i]), 0);
    for (int i = 0; i < 5000; i++) {
        uint8_t state[PK_SERIAL_STATE_SIZE], buf[64];
        pk_serial_save(uart, state);
        pk_serial_load(uart, state);
        if (i % 64 == 0)
            pk_serial_reset(uart);
        pk_serial_take(uart, buf, sizeof(buf));
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    /* The line is what the registers say: the interrupt controller was told every change. */
    uint8_t iir;
    CHECK_EQ(pk_serial_access(uart, IIR, 0, &iir), 1);
    CHECK(!(iir & IIR_NONE) || line_level == 0);
    teardown();
}

int main(void)
{
    RUN(nothing_is_lost_doubled_or_reordered_between_threads);
    RUN(state_is_saved_loaded_and_reset_while_registers_change);
    return 0;
}

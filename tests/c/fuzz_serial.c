/* Any sequence of register accesses, taken and given bytes, saves and loads: what must always hold.
 * Each input byte pair is one step. */
#include <string.h>

#include "fuzz.h"
#include "uart.h"

/* What the guest sent and the host has not taken; what was given and the guest has not read. */
static uint8_t sent[TX_RING];
static uint32_t sent_head, sent_count;

static void expect_taken(uint32_t size)
{
    uint8_t buf[256];
    int count = pk_serial_take(uart, buf, size);
    CHECK_EQ(count, size < sent_count ? size : sent_count);
    for (int i = 0; i < count; i++) {
        CHECK_EQ(buf[i], sent[sent_head]);
        sent_head = (sent_head + 1) % TX_RING;
        sent_count--;
    }
}

static void step_write(uint32_t reg, uint8_t byte)
{
    int is_thr = reg == THR && !(in(LCR)&LCR_DLAB) && !(in(MCR)&MCR_LOOP);
    if (is_thr && sent_count == TX_RING) {
        CHECK_EQ(try_out(reg, byte), 0);
        return;
    }
    out(reg, byte);
    if (is_thr)
        sent[(sent_head + sent_count++) % TX_RING] = byte;
}

static void step(uint8_t action, uint8_t byte)
{
    uint8_t state[PK_SERIAL_STATE_SIZE], again[PK_SERIAL_STATE_SIZE], given[32];

    switch (action >> 4) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
        step_write(action & 7, byte);
        break;
    case 8: /* a burst, so that the ring fills now and then */
        for (uint32_t i = 0; i < 64u * byte; i++)
            step_write(THR, (uint8_t)i);
        break;
    case 9:
        expect_taken(byte);
        break;
    case 10:
        memset(given, byte, sizeof(given));
        CHECK(pk_serial_give(uart, given, action & 15) <= (action & 15));
        break;
    case 11:
        pk_serial_save(uart, state);
        pk_serial_load(uart, state);
        pk_serial_save(uart, again);
        CHECK(memcmp(state, again, sizeof(state)) == 0);
        break;
    case 12:
        memset(state, byte, sizeof(state));
        pk_serial_load(uart, state);
        break;
    case 13:
        if (byte == 0)
            pk_serial_reset(uart);
        break;
    default:
        in(action & 7);
        break;
    }
    /* Interrupt line, IIR and LSR tell one story. */
    uint8_t ier = in(LCR)&LCR_DLAB ? 0 : in(IER);
    int data_ready = in(LSR)&LSR_DR;
    CHECK_EQ((in(LSR)&LSR_THRE_TEMT) != 0, sent_count < TX_RING);
    int level = line_level; /* before IIR, which acknowledges */
    uint8_t id = in(IIR)&0x0f;
    CHECK_EQ(id != IIR_NONE, level);
    if ((ier & IER_RDA) && data_ready)
        CHECK_EQ(id, IIR_RDA);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sent_head = sent_count = 0;
    setup();
    for (size_t i = 0; i + 1 < size; i += 2)
        step(data[i], data[i + 1]);
    while (sent_count > 0)
        expect_taken(256);
    teardown();
    return 0;
}

FUZZ_MAIN(100, 512)

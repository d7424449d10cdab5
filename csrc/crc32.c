/* CRC-32 as zlib and the format of snapshots have it, eight bytes at a time ("slicing-by-8"):
 * table[n] says what a byte does to the remainder when n more bytes follow it. */
#include "lazy.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0xEDB88320u /* ITU-T V.42 §8.1.1.6.2, its bits the other way round */

static uint32_t table[8][256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        table[0][byte] = crc;
    }
    for (int more = 1; more < 8; more++)
        for (uint32_t byte = 0; byte < 256; byte++)
            table[more][byte] = table[more - 1][byte] >> 8 ^ table[0][table[more - 1][byte] & 0xFF];
}

uint32_t pk_crc32(const uint8_t *data, size_t len)
{
    uint32_t crc = ~0u;

    pthread_once(&once, make_table);
    for (; len >= 8; data += 8, len -= 8) {
        uint64_t word; /* x86 is little-endian */
        memcpy(&word, data, sizeof(word));
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= table[7 - i][word >> 8 * i & 0xFF];
    }
    for (; len > 0; data++, len--)
        crc = crc >> 8 ^ table[0][(crc ^ *data) & 0xFF];
    return ~crc;
}

/* CRC-32 as zlib and the format of snapshots have it, sixteen bytes at a time ("slicing"): table[n]
 * says what a byte does to the remainder when n more bytes follow it. */
#include "lazy.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0xEDB88320u /* ITU-T V.42 §8.1.1.6.2, its bits the other way round */

static uint32_t table[16][256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        table[0][byte] = crc;
    }
    for (int more = 1; more < 16; more++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = table[more - 1][byte];
            table[more][byte] = crc >> 8 ^ table[0][crc & 0xFF];
        }
}

/* What eight bytes do, the first of them the lowest of `word`, when `more` follow them. */
static uint32_t eight(uint64_t word, int more)
{
    const uint32_t(*t)[256] = table + more;
    return t[7][word & 0xFF] ^ t[6][word >> 8 & 0xFF] ^ t[5][word >> 16 & 0xFF] ^
           t[4][word >> 24 & 0xFF] ^ t[3][word >> 32 & 0xFF] ^ t[2][word >> 40 & 0xFF] ^
           t[1][word >> 48 & 0xFF] ^ t[0][word >> 56];
}

uint32_t pk_crc32(const uint8_t *data, size_t len)
{
    uint32_t crc = ~0u;

    pthread_once(&once, make_table);
    for (; len >= 16; data += 16, len -= 16) {
        uint64_t words[2]; /* x86 is little-endian */
        memcpy(words, data, sizeof(words));
        crc = eight(words[0] ^ crc, 8) ^ eight(words[1], 0);
    }
    for (; len > 0; data++, len--)
        crc = crc >> 8 ^ table[0][(crc ^ *data) & 0xFF];
    return ~crc;
}

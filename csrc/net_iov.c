/* Bytes that are spread over several buffers: frames as a driver gives and takes them. */
#include "virtio_net.h"

#include <string.h>

void pk_iov_write(const struct iovec *iov, uint32_t num, uint64_t offset, const void *data,
                  uint64_t len)
{
    const uint8_t *from = data;

    for (uint32_t i = 0; i < num && len > 0; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint64_t piece = iov[i].iov_len - offset < len ? iov[i].iov_len - offset : len;
        memcpy((uint8_t *)iov[i].iov_base + offset, from, piece);
        from += piece;
        len -= piece;
        offset = 0;
    }
}

uint32_t pk_iov_slice(const struct iovec *iov, uint64_t offset, uint64_t len, struct iovec *to)
{
    uint32_t count = 0;

    for (; len > 0; iov++) {
        if (offset >= iov->iov_len) {
            offset -= iov->iov_len;
            continue;
        }
        uint64_t piece = iov->iov_len - offset < len ? iov->iov_len - offset : len;
        to[count++] =
            (struct iovec){.iov_base = (uint8_t *)iov->iov_base + offset, .iov_len = piece};
        len -= piece;
        offset = 0;
    }
    return count;
}

/* The sum of `len` bytes as little-endian 16-bit numbers, not folded. */
static uint64_t sum_of(const uint8_t *data, uint64_t len)
{
    unsigned __int128 sum = 0;
    uint64_t word;

    for (; len >= 8; data += 8, len -= 8) {
        memcpy(&word, data, 8);
        sum += word;
    }
    word = 0;
    memcpy(&word, data, len);
    sum += word;
    uint64_t low = (uint64_t)sum, carries = (uint64_t)(sum >> 64);
    low += carries; /* they come back at the low end */
    return low + (low < carries);
}

static uint16_t fold(uint64_t sum)
{
    sum = (sum & UINT32_MAX) + (sum >> 32);
    sum = (sum & UINT32_MAX) + (sum >> 32);
    sum = (sum & UINT16_MAX) + (sum >> 16);
    sum = (sum & UINT16_MAX) + (sum >> 16);
    return (uint16_t)sum;
}

uint16_t pk_iov_checksum(const struct iovec *iov, uint32_t num, uint64_t offset)
{
    uint64_t sum = 0;
    int odd = 0; /* an odd number of bytes before this buffer: its sum has its bytes swapped */

    for (uint32_t i = 0; i < num; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint16_t part = fold(sum_of((uint8_t *)iov[i].iov_base + offset, iov[i].iov_len - offset));
        sum += odd ? __builtin_bswap16(part) : part;
        odd ^= (int)((iov[i].iov_len - offset) & 1);
        offset = 0;
    }
    return (uint16_t)~fold(sum);
}

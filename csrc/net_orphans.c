/* Connections whose other end is gone: a copy of a machine goes on with TCP connections that its
 * wire's new other end (passt, started anew) knows nothing of, and passt up to 2024 says nothing to
 * what it does not know. So the card answers for it, as a host does to which a segment comes that
 * belongs to no connection: with a reset (RFC 9293 §3.5.2 Reset Generation).
 *
 *   from the driver   SYN ──> noted as known, and sent
 *                     known ──> sent
 *                     else ──> RST to the driver, in its place
 *
 * What is known is a set of hashes: a connection of before that has the hash of a new one is not
 * answered, and ends as it would without us.
 */
#include "virtio_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <stdlib.h>
#include <string.h>

#define KNOWN_BITS  16u
#define ANSWERS_MAX 16u /* that wait for the driver's buffers; the driver asks again for others */
#define OPTIONS_MAX 40u /* of an IPv4 header */

struct segment {
    struct ethhdr ethernet;
    struct iphdr ip;
    struct tcphdr tcp;
} __attribute__((packed));

struct pk_orphans {
    uint64_t known[(1u << KNOWN_BITS) / 64];
    struct {
        uint8_t header[NET_HEADER]; /* zeros */
        struct segment segment;
    } __attribute__((packed)) answers[ANSWERS_MAX];
    uint32_t next, num; /* free-running: taken by the driver, made */
};

int pk_orphans_create(struct pk_orphans **ret)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret == NULL ? -ENOMEM : 0;
}

void pk_orphans_destroy(struct pk_orphans *orphans)
{
    free(orphans);
}

void pk_orphans_forget(struct pk_orphans *orphans)
{
    memset(orphans, 0, sizeof(*orphans));
}

/* Copy a segment's three headers, without options of IP's. Returns 0 when it is none. */
static int read_segment(const struct iovec *iov, uint32_t num, struct segment *ret)
{
    uint8_t bytes[sizeof(*ret) + OPTIONS_MAX];
    size_t len = 0;

    for (uint32_t i = 0; i < num && len < sizeof(bytes); i++) {
        size_t room = sizeof(bytes) - len;
        size_t part = iov[i].iov_len < room ? iov[i].iov_len : room;
        memcpy(bytes + len, iov[i].iov_base, part);
        len += part;
    }
    if (len < sizeof(*ret))
        return 0;
    memcpy(ret, bytes, sizeof(*ret));
    size_t ip_len = 4u * ret->ip.ihl;
    if (ret->ethernet.h_proto != htons(ETH_P_IP) || ret->ip.version != 4 ||
        ret->ip.protocol != IPPROTO_TCP || ret->ip.frag_off & htons(0x3fff) /* MF, offset */ ||
        ip_len < sizeof(ret->ip) || len < ETH_HLEN + ip_len + sizeof(ret->tcp))
        return 0;
    memcpy(&ret->tcp, bytes + ETH_HLEN + ip_len, sizeof(ret->tcp));
    return 1;
}

static uint32_t hash(const struct segment *s)
{
    uint32_t h = s->ip.daddr * 0x9e3779b1u; /* the golden ratio, as in <linux/hash.h> */

    h = (h ^ ((uint32_t)s->tcp.source << 16 | s->tcp.dest)) * 0x9e3779b1u;
    return (h ^ h >> 15) * 0x85ebca6bu >> (32 - KNOWN_BITS);
}

static uint16_t checksum(const struct segment *s)
{
    struct {
        uint32_t saddr, daddr;
        uint8_t zero, protocol;
        uint16_t len;
    } pseudo = {s->ip.saddr, s->ip.daddr, 0, IPPROTO_TCP, htons(sizeof(s->tcp))};
    struct tcphdr tcp = s->tcp;
    struct iovec iov[2] = {{&pseudo, sizeof(pseudo)}, {&tcp, sizeof(tcp)}};

    return pk_iov_checksum(iov, 2, 0);
}

/* The reset that answers `s`. */
static struct segment reset_for(const struct segment *s)
{
    struct segment reset = {
        .ethernet.h_proto = s->ethernet.h_proto,
        .ip = {.version = 4,
               .ihl = sizeof(reset.ip) / 4,
               .tot_len = htons(sizeof(reset.ip) + sizeof(reset.tcp)),
               .ttl = 64,
               .protocol = IPPROTO_TCP,
               .saddr = s->ip.daddr,
               .daddr = s->ip.saddr},
        .tcp = {.source = s->tcp.dest,
                .dest = s->tcp.source,
                .seq = s->tcp.ack_seq,
                .doff = sizeof(reset.tcp) / 4,
                .rst = 1},
    };
    struct iphdr ip = reset.ip;
    struct iovec header = {&ip, sizeof(ip)};

    memcpy(reset.ethernet.h_dest, s->ethernet.h_source, ETH_ALEN);
    memcpy(reset.ethernet.h_source, s->ethernet.h_dest, ETH_ALEN);
    reset.ip.check = pk_iov_checksum(&header, 1, 0);
    reset.tcp.check = checksum(&reset);
    return reset;
}

int pk_orphans_answer(struct pk_orphans *o, const struct iovec *iov, uint32_t num)
{
    struct segment s;

    if (!read_segment(iov, num, &s) || s.tcp.rst)
        return 0;
    uint32_t h = hash(&s);
    uint64_t bit = 1ull << h % 64;
    if (s.tcp.syn)
        o->known[h / 64] |= bit;
    if (o->known[h / 64] & bit)
        return 0;
    if (o->num - o->next < ANSWERS_MAX - 1) /* the last one taken is still read */
        o->answers[o->num++ % ANSWERS_MAX].segment = reset_for(&s);
    return 1;
}

int pk_orphans_waiting(const struct pk_orphans *o)
{
    return o->num != o->next;
}

int pk_orphans_receive(struct pk_orphans *o, struct pk_packet *ret)
{
    if (!pk_orphans_waiting(o))
        return 0;
    *ret = (struct pk_packet){.len = sizeof(o->answers[0]),
                              .rest = o->answers[o->next++ % ANSWERS_MAX].header};
    return 1;
}

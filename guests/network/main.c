/* A host on a network without an operating system: it answers ARP and ping, and echoes UDP.
 *
 *     pykvm boot pykvm/guests/network --net tap=tap0,hostip=10.0.0.1/24 --append ip=10.0.0.2
 *     ping 10.0.0.2
 *
 * Every answer is the question, in the buffer it came in, with the two addresses exchanged: the
 * checksums stay what they are, but for a ping's, in which one byte changes. So nothing is copied
 * and nothing summed up, and a buffer goes round:
 *
 *     receive queue ── a frame came ──> answer() ──> transmit queue ── it is sent ──┐
 *           └─────────────────────────────────────────────────────────────────────<─┘
 *
 * With count=N it leaves after N pings and datagrams; without, never. Read card.h for the driver.
 */
#include <asm/bootparam.h>

#include "card.h"

/* Offsets in a frame: Ethernet (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791), UDP (RFC 768) and ICMP
 * (RFC 792) without IP options. */
enum { ETH_TO = 0, ETH_FROM = 6, ETH_TYPE = 12 };
enum { ARP_OPERATION = 20, ARP_FROM_MAC = 22, ARP_FROM = 28, ARP_TO_MAC = 32, ARP_TO = 38 };
enum { IP_VERSION = 14, IP_PROTOCOL = 23, IP_FROM = 26, IP_TO = 30, IP_DATA = 34 };
enum { UDP_FROM = IP_DATA, UDP_TO = IP_DATA + 2, ICMP_TYPE = IP_DATA, ICMP_CHECKSUM = IP_DATA + 2 };

enum { TYPE_IP = 0x0800, TYPE_ARP = 0x0806, ARP_REQUEST = 1, ARP_REPLY = 2 };
enum { ICMP = 1, UDP = 17, ECHO_REQUEST = 8 };

static uint8_t address[4];

static unsigned get16(const uint8_t *at)
{
    return (unsigned)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void exchange(uint8_t *one, uint8_t *other, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = one[i];
        one[i] = other[i];
        other[i] = byte;
    }
}

static int is_ours(const uint8_t *at)
{
    for (size_t i = 0; i < sizeof(address); i++)
        if (at[i] != address[i])
            return 0;
    return 1;
}

static int answer_arp(uint8_t *frame)
{
    if (get16(frame + ARP_OPERATION) != ARP_REQUEST || !is_ours(frame + ARP_TO))
        return 0;
    put16(frame + ARP_OPERATION, ARP_REPLY);
    exchange(frame + ARP_FROM, frame + ARP_TO, sizeof(address));
    exchange(frame + ARP_FROM_MAC, frame + ARP_TO_MAC, sizeof(mac));
    for (size_t i = 0; i < sizeof(mac); i++)
        frame[ARP_FROM_MAC + i] = mac[i];
    return 1;
}

static int answer_ip(uint8_t *frame)
{
    if (frame[IP_VERSION] != 0x45 || !is_ours(frame + IP_TO))
        return 0;
    if (frame[IP_PROTOCOL] == UDP) {
        exchange(frame + UDP_FROM, frame + UDP_TO, 2);
    } else if (frame[IP_PROTOCOL] == ICMP && frame[ICMP_TYPE] == ECHO_REQUEST) {
        /* The type becomes 0, so the sum of the rest is larger by what is missing. RFC 1624. */
        unsigned sum = get16(frame + ICMP_CHECKSUM) + (ECHO_REQUEST << 8);
        frame[ICMP_TYPE] = 0;
        put16(frame + ICMP_CHECKSUM, (sum & 0xffff) + (sum >> 16));
    } else {
        return 0;
    }
    exchange(frame + IP_FROM, frame + IP_TO, sizeof(address));
    return 1;
}

/* Make a frame of `len` bytes the answer to it. Returns 0 when there is none. */
static int answer(uint8_t *frame, uint32_t len, unsigned long *count)
{
    int is_arp = len >= 42 && get16(frame + ETH_TYPE) == TYPE_ARP && answer_arp(frame);
    int is_ip = len >= 42 && get16(frame + ETH_TYPE) == TYPE_IP && answer_ip(frame);

    *count += (unsigned)is_ip;
    for (size_t i = 0; i < sizeof(mac) && (is_arp || is_ip); i++) {
        frame[ETH_TO + i] = frame[ETH_FROM + i];
        frame[ETH_FROM + i] = mac[i];
    }
    return is_arp || is_ip;
}

/* ip=A.B.C.D on the command line; 10.0.0.2 without it. */
static void read_address(const char *cmdline)
{
    static const char OTHERWISE[] = "10.0.0.2";
    const char *text = OTHERWISE;

    for (const char *p = cmdline; p[0] && p[1] && p[2]; p++)
        if (p[0] == 'i' && p[1] == 'p' && p[2] == '=' && (p == cmdline || p[-1] == ' '))
            text = p + 3;
    for (size_t i = 0; *text && *text != ' ' && i < sizeof(address); text++) {
        if (*text == '.')
            i++;
        else
            address[i] = (uint8_t)(address[i] * 10 + *text - '0');
    }
}

static void find_card(void)
{
    check(pci_find(&device), "there is a virtio device");
    check(pci_read(device.address) >> 16 == 0x1040 + DEVICE_NETWORK, "it is a network card");
    check(device.parts[CFG_COMMON] && device.parts[CFG_NOTIFY] && device.parts[CFG_DEVICE] &&
              device.msix,
          "its capabilities are there");
}

int main(const struct boot_params *params)
{
    const char *cmdline = (const char *)(uintptr_t)params->hdr.cmd_line_ptr;
    unsigned long wanted = option(cmdline, "count", 0), count = 0;
    uint32_t len;
    int index;

    read_address(cmdline);
    load_idt();
    lapic_enable();
    pic_enable(0);
    outb(PIC1 + 1, 0xff);
    find_card();
    if (!failures)
        check(start_card(), "it takes us for its driver");
    if (failures)
        return failures;
    for (uint16_t i = 0; i < SIZE; i++)
        make_available(RECEIVE, i, FRAME_MAX);
    kick(RECEIVE);
    say("%02x:%02x:%02x:%02x:%02x:%02x answers as %u.%u.%u.%u\n", mac[0], mac[1], mac[2], mac[3],
        mac[4], mac[5], address[0], address[1], address[2], address[3]);

    while (!wanted || count < wanted || queues[TRANSMIT].seen != queues[TRANSMIT].avail.idx) {
        int sent = 0, given = 0;

        while ((index = take_used(TRANSMIT, &len)) >= 0) {
            make_available(RECEIVE, (uint16_t)index, FRAME_MAX);
            given = 1;
        }
        while ((index = take_used(RECEIVE, &len)) >= 0) {
            if (answer(buffers[index].frame, len, &count)) {
                buffers[index].header = (struct header){0};
                make_available(TRANSMIT, (uint16_t)index, len);
                sent = 1;
            } else {
                make_available(RECEIVE, (uint16_t)index, FRAME_MAX);
                given = 1;
            }
        }
        if (sent)
            kick(TRANSMIT);
        if (given)
            kick(RECEIVE);
        if (!sent && !given)
            wait_for_interrupt();
    }
    say("%lu answered\n", count);
    return failures;
}

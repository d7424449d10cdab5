/* Brings the network up: the loopback, and the Ethernet cards with what is known of their
 * addresses.
 *
 *   /pykvm/network   from pykvm/boot/guestnetwork.py: line n is for the nth card,
 *                    ADDRESS/BITS GATEWAY DNS MTU, each "-" when it is not known. A copy of a
 *                    machine is told anew, with the card's MAC behind it: see identity.c
 *   ip=              on the kernel's command line goes before that, for the card it names or the
 *                    first: CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:AUTOCONF:DNS0. What a kernel
 *                    with CONFIG_IP_PNP has done already is done again, and is the same. (Linux
 *                    Documentation/admin-guide/nfs/nfsroot.rst)
 *
 * Source: netdevice(7), rtnetlink's older sister by ioctl.
 */
#include "linux.h"
#include "say.h"
#include "tasks.h"

#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/in.h>
#include <linux/route.h>
#include <linux/sockios.h>

#define CARDS_MAX 64 /* interface indices that are looked at */
#define MAC_SIZE  6

struct settings { /* network byte order; 0: not known */
    uint32_t address, mask, gateway, dns;
    uint32_t mtu; /* in this machine's byte order */
    char device[IFNAMSIZ];
    unsigned char mac[MAC_SIZE]; /* all zeros: not known */
};

static void put(const char *text, size_t len)
{
    SYS(write, STDERR, text, len);
}

/* ── text ───────────────────────────────────────────────────────────────────────────────────── */

/* Read a decimal number at `*text`, and move behind it. */
static uint32_t number(const char **text)
{
    uint32_t value = 0;

    while (**text >= '0' && **text <= '9')
        value = value * 10 + (uint32_t)(*(*text)++ - '0');
    return value;
}

/* Read a.b.c.d at `*text`, and move behind it; 0 when there is none. */
static uint32_t address(const char **text)
{
    uint32_t value = 0;

    for (unsigned shift = 0; shift < 32 && **text >= '0' && **text <= '9'; shift += 8) {
        value |= (number(text) & 0xff) << shift;
        if (**text == '.')
            (*text)++;
    }
    return value;
}

static uint32_t mask_of(uint32_t bits)
{
    return bits ? __builtin_bswap32(~0u << (32 - (bits & 31)) % 32) : 0;
}

/* Move behind the next `end`, and return whether there was one on this line. */
static int skip(const char **text, char end)
{
    while (**text && **text != end && **text != '\n' && (end == ' ' || **text != ' '))
        (*text)++;
    return **text == end && *(*text)++;
}

/* Read aa:bb:cc:dd:ee:ff, as Python writes it. */
static void read_mac(const char **text, unsigned char mac[MAC_SIZE])
{
    for (int i = 0; i < 2 * MAC_SIZE; i++, (*text)++) {
        char digit = **text;
        int value = digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : digit - '0';

        if (value < 0 || value > 15)
            return;
        mac[i / 2] = (unsigned char)(mac[i / 2] << 4 | value);
        if (i % 2 && (*text)[1] == ':')
            (*text)++;
    }
}

/* One line of /pykvm/network. */
static struct settings read_line(const char **text)
{
    struct settings s = {0};

    s.address = address(text);
    if (**text == '/') {
        (*text)++;
        s.mask = mask_of(number(text));
    }
    if (skip(text, ' '))
        s.gateway = address(text);
    if (skip(text, ' '))
        s.dns = address(text);
    if (skip(text, ' '))
        s.mtu = number(text);
    if (skip(text, ' '))
        read_mac(text, s.mac);
    while (**text && *(*text)++ != '\n')
        ;
    return s;
}

/* The kernel's ip=, or nothing. */
static struct settings read_command_line(void)
{
    static char line[4096];
    struct settings s = {0};
    size_t len = slurp("/proc/cmdline", line, sizeof(line));
    const char *p = line, *end = line + len;

    while (p + 3 < end &&
           !(p[0] == 'i' && p[1] == 'p' && p[2] == '=' && (p == line || p[-1] == ' ')))
        p++;
    if (p + 3 >= end)
        return s;
    p += 3;
    s.address = address(&p);
    if (skip(&p, ':') && skip(&p, ':'))
        s.gateway = address(&p);
    if (skip(&p, ':'))
        s.mask = address(&p);
    if (skip(&p, ':') && skip(&p, ':'))
        for (size_t i = 0; i + 1 < sizeof(s.device) && *p > ' ' && *p != ':';)
            s.device[i++] = *p++;
    if (skip(&p, ':') && skip(&p, ':'))
        s.dns = address(&p);
    if (!s.mask) /* the class of the address says it, as to the kernel */
        s.mask = mask_of((s.address & 0x80) == 0 ? 8 : (s.address & 0xc0) == 0x80 ? 16 : 24);
    return s;
}

/* ── interfaces ─────────────────────────────────────────────────────────────────────────────── */

static long any_socket;

static struct sockaddr inet(uint32_t value)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = value};
    struct sockaddr result;

    __builtin_memcpy(&result, &in, sizeof(result));
    return result;
}

static long set_up(struct ifreq *card)
{
    long result = SYS(ioctl, any_socket, SIOCGIFFLAGS, card);

    card->ifr_flags |= IFF_UP;
    return result < 0 ? result : SYS(ioctl, any_socket, SIOCSIFFLAGS, card);
}

static void configure(struct ifreq *card, const struct settings *s)
{
    long result = 0;

    if (s->mtu) {
        card->ifr_mtu = (int)s->mtu;
        result = SYS(ioctl, any_socket, SIOCSIFMTU, card);
    }
    if (result == 0 && s->address) {
        card->ifr_addr = inet(s->address);
        result = SYS(ioctl, any_socket, SIOCSIFADDR, card);
        card->ifr_netmask = inet(s->mask);
        if (result == 0)
            result = SYS(ioctl, any_socket, SIOCSIFNETMASK, card);
    }
    if (result == 0)
        result = set_up(card);
    if (result == 0 && s->gateway) {
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY,
                                .rt_dst = inet(0),
                                .rt_genmask = inet(0),
                                .rt_gateway = inet(s->gateway)};
        result = SYS(ioctl, any_socket, SIOCADDRT, &route);
    }
    if (result < 0 && result != -EEXIST)
        say("pykvm: %s cannot be set up: errno %lu\n", card->ifr_name, (unsigned long)-result);
}

/* The name server, for programs that ask; a file of the user's stays. */
static void write_resolv_conf(uint32_t dns)
{
    static const char NAME[] = "nameserver ";
    char line[32];
    size_t len = sizeof(NAME) - 1;

    __builtin_memcpy(line, NAME, len);
    for (unsigned shift = 0; shift < 32; shift += 8) {
        unsigned byte = dns >> shift & 0xff;
        if (byte >= 100)
            line[len++] = (char)('0' + byte / 100);
        if (byte >= 10)
            line[len++] = (char)('0' + byte / 10 % 10);
        line[len++] = (char)('0' + byte % 10);
        line[len++] = shift < 24 ? '.' : '\n';
    }
    SYS(mkdir, "/etc", 0755);
    long fd = SYS(open, "/etc/resolv.conf", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    SYS(write, fd, line, len);
    SYS(close, fd);
}

/* Find the first Ethernet card from interface `index` on; returns the index after it, or 0. */
static int next_card(int index, struct ifreq *card)
{
    for (; index < CARDS_MAX; index++) {
        card->ifr_ifindex = index;
        if (SYS(ioctl, any_socket, SIOCGIFNAME, card) == 0 &&
            SYS(ioctl, any_socket, SIOCGIFHWADDR, card) == 0 &&
            card->ifr_hwaddr.sa_family == ARPHRD_ETHER)
            return index + 1;
    }
    return 0;
}

static int open_socket(void)
{
    any_socket = SYS(socket, AF_INET, 2 /* SOCK_DGRAM */ | O_CLOEXEC, 0);
    return any_socket >= 0; /* unless the kernel has no network */
}

void set_up_network(void)
{
    static char text[4096];
    const char *line = text;
    struct settings asked = read_command_line();
    struct ifreq card = {.ifr_name = "lo"};
    unsigned count = 0;
    uint32_t dns = 0;

    if (!open_socket())
        return;
    set_up(&card);
    slurp("/pykvm/network", text, sizeof(text));
    for (int next = 1; (next = next_card(next, &card));) {
        struct settings known = *line ? read_line(&line) : (struct settings){0};
        if (asked.address && (asked.device[0] ? same(asked.device, card.ifr_name) : count == 0)) {
            asked.mtu = known.mtu;
            known = asked;
        }
        count++;
        configure(&card, &known);
        dns = dns ? dns : known.dns;
    }
    SYS(close, any_socket);
    if (dns)
        write_resolv_conf(dns);
}

/* ── a copy of the machine ──────────────────────────────────────────────────────────────────── */

static int differs(const unsigned char a[MAC_SIZE], const unsigned char b[MAC_SIZE])
{
    unsigned bits = 0;

    for (int i = 0; i < MAC_SIZE; i++)
        bits |= a[i] ^ b[i];
    return bits != 0;
}

static int is_new_address(struct ifreq card, const struct settings *s)
{
    struct sockaddr_in in = {0};

    if (!s->address)
        return 0;
    if (SYS(ioctl, any_socket, SIOCGIFADDR, &card) == 0)
        __builtin_memcpy(&in, &card.ifr_addr, sizeof(in));
    return in.sin_addr.s_addr != s->address;
}

/* With arp_notify the kernel tells the others of the new MAC, as it tells them of a new link. */
static void announce(const char *name)
{
    static const char BEFORE[] = "/proc/sys/net/ipv4/conf/", AFTER[] = "/arp_notify";
    char path[sizeof(BEFORE) + IFNAMSIZ + sizeof(AFTER)];
    size_t len = sizeof(BEFORE) - 1;

    __builtin_memcpy(path, BEFORE, len);
    while (*name)
        path[len++] = *name++;
    __builtin_memcpy(path + len, AFTER, sizeof(AFTER));
    long fd = SYS(open, path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        SYS(write, fd, "1", 1);
        SYS(close, fd);
    }
}

/* The driver has read its card's address when it began; virtio_net lets it be changed while the
 * card is up. */
static void change_mac(struct ifreq *card, const unsigned char mac[MAC_SIZE])
{
    static const unsigned char NONE[MAC_SIZE];
    unsigned char *now = (unsigned char *)card->ifr_hwaddr.sa_data;

    if (!differs(mac, NONE) || SYS(ioctl, any_socket, SIOCGIFHWADDR, card) < 0 ||
        !differs(mac, now))
        return;
    announce(card->ifr_name);
    for (int i = 0; i < MAC_SIZE; i++)
        now[i] = mac[i];
    long result = SYS(ioctl, any_socket, SIOCSIFHWADDR, card);
    if (result < 0)
        say("pykvm: %s keeps its MAC: errno %lu\n", card->ifr_name, (unsigned long)-result);
}

void renew_network(const char *line)
{
    struct ifreq card;

    if (!open_socket())
        return;
    for (int next = 1; *line && (next = next_card(next, &card));) {
        struct settings known = read_line(&line);

        if (is_new_address(card, &known)) /* first, lest the old one be announced */
            configure(&card, &known);
        change_mac(&card, known.mac);
    }
    SYS(close, any_socket);
}

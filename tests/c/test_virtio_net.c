/* The network card's data plane, through its thread: frames to and from a socket at the other end
 * of the cable, in QEMU's two framings. A TAP's are in tests/guests. */
#include "driver.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* The transmit queue's rings; the receive queue has those of driver.h. */
#define TX_DESC  0x3000u
#define TX_AVAIL 0x3400u
#define TX_USED  0x3800u
#define TX_DATA  0x80000u
#define HEADER   12u
#define SIZE     16u

enum { RX, TX };

static struct pk_net *net;
static struct pk_net_config config;
static struct pk_interrupt *irq;
static struct pk_queue queues[2];
static int call_fd, other; /* the far end of the cable */
static uint16_t tx_available;
static uint64_t features;

static uint64_t longest_call; /* bytes */

/* In the place of the C library's, to see how the card divides what it sends. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    uint64_t len = 0;

    for (size_t i = 0; i < message->msg_iovlen; i++)
        len += message->msg_iov[i].iov_len;
    if (len > longest_call)
        longest_call = len;
    return syscall(SYS_sendmsg, fd, message, flags);
}

static void start(void)
{
    CHECK_EQ(pk_net_create(&config, &net), 0);
    CHECK_EQ(pk_net_set_offloads(net, features), 0);
    CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
}

static void setup(int kind)
{
    int ends[2];
    CHECK_EQ(socketpair(AF_UNIX, kind | SOCK_NONBLOCK, 0, ends), 0);
    other = ends[1];
    setup_queue(SIZE);
    tx_available = 0;
    features = 1ull << VIRTIO_NET_F_MRG_RXBUF;
    queues[RX] = (struct pk_queue){.virtq = queue, .kick_fd = eventfd(0, EFD_NONBLOCK)};
    queues[TX] = (struct pk_queue){.virtq = queue, .kick_fd = eventfd(0, EFD_NONBLOCK)};
    queues[TX].virtq.desc_gpa = TX_DESC;
    queues[TX].virtq.avail_gpa = TX_AVAIL;
    queues[TX].virtq.used_gpa = TX_USED;
    CHECK_EQ(pk_virtq_start(&queues[TX].virtq), 0);
    call_fd = eventfd(0, 0);
    CHECK_EQ(pk_interrupt_create(-1, 0, &irq), 0);
    for (uint32_t cause = 0; cause < 3; cause++)
        pk_interrupt_set_fd(irq, cause, call_fd);
    config = (struct pk_net_config){
        .kind = kind == SOCK_STREAM ? PK_NET_STREAM : PK_NET_DGRAM, .pairs = 1, .fds = {ends[0]}};
}

static void teardown(void)
{
    pk_net_stop(net);
    pk_net_destroy(net);
    pk_interrupt_destroy(irq);
    close(config.fds[0]);
    close(other);
    close(queues[RX].kick_fd);
    close(queues[TX].kick_fd);
    close(call_fd);
    pk_mem_destroy(&memory);
}

static void kick(int direction)
{
    uint64_t one = 1;
    CHECK_EQ(write(queues[direction].kick_fd, &one, 8), 8);
}

static void wait_for_interrupt(void)
{
    uint64_t count;
    CHECK_EQ(read(call_fd, &count, 8), 8);
}

static uint8_t *at(uint64_t gpa)
{
    return pk_mem_ptr(&memory, gpa, 1);
}

/* ── to the driver ──────────────────────────────────────────────────────────────────────────── */

/* Receive buffer `index` of `len` bytes. */
static void give_buffer(unsigned index, uint32_t len)
{
    describe(index, BUFFERS + 0x2000 + 0x1000 * index, len, WRITE, 0);
    make_available(index);
}

static uint8_t *buffer(unsigned index)
{
    return at(BUFFERS + 0x2000 + 0x1000 * index);
}

static void wait_for_received(uint16_t count)
{
    while (get16(USED + 2) != count)
        wait_for_interrupt();
}

static uint32_t received_len(unsigned entry)
{
    return get32(USED + 4 + 8 * entry + 4);
}

/* A frame of `len` bytes 0, 1, 2 … as the far end sends it. */
static void far_sends(uint32_t len)
{
    static uint8_t bytes[4 + 0x20000];
    uint32_t size = htonl(len);
    memcpy(bytes, &size, 4);
    for (uint32_t i = 0; i < len; i++)
        bytes[4 + i] = (uint8_t)i;
    size_t skip = config.kind == PK_NET_STREAM ? 0 : 4;
    CHECK_EQ(send(other, bytes + skip, 4 + len - skip, 0), 4 + len - skip);
}

static void check_header(const uint8_t *header, uint8_t num_buffers)
{
    static const uint8_t NOTHING[10];
    CHECK(memcmp(header, NOTHING, 10) == 0);
    CHECK_EQ(header[10], num_buffers);
    CHECK_EQ(header[11], 0);
}

static void a_frame_comes_behind_a_header(int kind)
{
    setup(kind);
    start();
    memset(buffer(0), 0xff, 200);
    give_buffer(0, 200);
    kick(RX);
    far_sends(100);
    wait_for_received(1);
    CHECK_EQ(received_len(0), HEADER + 100);
    check_header(buffer(0), 1);
    CHECK_EQ(buffer(0)[HEADER + 99], 99);
    CHECK_EQ(buffer(0)[HEADER + 100], 0xff);
    teardown();
}

static void a_long_frame_fills_several_buffers_that_are_seen_together(int kind)
{
    setup(kind);
    start();
    give_buffer(0, 100);
    kick(RX);
    far_sends(250);
    give_buffer(1, 100);
    kick(RX);
    give_buffer(2, 100);
    kick(RX);
    wait_for_received(3);
    check_header(buffer(0), 3);
    CHECK_EQ(received_len(0), 100);
    CHECK_EQ(received_len(1), 100);
    CHECK_EQ(received_len(2), HEADER + 250 - 200);
    CHECK_EQ(buffer(1)[0], 100 - HEADER);
    CHECK_EQ(buffer(2)[0], 200 - HEADER);
    teardown();
}

static void without_mergeable_buffers_what_is_too_long_is_dropped(int kind)
{
    setup(kind);
    features = 0;
    start();
    give_buffer(0, 100);
    give_buffer(1, 100);
    kick(RX);
    far_sends(250);
    far_sends(60);
    wait_for_received(1);
    CHECK_EQ(received_len(0), HEADER + 60);
    check_header(buffer(0), 1);
    CHECK_EQ(pk_net_dropped(net), 1);
    teardown();
}

static void frames_wait_for_buffers(int kind)
{
    enum { FRAMES = 10 };
    setup(kind);
    start();
    for (uint32_t i = 0; i < FRAMES; i++)
        far_sends(60 + i);
    for (uint16_t i = 0; i < FRAMES; i++) {
        give_buffer(i % SIZE, 200);
        kick(RX);
        wait_for_received((uint16_t)(i + 1));
        CHECK_EQ(received_len(i), HEADER + 60u + i);
    }
    CHECK_EQ(pk_net_dropped(net), 0);
    teardown();
}

static void a_buffer_without_room_for_a_header_is_a_fault(void)
{
    setup(SOCK_STREAM);
    start();
    give_buffer(0, HEADER - 1);
    kick(RX);
    while (!(pk_interrupt_pending(irq) & PK_ISR_CONFIG))
        wait_for_interrupt();
    CHECK_EQ(__atomic_load_n(&queues[RX].virtq.fault, __ATOMIC_RELAXED), PK_VIRTQ_BAD_REQUEST);
    CHECK_EQ(get16(USED + 2), 0);
    teardown();
}

static void a_frame_longer_than_any_ends_the_link(void)
{
    uint32_t size = htonl(65554);
    setup(SOCK_STREAM);
    start();
    give_buffer(0, 200);
    CHECK_EQ(send(other, &size, 4, 0), 4);
    kick(RX);
    while (pk_net_link(net))
        wait_for_interrupt();
    CHECK_EQ(get16(USED + 2), 0);
    teardown();
}

static void a_frame_in_pieces_is_put_together(void)
{
    setup(SOCK_STREAM);
    start();
    give_buffer(0, 200);
    kick(RX);
    uint8_t bytes[4 + 20] = {0, 0, 0, 20};
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = i < 4 ? bytes[i] : (uint8_t)i;
        CHECK_EQ(send(other, bytes + i, 1, 0), 1);
    }
    wait_for_received(1);
    CHECK_EQ(received_len(0), HEADER + 20);
    CHECK_EQ(buffer(0)[HEADER + 19], 23);
    teardown();
}

/* ── from the driver ────────────────────────────────────────────────────────────────────────── */

static struct virtio_net_hdr_v1 header;

/* Chain 3 * index of two descriptors: the header with `odd` bytes of the frame, the rest. The frame
 * is `len` bytes 0, 1, 2 … */
static void driver_sends(unsigned index, uint32_t len, uint32_t odd)
{
    uint64_t gpa = TX_DATA + 0x4000 * index, desc = TX_DESC + 16 * (2 * index);
    memcpy(at(gpa), &header, HEADER);
    for (uint32_t i = 0; i < len; i++)
        *at(gpa + HEADER + i) = (uint8_t)i;
    describe_at(desc, gpa, HEADER + odd, NEXT, 2 * index + 1);
    describe_at(desc + 16, gpa + HEADER + odd, len - odd, 0, 0);
    put16(TX_AVAIL + 4 + 2 * (tx_available % SIZE), (uint16_t)(2 * index));
    put16(TX_AVAIL + 2, ++tx_available);
}

static void wait_for_sent(uint16_t count)
{
    while (get16(TX_USED + 2) != count)
        wait_for_interrupt();
}

/* What the far end receives next, without a size in front; its length. */
static uint32_t far_receives(uint8_t *bytes, size_t room)
{
    struct pollfd poll_fd = {.fd = other, .events = POLLIN};
    uint32_t size = 0;
    CHECK_EQ(poll(&poll_fd, 1, -1), 1);
    if (config.kind != PK_NET_STREAM) {
        ssize_t len = recv(other, bytes, room, 0);
        CHECK(len >= 0);
        return (uint32_t)len;
    }
    CHECK_EQ(recv(other, &size, 4, MSG_WAITALL), 4);
    size = ntohl(size);
    CHECK(size <= room);
    for (uint32_t got = 0; got < size;) {
        CHECK_EQ(poll(&poll_fd, 1, -1), 1);
        ssize_t len = recv(other, bytes + got, size - got, 0);
        CHECK(len > 0);
        got += (uint32_t)len;
    }
    return size;
}

static void frames_go_out_in_order_without_their_headers(int kind)
{
    static uint8_t bytes[70000];
    setup(kind);
    start();
    memset(&header, 0, sizeof(header));
    for (unsigned i = 0; i < 5; i++)
        driver_sends(i, 60 + i, i);
    kick(TX);
    wait_for_sent(5);
    for (unsigned i = 0; i < 5; i++) {
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), 60 + i);
        CHECK_EQ(bytes[59], 59);
        CHECK_EQ(get32(TX_USED + 4 + 8 * i), 2 * i);
    }
    teardown();
}

/* What one call sends, the kernel may queue in pieces of 36 KiB, and then passt may see a frame in
 * three: more than it can put together. */
static void frames_that_are_sent_at_once_are_one_piece(void)
{
    enum { LEN = 15000, FRAMES = SIZE / 2 };
    static uint8_t bytes[70000];
    setup(SOCK_STREAM);
    memset(&header, 0, sizeof(header));
    for (unsigned i = 0; i < FRAMES; i++)
        driver_sends(i, LEN, 1);
    longest_call = 0;
    start();
    for (unsigned i = 0; i < FRAMES; i++)
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), LEN);
    wait_for_sent(FRAMES);
    CHECK_EQ(longest_call, 2 * (4 + LEN));
    teardown();
}

static void a_checksum_left_to_us_is_made(int kind)
{
    static const uint32_t LENGTHS[] = {60, 61, 1500, 14 + 2};
    static uint8_t bytes[70000];
    for (uint32_t round = 0; round < 8; round++) {
        uint32_t len = LENGTHS[round / 2];
        setup(kind);
        start();
        header = (struct virtio_net_hdr_v1){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 14};
        driver_sends(0, len, round & 1 ? 7 : 3);
        kick(TX);
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), len);
        /* With the checksum in its place, and the pseudo header's sum (what stood there: bytes 14
         * and 15) added, all sums up to 0xffff. RFC 1071. */
        uint32_t sum = 14 << 8 | 15;
        for (uint32_t i = 14; i < len; i++)
            sum += i & 1 ? bytes[i] : (uint32_t)bytes[i] << 8;
        while (sum >> 16)
            sum = (sum & 0xffff) + (sum >> 16);
        CHECK_EQ(sum, 0xffff);
        wait_for_sent(1);
        teardown();
    }
}

static void what_is_no_frame_is_dropped(int kind)
{
    static uint8_t bytes[70000];
    setup(kind);
    start();
    memset(&header, 0, sizeof(header));
    driver_sends(0, 13, 1);                               /* too short */
    describe_at(TX_DESC + 32, TX_DATA, 0x40000, NEXT, 3); /* too long */
    describe_at(TX_DESC + 48, TX_DATA, 0x40000, 0, 0);
    put16(TX_AVAIL + 4 + 2, 2);
    put16(TX_AVAIL + 2, ++tx_available);
    header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    header.csum_start = 0xffff;
    header.csum_offset = 0xffff;
    driver_sends(2, 60, 1); /* a checksum behind its end */
    memset(&header, 0, sizeof(header));
    driver_sends(3, 100, 1);
    kick(TX);
    wait_for_sent(4);
    CHECK_EQ(far_receives(bytes, sizeof(bytes)), 100);
    CHECK_EQ(pk_net_dropped(net), 3);
    teardown();
}

static void a_chain_without_a_header_is_a_fault(void)
{
    setup(SOCK_STREAM);
    start();
    describe_at(TX_DESC, TX_DATA, HEADER - 1, 0, 0);
    put16(TX_AVAIL + 4, 0);
    put16(TX_AVAIL + 2, ++tx_available);
    kick(TX);
    while (!(pk_interrupt_pending(irq) & PK_ISR_CONFIG))
        wait_for_interrupt();
    CHECK_EQ(__atomic_load_n(&queues[TX].virtq.fault, __ATOMIC_RELAXED), PK_VIRTQ_BAD_REQUEST);
    give_buffer(0, 200); /* the other queue goes on */
    kick(RX);
    far_sends(60);
    wait_for_received(1);
    teardown();
}

/* The far end does not read until the driver's ring is full of frames that wait. */
static void a_full_wire_makes_the_driver_wait(int kind)
{
    enum { ROUNDS = 400, LEN = 8000 };
    static uint8_t bytes[70000];
    unsigned seen = 0;
    setup(kind);
    start();
    memset(&header, 0, sizeof(header));
    for (unsigned sent = 0; sent < ROUNDS;) {
        if ((uint16_t)(tx_available - get16(TX_USED + 2)) < SIZE / 2) {
            driver_sends(sent++ % (SIZE / 2), LEN, 1);
            kick(TX);
        } else if (seen < sent) {
            CHECK_EQ(far_receives(bytes, sizeof(bytes)), LEN);
            seen++;
        } else {
            wait_for_interrupt();
        }
    }
    for (; seen < ROUNDS; seen++)
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), LEN);
    wait_for_sent(ROUNDS);
    CHECK_EQ(pk_net_dropped(net), 0);
    teardown();
}

/* ── the link ───────────────────────────────────────────────────────────────────────────────── */

static void a_frame_that_a_stop_cuts_in_two_arrives_whole(void)
{
    enum { LEN = 8000 };
    static uint8_t bytes[70000];
    uint32_t sent = 0, seen = 0;
    setup(SOCK_STREAM);
    start();
    memset(&header, 0, sizeof(header));
    for (uint32_t round = 0; round < 30; round++) {
        while ((uint16_t)(tx_available - get16(TX_USED + 2)) < SIZE / 2) {
            driver_sends(sent++ % (SIZE / 2), LEN, 1);
            kick(TX);
        }
        pk_net_stop(net);
        for (int i = 0; i < 2; i++)
            CHECK_EQ(pk_virtq_start(&queues[i].virtq), 0);
        CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
        for (; seen < sent - SIZE / 2; seen++)
            CHECK_EQ(far_receives(bytes, sizeof(bytes)), LEN);
    }
    for (; seen < sent; seen++)
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), LEN);
    teardown();
}

static void what_is_held_at_a_stop_is_the_drivers_again(void)
{
    setup(SOCK_STREAM);
    start();
    for (unsigned i = 0; i < 4; i++)
        give_buffer(i, 200);
    kick(RX);
    far_sends(60);
    wait_for_received(1);
    pk_net_stop(net);
    CHECK_EQ(queues[RX].virtq.avail_idx, 1);
    CHECK_EQ(pk_virtq_start(&queues[RX].virtq), 0);
    CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
    far_sends(61);
    wait_for_received(2);
    CHECK_EQ(received_len(1), HEADER + 61);
    teardown();
}

static void the_link_follows_the_other_end(void)
{
    char path[] = "/tmp/net-XXXXXX";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CHECK(mkdtemp(path) != NULL);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", path);
    setup(SOCK_STREAM);
    close(config.fds[0]);
    close(other);
    config.fds[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    config.listening = 1;
    CHECK_EQ(bind(config.fds[0], (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(config.fds[0], 1), 0);
    start();
    CHECK_EQ(pk_net_link(net), 0);
    memset(&header, 0, sizeof(header));
    driver_sends(0, 60, 1); /* to nobody */
    kick(TX);
    wait_for_sent(1);
    give_buffer(0, 200);
    kick(RX);
    for (uint16_t round = 1; round < 3; round++) {
        other = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK_EQ(connect(other, (struct sockaddr *)&address, sizeof(address)), 0);
        while (!pk_net_link(net))
            wait_for_interrupt();
        far_sends(60);
        wait_for_received(round);
        give_buffer(round, 200);
        kick(RX);
        close(other);
        while (pk_net_link(net))
            wait_for_interrupt();
    }
    other = -1;
    unlink(address.sun_path);
    rmdir(path);
    teardown();
}

static void a_limit_delays_and_drops_nothing(void)
{
    static uint8_t bytes[70000];
    setup(SOCK_STREAM);
    config.limits = (struct pk_limits){.ops = 1000, .ops_burst = 1};
    start();
    memset(&header, 0, sizeof(header));
    for (unsigned i = 0; i < SIZE / 2; i++)
        driver_sends(i, 60, 1);
    kick(TX);
    for (unsigned i = 0; i < SIZE / 2; i++)
        CHECK_EQ(far_receives(bytes, sizeof(bytes)), 60);
    for (unsigned i = 0; i < 8; i++) {
        give_buffer(i, 200);
        far_sends(60);
    }
    kick(RX);
    wait_for_received(8);
    wait_for_sent(SIZE / 2);
    CHECK_EQ(pk_net_dropped(net), 0);
    teardown();
}

/* ── connections that the other end knows nothing of ────────────────────────────────────────── */

struct segment {
    struct ethhdr ethernet;
    struct iphdr ip;
    struct tcphdr tcp;
    uint8_t data[8];
} __attribute__((packed));

enum { SYN = 1, ACK = 2, RST = 4 };

static struct segment segment_from(uint16_t port, int flags)
{
    struct segment s = {
        .ethernet = {.h_dest = {2, 0, 0, 0, 0, 1},
                     .h_source = {2, 0, 0, 0, 0, 2},
                     .h_proto = htons(ETH_P_IP)},
        .ip = {.version = 4,
               .ihl = 5,
               .tot_len = htons(sizeof(s) - sizeof(s.ethernet)),
               .ttl = 64,
               .protocol = IPPROTO_TCP,
               .saddr = htonl(0x0a00020f),
               .daddr = htonl(0x0a000202)},
        .tcp = {.source = htons(port),
                .dest = htons(80),
                .seq = htonl(1000),
                .ack_seq = htonl(2000),
                .doff = 5,
                .syn = (flags & SYN) != 0,
                .ack = (flags & ACK) != 0,
                .rst = (flags & RST) != 0},
    };
    return s;
}

/* In chain 3 * index, cut behind `odd` bytes. */
static void driver_sends_segment(unsigned index, const struct segment *s, uint32_t odd)
{
    driver_sends(index, sizeof(*s), odd);
    memcpy(at(TX_DATA + 0x4000 * index + HEADER), s, sizeof(*s));
    kick(TX);
}

static uint16_t sum_of(const void *data, size_t len, uint64_t start)
{
    for (size_t i = 0; i + 1 < len; i += 2)
        start += (uint64_t)((const uint8_t *)data)[i] << 8 | ((const uint8_t *)data)[i + 1];
    while (start >> 16)
        start = (start & 0xffff) + (start >> 16);
    return (uint16_t)start;
}

static void check_reset(const uint8_t *frame, uint16_t port)
{
    struct segment s;
    memcpy(&s, frame, 54);
    CHECK_EQ(s.ethernet.h_dest[5], 2);
    CHECK_EQ(s.ethernet.h_source[5], 1);
    CHECK_EQ(ntohl(s.ip.saddr), 0x0a000202);
    CHECK_EQ(ntohl(s.ip.daddr), 0x0a00020f);
    CHECK_EQ(ntohs(s.ip.tot_len), 40);
    CHECK_EQ(ntohs(s.tcp.dest), port);
    CHECK_EQ(ntohs(s.tcp.source), 80);
    CHECK_EQ(ntohl(s.tcp.seq), 2000); /* what the driver expects next */
    CHECK(s.tcp.rst && !s.tcp.syn && !s.tcp.ack);
    CHECK_EQ(sum_of(&s.ip, sizeof(s.ip), 0), 0xffff);
    CHECK_EQ(sum_of(&s.tcp, sizeof(s.tcp), sum_of(&s.ip.saddr, 8, IPPROTO_TCP + 20)), 0xffff);
}

static void a_connection_of_before_is_reset_and_a_new_one_is_not(void)
{
    static uint8_t bytes[70000];
    struct segment old = segment_from(40000, ACK), syn = segment_from(40001, SYN),
                   new = segment_from(40001, ACK), rst = segment_from(40002, RST | ACK),
                   udp = segment_from(40003, ACK);
    setup(SOCK_STREAM);
    CHECK_EQ(pk_net_create(&config, &net), 0);
    CHECK_EQ(pk_net_forget_connections(net), 0);
    CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
    memset(&header, 0, sizeof(header));
    give_buffer(0, 200);
    kick(RX);
    driver_sends_segment(0, &old, 20);
    wait_for_received(1);
    CHECK_EQ(received_len(0), HEADER + 54);
    check_header(buffer(0), 1);
    check_reset(buffer(0) + HEADER, 40000);
    wait_for_sent(1); /* and none of it came to the other end: */
    driver_sends_segment(1, &syn, 0);
    CHECK_EQ(far_receives(bytes, sizeof(bytes)), sizeof(syn));
    CHECK(memcmp(bytes, &syn, sizeof(syn)) == 0);
    driver_sends_segment(2, &new, 36);
    CHECK_EQ(far_receives(bytes, sizeof(bytes)), sizeof(new));
    driver_sends_segment(3, &rst, 0);
    CHECK_EQ(far_receives(bytes, sizeof(bytes)), sizeof(rst));
    udp.ip.protocol = IPPROTO_UDP;
    driver_sends_segment(4, &udp, 0);
    CHECK_EQ(far_receives(bytes, sizeof(bytes)), sizeof(udp));
    wait_for_sent(5);
    pk_net_stop(net);
    CHECK_EQ(pk_net_forget_connections(net), 0); /* again */
    CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
    give_buffer(1, 200);
    kick(RX);
    driver_sends_segment(5, &new, 0);
    wait_for_received(2);
    check_reset(buffer(1) + HEADER, 40001);
    teardown();
}

static void answers_wait_for_buffers_and_are_bounded(void)
{
    enum { SENT = 40 };
    setup(SOCK_STREAM);
    CHECK_EQ(pk_net_create(&config, &net), 0);
    CHECK_EQ(pk_net_forget_connections(net), 0);
    CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
    for (uint16_t i = 0; i < SENT; i++) {
        struct segment old = segment_from((uint16_t)(40000 + i), ACK);
        driver_sends_segment(i % (SIZE / 2), &old, i % 54);
        wait_for_sent((uint16_t)(i + 1));
    }
    for (uint16_t i = 0; i < 8; i++) {
        give_buffer(i, 200);
        kick(RX);
        wait_for_received((uint16_t)(i + 1));
        check_reset(buffer(i) + HEADER, (uint16_t)(40000 + i));
    }
    teardown();
}

#define RUN_BOTH(test)                                                                             \
    do {                                                                                           \
        test(SOCK_STREAM);                                                                         \
        test(SOCK_DGRAM);                                                                          \
        puts("ok " #test);                                                                         \
        fflush(stdout);                                                                            \
    } while (0)

int main(void)
{
    RUN_BOTH(a_frame_comes_behind_a_header);
    RUN_BOTH(a_long_frame_fills_several_buffers_that_are_seen_together);
    RUN_BOTH(without_mergeable_buffers_what_is_too_long_is_dropped);
    RUN_BOTH(frames_wait_for_buffers);
    RUN(a_buffer_without_room_for_a_header_is_a_fault);
    RUN(a_frame_longer_than_any_ends_the_link);
    RUN(a_frame_in_pieces_is_put_together);
    RUN_BOTH(frames_go_out_in_order_without_their_headers);
    RUN(frames_that_are_sent_at_once_are_one_piece);
    RUN_BOTH(a_checksum_left_to_us_is_made);
    RUN_BOTH(what_is_no_frame_is_dropped);
    RUN(a_chain_without_a_header_is_a_fault);
    RUN_BOTH(a_full_wire_makes_the_driver_wait);
    RUN(a_frame_that_a_stop_cuts_in_two_arrives_whole);
    RUN(what_is_held_at_a_stop_is_the_drivers_again);
    RUN(the_link_follows_the_other_end);
    RUN(a_limit_delays_and_drops_nothing);
    RUN(a_connection_of_before_is_reset_and_a_new_one_is_not);
    RUN(answers_wait_for_buffers_and_are_bounded);
    return 0;
}

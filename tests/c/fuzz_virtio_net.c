/* A hostile driver, and a hostile other end of the cable: any bytes as descriptors, frame headers
 * and rings, any sizes as frames. What must hold: the card ends every round, never has a fault of
 * memory (which has unmapped pages around it), and what the other end gets is whole frames.
 *
 * Each input is one guest memory and what comes by the wire. A datagram socket stands for the TAP:
 * it takes frames with their headers, a call each.
 */
#define ODD_SIZE 11 /* one byte less than a header */
#include "hostile.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/virtio_net.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE       16u
#define TX_DESC    0x0400u
#define TX_AVAIL   0x1400u
#define TX_USED    0x2400u
#define TABLE      0x3000u
#define FRAME_MAX  65553u
#define HEADER     12u
#define WIRE_BYTES (1u << 18)

enum { RX, TX, QUEUES };

static void fill_available(struct input *in, uint64_t gpa, unsigned step)
{
    for (uint32_t i = 0; i < SIZE; i++)
        put16(gpa + 4 + 2 * i, (uint16_t)pick(in, i * step % SIZE));
    put16(gpa + 2, (uint16_t)pick(in, take(in) % (SIZE + 1)));
}

static void fill_memory(struct input *in)
{
    static const uint32_t LENGTHS[] = {12, 20, 100, 300, 1526, 4096, 65562, 13};
    for (unsigned i = 0; i < SIZE; i++)
        fill_descriptor(in, DESC + 16 * i, BUFFERS + 0x1000 * i, LENGTHS[take(in) % 8], WRITE, i);
    fill_descriptor(in, DESC + 16 * 3, TABLE, 64, INDIRECT, 0);
    for (unsigned i = 0; i < 4; i++)
        fill_descriptor(in, TABLE + 16 * i, BUFFERS + 0x100 * i, 100, WRITE | (i < 3), i + 1);
    for (unsigned i = 0; i < SIZE / 2; i++) { /* the header and a little, the rest */
        uint64_t frame = BUFFERS + 0x20000 + 0x1000 * i;
        uint32_t odd = take(in) % 64;
        struct virtio_net_hdr_v1 header = {.flags = take(in) & 3,
                                           .gso_type = (uint8_t)pick(in, 0),
                                           .csum_start = (uint16_t)pick(in, 34),
                                           .csum_offset = (uint16_t)pick(in, take(in) % 32)};
        memcpy(pk_mem_ptr(&memory, frame, HEADER), &header, HEADER);
        fill_descriptor(in, TX_DESC + 32 * i, frame, HEADER + odd, NEXT, 2 * i + 1);
        fill_descriptor(in, TX_DESC + 32 * i + 16, frame + HEADER + odd, LENGTHS[take(in) % 8], 0,
                        2 * i);
    }
    fill_available(in, AVAIL, 1);
    fill_available(in, TX_AVAIL, 2);
}

/* Send the card some frames, of sizes that may be a lie. */
static void fill_wire(struct input *in, int far, uint32_t kind)
{
    static const uint32_t LENGTHS[] = {60, 14, 1514, 9000, 65553, 13, 300, 70000};
    static uint8_t bytes[4 + 70000];

    for (uint32_t count = take(in) % 6; count > 0; count--) {
        uint32_t len = LENGTHS[take(in) % 8], size = htonl((uint32_t)pick(in, len));
        memcpy(bytes, &size, 4);
        uint32_t skip = kind == PK_NET_STREAM ? 0 : 4;
        ssize_t sent = send(far, bytes + skip, 4 + len - skip, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent; /* when the socket is full, that is all */
    }
}

static uint64_t have; /* bytes of a stream's last frame, when that is not all there yet */

/* What the card sent: frames. */
static void check_wire(int far, uint32_t kind)
{
    static uint8_t bytes[WIRE_BYTES];
    ssize_t len;

    while ((len = recv(far, bytes + have, WIRE_BYTES - have, MSG_DONTWAIT)) > 0) {
        have += (uint64_t)len;
        while (kind == PK_NET_STREAM && have >= 4) {
            uint32_t size;
            memcpy(&size, bytes, 4);
            size = ntohl(size);
            CHECK(size >= 14 && size <= FRAME_MAX);
            if (have < 4 + size)
                break;
            have -= 4 + size;
            memmove(bytes, bytes + 4 + size, have);
        }
        if (kind != PK_NET_STREAM) {
            uint32_t more = kind == PK_NET_TAP ? HEADER : 0;
            CHECK(have >= 14 + more && have <= FRAME_MAX + more);
            have = 0;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pk_interrupt *irq;
    struct input in = {data, size};
    struct pk_net *net;
    int ends[2];

    if (irq == NULL) {
        setup_queue(SIZE);
        fence_memory();
        CHECK_EQ(pk_interrupt_create(-1, 0, &irq), 0);
        pk_interrupt_set_fd(irq, 0, open("/dev/null", O_WRONLY));
    }
    uint32_t kind = take(&in) % 3, choices = take(&in);
    CHECK_EQ(socketpair(AF_UNIX, kind == PK_NET_STREAM ? SOCK_STREAM : SOCK_DGRAM, 0, ends), 0);
    CHECK_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    struct pk_net_config config = {.kind = kind, .pairs = 1, .fds = {ends[0]}, .name = "fuzz"};
    CHECK_EQ(pk_net_create(&config, &net), 0);
    memset(pk_mem_ptr(&memory, 0, BUFFERS), 0, BUFFERS); /* a round depends on its input alone */
    fill_memory(&in);

    struct pk_queue queues[QUEUES] = {{.virtq = queue, .kick_fd = -1},
                                      {.virtq = queue, .kick_fd = -1}};
    queues[TX].virtq.desc_gpa = TX_DESC;
    queues[TX].virtq.avail_gpa = TX_AVAIL;
    queues[TX].virtq.used_gpa = pick(&in, TX_USED);
    queues[RX].virtq.used_gpa = pick(&in, USED);
    for (int i = 0; i < QUEUES; i++) {
        queues[i].virtq.indirect = choices & 1;
        queues[i].virtq.event_idx = choices >> 1 & 1;
        pk_virtq_start(&queues[i].virtq);
    }
    looks = 0;
    have = 0;
    uint64_t features = choices & 4 ? 1ull << VIRTIO_NET_F_MRG_RXBUF : 0;
    for (int round = 0; round < 2; round++) {
        CHECK_EQ(pk_net_start(net, queues, features, irq), 0);
        fill_wire(&in, ends[1], kind);
        io->serve(io->device, RX);
        io->serve(io->device, TX);
        check_wire(ends[1], kind);
        io->ready(io->device);
        pk_net_stop(net); /* may cut a frame in two: it must arrive whole */
    }
    check_wire(ends[1], kind);
    CHECK(kind == PK_NET_STREAM || pk_net_link(net)); /* no EFAULT from readv() */
    pk_net_destroy(net);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

FUZZ_MAIN(3000, 1024)

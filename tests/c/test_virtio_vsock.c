/* The socket device's data plane, through its thread: the driver's packets on one side, unix
 * sockets on the other. The transmit queue is driver.h's; the others are below.
 *
 *   0x10000 rx: table, 0x11000 available, 0x12000 used     0x40000 … rx buffers, 8 KiB apart
 *   0x14000 event: the same, one KiB apart                 0x60000 the packet to send
 */
#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RX_DESC    0x10000u
#define RX_AVAIL   0x11000u
#define RX_USED    0x12000u
#define EVENT_DESC 0x14000u
#define RX_BUFFERS 0x40000u
#define RX_SIZE    0x2000u /* bytes of one */
#define RX_NUM     8u
#define PACKET     0x60000u
#define CID        3u
#define GUEST_PORT 1234u
#define BUFFER     (128u << 10) /* PK_VSOCK_BUFFER */

enum { RX, TX, EVENT };

static struct pk_vsock *vsock;
static struct pk_interrupt *irq;
static struct pk_queue queues[3];
static struct pk_vsock_config config;
static int call_fd;
static uint16_t rx_available, rx_seen;
static uint32_t guest_alloc, guest_fwd;
static char folder[] = "/tmp/vsock-XXXXXX";

static int listen_at(const char *path, int backlog, int flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | flags, 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(fd, backlog), 0);
    return fd;
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 60}; /* a test that fails must end */
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return fd;
}

static void say(int fd, const char *text)
{
    CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void expect(int fd, const char *text)
{
    char bytes[64];
    CHECK_EQ(recv(fd, bytes, strlen(text), MSG_WAITALL), strlen(text));
    CHECK(memcmp(bytes, text, strlen(text)) == 0);
}

static void expect_end(int fd)
{
    char byte;
    CHECK_EQ(recv(fd, &byte, 1, 0), 0);
}

static void kick(uint32_t number)
{
    uint64_t one = 1;
    CHECK_EQ(write(queues[number].kick_fd, &one, 8), 8);
}

static void wait_for_interrupt(void)
{
    uint64_t count;
    CHECK_EQ(read(call_fd, &count, 8), 8);
}

static void give_buffer(unsigned number)
{
    describe_at(RX_DESC + 16 * number, RX_BUFFERS + RX_SIZE * number, RX_SIZE, WRITE, 0);
    put16(RX_AVAIL + 4 + 2 * (rx_available % RX_NUM), (uint16_t)number);
    put16(RX_AVAIL + 2, ++rx_available);
}

static void start(void)
{
    CHECK_EQ(pk_vsock_start(vsock, queues, 3, irq), 0);
}

static void setup_with(unsigned buffers)
{
    memcpy(folder, "/tmp/vsock-XXXXXX", sizeof(folder));
    CHECK(mkdtemp(folder) != NULL);
    setup_queue(16);
    guest_alloc = 1 << 20;
    guest_fwd = 0;
    rx_available = rx_seen = 0;
    for (unsigned i = 0; i < buffers; i++)
        give_buffer(i);
    queues[TX] = (struct pk_queue){.virtq = queue};
    queues[RX] = queues[EVENT] = queues[TX];
    queues[RX].virtq.desc_gpa = RX_DESC;
    queues[RX].virtq.avail_gpa = RX_AVAIL;
    queues[RX].virtq.used_gpa = RX_USED;
    queues[RX].virtq.size = RX_NUM;
    queues[EVENT].virtq.desc_gpa = EVENT_DESC;
    queues[EVENT].virtq.avail_gpa = EVENT_DESC + 0x400;
    queues[EVENT].virtq.used_gpa = EVENT_DESC + 0x800;
    queues[EVENT].virtq.size = 4;
    for (unsigned i = 0; i < 3; i++) {
        queues[i].kick_fd = eventfd(0, EFD_NONBLOCK);
        CHECK_EQ(pk_virtq_start(&queues[i].virtq), 0);
    }
    call_fd = eventfd(0, 0);
    CHECK_EQ(pk_interrupt_create(-1, 0, &irq), 0);
    for (uint32_t cause = 0; cause < 4; cause++)
        pk_interrupt_set_fd(irq, cause, call_fd);
    config = (struct pk_vsock_config){.cid = CID};
    snprintf(config.path, sizeof(config.path), "%s/v", folder);
    config.listen_fd = listen_at(config.path, 64, SOCK_NONBLOCK);
    CHECK_EQ(pk_vsock_create(&config, &vsock), 0);
    start();
}

static void setup(void)
{
    setup_with(RX_NUM);
}

static void teardown(void)
{
    char command[64];
    pk_vsock_stop(vsock);
    pk_vsock_destroy(vsock);
    pk_interrupt_destroy(irq);
    for (unsigned i = 0; i < 3; i++)
        close(queues[i].kick_fd);
    close(call_fd);
    close(config.listen_fd);
    snprintf(command, sizeof(command), "rm -r %s", folder);
    CHECK_EQ(system(command), 0);
    pk_mem_destroy(&memory);
}

/* Send a packet, which may have data, as the guest; wait until it is taken. */
static void send_header(struct virtio_vsock_hdr header, const void *data)
{
    memcpy(pk_mem_ptr(&memory, PACKET, sizeof(header)), &header, sizeof(header));
    if (header.len > 0)
        memcpy(pk_mem_ptr(&memory, PACKET + sizeof(header), header.len), data, header.len);
    describe(0, PACKET, (uint32_t)sizeof(header) + header.len, 0, 0);
    make_available(0);
    kick(TX);
    while (get16(USED + 2) != made_available)
        wait_for_interrupt();
}

static void send_packet(uint16_t op, uint32_t host_port, uint32_t flags, const void *data,
                        uint32_t len)
{
    struct virtio_vsock_hdr header = {
        .src_cid = CID,
        .dst_cid = 2,
        .src_port = GUEST_PORT,
        .dst_port = host_port,
        .len = len,
        .type = VIRTIO_VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = guest_alloc,
        .fwd_cnt = guest_fwd,
    };
    send_header(header, data);
}

/* The next packet for the guest, whose buffer is given again. */
static struct virtio_vsock_hdr receive(char *data)
{
    struct virtio_vsock_hdr header;
    while (get16(RX_USED + 2) == rx_seen)
        wait_for_interrupt();
    uint32_t element = RX_USED + 4 + 8 * (rx_seen++ % RX_NUM);
    uint32_t number = get32(element), len = get32(element + 4);
    CHECK(number < RX_NUM);
    uint8_t *bytes = pk_mem_ptr(&memory, RX_BUFFERS + RX_SIZE * number, RX_SIZE);
    memcpy(&header, bytes, sizeof(header));
    CHECK_EQ(len, sizeof(header) + header.len);
    CHECK_EQ(header.src_cid, 2);
    CHECK_EQ(header.dst_cid, CID);
    if (data != NULL) {
        memcpy(data, bytes + sizeof(header), header.len);
        data[header.len] = 0;
    }
    give_buffer(number);
    kick(RX);
    return header;
}

static struct virtio_vsock_hdr expect_packet(uint16_t op)
{
    struct virtio_vsock_hdr header = receive(NULL);
    CHECK_EQ(header.op, op);
    return header;
}

static void expect_data(const char *text)
{
    char data[RX_SIZE];
    struct virtio_vsock_hdr header = receive(data);
    CHECK_EQ(header.op, VIRTIO_VSOCK_OP_RW);
    CHECK(strcmp(data, text) == 0);
}

/* A connection that a host's program made; returns its socket. */
static int connect_host(uint32_t *host_port)
{
    char text[32];
    int fd = connect_to(config.path);
    say(fd, "CONNECT 1234\n");
    struct virtio_vsock_hdr request = expect_packet(VIRTIO_VSOCK_OP_REQUEST);
    CHECK_EQ(request.dst_port, GUEST_PORT);
    CHECK_EQ(request.type, VIRTIO_VSOCK_TYPE_STREAM);
    *host_port = request.src_port;
    send_packet(VIRTIO_VSOCK_OP_RESPONSE, *host_port, 0, NULL, 0);
    snprintf(text, sizeof(text), "OK %u\n", *host_port);
    expect(fd, text);
    return fd;
}

/* A connection that the guest made to port 52; returns the program's socket. */
static int connect_guest(void)
{
    char path[64];
    snprintf(path, sizeof(path), "%s/v_52", folder);
    int listener = listen_at(path, 8, 0);
    send_packet(VIRTIO_VSOCK_OP_REQUEST, 52, 0, NULL, 0);
    expect_packet(VIRTIO_VSOCK_OP_RESPONSE);
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    unlink(path);
    return fd;
}

/* ── the tests ──────────────────────────────────────────────────────────────────────────────── */

static void a_host_program_connects_and_bytes_go_both_ways(void)
{
    uint32_t port;
    setup();
    int fd = connect_host(&port);
    say(fd, "hello");
    expect_data("hello");
    send_packet(VIRTIO_VSOCK_OP_RW, port, 0, "world", 5);
    expect(fd, "world");
    close(fd);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_SHUTDOWN).flags, 3);
    send_packet(VIRTIO_VSOCK_OP_RST, port, 0, NULL, 0);
    teardown();
}

static void a_greeting_may_come_in_pieces_with_data_behind_it(void)
{
    setup();
    int fd = connect_to(config.path);
    say(fd, "conn");
    say(fd, "ect 1234\r");
    say(fd, "\nhello");
    uint32_t port = expect_packet(VIRTIO_VSOCK_OP_REQUEST).src_port;
    send_packet(VIRTIO_VSOCK_OP_RESPONSE, port, 0, NULL, 0);
    expect(fd, "OK ");
    expect_data("hello");
    close(fd);
    teardown();
}

static void a_bad_greeting_is_hung_up_on(void)
{
    static const char *const TEXTS[] = {
        "CONNECT \n",
        "CONNECT -1\n",
        "CONNECT 1x\n",
        "GET / HTTP/1.0\r\n\r\n",
        "CONNECT 4294967295\n",
        "CONNECT 0000000000000000000000001",
        "\n",
    };
    setup();
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        int fd = connect_to(config.path);
        say(fd, TEXTS[i]);
        char byte;
        CHECK(recv(fd, &byte, 1, 0) <= 0);
        close(fd);
    }
    CHECK_EQ(get16(RX_USED + 2), 0);
    teardown();
}

static void a_port_that_nobody_has_is_refused_both_ways(void)
{
    setup();
    int fd = connect_to(config.path);
    say(fd, "CONNECT 1234\n");
    uint32_t port = expect_packet(VIRTIO_VSOCK_OP_REQUEST).src_port;
    send_packet(VIRTIO_VSOCK_OP_RST, port, 0, NULL, 0);
    expect_end(fd);
    close(fd);
    send_packet(VIRTIO_VSOCK_OP_REQUEST, 9999, 0, NULL, 0);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_RST).src_port, 9999);
    teardown();
}

static void a_program_that_gives_up_waiting_is_forgotten(void)
{
    setup();
    int fd = connect_to(config.path);
    say(fd, "CONNECT 1234\n");
    expect_packet(VIRTIO_VSOCK_OP_REQUEST);
    close(fd);
    expect_packet(VIRTIO_VSOCK_OP_RST);
    teardown();
}

static void a_guest_connects_and_each_side_closes_its_half(void)
{
    setup();
    int fd = connect_guest();
    send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, "ask", 3);
    send_packet(VIRTIO_VSOCK_OP_SHUTDOWN, 52, VIRTIO_VSOCK_SHUTDOWN_SEND, NULL, 0);
    expect(fd, "ask");
    expect_end(fd);
    say(fd, "answer");
    CHECK_EQ(shutdown(fd, SHUT_WR), 0);
    expect_data("answer");
    CHECK(expect_packet(VIRTIO_VSOCK_OP_SHUTDOWN).flags & VIRTIO_VSOCK_SHUTDOWN_SEND);
    send_packet(VIRTIO_VSOCK_OP_SHUTDOWN, 52, 3, NULL, 0);
    expect_packet(VIRTIO_VSOCK_OP_RST);
    close(fd);
    teardown();
}

static void a_host_program_that_sends_no_more_may_still_receive(void)
{
    setup();
    int fd = connect_guest();
    CHECK_EQ(shutdown(fd, SHUT_WR), 0);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_SHUTDOWN).flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
    send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, "answer", 6);
    expect(fd, "answer");
    close(fd);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_SHUTDOWN).flags, 3);
    teardown();
}

static void the_guest_gets_no_more_than_it_has_room_for(void)
{
    uint32_t port;
    setup();
    guest_alloc = 10;
    int fd = connect_host(&port);
    say(fd, "0123456789abcde");
    expect_data("0123456789");
    expect_packet(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
    send_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, port, 0, NULL,
                0); /* still none: it is not asked again */
    guest_fwd = 3;
    send_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, port, 0, NULL, 0);
    expect_data("abc");
    expect_packet(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
    guest_fwd = 100; /* more than it ever got */
    send_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, port, 0, NULL, 0);
    guest_fwd = 13;
    send_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, port, 0, NULL, 0);
    expect_data("de");
    close(fd);
    teardown();
}

static void a_guest_sends_as_much_as_it_has_credit_for_and_not_more(void)
{
    static char piece[16384], got[16384];
    uint64_t sent = 0, read_back = 0;
    setup();
    int fd = connect_guest();
    send_packet(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 52, 0, NULL, 0);
    struct virtio_vsock_hdr credit = expect_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    CHECK_EQ(credit.buf_alloc, BUFFER);
    /* Until the socket is full and our buffer too. */
    for (;;) {
        send_packet(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 52, 0, NULL, 0);
        do
            credit = expect_packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
        while (get16(RX_USED + 2) != rx_seen);
        if (sent - credit.fwd_cnt + sizeof(piece) > BUFFER)
            break;
        for (size_t i = 0; i < sizeof(piece); i++)
            piece[i] = (char)((sent + i) / 100);
        send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, piece, sizeof(piece));
        sent += sizeof(piece);
    }
    CHECK_EQ(sent - credit.fwd_cnt, BUFFER);
    send_packet(VIRTIO_VSOCK_OP_SHUTDOWN, 52, 3, NULL, 0);
    while (read_back < sent) {
        ssize_t len = recv(fd, got, sizeof(got), 0);
        CHECK(len > 0);
        for (ssize_t i = 0; i < len; i++)
            CHECK_EQ(got[i], (char)((read_back + (uint64_t)i) / 100));
        read_back += (uint64_t)len;
    }
    expect_end(fd);
    while (receive(NULL).op != VIRTIO_VSOCK_OP_RST)
        ;
    close(fd);

    fd = connect_guest();
    while (rx_seen != get16(RX_USED + 2))
        receive(NULL);
    for (uint64_t i = 0; i < 64; i++) /* heedless of credit: a megabyte */
        send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, piece, sizeof(piece));
    while (receive(NULL).op != VIRTIO_VSOCK_OP_RST)
        ;
    close(fd);
    teardown();
}

static void what_a_guest_sent_before_it_forgot_reaches_the_host(void)
{
    static char piece[16384], got[16384];
    uint64_t sent = 0, read_back = 0;
    setup();
    int fd = connect_guest();
    for (int i = 0; i < 20; i++) { /* more than a unix socket takes; the rest is kept */
        send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, piece, sizeof(piece));
        sent += sizeof(piece);
    }
    send_packet(VIRTIO_VSOCK_OP_SHUTDOWN, 52, 3, NULL, 0);
    send_packet(VIRTIO_VSOCK_OP_RST, 52, 0, NULL, 0);
    for (ssize_t len; (len = recv(fd, got, sizeof(got), 0)) > 0;)
        read_back += (uint64_t)len;
    CHECK_EQ(read_back, sent);
    close(fd);
    teardown();
}

static void a_host_program_that_is_gone_ends_the_connection(void)
{
    setup();
    int fd = connect_guest();
    say(fd, "last words");
    close(fd);
    expect_data("last words");
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_SHUTDOWN).flags, 3);
    send_packet(VIRTIO_VSOCK_OP_RW, 52, 0, "to nobody", 9);
    send_packet(VIRTIO_VSOCK_OP_SHUTDOWN, 52, 3, NULL, 0);
    expect_packet(VIRTIO_VSOCK_OP_RST);
    teardown();
}

static void packets_of_no_connection_are_answered_with_a_reset(void)
{
    struct virtio_vsock_hdr odd = {
        .src_cid = CID, .dst_cid = 2, .src_port = 1, .dst_port = 2, .type = 7, .op = 1};
    setup();
    send_packet(VIRTIO_VSOCK_OP_RW, 77, 0, "x", 1);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_RST).src_port, 77);
    send_header(odd, NULL);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_RST).type, 7);
    odd.src_cid = CID + 1; /* from somebody else: there is nobody to answer */
    send_header(odd, NULL);
    send_packet(VIRTIO_VSOCK_OP_RST, 77, 0, NULL, 0); /* and a reset needs no answer */
    send_packet(99, 78, 0, NULL, 0);
    CHECK_EQ(expect_packet(VIRTIO_VSOCK_OP_RST).src_port, 78);
    int fd = connect_guest();
    send_packet(99, 52, 0, NULL, 0);
    expect_packet(VIRTIO_VSOCK_OP_RST);
    expect_end(fd);
    close(fd);
    teardown();
}

static void a_ring_without_buffers_makes_the_host_wait_and_nothing_is_lost(void)
{
    setup_with(0);
    int fd = connect_to(config.path);
    say(fd, "CONNECT 1234\n");
    for (unsigned i = 0; i < 100; i++) { /* more than the answers that are kept */
        describe(0, PACKET, sizeof(struct virtio_vsock_hdr), 0, 0);
        *(struct virtio_vsock_hdr *)pk_mem_ptr(&memory, PACKET, 44) = (struct virtio_vsock_hdr){
            .src_cid = CID, .dst_cid = 2, .src_port = 1, .dst_port = 2, .type = 1, .op = 5};
        make_available(0);
        kick(TX);
        if (i < 64)
            while (get16(USED + 2) != made_available)
                wait_for_interrupt();
        else if (i == 64 + 15)
            break; /* the ring is full */
    }
    CHECK_EQ(get16(USED + 2), 64);
    for (unsigned i = 0; i < RX_NUM; i++)
        give_buffer(i);
    kick(RX);
    uint32_t resets = 0, requests = 0;
    while (resets < 80 || requests < 1) {
        struct virtio_vsock_hdr header = receive(NULL);
        resets += header.op == VIRTIO_VSOCK_OP_RST;
        requests += header.op == VIRTIO_VSOCK_OP_REQUEST;
    }
    close(fd);
    teardown();
}

static void a_listener_without_room_is_tried_again(void)
{
    char path[64];
    setup();
    snprintf(path, sizeof(path), "%s/v_52", folder);
    int listener = listen_at(path, 0, 0), other = connect_to(path);
    send_packet(VIRTIO_VSOCK_OP_REQUEST, 52, 0, NULL, 0);
    int accepted = accept(listener, NULL, NULL);
    expect_packet(VIRTIO_VSOCK_OP_RESPONSE);
    close(other);
    close(accepted);
    close(listener);
    teardown();
}

static void a_packet_shorter_than_its_header_says_is_a_fault(void)
{
    for (uint32_t len = 43; len < 46; len += 2) {
        setup();
        struct virtio_vsock_hdr header = {.src_cid = CID, .dst_cid = 2, .len = 2, .op = 5};
        memcpy(pk_mem_ptr(&memory, PACKET, sizeof(header)), &header, sizeof(header));
        describe(0, PACKET, len, 0, 0);
        make_available(0);
        kick(TX);
        while (!(pk_interrupt_pending(irq) & PK_ISR_CONFIG))
            wait_for_interrupt();
        CHECK_EQ(__atomic_load_n(&queues[TX].virtq.fault, __ATOMIC_RELAXED), PK_VIRTQ_BAD_REQUEST);
        teardown();
    }
}

static void connections_survive_a_stop_and_not_being_forgotten(void)
{
    uint32_t port;
    setup();
    int fd = connect_host(&port);
    pk_vsock_stop(vsock);
    CHECK_EQ(pk_vsock_count(vsock), 1);
    start();
    say(fd, "still there");
    expect_data("still there");
    pk_vsock_stop(vsock);
    pk_vsock_forget(vsock);
    CHECK_EQ(pk_vsock_count(vsock), 0);
    expect_end(fd);
    start();
    send_packet(VIRTIO_VSOCK_OP_RW, port, 0, "x", 1);
    expect_packet(VIRTIO_VSOCK_OP_RST);
    close(fd);
    teardown();
}

static void the_driver_is_told_that_its_connections_are_gone(void)
{
    setup();
    pk_vsock_announce_reset(vsock);
    kick(EVENT); /* there is no buffer yet */
    describe_at(EVENT_DESC, 0x70000, 4, WRITE, 0);
    put16(EVENT_DESC + 0x404, 0);
    *(uint8_t *)pk_mem_ptr(&memory, 0x70000, 1) = 0xff;
    put16(EVENT_DESC + 0x402, 1);
    kick(EVENT);
    while (get16(EVENT_DESC + 0x802) != 1)
        wait_for_interrupt();
    CHECK_EQ(get32(0x70000), VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
    teardown();
}

int main(void)
{
    RUN(a_host_program_connects_and_bytes_go_both_ways);
    RUN(a_greeting_may_come_in_pieces_with_data_behind_it);
    RUN(a_bad_greeting_is_hung_up_on);
    RUN(a_port_that_nobody_has_is_refused_both_ways);
    RUN(a_program_that_gives_up_waiting_is_forgotten);
    RUN(a_guest_connects_and_each_side_closes_its_half);
    RUN(a_host_program_that_sends_no_more_may_still_receive);
    RUN(the_guest_gets_no_more_than_it_has_room_for);
    RUN(a_guest_sends_as_much_as_it_has_credit_for_and_not_more);
    RUN(what_a_guest_sent_before_it_forgot_reaches_the_host);
    RUN(a_host_program_that_is_gone_ends_the_connection);
    RUN(packets_of_no_connection_are_answered_with_a_reset);
    RUN(a_ring_without_buffers_makes_the_host_wait_and_nothing_is_lost);
    RUN(a_listener_without_room_is_tried_again);
    RUN(a_packet_shorter_than_its_header_says_is_a_fault);
    RUN(connections_survive_a_stop_and_not_being_forgotten);
    RUN(the_driver_is_told_that_its_connections_are_gone);
    return 0;
}

/* A hostile driver of a socket device, with host programs that come, write, read and go at random.
 * What must hold: every step ends, no more is answered than was asked, no host program gets bytes
 * that its connection was not sent, and nothing outside the guest's memory is touched.
 *
 *   0x10000 rx: table, 0x11000 available, 0x12000 used     0x20000 … rx buffers, 4 KiB apart
 *   0x14000 event: the same, one KiB apart                 0x40000 … packets to send, 8 KiB apart
 */
#include "hostile.h"

#include <linux/virtio_vsock.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE       16u
#define RX_DESC    0x10000u
#define RX_AVAIL   0x11000u
#define RX_USED    0x12000u
#define EVENT_DESC 0x14000u
#define RX_BUFFERS 0x20000u
#define PACKETS    0x40000u
#define PACKET     0x2000u
#define CID        3u
#define PROGRAMS   6

enum { RX, TX, EVENT };

static struct pk_vsock *vsock;
static struct pk_vsock_config config;
static struct pk_queue queues[3];
static int listener, programs[PROGRAMS]; /* sockets of host programs, or -1 */
static uint16_t rx_available;
static char folder[] = "/tmp/vsock-XXXXXX";

static struct sockaddr_un address_of(const char *suffix)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/v%s", folder, suffix);
    return address;
}

static int listen_at(struct sockaddr_un address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(fd, 4), 0);
    return fd;
}

static void remove_files(void)
{
    unlink(address_of("").sun_path);
    unlink(address_of("_52").sun_path);
    rmdir(folder);
}

static void setup(void)
{
    CHECK(mkdtemp(folder) != NULL);
    atexit(remove_files);
    setup_queue(SIZE);
    fence_memory();
    config = (struct pk_vsock_config){.cid = CID, .listen_fd = listen_at(address_of(""))};
    snprintf(config.path, sizeof(config.path), "%s/v", folder);
    listener = listen_at(address_of("_52"));
    CHECK_EQ(pk_vsock_create(&config, &vsock), 0);
    for (int i = 0; i < PROGRAMS; i++)
        programs[i] = -1;
}

static void start_queues(struct input *in)
{
    static const uint32_t PLACES[3][3] = {
        {RX_DESC, RX_AVAIL, RX_USED},
        {DESC, AVAIL, USED},
        {EVENT_DESC, EVENT_DESC + 0x400, EVENT_DESC + 0x800},
    };
    uint32_t features = take(in);

    made_available = rx_available = 0;
    faults = looks = 0;
    for (int i = 0; i < 3; i++) {
        queues[i] = (struct pk_queue){.virtq = queue, .kick_fd = -1};
        queues[i].virtq.desc_gpa = PLACES[i][0];
        queues[i].virtq.avail_gpa = PLACES[i][1];
        queues[i].virtq.used_gpa = PLACES[i][2];
        queues[i].virtq.indirect = features & 1;
        queues[i].virtq.event_idx = features >> 1 & 1;
        put16(PLACES[i][1] + 2, 0);
        put16(PLACES[i][2] + 2, 0);
        CHECK_EQ(pk_virtq_start(&queues[i].virtq), 0);
    }
}

/* A port of the host's: the listener's, or one that a packet for the guest came from. */
static uint32_t some_port(struct input *in)
{
    uint32_t choice = take(in);
    if (choice < 0x80)
        return 52;
    uint64_t buffer = RX_BUFFERS + 0x1000 * (choice % SIZE);
    return get32(buffer + offsetof(struct virtio_vsock_hdr, src_port));
}

static void send_packet(struct input *in)
{
    static const uint16_t OPS[] = {1, 1, 2, 2, 3, 4, 4, 5, 5, 5, 5, 5, 6, 7, 0, 99};
    static const uint32_t LENGTHS[] = {0, 1, 5, 100, 1000, 4000, 8000, 8148};
    unsigned slot = made_available % SIZE;
    uint64_t at = PACKETS + PACKET * slot;
    struct virtio_vsock_hdr packet = {
        .src_cid = pick(in, CID),
        .dst_cid = pick(in, 2),
        .src_port = 1230 + take(in) % 6,
        .dst_port = some_port(in),
        .len = (uint32_t)pick(in, LENGTHS[take(in) % 8]),
        .type = (uint16_t)pick(in, 1),
        .op = OPS[take(in) % 16],
        .flags = (uint32_t)pick(in, take(in) & 3),
        .buf_alloc = (uint32_t)pick(in, 100 * take(in)),
        .fwd_cnt = (uint32_t)pick(in, take(in)),
    };
    memcpy(pk_mem_ptr(&memory, at, sizeof(packet)), &packet, sizeof(packet));
    fill_descriptor(in, DESC + 16 * slot, at, PACKET, 0, slot);
    make_available((unsigned)pick(in, slot));
}

static void give_buffer(struct input *in)
{
    unsigned slot = rx_available % SIZE;
    fill_descriptor(in, RX_DESC + 16 * slot, RX_BUFFERS + 0x1000 * slot, take(in) & 1 ? 0x1000 : 60,
                    WRITE, slot);
    put16(RX_AVAIL + 4 + 2 * slot, (uint16_t)pick(in, slot));
    put16(RX_AVAIL + 2, ++rx_available);
}

/* A host program does something. */
static void act(struct input *in)
{
    static const char *const GREETINGS[] = {"CONNECT 1234\n", "CONNECT 1231\nhello", "CONN", "\n"};
    static char bytes[8192];
    struct sockaddr_un address = address_of("");
    int *program = &programs[take(in) % PROGRAMS];
    const char *greeting = GREETINGS[take(in) % 4];

    if (*program < 0 && (take(in) & 1)) {
        *program = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    } else if (*program < 0) {
        *program = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(*program, (struct sockaddr *)&address, sizeof(address)) == 0)
            send(*program, greeting, strlen(greeting), MSG_NOSIGNAL);
    } else {
        switch (take(in) % 8) {
        case 0:
            shutdown(*program, (int)take(in) % 3);
            break;
        case 1:
            close(*program);
            *program = -1;
            break;
        case 2:
        case 3:
            recv(*program, bytes, sizeof(bytes), 0);
            break;
        default:
            send(*program, bytes, 32 * take(in), MSG_NOSIGNAL);
            break;
        }
    }
}

static void end_round(void)
{
    pk_vsock_stop(vsock);
    pk_vsock_forget(vsock);
    CHECK_EQ(pk_vsock_count(vsock), 0);
    for (int i = 0; i < PROGRAMS; i++) {
        if (programs[i] >= 0)
            close(programs[i]);
        programs[i] = -1;
    }
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;)
        close(fd);
    CHECK(queues[TX].virtq.used_idx <= made_available);
    CHECK(queues[RX].virtq.used_idx <= rx_available);
    CHECK(queues[EVENT].virtq.used_idx <= SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (vsock == NULL)
        setup();
    struct input in = {data, size};
    start_queues(&in);
    CHECK_EQ(pk_vsock_start(vsock, queues, 3, NULL), 0);
    for (uint32_t steps = take(&in) % 64; steps > 0; steps--) {
        uint32_t num = take(&in) % 8;
        switch (take(&in) % 4) {
        case 0:
            for (; num > 0; num--)
                send_packet(&in);
            io->serve(io->device, TX);
            break;
        case 1:
            for (; num > 0; num--)
                give_buffer(&in);
            io->serve(io->device, RX);
            break;
        case 2:
            for (; num > 0; num--)
                act(&in);
            io->ready(io->device);
            break;
        default:
            if (num > 0)
                continue;
            fill_descriptor(&in, EVENT_DESC, RX_BUFFERS, 4, WRITE, 0);
            put16(EVENT_DESC + 0x402, (uint16_t)pick(&in, 1));
            pk_vsock_announce_reset(vsock);
            io->serve(io->device, EVENT);
        }
    }
    end_round();
    return 0;
}

FUZZ_MAIN(3000, 4096)

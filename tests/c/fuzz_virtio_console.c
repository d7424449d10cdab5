/* A hostile driver of a console device, with host programs that come, write, read and go at random.
 * What must hold: every step ends, no more is answered than was asked, and nothing outside the
 * guest's memory is touched.
 *
 * Port 0 is a kernel's console and port 1 a filter, on pipes; port 2 listens. The queues of port n:
 *
 *   0x10000 + n * 0x4000 receiveq: table, + 0x1000 available, + 0x2000 used
 *   0x20000 + n * 0x4000 transmitq: the same
 *   0x40000 … buffers, 4 KiB apart
 */
#include "hostile.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE   16u
#define PORTS  3u
#define QUEUES (2 + 2 * PORTS)
#define BUFFER 0x1000u

static struct pk_console *console;
static struct pk_queue queues[QUEUES];
static uint16_t available[QUEUES];
static int to_guest[PORTS], from_guest[PORTS]; /* the host's ends, or -1 */
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static char folder[] = "/tmp/console-XXXXXX";

static void remove_files(void)
{
    unlink(address.sun_path);
    rmdir(folder);
}

static void setup(void)
{
    CHECK(mkdtemp(folder) != NULL);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/port", folder);
    atexit(remove_files);
    signal(SIGPIPE, SIG_IGN); /* as Python has it */
    setup_queue(SIZE);
    fence_memory();
}

/* The queues of port n: §5.3.2 Virtqueues. */
static uint32_t receiveq(uint32_t port)
{
    return port == 0 ? 0 : 2 + 2 * port;
}

static uint64_t place_of(uint32_t number)
{
    uint32_t port = number < 2 ? 0 : number / 2 - 1;
    return 0x10000 + (number & 1) * 0x10000 + port * 0x4000;
}

static void open_console(struct pk_console_port ports[PORTS])
{
    int pipes[2][2], listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    for (uint32_t i = 0; i < 2; i++) {
        CHECK_EQ(pipe2(pipes[0], O_NONBLOCK), 0);
        CHECK_EQ(pipe2(pipes[1], O_NONBLOCK), 0);
        CHECK(fcntl(pipes[1][0], F_SETPIPE_SZ, 4096) >= 0); /* soon full */
        ports[i] = (struct pk_console_port){pipes[0][0], pipes[1][1], -1};
        to_guest[i] = pipes[0][1];
        from_guest[i] = pipes[1][0];
    }
    unlink(address.sun_path);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(listener, 4), 0);
    ports[2] = (struct pk_console_port){-1, -1, listener};
    to_guest[2] = from_guest[2] = -1;
    CHECK_EQ(pk_console_create(ports, PORTS, -1, &console), 0);
    for (uint32_t i = 0; i < 2; i++) {
        close(ports[i].in_fd);
        close(ports[i].out_fd);
    }
    close(listener);
}

static void start_queues(struct input *in)
{
    uint32_t features = take(in);

    faults = looks = 0;
    for (uint32_t i = 0; i < QUEUES; i++) {
        uint64_t place = place_of(i);

        available[i] = 0;
        queues[i] = (struct pk_queue){.virtq = queue, .kick_fd = -1};
        queues[i].virtq.desc_gpa = place;
        queues[i].virtq.avail_gpa = place + 0x1000;
        queues[i].virtq.used_gpa = place + 0x2000;
        queues[i].virtq.indirect = features & 1;
        queues[i].virtq.event_idx = features >> 1 & 1;
        if (i == 2 || i == 3) /* the control queues are Python's */
            queues[i].virtq.size = 0;
        else
            put16(place + 0x1002, 0);
        CHECK_EQ(pk_virtq_start(&queues[i].virtq) == 0, i != 2 && i != 3);
    }
}

/* A chain of one buffer or two. */
static void offer(struct input *in, uint32_t number)
{
    static const uint32_t LENGTHS[] = {0, 1, 16, 100, 4096, 0x4000, 0x10001, 0x30000};
    unsigned slot = available[number] % SIZE, next = (slot + 1) % SIZE;
    uint64_t place = place_of(number), buffer = 0x40000 + BUFFER * slot;
    unsigned direction = number & 1 ? 0 : WRITE, flags = take(in);
    uint32_t len = LENGTHS[take(in) % 8];

    fill_descriptor(in, place + 16 * slot, buffer, len, direction | (flags & 1 ? NEXT : 0), next);
    if (flags & 1)
        fill_descriptor(in, place + 16 * next, buffer + len % BUFFER, 16, direction, next);
    put16(place + 0x1004 + 2 * slot, (uint16_t)pick(in, slot));
    put16(place + 0x1002, ++available[number]);
}

static void go(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* A host program does something. */
static void act(struct input *in, uint32_t port)
{
    static uint8_t bytes[8192];

    if (port == 2 && to_guest[2] < 0) {
        to_guest[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(to_guest[2], (struct sockaddr *)&address, sizeof(address)) < 0)
            go(&to_guest[2]);
        from_guest[2] = to_guest[2] < 0 ? -1 : dup(to_guest[2]);
        return;
    }
    ssize_t result = 0;
    switch (take(in) % 8) {
    case 0:
        if (port == 2 && to_guest[2] >= 0)
            shutdown(to_guest[2], (int)take(in) % 3);
        break;
    case 1:
        if (port == 2 || take(in) < 0x20) {
            go(&to_guest[port]);
            go(&from_guest[port]);
        }
        break;
    case 2:
    case 3:
    case 4:
        result = read(from_guest[port], bytes, sizeof(bytes));
        break;
    default:
        result = write(to_guest[port], bytes, 32 * take(in));
    }
    (void)result; /* nothing to read, no room, nobody there: all of it may be */
}

static void step(struct input *in)
{
    uint32_t choice = take(in), port = choice % PORTS, num = take(in) % 8;

    switch (choice / PORTS % 8) {
    case 0:
    case 1:
        for (; num > 0; num--)
            offer(in, receiveq(port) + 1);
        io->serve(io->device, receiveq(port) + 1);
        break;
    case 2:
        for (; num > 0; num--)
            offer(in, receiveq(port));
        io->serve(io->device, receiveq(port));
        break;
    case 3:
    case 4:
        for (; num > 0; num--)
            act(in, port);
        io->ready(io->device);
        break;
    case 5:
        pk_console_open(console, port, num < 6);
        io->serve(io->device, receiveq(port));
        break;
    case 6:
        pk_console_flush(console);
        io->serve(io->device, 1);
        break;
    default: /* as for a snapshot */
        pk_console_stop(console);
        CHECK_EQ(pk_console_start(console, queues, QUEUES, NULL), 0);
    }
}

static void end_round(void)
{
    pk_console_stop(console);
    for (uint32_t i = 0; i < QUEUES; i++)
        if (i != 2 && i != 3)
            CHECK(queues[i].virtq.used_idx <= available[i]);
    pk_console_destroy(console);
    for (uint32_t i = 0; i < PORTS; i++) {
        go(&to_guest[i]);
        go(&from_guest[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pk_console_port ports[PORTS];

    if (memory.hva == NULL)
        setup();
    struct input in = {data, size};
    open_console(ports);
    start_queues(&in);
    CHECK_EQ(pk_console_start(console, queues, QUEUES, NULL), 0);
    for (uint32_t steps = take(&in) % 64; steps > 0; steps--)
        step(&in);
    end_round();
    return 0;
}

FUZZ_MAIN(3000, 4096)

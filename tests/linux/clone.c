/* A guest's program with a network, a vsock and a disk in use while its machine is saved:
 *
 *     clone HOST
 *
 * It is connected to port 7000 of HOST and to port 6000 of the host by vsock, both of which echo,
 * and a process of its own writes to /dev/vda and compares what it reads. It asks for a snapshot
 * twice: after the first it goes on, after the second only its copies do, and say who they are.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_EXIT     0x5f8
#define PORT_SNAPSHOT 0x5f9
#define WAIT_MS       15000
#define RENEWAL_MS    10000
#define BLOCK         4096u
#define BLOCKS        512u /* of the disk */

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ── sockets ────────────────────────────────────────────────────────────────────────────────── */

static int open_tcp(const char *host)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7000)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    inet_aton(host, &to.sin_addr);
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        perror("tcp");
    return fd;
}

static int open_vsock(void)
{
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 6000};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        perror("vsock");
    return fd;
}

static const char *echo(int fd)
{
    static int count;
    char text[32], back[32] = "";
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    int len = snprintf(text, sizeof(text), "message %d\n", ++count);
    if (send(fd, text, (size_t)len, MSG_NOSIGNAL) < 0)
        return strerror(errno);
    if (poll(&readable, 1, WAIT_MS) <= 0)
        return "no answer";
    ssize_t got = recv(fd, back, sizeof(back) - 1, 0);
    return got < 0              ? strerror(errno)
           : got == 0           ? "end of file"
           : strcmp(text, back) ? back
                                : "echoed";
}

static struct ifreq get_card(void)
{
    int any = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq card = {.ifr_name = "eth0"};

    ioctl(any, SIOCGIFHWADDR, &card);
    close(any);
    return card;
}

/* Wait until init has renewed the card, its MAC last; a copy that keeps it waits in vain. */
static void await_new_mac(const struct ifreq *before)
{
    for (int left_ms = RENEWAL_MS; left_ms > 0; left_ms -= 100) {
        struct ifreq card = get_card();

        if (memcmp(card.ifr_hwaddr.sa_data, before->ifr_hwaddr.sa_data, 6) != 0)
            return;
        usleep(100 * 1000);
    }
}

/* Says what this machine is called; returns its IPv4 address. */
static uint32_t say_who(void)
{
    int any = socket(AF_INET, SOCK_DGRAM, 0), vsock = open("/dev/vsock", O_RDONLY);
    struct ifreq card = get_card(), address = card;
    const unsigned char *mac = (const unsigned char *)card.ifr_hwaddr.sa_data;
    struct sockaddr_in *in = (struct sockaddr_in *)&address.ifr_addr;
    unsigned cid = 0;

    ioctl(any, SIOCGIFADDR, &address);
    ioctl(vsock, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid);
    printf("mac %02x:%02x:%02x:%02x:%02x:%02x ip %s cid %u\n", mac[0], mac[1], mac[2], mac[3],
           mac[4], mac[5], inet_ntoa(in->sin_addr), cid);
    close(any);
    close(vsock);
    return in->sin_addr.s_addr;
}

/* ── the disk ───────────────────────────────────────────────────────────────────────────────── */

static uint32_t *block;
static uint32_t written[BLOCKS]; /* what each block was filled with last */

static void compare(int fd, unsigned at)
{
    if (pread(fd, block, BLOCK, (off_t)at * BLOCK) != BLOCK)
        perror("read");
    for (unsigned i = 0; i < BLOCK / 4; i++)
        if (block[i] != written[at]) {
            printf("disk: block %u has %u, not %u\n", at, block[i], written[at]);
            _exit(1);
        }
}

static volatile sig_atomic_t enough;

static void on_signal(int number)
{
    (void)number;
    enough = 1;
}

static pid_t use_disk(void)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    signal(SIGTERM, on_signal);
    int fd = open("/dev/vda", O_RDWR | O_DIRECT);
    block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t count = 0;
    while (!enough) {
        unsigned at = (unsigned)rand() % BLOCKS;
        written[at] = ++count;
        for (unsigned i = 0; i < BLOCK / 4; i++)
            block[i] = count;
        if (pwrite(fd, block, BLOCK, (off_t)at * BLOCK) != BLOCK)
            perror("write");
        compare(fd, (unsigned)rand() % BLOCKS);
    }
    for (unsigned at = 0; at < BLOCKS; at++)
        compare(fd, at);
    printf("disk as written\n");
    _exit(0);
}

/* ── what happens ───────────────────────────────────────────────────────────────────────────── */

int main(int argc, char **argv)
{
    const char *host = argc > 1 ? argv[1] : "10.0.2.2";
    int status;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (ioperm(PORT_EXIT, 2, 1) < 0)
        perror("ioperm");
    pid_t writer = use_disk();
    int tcp = open_tcp(host), vsock = open_vsock();
    printf("tcp %s\nvsock %s\n", echo(tcp), echo(vsock));
    uint32_t address = say_who();
    outb(1, PORT_SNAPSHOT);
    printf("saved: tcp %s\n", echo(tcp));
    printf("saved: vsock %s\n", echo(vsock));

    struct ifreq card = get_card();
    double monotonic = now(CLOCK_MONOTONIC), real = now(CLOCK_REALTIME);
    outb(1, PORT_SNAPSHOT);
    int generation = inb(PORT_SNAPSHOT);
    if (generation == 0)
        outb(0, PORT_EXIT); /* and the connections are open */
    monotonic = now(CLOCK_MONOTONIC) - monotonic;
    real = now(CLOCK_REALTIME) - real;
    double slept = now(CLOCK_MONOTONIC);
    sleep(1);
    slept = now(CLOCK_MONOTONIC) - slept;
    printf("copy %d: monotonic +%.1f real +%.1f slept %.1f\n", generation, monotonic, real, slept);

    await_new_mac(&card);
    if (say_who() == address) /* else the connection has lost its end */
        printf("copy: tcp %s\n", echo(tcp));
    printf("copy: vsock %s\n", echo(vsock));
    close(tcp);
    close(vsock);
    tcp = open_tcp(host);
    vsock = open_vsock();
    printf("copy: new tcp %s\n", echo(tcp));
    printf("copy: new vsock %s\n", echo(vsock));
    kill(writer, SIGTERM);
    waitpid(writer, &status, 0);
    if (argc > 2) /* and is there to be asked */
        sleep((unsigned)atoi(argv[2]));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

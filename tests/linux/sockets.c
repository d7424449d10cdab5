/* Echoes over many sockets at once, between a Linux guest and its host, both ways:
 *
 *     sockets guest N          serves port 5000, and has N connections to the host's port 6000
 *     sockets host PATH N      serves PATH_6000, and has N connections to the guest's port 5000
 *
 * All N are open before the first has bytes. Each carries bytes of its own, and the first so many
 * that neither side could keep them. Every connection ends with an end of file each way.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST_PORT 5000
#define HOST_PORT  6000
#define FEW        1000u
#define MANY       (4u << 20)
#define PIECE      65536u

static const char *host_path; /* NULL: this is the guest */

static void expect(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

static int listen_for_peer(void)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = GUEST_PORT};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(host_path ? AF_UNIX : AF_VSOCK, SOCK_STREAM, 0);

    snprintf(un.sun_path, sizeof(un.sun_path), "%s_%d", host_path ? host_path : "", HOST_PORT);
    expect(fd >= 0, "socket");
    expect(bind(fd, host_path ? (struct sockaddr *)&un : (struct sockaddr *)&vm,
                host_path ? sizeof(un) : sizeof(vm)) == 0,
           "bind");
    expect(listen(fd, 128) == 0, "listen");
    return fd;
}

/* A unix socket through which the guest's port has answered, or -1: it is not there yet. */
static int try_guest(void)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char text[32];
    ssize_t len = 0;

    expect(fd >= 0, "socket");
    snprintf(un.sun_path, sizeof(un.sun_path), "%s", host_path);
    snprintf(text, sizeof(text), "CONNECT %d\n", GUEST_PORT);
    if (connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0 &&
        send(fd, text, strlen(text), MSG_NOSIGNAL) > 0)
        while (len < (ssize_t)sizeof(text) && read(fd, text + len, 1) == 1)
            if (text[len++] == '\n' && strncmp(text, "OK ", 3) == 0)
                return fd;
    close(fd);
    return -1;
}

static int connect_to_peer(void)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = HOST_PORT};

    for (int tries = 0; tries < 3000; tries++) {
        int fd = host_path ? try_guest() : socket(AF_VSOCK, SOCK_STREAM, 0);
        if (fd >= 0 && (host_path || connect(fd, (struct sockaddr *)&vm, sizeof(vm)) == 0))
            return fd;
        if (fd >= 0)
            close(fd);
        usleep(100000); /* the other side is still on its way */
    }
    perror("connect");
    exit(1);
}

static void write_all(int fd, const uint8_t *bytes, size_t len)
{
    for (ssize_t done; len > 0; bytes += done, len -= (size_t)done)
        expect((done = write(fd, bytes, len)) > 0, "write");
}

static void serve(uint32_t num)
{
    static uint8_t piece[PIECE];
    struct epoll_event event = {.events = EPOLLIN};
    int listener = listen_for_peer(), epoll_fd = epoll_create1(0);

    event.data.fd = listener;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (uint32_t ended = 0; ended < num;) {
        expect(epoll_wait(epoll_fd, &event, 1, -1) == 1, "epoll_wait");
        int fd = event.data.fd;
        if (fd == listener) {
            event.data.fd = accept(listener, NULL, NULL);
            expect(event.data.fd >= 0, "accept");
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        ssize_t len = read(fd, piece, sizeof(piece));
        expect(len >= 0, "the server's read");
        write_all(fd, piece, (size_t)len);
        if (len == 0) {
            close(fd);
            ended++;
        }
    }
}

/* The bytes of connection `number`: none has another's. */
static void fill(uint8_t *bytes, uint32_t number, size_t len)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)((number * 2654435761u + i * (number + 7)) >> 5);
}

static void check_echo(int fd, uint32_t number, size_t len)
{
    static uint8_t wanted[MANY], got[MANY];
    size_t have = 0;

    fill(wanted, number, len);
    for (ssize_t piece; have < len && (piece = read(fd, got + have, len - have)) > 0;)
        have += (size_t)piece;
    errno = 0;
    expect(have == len && memcmp(wanted, got, len) == 0, "the echo");
    expect(read(fd, got, 1) == 0, "the end of the echo");
    close(fd);
}

static void ask(uint32_t num)
{
    static uint8_t bytes[MANY];
    int *fds = calloc(num, sizeof(*fds));

    for (uint32_t i = 0; i < num; i++)
        fds[i] = connect_to_peer();
    for (uint32_t i = 1; i < num; i++) {
        fill(bytes, i, FEW);
        write_all(fds[i], bytes, FEW);
        shutdown(fds[i], SHUT_WR);
    }
    fill(bytes, 0, MANY);
    pid_t writer = fork(); /* who waits for the echo must not be who writes */
    if (writer == 0) {
        write_all(fds[0], bytes, MANY);
        shutdown(fds[0], SHUT_WR);
        _exit(0);
    }
    check_echo(fds[0], 0, MANY);
    expect(waitpid(writer, NULL, 0) == writer, "waitpid");
    for (uint32_t i = 1; i < num; i++)
        check_echo(fds[i], i, FEW);
    printf("%u connections to the %s echoed\n", num, host_path ? "guest" : "host");
}

int main(int argc, char **argv)
{
    uint32_t num = argc > 2 ? (uint32_t)atoi(argv[argc - 1]) : 1;
    struct rlimit files = {.rlim_cur = 2 * num + 64, .rlim_max = 2 * num + 64};
    int status;

    if (argc > 3)
        host_path = argv[2];
    expect(setrlimit(RLIMIT_NOFILE, &files) == 0, "RLIMIT_NOFILE");
    pid_t server = fork();
    if (server == 0) {
        serve(num);
        return 0;
    }
    ask(num);
    expect(waitpid(server, &status, 0) == server && status == 0, "the server");
    return 0;
}

/* The lab's first process: turns the initramfs into the host's file system, then runs commands.
 *
 * Started by the lab's kernel as /init (pykvm/lab/initrd.py packs it beside the modules); told what
 * to run by pykvm/lab/supervisor.py through a virtio-serial port. Read beside it:
 * pykvm/lab/wire.py, which holds the same frames and explains them; boot.c, which makes the machine
 * ready; command.c, which runs one command.
 *
 * One thread, one poll loop. Writes to the port may block: the supervisor always reads. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int port = -1;
static struct command commands[COMMANDS_MAX];

void fatal(const char *what, const char *name)
{
    printf("pykvm lab: %s %s: %s\n", what, name, strerror(errno));
    reboot(RB_POWER_OFF); /* QEMU ends, and the supervisor shows what was printed */
    _exit(1);
}

static void read_port(void *buf, size_t size)
{
    for (char *at = buf; size > 0;) {
        ssize_t n = read(port, at, size);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        } else if (n < 0 && errno != EINTR) {
            fatal("read", "the port");
        } else if (n == 0) { /* the supervisor is gone: so is the reason to live */
            reboot(RB_POWER_OFF);
        }
    }
}

static void write_port(const void *buf, size_t size)
{
    for (const char *at = buf; size > 0;) {
        ssize_t n = write(port, at, size);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        } else if (n < 0 && errno != EINTR) {
            fatal("write", "the port");
        }
    }
}

void send_frame(uint16_t id, enum kind kind, uint8_t arg, const void *data, uint32_t size)
{
    struct frame frame = {.id = id, .kind = (uint8_t)kind, .arg = arg, .size = size};
    write_port(&frame, sizeof frame);
    write_port(data, size);
}

static void set_clock(const char *data)
{
    uint64_t ns;
    memcpy(&ns, data, sizeof ns);
    struct timespec now = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    clock_settime(CLOCK_REALTIME, &now);
}

static void receive_frame(void)
{
    struct frame frame;
    read_port(&frame, sizeof frame);
    char *data = malloc(frame.size + 1);
    if (data == NULL || frame.id >= COMMANDS_MAX)
        fatal("frame", "too large");
    read_port(data, frame.size);
    data[frame.size] = '\0'; /* so that strings in it end, whatever it holds */

    struct command *c = &commands[frame.id];
    if (frame.kind == CLOCK)
        set_clock(data);
    else if (frame.kind == EXEC && c->pid == 0)
        command_start(c, frame.id, data, frame.size);
    else if (c->pid != 0) /* else it has just ended: its EXIT is on the way to the sender */
        command_frame(c, &frame, data);
    free(data);
}

static void reap(int signals)
{
    struct signalfd_siginfo info;
    int status;
    pid_t pid;

    if (read(signals, &info, sizeof info) < 0)
        return;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < COMMANDS_MAX; i++)
            if (commands[i].pid == pid)
                command_exited(&commands[i], status);
}

int main(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);

    port = boot();
    send_frame(0, READY, 0, NULL, 0);

    for (;;) {
        struct pollfd fds[2 + 3 * COMMANDS_MAX] = {{.fd = port, .events = POLLIN},
                                                   {.fd = signals, .events = POLLIN}};
        for (int i = 0; i < COMMANDS_MAX; i++)
            command_poll(&commands[i], &fds[2 + 3 * i]);
        if (poll(fds, sizeof fds / sizeof *fds, -1) < 0)
            continue;
        if (fds[1].revents)
            reap(signals);
        for (int i = 0; i < COMMANDS_MAX; i++)
            command_serve(&commands[i], &fds[2 + 3 * i]);
        if (fds[0].revents)
            receive_frame();
    }
}

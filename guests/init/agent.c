/* Does what the host asks for, one request after the other, over the port "pykvm.agent". Reached
 * from init.c, when there is that port and no command. The host's end is pykvm/agent/wire.py.
 *
 * Both send frames: struct head, then its `size` bytes. Numbers are little-endian.
 *
 *   host   RUN    strings, each with its NUL: a folder, "NAME=VALUE"..., "", the command
 *          READ   a path: its bytes are the output, the exit code is an errno
 *          WRITE  u32 mode, a path: the input becomes its bytes, the exit code is an errno
 *          INPUT  for what was asked for; empty, the input's end. The next one may come when TAKEN
 *                 has told that this one was used or is not wanted.
 *          KILL   end it, and all in its process group
 *          CLOCK  u64: the time, in ns since 1970. There is no answer.
 *   agent  OUTPUT, ERROR   what it wrote
 *          TAKEN
 *          END    u32: its exit code, as a shell would tell it
 *
 * RUN without any string is answered with 0: the agent is there.
 */
#include "agent.h"

#include "linux.h"

#include <linux/poll.h>
#include <linux/signal.h>
#include <linux/time.h>
#include <stdint.h>

enum { RUN = 1, READ, WRITE, INPUT, KILL, CLOCK };    /* the host's frames */
enum { END, OUTPUT, ERROR, TAKEN };                   /* ours */
enum { FROM_HOST, FROM_OUT, FROM_ERR, TO_IN, ENDED }; /* what is polled */

#define PIECE   (16 * 1024) /* bytes of input or output in a frame, at most */
#define FAILURE 126

#define WNOHANG        1  /* <linux/wait.h> has names that clash */
#define NO_SIGNALFD_MS 10 /* between looks, in a kernel without */

struct __attribute__((packed)) head {
    uint8_t kind;
    uint32_t size;
};

static const struct agent *self;
static long ended_fd = -1; /* a signalfd for SIGCHLD */

/* What was asked for, and the process that does it. */
static struct {
    size_t size; /* of the request's strings, in self->text */
    long pid;
    int status, over;
    char input[PIECE]; /* what it has not taken yet: */
    size_t from, to;
    int input_ended;
    struct pollfd fds[5];
} work;

/* ── the port ───────────────────────────────────────────────────────────────────────────────── */

/* Read `size` bytes; 0 when the port fails. Linux does not wait when nobody is connected. */
static int receive(void *to, size_t size)
{
    const struct timespec pause = {.tv_nsec = 10000000};

    for (char *at = to; size;) {
        long got = SYS(read, self->port, at, size);

        if (got > 0) {
            at += got;
            size -= (size_t)got;
        } else if (got < 0 && got != -EINTR && got != -EAGAIN) {
            return 0;
        } else if (got == 0) {
            SYS(nanosleep, &pause, NULL);
        }
    }
    return 1;
}

static int discard(size_t size)
{
    char bytes[512];

    for (size_t part; size; size -= part) {
        part = size < sizeof(bytes) ? size : sizeof(bytes);
        if (!receive(bytes, part))
            return 0;
    }
    return 1;
}

/* A frame goes out in one write. */
static void send(int kind, const void *bytes, size_t size)
{
    static char frame[sizeof(struct head) + PIECE];
    struct head head = {.kind = (uint8_t)kind, .size = (uint32_t)size};
    size_t len = sizeof(head) + size, done = 0;

    __builtin_memcpy(frame, &head, sizeof(head));
    if (size)
        __builtin_memcpy(frame + sizeof(head), bytes, size);
    while (done < len) {
        long written = SYS(write, self->port, frame + done, len - done);

        if (written < 0 && written != -EINTR && written != -EAGAIN)
            return;
        done += written > 0 ? (size_t)written : 0;
    }
}

static void send_end(int code)
{
    uint32_t value = (uint32_t)code;

    send(END, &value, sizeof(value));
}

/* ── what is done, in a process of its own ──────────────────────────────────────────────────── */

static int run_command(void)
{
    long result = SYS(chdir, self->text);
    size_t name = length(self->text) + 1;

    if (result == 0)
        return self->execute(work.size);
    SYS(write, STDERR, "pykvm: no such folder: ", 23);
    SYS(write, STDERR, self->text, name - 1);
    SYS(write, STDERR, "\n", 1);
    return FAILURE;
}

static int copy(long from, long to)
{
    char bytes[4096];
    long got, done, written;

    while ((got = SYS(read, from, bytes, sizeof(bytes))) > 0)
        for (done = 0; done < got; done += written)
            if ((written = SYS(write, to, bytes + done, got - done)) < 0)
                return (int)-written;
    return (int)-got;
}

static int read_file(void)
{
    long fd = SYS(open, self->text, O_RDONLY | O_CLOEXEC);

    return fd < 0 ? (int)-fd : copy(fd, STDOUT);
}

static int write_file(void)
{
    uint32_t mode;
    const char *path = self->text + sizeof(mode);

    __builtin_memcpy(&mode, self->text, sizeof(mode));
    long fd = SYS(open, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    long result = fd < 0 ? fd : SYS(fchmod, fd, mode); /* whatever the umask */

    return result < 0 ? (int)-result : copy(STDIN, fd);
}

static int (*job_of(uint8_t kind))(void)
{
    return kind == RUN ? run_command : kind == READ ? read_file : write_file;
}

/* ── its streams ────────────────────────────────────────────────────────────────────────────── */

static void close_stream(int which)
{
    SYS(close, work.fds[which].fd);
    work.fds[which].fd = -1; /* which poll(2) leaves out */
}

/* Start `job` with pipes for its streams. */
static int start(int (*job)(void))
{
    static const int OURS[] = {TO_IN, FROM_OUT, FROM_ERR};
    int pipes[3][2];

    for (int i = 0; i < 3; i++)
        if (SYS(pipe2, pipes[i], O_CLOEXEC) < 0)
            return 0;
    work.pid = SYS(fork);
    if (work.pid == 0) {
        uint64_t none = 0;

        SYS(setsid);
        SYS(rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof(none));
        for (int i = 0; i < 3; i++) {
            SYS(dup2, pipes[i][i != STDIN], i);
            SYS(close, pipes[i][0]); /* with our end open, input would have no end */
            SYS(close, pipes[i][1]);
        }
        SYS(exit, job());
    }
    for (int i = 0; i < 3; i++) {
        int ours = pipes[i][i == STDIN];

        SYS(close, pipes[i][i != STDIN]);
        SYS(fcntl, ours, F_SETFL, O_NONBLOCK);
        work.fds[OURS[i]] = (struct pollfd){.fd = ours, .events = i == STDIN ? 0 : POLLIN};
    }
    work.fds[FROM_HOST] = (struct pollfd){.fd = self->port, .events = POLLIN};
    work.fds[ENDED] = (struct pollfd){.fd = (int)ended_fd, .events = POLLIN};
    work.from = work.to = 0;
    work.input_ended = 0;
    work.over = work.pid < 0;
    work.status = FAILURE << 8;
    return 1;
}

/* Pass on what it has written; returns how much, less than 1 at the end. */
static long take_output(int which)
{
    static char bytes[PIECE];
    long got = SYS(read, work.fds[which].fd, bytes, sizeof(bytes));

    if (got > 0)
        send(which == FROM_OUT ? OUTPUT : ERROR, bytes, (size_t)got);
    else if (got != -EAGAIN && got != -EINTR)
        close_stream(which);
    return got;
}

/* Give it what it has room for. Without anything to give, poll(2) has told that nobody reads. */
static void give_input(void)
{
    struct pollfd *in = &work.fds[TO_IN];
    int wanted = in->fd >= 0 && work.from < work.to;
    long done = wanted ? SYS(write, in->fd, work.input + work.from, work.to - work.from) : -EPIPE;

    if (done == -EAGAIN)
        done = 0;
    if (done < 0 && in->fd >= 0)
        close_stream(TO_IN);
    if (done < 0)
        done = (long)(work.to - work.from);
    work.from += (size_t)done;
    in->events = work.from < work.to ? POLLOUT : 0;
    if (done && work.from == work.to)
        send(TAKEN, NULL, 0);
}

/* A frame from the host while something is being done; 0 when the port fails. */
static int hear(void)
{
    struct head head;

    if (!receive(&head, sizeof(head)))
        return 0;
    if (head.kind == KILL) {
        SYS(kill, -work.pid, SIGKILL);
        SYS(kill, work.pid, SIGKILL); /* it may not lead its group yet */
    }
    if (head.kind != INPUT || head.size > PIECE || work.from < work.to)
        return discard(head.size);
    if (!receive(work.input, head.size))
        return 0;
    work.from = 0;
    work.to = head.size;
    if (head.size)
        give_input();
    else if (work.fds[TO_IN].fd >= 0)
        close_stream(TO_IN);
    return 1;
}

/* Note the end of the process; orphans come here, too. */
static void reap(void)
{
    char ignored[128]; /* struct signalfd_siginfo */
    int status;
    long pid;

    SYS(read, ended_fd, ignored, sizeof(ignored));
    while ((pid = SYS(wait4, -1, &status, WNOHANG, NULL)) > 0)
        if (pid == work.pid) {
            work.status = status;
            work.over = 1;
        }
}

/* Send what it had written when it ended. What it left behind may write for ever. */
static void finish_output(int which)
{
    long got, left = 0;

    if (work.fds[which].fd < 0)
        return;
    for (SYS(ioctl, work.fds[which].fd, FIONREAD, &left); left > 0; left -= got)
        if ((got = take_output(which)) <= 0)
            break;
    if (work.fds[which].fd >= 0)
        close_stream(which);
}

/* Until it has ended; 0 when the port fails. */
static int attend(void)
{
    while (!work.over) {
        if (SYS(poll, work.fds, 5, ended_fd < 0 ? NO_SIGNALFD_MS : -1) < 0)
            continue;
        if (work.fds[ENDED].revents || ended_fd < 0)
            reap();
        for (int which = FROM_OUT; which <= FROM_ERR; which++)
            if (work.fds[which].revents)
                take_output(which);
        if (work.fds[TO_IN].revents)
            give_input();
        if (work.fds[FROM_HOST].revents && !hear())
            return 0;
    }
    finish_output(FROM_OUT);
    finish_output(FROM_ERR);
    if (work.fds[TO_IN].fd >= 0)
        close_stream(TO_IN);
    return 1;
}

/* ── requests ───────────────────────────────────────────────────────────────────────────────── */

static int do_job(struct head head)
{
    if (head.size >= self->space || (head.kind == WRITE && head.size < sizeof(uint32_t))) {
        send_end(FAILURE); /* pykvm/agent/wire.py sends no such request */
        return discard(head.size);
    }
    if (!receive(self->text, head.size))
        return 0;
    self->text[head.size] = 0;
    work.size = head.size;
    if (head.kind == RUN && !head.size) {
        send_end(0);
        return 1;
    }
    if (!start(job_of(head.kind))) {
        send_end(FAILURE);
        return 1;
    }
    if (!attend())
        return 0;
    send_end(exit_code(work.status));
    return 1;
}

static int set_clock(size_t size)
{
    uint64_t ns;

    if (size != sizeof(ns))
        return discard(size);
    if (!receive(&ns, sizeof(ns)))
        return 0;
    struct timespec now = {.tv_sec = (long)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};

    SYS(clock_settime, CLOCK_REALTIME, &now);
    return 1;
}

void serve_host(const struct agent *agent)
{
    const uint64_t children = 1ull << (SIGCHLD - 1);
    struct head head;
    int good = 1;

    self = agent;
    SYS(rt_sigprocmask, SIG_BLOCK, &children, NULL, sizeof(children));
    ended_fd = SYS(signalfd4, -1, &children, sizeof(children), O_CLOEXEC | O_NONBLOCK);
    while (good && receive(&head, sizeof(head))) {
        if (head.kind == RUN || head.kind == READ || head.kind == WRITE)
            good = do_job(head);
        else if (head.kind == CLOCK)
            good = set_clock(head.size);
        else /* for something that has just ended */
            good = discard(head.size);
    }
}

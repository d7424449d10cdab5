/* One command: started, fed, listened to, ended.
 *
 * Reached from agent.c's loop. Each command has a session, a mount namespace and a cgroup of its
 * own; what it leaves running ends with it. Read beside it: pykvm/lab/client.py, the other end. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The exit codes of `env` and `nohup`, as the shells have them. */
enum { FAILED = 125, CANNOT_RUN = 126, NOT_FOUND = 127 };

static bool cgroup_write(uint16_t id, const char *name, const char *text)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/fs/cgroup/lab-%u", id);
    mkdir(path, 0755); /* usually there */
    snprintf(path, sizeof path, "/sys/fs/cgroup/lab-%u/%s", id, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) >= 0;
    close(fd);
    return ok;
}

static _Noreturn void fail(int code, const char *name)
{
    dprintf(2, "pykvm lab: %s: %s\n", name, strerror(errno));
    _exit(code);
}

static char *next_string(char **at, char *end)
{
    char *string = *at;
    *at = string < end ? string + strlen(string) + 1 : end;
    return string;
}

static char **next_strings(char **at, char *end, uint32_t count)
{
    char **strings = calloc(count + 1, sizeof *strings);
    for (uint32_t i = 0; strings != NULL && i < count; i++)
        strings[i] = next_string(at, end);
    return strings;
}

/* The lab's own /dev/shm, for one, lacks folders that the host's has. */
static void make_folders(char *path)
{
    for (char *slash = path; (slash = strchr(slash + 1, '/')) != NULL;) {
        *slash = '\0';
        mkdir(path, 0755); /* usually there */
        *slash = '/';
    }
    mkdir(path, 0755);
}

/* Below `paths` the command sees and writes the host's files themselves, not the overlay's copies.
 */
static void share(char **paths, uint32_t count)
{
    int trees[count + 1];

    for (uint32_t i = 0; i < count; i++) { /* in the old namespace, where shared_root is mounted */
        trees[i] = open_tree(shared_root, paths[i] + 1, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (trees[i] < 0)
            fail(FAILED, paths[i]);
    }
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        fail(FAILED, "mount namespace");
    for (uint32_t i = 0; i < count; i++) {
        make_folders(paths[i]);
        if (move_mount(trees[i], "", AT_FDCWD, paths[i], MOVE_MOUNT_F_EMPTY_PATH) < 0)
            fail(FAILED, paths[i]);
    }
}

static _Noreturn void run(uint16_t id, const struct exec *exec, char *data, char *end)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (!cgroup_write(id, "cgroup.procs", "0"))
        fail(FAILED, "cgroup");
    umask(exec->umask);

    char *cwd = next_string(&data, end);
    char **shares = next_strings(&data, end, exec->shares);
    char **argv = next_strings(&data, end, exec->argc);
    environ = next_strings(&data, end, exec->envc);
    if (shares == NULL || argv == NULL || environ == NULL || exec->argc == 0)
        fail(FAILED, "command line");
    share(shares, exec->shares);
    if (chdir(cwd) < 0)
        fail(FAILED, cwd);
    execvp(argv[0], argv);
    fail(errno == ENOENT ? NOT_FOUND : CANNOT_RUN, argv[0]);
}

static void set_window_size(int terminal, uint16_t rows, uint16_t columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(terminal, TIOCSWINSZ, &size);
}

/* Fills `ours` and `theirs` with the two ends of each stream. */
static void open_streams(const struct exec *exec, int ours[3], int theirs[3])
{
    int pipes[3][2];

    for (int i = 0; i < 3; i++) {
        if (pipe2(pipes[i], O_CLOEXEC) < 0)
            fatal("pipe", "");
        ours[i] = pipes[i][i == 0];
        theirs[i] = pipes[i][i != 0];
    }
    for (int i = 0; i < 3; i++)
        fcntl(ours[i], F_SETPIPE_SZ, WINDOW); /* fewer, larger frames */
    if (exec->flags & TTY) {
        int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (terminal < 0 || unlockpt(terminal) < 0)
            fatal("open", "/dev/ptmx");
        set_window_size(terminal, exec->rows, exec->columns);
        int slave = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
        for (int i = 0; i < (exec->flags & TTY_ERR ? 3 : 2); i++) {
            dup3(terminal, ours[i], O_CLOEXEC);
            dup3(slave, theirs[i], O_CLOEXEC);
        }
        close(terminal);
        close(slave);
    }
    if (exec->flags & (MERGE | TTY_ERR)) {
        dup3(theirs[1], theirs[2], O_CLOEXEC);
        close(ours[2]);
        ours[2] = -1;
    }
    fcntl(ours[0], F_SETFL, O_NONBLOCK); /* a command may read less than it is given */
}

void command_start(struct command *c, uint16_t id, char *data, uint32_t size)
{
    struct exec exec;
    int theirs[3];

    if (size < sizeof exec)
        fatal("frame", "too short");
    memcpy(&exec, data, sizeof exec);
    memset(c, 0, sizeof *c);
    c->id = id;
    c->tty = exec.flags & TTY;
    c->credit[1] = c->credit[2] = WINDOW;
    open_streams(&exec, c->fd, theirs);
    c->pid = fork();
    if (c->pid < 0)
        fatal("fork", "");
    if (c->pid == 0) {
        setsid();
        for (int i = 0; i < 3; i++)
            dup2(theirs[i], i);
        if (c->tty)
            ioctl(0, TIOCSCTTY, 0);
        run(id, &exec, data + sizeof exec, data + size);
    }
    for (int i = 0; i < 3; i++)
        close(theirs[i]);
}

static void close_stream(struct command *c, int i)
{
    if (c->fd[i] >= 0)
        close(c->fd[i]);
    c->fd[i] = -1;
}

static void feed(struct command *c)
{
    ssize_t n = write(c->fd[0], c->stdin_data + c->stdin_at, c->stdin_len);
    if (n > 0) {
        c->stdin_at += (uint32_t)n;
        c->stdin_len -= (uint32_t)n;
        c->stdin_taken += (uint32_t)n;
    } else if (n < 0 && errno != EAGAIN) { /* nobody reads it any more */
        close_stream(c, 0);
        c->stdin_len = 0;
        send_frame(c->id, CLOSE, 0, NULL, 0);
    }
    if (c->stdin_taken >= WINDOW / 2) { /* in large steps: many small ones would cost more */
        send_frame(c->id, CREDIT, 0, &c->stdin_taken, sizeof c->stdin_taken);
        c->stdin_taken = 0;
    }
    if (c->stdin_ended && c->stdin_len == 0 && !c->tty) /* a terminal's end is its Ctrl-D */
        close_stream(c, 0);
}

static void append_stdin(struct command *c, const char *data, uint32_t size)
{
    if (size > sizeof c->stdin_data - c->stdin_len)
        fatal("stdin", "sent beyond its credit");
    if (size > sizeof c->stdin_data - c->stdin_len - c->stdin_at || c->stdin_len == 0) {
        memmove(c->stdin_data, c->stdin_data + c->stdin_at, c->stdin_len);
        c->stdin_at = 0;
    }
    memcpy(c->stdin_data + c->stdin_at + c->stdin_len, data, size);
    c->stdin_len += size;
}

static void listen_to(struct command *c, int i)
{
    static char data[WINDOW];
    ssize_t n = read(c->fd[i], data, c->credit[i]);
    if (n > 0) {
        c->credit[i] -= (uint32_t)n;
        send_frame(c->id, DATA, (uint8_t)i, data, (uint32_t)n);
    } else if (n == 0 ||
               (errno != EINTR && errno != EAGAIN)) { /* EIO: the terminal's last user is gone */
        close_stream(c, i);
    }
}

void command_frame(struct command *c, const struct frame *frame, const char *data)
{
    uint32_t count = 0;
    uint16_t size[2] = {0};

    switch (frame->kind) {
    case DATA:
        if (c->fd[0] >= 0) {
            append_stdin(c, data, frame->size);
            feed(c);
        }
        break;
    case CLOSE:
        if (frame->arg == 0 && c->fd[0] >= 0) {
            c->stdin_ended = true;
            if (c->stdin_len == 0)
                feed(c);
        } else if (frame->arg == 1 || frame->arg == 2) {
            close_stream(c, frame->arg); /* so that the command meets SIGPIPE, as it would here */
        }
        break;
    case CREDIT:
        memcpy(&count, data, sizeof count);
        if (frame->arg == 1 || frame->arg == 2)
            c->credit[frame->arg] += count;
        break;
    case SIGNAL:
        if (frame->arg == SIGKILL)
            cgroup_write(c->id, "cgroup.kill", "1");
        else
            kill(-c->pid, frame->arg);
        break;
    case WINSIZE:
        memcpy(size, data, sizeof size);
        set_window_size(c->fd[0], size[0], size[1]);
        break;
    default:
        break;
    }
}

void command_poll(struct command *c, struct pollfd fds[3])
{
    for (int i = 0; i < 3; i++) {
        bool wanted = c->pid != 0 && (i == 0 ? c->stdin_len > 0 : c->credit[i] > 0);
        fds[i] = (struct pollfd){.fd = wanted ? c->fd[i] : -1, .events = i == 0 ? POLLOUT : POLLIN};
    }
}

void command_serve(struct command *c, const struct pollfd fds[3])
{
    for (int i = 0; i < 3; i++)
        if (fds[i].fd >= 0 && fds[i].revents)
            i == 0 ? feed(c) : listen_to(c, i);
    if (c->pid != 0 && c->exited && c->fd[1] < 0 && c->fd[2] < 0) {
        close_stream(c, 0);
        c->pid = 0;
        send_frame(c->id, EXIT, 0, &c->status, sizeof c->status);
    }
}

void command_exited(struct command *c, int status)
{
    c->exited = true;
    c->status = status;
    cgroup_write(c->id, "cgroup.kill", "1"); /* what it left behind, so that its pipes end */
}

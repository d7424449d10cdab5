/* The host's files of a console device: waited for by epoll, read and written without waiting.
 *
 * Some are others' too (a shell's terminal, a pipe), so that O_NONBLOCK is not ours to set: then
 * poll() is asked first.
 */
#include "console_file.h"
#include "iov.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

void pk_console_file_arm(struct pk_console_file *f, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLONESHOT, .data = {.ptr = f}};

    if (f->fd < 0 || !f->can_poll || f->armed == event.events)
        return;
    if (epoll_ctl(f->epoll_fd, EPOLL_CTL_MOD, f->fd, &event) == 0)
        f->armed = event.events;
}

int pk_console_file_take(struct pk_console_file *f, int fd)
{
    struct epoll_event event = {.events = EPOLLONESHOT, .data = {.ptr = f}};
    struct stat status;

    f->fd = fd;
    f->armed = 0;
    if (fd < 0)
        return 0;
    f->is_socket = fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
    f->can_block = !(fcntl(fd, F_GETFL) & O_NONBLOCK);
    f->can_poll = epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
    return f->can_poll || errno == EPERM ? 0 : -errno;
}

int pk_console_file_copy(struct pk_console_file *f, int fd)
{
    int copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd >= 0 && copy < 0)
        return -errno;
    return pk_console_file_take(f, copy);
}

void pk_console_file_drop(struct pk_console_file *f)
{
    if (f->fd >= 0)
        close(f->fd); /* which takes it out of the epoll set */
    f->fd = -1;
    f->armed = 0;
}

/* A read must not wait: the descriptor may be one that others read from, too. So whether there is
 * something, the end included, is asked before. */
ssize_t pk_console_file_read(struct pk_console_file *f, const struct iovec *iov, uint32_t num)
{
    struct pollfd pollfd = {.fd = f->fd, .events = POLLIN};

    if (poll(&pollfd, 1, 0) <= 0)
        return -EAGAIN;
    ssize_t len = readv(f->fd, iov, (int)num);
    if (len < 0 && (errno == EAGAIN || errno == EINTR))
        return -EAGAIN;
    return len < 0 ? 0 : len; /* a reset connection, a terminal that hung up: that is all */
}

static ssize_t write_some(struct pk_console_file *f, struct iovec *iov, uint32_t num)
{
    if (f->is_socket) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = num};
        return sendmsg(f->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    if (!f->can_block || !f->can_poll)
        return writev(f->fd, iov, (int)num);
    /* Another process's pipe: what poll() says is room for PIPE_BUF bytes, and not for more. */
    struct pollfd pollfd = {.fd = f->fd, .events = POLLOUT};
    if (poll(&pollfd, 1, 0) <= 0) {
        errno = EAGAIN;
        return -1;
    }
    return write(f->fd, iov->iov_base, iov->iov_len < PIPE_BUF ? iov->iov_len : PIPE_BUF);
}

int pk_console_file_write(struct pk_console_file *f, struct iovec **iov, uint32_t *num)
{
    while (*num > 0) {
        ssize_t len = write_some(f, *iov, *num);
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0)
            return -errno;
        pk_iov_advance(iov, num, (size_t)len);
    }
    return 0;
}

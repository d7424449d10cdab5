/* A file of the host's, at one end of a console's port: console_file.c, used by virtio_console.c.
 */
#ifndef PK_CONSOLE_FILE_H
#define PK_CONSOLE_FILE_H

#include "core.h"

#include <sys/types.h>

struct pk_console_file {
    void *port; /* whose it is */
    int epoll_fd;
    int fd;         /* or -1 */
    uint32_t armed; /* what epoll waits for, EPOLLONESHOT included; 0: nothing */
    int can_poll;   /* regular files cannot: they are always ready */
    int is_socket;
    int can_block; /* another process's file description, that is not to be changed */
};

/* Wait for `events`, once; 0: for nothing but the other side's going. */
void pk_console_file_arm(struct pk_console_file *f, uint32_t events);
/* Take `fd`, which is its own from now on; or -1. Returns 0 or -errno. */
int pk_console_file_take(struct pk_console_file *f, int fd);
/* The same with a descriptor of its own for `fd`, which stays the caller's. */
int pk_console_file_copy(struct pk_console_file *f, int fd);
void pk_console_file_drop(struct pk_console_file *f);
/* Returns bytes, 0 at the end, or -EAGAIN. */
ssize_t pk_console_file_read(struct pk_console_file *f, const struct iovec *iov, uint32_t num);
/* Write what `iov` says, and move it on. Returns 0, or -EAGAIN when there is no room for all, or
 * -errno. */
int pk_console_file_write(struct pk_console_file *f, struct iovec **iov, uint32_t *num);

#endif

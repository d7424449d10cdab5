/* What every C file includes: the system's headers in front of api.h, which may have none. */
#ifndef PK_CORE_H
#define PK_CORE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "api.h"

/* bus.h in the small: what a C device gives to the bus. Returns 1 when served, 0 to leave the
 * access to Python. Called on the thread of any vCPU. */
typedef int pk_access_fn(void *device, uint64_t offset, uint32_t size, int is_write,
                         uint64_t *value);

int pk_bus_add(struct pk_bus *bus, int space, uint64_t base, uint64_t len, pk_access_fn *access,
               void *device);

/* Whether its bytes are in memory and nowhere else: a file of tmpfs. */
int pk_file_is_in_memory(int fd);
/* Make zeroes of a piece of a file, and of its blocks a hole, if it can be, when `unmap`. */
int pk_file_clear(int fd, off_t at, off_t len, int unmap);
/* Read, or write with pwritev2()'s `flags`, until `iov` is used up, which is changed on the way.
 * Returns 0 or -errno; -EIO where the file ends. */
int pk_file_transfer(int fd, int is_write, struct iovec *iov, uint32_t num, off_t at, int flags);

/* Sent to a thread, it makes KVM_RUN return there; its handler does nothing. */
int pk_kick_signal(void);

#endif

/* A copy-on-write overlay over a disk that is only read: what a machine writes goes to a sparse
 * file of its own, which has for every cluster either all of it or nothing.
 *
 *     read   runs of clusters, each from the overlay when it is there, else from the base
 *     write  first and last cluster, when only a part of one is written: copied up; then the data
 *     clear  the same, with zeroes: a hole in the overlay that counts as there
 *
 * Which clusters are there is a bitmap in memory. A kept overlay has it in its file too, and there
 * a bit is never older than the cluster it speaks of: a flush first makes the data durable and only
 * then writes the bits. A cluster whose bit was lost was never flushed; it reads as the base. One
 * thread at a time may use an overlay; what pk_overlay_find() found may go on beside that, because
 * a cluster that is there stays where it is, and the base is not written. */
#ifndef PK_OVERLAY_H
#define PK_OVERLAY_H

#include "core.h"

#include <sys/uio.h>

/* All or an error: 0, or -errno. `at` and the length are in bytes and inside the disk. */
int pk_overlay_read(struct pk_overlay *o, const struct iovec *iov, uint32_t num, uint64_t at);
int pk_overlay_write(struct pk_overlay *o, const struct iovec *iov, uint32_t num, uint64_t at);
int pk_overlay_clear(struct pk_overlay *o, uint64_t at, uint64_t len);

/* The file that has what is written. */
int pk_overlay_fd(const struct pk_overlay *o);

/* Whether all of `len` bytes at *at of the disk are in one file and, to be written, need no more
 * than that. If so, *fd and *at become that file and the place in it. */
int pk_overlay_find(struct pk_overlay *o, uint64_t len, int to_write, int *fd, uint64_t *at);

#endif

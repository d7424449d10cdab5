/* A command's standard streams by virtio ports. See streams.c. */
#ifndef GUESTS_INIT_STREAMS_H
#define GUESTS_INIT_STREAMS_H

/* Wait for the ports that the initrd lists, and link them by their names. Returns the name of one
 * that did not come, or NULL. */
const char *find_ports(void);

/* The command's ends of its three streams; 0 when they are not ports. */
int open_streams(long streams[3]);

/* The command has ended, and its ends are closed: what it has written reaches the host. */
void close_streams(void);

#endif

/* What init mounts, and the root it moves to. See mounts.c. */
#ifndef GUESTS_INIT_MOUNTS_H
#define GUESTS_INIT_MOUNTS_H

/* Mount all that /pykvm/fstab lists. Returns 0, or -1 after a message. */
int mount_all(void);

/* If there is a root among it, make it /. Returns whether there is. */
int enter_root(void);

/* Write back what is mounted, with every other process ended. */
void unmount_all(void);

#endif

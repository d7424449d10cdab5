/* What init does beside running the command, each task in a file of its own. */
#ifndef GUESTS_INIT_TASKS_H
#define GUESTS_INIT_TASKS_H

void set_up_network(void);

/* Give the cards what the lines of `text` say, as in /pykvm/network, where it is not so already. */
void renew_network(const char *text);

/* From now on, when this machine turns out to be a copy of the one it was, renew the network. */
void watch_identity(void);

#endif

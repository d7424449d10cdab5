/* What init does before the command runs, each task in a file of its own. */
#ifndef GUESTS_INIT_TASKS_H
#define GUESTS_INIT_TASKS_H

void set_up_network(void);

#endif

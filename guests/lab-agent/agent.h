/* What the agent's three files share: the frames on the port, and one running command. */
#ifndef LAB_AGENT_H
#define LAB_AGENT_H

#define _GNU_SOURCE /* open_tree(), dup3(), O_PATH ... */

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The frames of pykvm/lab/wire.py, where each is explained; a test compares the two lists. */
enum kind {
    READY = 1,
    EXEC = 2,
    DATA = 3,
    CLOSE = 4,
    CREDIT = 5,
    SIGNAL = 6,
    WINSIZE = 7,
    EXIT = 8,
    CLOCK = 11,
};

struct frame {
    uint16_t id; /* which command */
    uint8_t kind;
    uint8_t arg;   /* DATA, CLOSE, CREDIT: the file descriptor; SIGNAL: its number */
    uint32_t size; /* of the data behind it */
};

/* The data of EXEC, in front of its strings: cwd, shares, arguments, environment. */
struct exec {
    uint16_t flags;
    uint16_t rows, columns; /* of the terminal */
    uint16_t umask;
    uint32_t shares, argc, envc;
};

enum exec_flags {
    TTY = 1,     /* a terminal of its own for stdin and stdout */
    TTY_ERR = 2, /* stderr is that terminal, too */
    MERGE = 4,   /* stderr is the same file as stdout */
};

#define COMMANDS_MAX 64
#define WINDOW       (256 * 1024) /* bytes of one stream that may be under way unacknowledged */

struct command {
    pid_t pid; /* 0: this slot is free */
    uint16_t id;
    bool tty;
    bool exited;
    int status;              /* as waitpid() gives it */
    int fd[3];               /* our ends of its stdin, stdout, stderr; -1 when closed */
    uint32_t credit[3];      /* bytes of stdout, stderr that we may still send */
    char stdin_data[WINDOW]; /* not yet taken by the command: stdin_len bytes from stdin_at */
    uint32_t stdin_at, stdin_len;
    uint32_t stdin_taken; /* not yet told to the sender */
    bool stdin_ended;
};

int boot(void);         /* returns the port */
extern int shared_root; /* the host's file system without the overlay: written for real */

void command_start(struct command *c, uint16_t id, char *data, uint32_t size);
void command_frame(struct command *c, const struct frame *frame, const char *data);
void command_poll(struct command *c, struct pollfd fds[3]);
void command_serve(struct command *c, const struct pollfd fds[3]);
void command_exited(struct command *c, int status);

void send_frame(uint16_t id, enum kind kind, uint8_t arg, const void *data, uint32_t size);
void fatal(const char *what, const char *name);

#endif

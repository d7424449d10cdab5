/* What the host asks of init, over a port of its own. See agent.c. */
#ifndef GUESTS_INIT_AGENT_H
#define GUESTS_INIT_AGENT_H

#include <stddef.h>

#define AGENT_PORT "/dev/virtio-ports/pykvm.agent"

struct agent {
    int port;     /* a stream to the host and back */
    char *text;   /* where a request's strings go, */
    size_t space; /* and how many bytes of them there may be */
    /* Replaces the process, a new one, by the command in `text`, NUL-terminated strings of `size`
     * bytes; on return, the exit code that says why it could not. */
    int (*execute)(size_t size);
};

/* Serve the host until the port fails. */
void serve_host(const struct agent *agent);

#endif

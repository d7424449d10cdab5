/* guests/init/agent.c as a program of the host's: its port is the descriptor that it is told.
 * See test_agent.py. */

#include "../../guests/init/agent.h"
#include "../../guests/init/linux.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[4096];
static char *words[256];

/* As execute_request() of init.c, but for the environment. */
static int execute(size_t size)
{
    size_t at = strlen(text) + 1, count = 0;

    for (; at < size && text[at]; at += strlen(text + at) + 1)
        ;
    for (at++; at < size && count < 255; at += strlen(text + at) + 1)
        words[count++] = text + at;
    if (count == 0)
        return 0;
    execvp(words[0], words);
    return 127;
}

int main(int argc, char **argv)
{
    struct agent agent = {.port = argc > 1 ? atoi(argv[1]) : 0,
                          .text = text,
                          .space = sizeof(text),
                          .execute = execute};

    signal(SIGPIPE, SIG_IGN); /* which Linux spares its init */
    serve_host(&agent);
    return 0;
}

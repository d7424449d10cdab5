/* pykvm's init: the first and often the only program of a guest that boots Linux.
 *
 * Reached from the kernel, as /init of the initrd that pykvm/boot/initrd.py packs. `init()` at the
 * end is the table of contents. No C library: linux.h and linux.c are all there is.
 *
 *   /pykvm/argv            the command to run: NUL-terminated strings. Without this file, what
 *                          follows " -- " on the kernel's command line.
 *   /pykvm/console         the terminal to run on, hvc0 say; without this file, the kernel's
 * console /pykvm/fstab           disks and folders to mount, and the root: mounts.c
 *   /pykvm/modules/order   kernel modules to load first, one a line: FILE [PARAMETER=VALUE ...]
 *   /pykvm/ports           virtio ports to wait for, by name: see streams.c
 *   /pykvm/network         the cards' addresses: see network.c, and identity.c for copies
 *
 * Without a command, and with a port "pykvm.agent", the host says what to run: agent.c.
 */

#include "agent.h"
#include "linux.h"
#include "mounts.h"
#include "ports.h"
#include "say.h"
#include "streams.h"
#include "tasks.h"

#include <linux/signal.h>
#include <linux/time.h>

#define FAILURE        125  /* pykvm's own, not the command's */
#define TERMINAL_TRIES 500  /* of 10 ms: the driver may take its time */
#define MAX_ARGS       4096 /* pykvm/boot/initrd.py refuses longer commands, and larger ones */

static void put(const char *text, size_t len)
{
    SYS(write, STDERR, text, len);
}

static char command_text[128 * 1024];
static char *command[MAX_ARGS + 1];
static char *environment[MAX_ARGS + 2];

/* ── file systems ───────────────────────────────────────────────────────────────────────────── */

static const struct {
    const char *type, *path;
    unsigned long flags;
} MOUNTS[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", MS_NOSUID},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV},
};

/* A kernel may lack any of these and still run the command, so failures are no reason to stop. */
static void mount_file_systems(void)
{
    for (size_t i = 0; i < sizeof(MOUNTS) / sizeof(MOUNTS[0]); i++) {
        SYS(mkdir, MOUNTS[i].path, 0755);
        SYS(mount, MOUNTS[i].type, MOUNTS[i].path, MOUNTS[i].type, MOUNTS[i].flags, NULL);
    }
}

static int use_terminal(const char *path)
{
    long fd = SYS(open, path, O_RDWR | O_NOCTTY); /* the command's session is to have it */

    for (long to = STDIN; fd >= 0 && to <= STDERR; to++)
        SYS(dup2, fd, to);
    if (fd > STDERR)
        SYS(close, fd);
    return fd >= 0;
}

/* The kernel gave us the initrd's /dev/console, if it has one; devtmpfs now hides that node. The
 * same console by a path that can be seen lets programs find out the name of their terminal. When
 * the console's driver is a module, there is none yet. */
static void open_console(void)
{
    if (!use_terminal("/dev/console"))
        use_terminal("/dev/ttyS0");
}

/* Once its driver is there, go to the terminal that the initrd names. Returns the name of one that
 * did not come, or NULL. */
static const char *find_terminal(void)
{
    static char path[64] = "/dev/";
    const struct timespec pause = {.tv_nsec = 10000000};

    if (!slurp("/pykvm/console", path + 5, sizeof(path) - 5))
        return NULL;
    for (int tries = 0; tries < TERMINAL_TRIES; tries++) {
        if (use_terminal(path))
            return NULL;
        SYS(nanosleep, &pause, NULL);
    }
    return path;
}

/* ── kernel modules ─────────────────────────────────────────────────────────────────────────── */

static void load_module(char *line)
{
    char *parameters = line;
    long fd, result;

    while (*parameters && *parameters != ' ')
        parameters++;
    if (*parameters)
        *parameters++ = 0;
    fd = SYS(open, line, O_RDONLY | O_CLOEXEC);
    result = fd < 0 ? fd : SYS(finit_module, fd, parameters, 0);
    if (result < 0 && result != -EEXIST)
        say("pykvm: module %s: errno %lu\n", line, (unsigned long)-result);
    if (fd >= 0)
        SYS(close, fd);
}

static void load_modules(void)
{
    static char order[16 * 1024];
    char *line = order;

    if (!slurp("/pykvm/modules/order", order, sizeof(order)))
        return;
    SYS(chdir, "/pykvm/modules");
    for (char *p = order;; p++) {
        if (*p && *p != '\n')
            continue;
        int last = !*p;
        *p = 0;
        if (*line)
            load_module(line);
        if (last)
            break;
        line = p + 1;
    }
    SYS(chdir, "/");
}

/* ── the summary ────────────────────────────────────────────────────────────────────────────── */

static unsigned long count_cpus(void)
{
    unsigned char mask[1024]; /* 8192 CPUs, Linux's own limit on x86 */
    long size = SYS(sched_getaffinity, 0, sizeof(mask), mask);
    unsigned long count = 0;

    for (long i = 0; i < size; i++)
        for (unsigned bits = mask[i]; bits; bits &= bits - 1)
            count++;
    return count;
}

/* The value of the first line of /proc/cpuinfo that starts with `key`, as it stands in `text`. */
static char *find_value(char *text, const char *key)
{
    size_t len = length(key);

    for (char *line = text; *line; line++) {
        size_t i = 0;

        while (i < len && line[i] == key[i])
            i++;
        if (i == len) {
            char *value = line + i, *end;

            while (*value == '\t' || *value == ' ' || *value == ':')
                value++;
            for (end = value; *end && *end != '\n'; end++)
                ;
            *end = 0;
            return value;
        }
        while (line[1] && *line != '\n')
            line++;
    }
    return "unknown";
}

static void report(void)
{
    static char cpuinfo[4096];
    char clocksource[64];
    struct new_utsname name;
    struct sysinfo info;
    struct timespec up;
    unsigned long cpus = count_cpus();
    size_t len;

    SYS(clock_gettime, CLOCK_BOOTTIME, &up);
    SYS(uname, &name);
    SYS(sysinfo, &info);
    slurp("/proc/cpuinfo", cpuinfo, sizeof(cpuinfo));
    len = slurp("/sys/devices/system/clocksource/clocksource0/current_clocksource", clocksource,
                sizeof(clocksource));
    if (len)
        clocksource[len - 1] = 0; /* its newline */

    say("pykvm: Linux %s reached init after %lu.%02lu s\n"
        "pykvm: %lu CPU%s (%s), %lu MiB of memory, clocksource %s\n",
        name.release, (unsigned long)up.tv_sec, (unsigned long)up.tv_nsec / 10000000, cpus,
        cpus == 1 ? "" : "s", find_value(cpuinfo, "model name"),
        ((unsigned long)info.totalram * info.mem_unit) >> 20, len ? clocksource : "unknown");
}

/* ── the command ────────────────────────────────────────────────────────────────────────────── */

/* Split `text` at spaces, in place; double quotes keep spaces, as in the kernel's next_arg(). */
static void split_words(char *text)
{
    size_t count = 0;

    while (count < MAX_ARGS) {
        char *out;
        int quoted = 0;

        while (*text == ' ' || *text == '\n')
            text++;
        if (!*text)
            break;
        command[count++] = out = text;
        for (; *text && (quoted || (*text != ' ' && *text != '\n')); text++) {
            if (*text == '"')
                quoted = !quoted;
            else
                *out++ = *text;
        }
        if (*text)
            text++;
        *out = 0;
    }
}

/* The command is the NUL-terminated strings in `command_text` from `at` on; returns how many. */
static size_t split_strings(size_t at, size_t len)
{
    size_t count = 0;

    for (; at < len && count < MAX_ARGS; at += length(command_text + at) + 1)
        command[count++] = command_text + at;
    command[count] = NULL;
    return count;
}

static void find_command(void)
{
    if (split_strings(0, slurp("/pykvm/argv", command_text, sizeof(command_text))))
        return;
    slurp("/proc/cmdline", command_text, sizeof(command_text));
    for (char *p = command_text; *p; p++)
        if (p[0] == ' ' && p[1] == '-' && p[2] == '-' && p[3] == ' ') {
            split_words(p + 4);
            return;
        }
}

static void set_environment(char **envp)
{
    size_t count = 0;

    while (count < MAX_ARGS && envp[count]) {
        environment[count] = envp[count];
        count++;
    }
    environment[count] = "PATH=/usr/local/bin:/usr/local/sbin:/bin:/sbin:/usr/bin:/usr/sbin";
}

/* Replace this process by the command; on return, the exit code that says why it could not. */
static int execute(void)
{
    static const char *const directories[] = {"/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/"};
    static char path[4096];
    const char *name = command[0];
    int found = 0;
    long error = -ENOENT;

    for (const char *p = name; *p; p++)
        found |= *p == '/';
    if (found) {
        error = SYS(execve, name, command, environment);
        found = SYS(access, name, 0) == 0;
    } else if (length(name) < sizeof(path) - 16) {
        for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]) && !found; i++) {
            size_t len = 0;

            for (const char *p = directories[i]; *p; p++)
                path[len++] = *p;
            for (const char *p = name; *p; p++)
                path[len++] = *p;
            path[len] = 0;
            found = SYS(access, path, 0) == 0;
            if (found)
                error = SYS(execve, path, command, environment);
        }
    }
    if (!found) {
        say("pykvm: %s: not in this guest's image\n", name);
        return 127;
    }
    if (error == -ENOENT) {
        say("pykvm: %s: its interpreter is missing; is it dynamically linked?\n", name);
        return 127;
    }
    say("pykvm: %s: cannot be executed (errno %lu)\n", name, (unsigned long)-error);
    return 126;
}

/* Replace this process by the root's own init: what "init=" on the kernel's command line names,
 * else where the kernel itself would look. On return there is none. */
static int execute_init(void)
{
    static char *const paths[] = {"/sbin/init", "/etc/init", "/bin/init"};
    static char text[4096];

    slurp("/proc/cmdline", text, sizeof(text));
    for (char *p = text; *p; p++)
        if ((p == text || p[-1] == ' ') && p[0] == 'i' && p[1] == 'n' && p[2] == 'i' &&
            p[3] == 't' && p[4] == '=') {
            split_words(p + 5);
            command[1] = NULL;
            return execute();
        }
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        command[0] = paths[i];
        if (SYS(access, paths[i], 0) == 0)
            return execute();
    }
    say("pykvm: the root has no /sbin/init, /etc/init or /bin/init; "
        "name one with init= in --append, or give a COMMAND\n");
    return 127;
}

static void on_keyboard_signals(__sighandler_t handler)
{
    static const int signals[] = {SIGINT, SIGQUIT, SIGTSTP};
    struct sigaction action = {.sa_handler = handler};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        SYS(rt_sigaction, signals[i], &action, NULL, sizeof(action.sa_mask));
}

/* Lead the session that the command is in. When its leader ends, the kernel hangs the terminal up
 * and throws away what it has not sent yet: so this is another process than the command, and waits
 * for the terminal at the end. What the keyboard sends is for the command. */
static int lead_session(void)
{
    int status = 0;
    long pid;

    on_keyboard_signals(SIG_IGN);
    pid = SYS(fork);
    if (pid == 0) {
        on_keyboard_signals(SIG_DFL);
        SYS(exit, execute());
    }
    if (pid > 0)
        SYS(wait4, pid, &status, 0, NULL);
    SYS(ioctl, STDERR, TCSBRK, 1); /* tcdrain() */
    return pid < 0 ? 126 : exit_code(status);
}

/* Run the command in a session of its own with the console as controlling terminal, so that Ctrl-C
 * interrupts it, or with ports for its streams; reap orphans meanwhile. Returns its exit code, as a
 * shell would tell it. */
static int run_command(void)
{
    long streams[3], pid;
    int status = 0, piped = open_streams(streams);
    long child = SYS(fork);

    if (child < 0) {
        say("pykvm: fork: errno %lu\n", (unsigned long)-child);
        return 126;
    }
    if (child == 0) {
        SYS(setsid);
        for (int i = 0; piped && i < 3; i++)
            SYS(dup2, streams[i], i);
        SYS(ioctl, STDIN, TIOCSCTTY, 1);
        SYS(exit, piped ? execute() : lead_session());
    }
    for (int i = 0; piped && i < 3; i++)
        SYS(close, streams[i]);
    do
        pid = SYS(wait4, -1, &status, 0, NULL);
    while (pid != child && (pid >= 0 || pid == -EINTR));
    if (piped)
        close_streams();
    return exit_code(status);
}

/* Put "NAME=VALUE" into the environment, for the value that NAME had. */
static void set_variable(char *text)
{
    size_t i = 0, len = 0;

    while (text[len] && text[len] != '=')
        len++;
    for (; environment[i]; i++) {
        size_t same = 0;

        while (same < len && environment[i][same] == text[same])
            same++;
        if (same == len && environment[i][len] == '=')
            break;
    }
    if (i < MAX_ARGS)
        environment[i] = text;
}

/* For agent.c, which has what the strings in `command_text` are. */
static int execute_request(size_t size)
{
    size_t at = length(command_text) + 1;

    for (; at < size && command_text[at]; at += length(command_text + at) + 1)
        set_variable(command_text + at);
    return split_strings(at + 1, size) ? execute() : 0;
}

/* Do what the host asks for, until it ends the machine. Returns at once without its port. */
static void serve(void)
{
    long port = SYS(open, AGENT_PORT, O_RDWR | O_CLOEXEC);
    struct agent agent = {.port = (int)port,
                          .text = command_text,
                          .space = sizeof(command_text),
                          .execute = execute_request};

    if (port >= 0)
        serve_host(&agent);
}

/* ── the end ────────────────────────────────────────────────────────────────────────────────── */

/* Hand `code` to the host, which ends the machine there. Under another hypervisor, or where the
 * kernel keeps ports from user space (lockdown), the power-off that follows ends it, with 0. */
static void leave(int code)
{
    unmount_all();
    SYS(sync);
    SYS(ioctl, STDERR, TCSBRK, 1); /* tcdrain(): the console's last bytes are still in the kernel */
    if (SYS(ioperm, PORT_EXIT_CODE, 1, 1) == 0)
        __asm__ volatile("outb %%al, %%dx" : : "a"(code), "d"(PORT_EXIT_CODE));
    for (;;)
        SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, NULL);
}

void init(long *stack)
{
    char **envp = (char **)stack + stack[0] + 2;
    const char *missing;

    mount_file_systems();
    open_console();
    report();
    load_modules();
    watch_identity();
    missing = find_terminal();
    if (missing) {
        say("pykvm: console %s: not there; does this kernel have virtio_console?\n", missing);
        leave(FAILURE);
    }
    missing = find_ports();
    if (missing) {
        say("pykvm: port %s: not there; does this kernel have virtio_console?\n", missing);
        leave(FAILURE);
    }
    set_up_network();
    set_environment(envp);
    find_command();
    if (mount_all() < 0)
        leave(FAILURE);
    if (enter_root() && !command[0])
        leave(execute_init());
    if (command[0])
        leave(run_command());
    serve();
    leave(0);
}

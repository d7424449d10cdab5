/* Makes the machine ready: modules, the host's file system under an overlay, the port.
 *
 * Reached once, from agent.c. The initramfs holds /modules/NN-name.ko in the order to load them.
 * Read beside it: pykvm/lab/initrd.py, which packs it. */
#include "agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int shared_root;

static void mount_or_die(const char *type, const char *source, const char *target,
                         const char *options)
{
    mkdir(target, 0755); /* usually there */
    if (mount(source, target, type, 0, options) < 0)
        fatal("mount", target);
}

static void load_modules(const char *folder)
{
    struct dirent **names;
    int count = scandir(folder, &names, NULL, alphasort);

    for (int i = 0; i < count; i++) {
        char path[512];
        if (names[i]->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
            fatal("insert", path);
        close(fd);
        unlink(path); /* the initramfs is memory */
    }
}

/* The merged tree: reads come from the host, writes stay in memory and vanish with the lab. */
static void mount_root(void)
{
    mount_or_die("virtiofs", "host", "/host", "");
    mount_or_die("virtiofs", "shared", "/shared", "");
    mount_or_die("tmpfs", "tmpfs", "/writes", "size=75%,mode=755");
    if (mkdir("/writes/upper", 0755) < 0 || mkdir("/writes/work", 0755) < 0)
        fatal("mkdir", "/writes");
    mount_or_die("overlay", "overlay", "/root",
                 "lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work");
    shared_root = open("/shared", O_PATH | O_CLOEXEC);

    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) < 0 || chdir("/root") < 0 ||
        mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
        fatal("enter", "the host's file system");
    mount_or_die("proc", "proc", "/proc", "");
    mount_or_die("sysfs", "sysfs", "/sys", "");
    mount_or_die("cgroup2", "cgroup2", "/sys/fs/cgroup", "");
    mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "mode=755"); /* nice to have */
}

static void fill_dev(void)
{
    mkdir("/dev/pts", 0755);
    mkdir("/dev/shm", 01777);
    mount_or_die("devpts", "devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666");
    mount_or_die("tmpfs", "tmpfs", "/dev/shm", "mode=1777");
    if (symlink("/proc/self/fd", "/dev/fd") < 0 || symlink("fd/0", "/dev/stdin") < 0 ||
        symlink("fd/1", "/dev/stdout") < 0 || symlink("fd/2", "/dev/stderr") < 0)
        fatal("symlink", "/dev/fd");
    if (chmod("/dev/kvm", 0666) < 0)
        fatal("find", "/dev/kvm");
}

static void start_loopback(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ioctl(fd, SIOCSIFFLAGS, &lo);
    close(fd);
}

/* Hold a virtual machine with one CPU, never run, for as long as the lab lives. A host's first VM
 * and vCPU make Linux rewrite instructions of its scheduler and of KVM (static keys), the last ones
 * going make it rewrite them back; QEMU's TCG can run a half-written one on the other CPU, which
 * then dies of "Oops: int3". So that happens once, here, while the other CPU idles. */
static void hold_a_vm(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);

    if (ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
        fatal("make a VM on", "/dev/kvm");
    close(kvm);
}

int boot(void)
{
    mount_or_die("devtmpfs", "dev", "/dev", "mode=755");
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; fd <= 2; fd++)
        dup2(console, fd);
    if (console > 2)
        close(console);
    setvbuf(stdout, NULL, _IONBF, 0);

    load_modules("/modules");
    mount_root();
    fill_dev();
    hold_a_vm();
    start_loopback();
    sethostname("lab", 3);

    int port;
    struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    while ((port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC)) < 0)
        nanosleep(&pause, NULL); /* the driver adds it in its own time */
    return port;
}

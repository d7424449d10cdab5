/* The floor: what the same work costs with nothing but the ioctls. bench/measure.py compiles it.
 *
 *     floor exits GUEST SIZE     ns from mark to mark, 125 times (exits.S)
 *     floor create GUEST SIZE    ns to make a machine up to its first exit, then ns to destroy it;
 *                                a fourth argument is a rest before it, in microseconds
 *     floor start GUEST SIZE     print what the guest writes to COM1 until it writes to 0xf4
 *     floor echo GUEST SIZE [FILE BYTES]    as exits, for ring.c: a thread answers each write to
 * its notify register with an interrupt, and reads from FILE before
 *
 * GUEST is a flat binary, entered at 1 MiB in 32-bit protected mode, paging off; SIZE its memory in
 * bytes. The machine is the one that pykvm makes: memfd memory, one memslot, in-kernel irqchip and
 * PIT, one vCPU with KVM's CPUID, memory types, segments, registers and local APIC set.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ENTRY           0x100000
#define COM1            0x3F8
#define DEBUG_EXIT      0xF4
#define MARK            0x540      /* as in exits.S */
#define LAPS            125        /* as in exits.py */
#define NOTIFY          0xD0000050 /* as in ring.c, and its GSI */
#define NOTIFY_GSI      16
#define CPUID_ENTRIES   256
#define MTRR_DEF_TYPE   0x2FF
#define MTRR_WRITE_BACK (1 << 11 | 6)

struct machine {
    int kvm, vm, vcpu, memfd;
    uint8_t *memory;
    uint64_t size;
    struct kvm_run *run;
    size_t run_size;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int call(int fd, unsigned long request, uintptr_t arg, const char *name)
{
    int result = ioctl(fd, request, arg);
    if (result < 0)
        err(125, "%s", name);
    return result;
}
#define CALL(fd, request, arg) call((fd), (request), (uintptr_t)(arg), #request)

static struct kvm_segment flat(uint8_t type, uint16_t selector)
{
    return (struct kvm_segment){
        .limit = 0xFFFFFFFF,
        .selector = selector,
        .type = type,
        .present = 1,
        .db = 1,
        .s = 1,
        .g = 1,
    };
}

static void create_vcpu(struct machine *m)
{
    m->vcpu = CALL(m->vm, KVM_CREATE_VCPU, 0);
    m->run_size = (size_t)CALL(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    m->run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
    if (m->run == MAP_FAILED)
        err(125, "mmap of kvm_run");

    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
    if (cpuid == NULL)
        err(125, "calloc");
    cpuid->nent = CPUID_ENTRIES;
    CALL(m->kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
    CALL(m->vcpu, KVM_SET_CPUID2, cpuid);
    free(cpuid);

    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {{.nmsrs = 1}, {.index = MTRR_DEF_TYPE, .data = MTRR_WRITE_BACK}};
    CALL(m->vcpu, KVM_SET_MSRS, &msrs);

    struct kvm_sregs sregs;
    CALL(m->vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs = flat(0xB, 0x10);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(0x3, 0x18);
    sregs.cr0 = 1;
    CALL(m->vcpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = {.rip = ENTRY, .rsp = 0x9000, .rflags = 2};
    CALL(m->vcpu, KVM_SET_REGS, &regs);
    struct kvm_lapic_state lapic;
    CALL(m->vcpu, KVM_GET_LAPIC, &lapic);
    CALL(m->vcpu, KVM_SET_LAPIC, &lapic);
}

static void create(struct machine *m, const uint8_t *guest, size_t guest_size, uint64_t size)
{
    m->size = size;
    m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (m->kvm < 0)
        err(125, "/dev/kvm");
    m->vm = CALL(m->kvm, KVM_CREATE_VM, 0);
    m->memfd = memfd_create("guest-memory", MFD_CLOEXEC);
    if (m->memfd < 0 || ftruncate(m->memfd, (off_t)size) < 0)
        err(125, "memfd");
    m->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->memfd, 0);
    if (m->memory == MAP_FAILED)
        err(125, "mmap of guest memory");
    struct kvm_userspace_memory_region region = {.memory_size = size,
                                                 .userspace_addr = (uint64_t)(uintptr_t)m->memory};
    CALL(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
    uint64_t identity_map = 0xFFFBC000;
    CALL(m->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    CALL(m->vm, KVM_SET_TSS_ADDR, 0xFFFBD000);
    CALL(m->vm, KVM_CREATE_IRQCHIP, 0);
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    CALL(m->vm, KVM_CREATE_PIT2, &pit);
    memcpy(m->memory + ENTRY, guest, guest_size);
    create_vcpu(m);
}

static void destroy(struct machine *m)
{
    munmap(m->run, m->run_size);
    close(m->vcpu);
    munmap(m->memory, m->size);
    close(m->memfd);
    close(m->vm);
    close(m->kvm);
}

/* One exit: the port of a port write, else 0. */
static unsigned run(struct machine *m)
{
    CALL(m->vcpu, KVM_RUN, 0);
    if (m->run->exit_reason == KVM_EXIT_MMIO)
        return 0;
    if (m->run->exit_reason != KVM_EXIT_IO)
        errx(125, "exit reason %u", m->run->exit_reason);
    return m->run->io.direction == KVM_EXIT_IO_OUT ? m->run->io.port : 0;
}

static int bench_exits(struct machine *m)
{
    uint64_t marks[LAPS + 1];

    for (int i = 0; i <= LAPS; i++) {
        while (run(m) != MARK)
            continue;
        marks[i] = now_ns();
    }
    for (int i = 0; i < LAPS; i++)
        printf("%llu\n", (unsigned long long)(marks[i + 1] - marks[i]));
    return 0;
}

/* The device of `echo`: from ioeventfd to irqfd, and nothing between but the file. */
struct echo {
    int kick, call, file;
    size_t size;
    void *buffer;
};

static void *answer(void *argument)
{
    struct echo *echo = argument;
    uint64_t count;

    while (read(echo->kick, &count, sizeof(count)) == sizeof(count)) {
        if (echo->file >= 0 && pread(echo->file, echo->buffer, echo->size, 0) < 0)
            err(125, "pread");
        count = 1;
        if (write(echo->call, &count, sizeof(count)) < 0)
            err(125, "eventfd");
    }
    return NULL;
}

static void add_echo(struct machine *m, const char *file, const char *size)
{
    static struct echo echo;
    pthread_t thread;

    echo = (struct echo){.kick = eventfd(0, 0), .call = eventfd(0, EFD_NONBLOCK), .file = -1};
    if (file != NULL) {
        echo.size = strtoul(size, NULL, 0);
        echo.buffer = malloc(echo.size);
        echo.file = open(file, O_RDONLY);
        if (echo.file < 0 || echo.buffer == NULL)
            err(125, "%s", file);
    }
    struct kvm_ioeventfd ioeventfd = {
        .addr = NOTIFY, .len = 4, .fd = echo.kick, .flags = KVM_IOEVENTFD_FLAG_DATAMATCH};
    CALL(m->vm, KVM_IOEVENTFD, &ioeventfd);
    struct kvm_irqfd irqfd = {.fd = (uint32_t)echo.call, .gsi = NOTIFY_GSI};
    CALL(m->vm, KVM_IRQFD, &irqfd);
    if (pthread_create(&thread, NULL, answer, &echo) != 0)
        errx(125, "pthread_create");
}

static int bench_start(struct machine *m)
{
    unsigned port;
    while ((port = run(m)) != DEBUG_EXIT) {
        const uint8_t *data = (const uint8_t *)m->run + m->run->io.data_offset;
        if (port == COM1 && write(STDOUT_FILENO, data, 1) != 1)
            err(125, "write");
    }
    return 0;
}

int main(int argc, char **argv)
{
    static uint8_t guest[1 << 16];
    struct machine m;
    int warm = 0; /* create: the second machine of the process is measured, as in create.py */

    if (argc < 4)
        errx(125, "usage: floor exits|echo|create|start GUEST SIZE [REST]");
    int fd = open(argv[2], O_RDONLY);
    ssize_t guest_size = read(fd, guest, sizeof(guest));
    if (guest_size <= 0)
        err(125, "%s", argv[2]);
    uint64_t size = strtoull(argv[3], NULL, 0);

    for (;;) {
        uint64_t started = now_ns();
        create(&m, guest, (size_t)guest_size, size);
        if (strcmp(argv[1], "echo") == 0) {
            add_echo(&m, argc > 5 ? argv[4] : NULL, argv[argc - 1]);
            return bench_exits(&m);
        }
        if (strcmp(argv[1], "exits") == 0)
            return bench_exits(&m);
        if (strcmp(argv[1], "start") == 0)
            return bench_start(&m);
        run(&m);
        uint64_t first_exit = now_ns();
        destroy(&m);
        uint64_t destroyed = now_ns();
        if (warm) {
            printf("%llu %llu\n", (unsigned long long)(first_exit - started),
                   (unsigned long long)(destroyed - first_exit));
            return 0;
        }
        warm = 1;
        usleep(argc > 4 ? (useconds_t)strtoul(argv[4], NULL, 0) : 0);
    }
}

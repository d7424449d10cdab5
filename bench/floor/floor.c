/* The floor: what the same work costs with nothing but the ioctls. bench/measure.py compiles it.
 *
 *     floor exits GUEST SIZE     ns from mark to mark, 125 times (exits.S)
 *     floor create GUEST SIZE    ns to make a machine up to its first exit, then ns to destroy it;
 *                                a fourth argument is a rest before it, in microseconds
 *     floor restore GUEST SIZE   the same of a machine that goes on from another one's state, after
 *                                two laps of touch.S: memory mapped privately, all state set
 *     floor start GUEST SIZE     print what the guest writes to COM1 until it writes to 0xf4
 *     floor echo GUEST SIZE [FILE BYTES]    as exits, for ring.c: a thread answers each write to
 * its notify register with an interrupt, and reads from FILE before; where that is "-" it sends
 * itself a datagram
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
#include <sys/socket.h>
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

static void new_vcpu(struct machine *m)
{
    m->vcpu = CALL(m->vm, KVM_CREATE_VCPU, 0);
    m->run_size = (size_t)CALL(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    m->run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
    if (m->run == MAP_FAILED)
        err(125, "mmap of kvm_run");
}

/* Room for `count` rows of a table of KVM's. */
static void *rows(size_t head, size_t row, size_t count)
{
    void *table = calloc(1, head + row * count);
    if (table == NULL)
        err(125, "calloc");
    return table;
}

/* KVM is asked once in a process, as pykvm does: it takes a third of what a machine costs. */
static struct kvm_cpuid2 *supported_cpuid(struct machine *m)
{
    static struct kvm_cpuid2 *cpuid;
    if (cpuid == NULL) {
        cpuid = rows(sizeof(*cpuid), sizeof(cpuid->entries[0]), CPUID_ENTRIES);
        cpuid->nent = CPUID_ENTRIES;
        CALL(m->kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
    }
    return cpuid;
}

static void create_vcpu(struct machine *m)
{
    new_vcpu(m);
    CALL(m->vcpu, KVM_SET_CPUID2, supported_cpuid(m));

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

static void map_memory(struct machine *m, int sharing)
{
    m->memory = mmap(NULL, m->size, PROT_READ | PROT_WRITE, sharing | MAP_NORESERVE, m->memfd, 0);
    if (m->memory == MAP_FAILED)
        err(125, "mmap of guest memory");
    struct kvm_userspace_memory_region region = {.memory_size = m->size,
                                                 .userspace_addr = (uint64_t)(uintptr_t)m->memory};
    CALL(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void create_chips(struct machine *m)
{
    uint64_t identity_map = 0xFFFBC000;
    CALL(m->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    CALL(m->vm, KVM_SET_TSS_ADDR, 0xFFFBD000);
    CALL(m->vm, KVM_CREATE_IRQCHIP, 0);
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    CALL(m->vm, KVM_CREATE_PIT2, &pit);
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
    map_memory(m, MAP_SHARED);
    create_chips(m);
    memcpy(m->memory + ENTRY, guest, guest_size);
    create_vcpu(m);
}

/* All that a machine's memory does not hold, as KVM tells it. */
struct state {
    struct kvm_cpuid2 *cpuid;
    struct kvm_msrs *msrs;
    struct kvm_mp_state mp_state;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_irqchip chips[3];
    struct kvm_pit_state2 pit;
    struct kvm_clock_data clock;
};

static struct kvm_msrs *get_msrs(struct machine *m)
{
    struct kvm_msr_list probe = {0}, *list;
    ioctl(m->kvm, KVM_GET_MSR_INDEX_LIST, &probe); /* E2BIG: nmsrs says how many */
    list = rows(sizeof(*list), sizeof(list->indices[0]), probe.nmsrs);
    list->nmsrs = probe.nmsrs;
    CALL(m->kvm, KVM_GET_MSR_INDEX_LIST, list);

    struct kvm_msrs *msrs = rows(sizeof(*msrs), sizeof(msrs->entries[0]), list->nmsrs);
    struct kvm_msrs *one = rows(sizeof(*one), sizeof(one->entries[0]), 1);
    one->nmsrs = 1;
    for (uint32_t i = 0; i < list->nmsrs; i++) { /* only those that this vCPU has */
        one->entries[0].index = list->indices[i];
        if (CALL(m->vcpu, KVM_GET_MSRS, one) == 1)
            msrs->entries[msrs->nmsrs++] = one->entries[0];
    }
    free(one);
    free(list);
    return msrs;
}

static void capture(struct machine *m, struct state *s)
{
    s->cpuid = supported_cpuid(m);
    m->run->immediate_exit = 1; /* completes the access of the last exit */
    ioctl(m->vcpu, KVM_RUN, 0);
    CALL(m->vcpu, KVM_GET_MP_STATE, &s->mp_state);
    CALL(m->vcpu, KVM_GET_REGS, &s->regs);
    CALL(m->vcpu, KVM_GET_SREGS, &s->sregs);
    CALL(m->vcpu, KVM_GET_XSAVE, &s->xsave);
    CALL(m->vcpu, KVM_GET_XCRS, &s->xcrs);
    CALL(m->vcpu, KVM_GET_DEBUGREGS, &s->debugregs);
    CALL(m->vcpu, KVM_GET_LAPIC, &s->lapic);
    s->msrs = get_msrs(m);
    CALL(m->vcpu, KVM_GET_VCPU_EVENTS, &s->events);
    for (uint32_t chip = 0; chip < 3; chip++) {
        s->chips[chip].chip_id = chip;
        CALL(m->vm, KVM_GET_IRQCHIP, &s->chips[chip]);
    }
    CALL(m->vm, KVM_GET_PIT2, &s->pit);
    CALL(m->vm, KVM_GET_CLOCK, &s->clock);
    s->clock.flags = 0;
}

/* A new machine with the state in `s`, its memory a private copy of `memfd`. */
static void restore(struct machine *m, struct state *s, int memfd, uint64_t size)
{
    m->size = size;
    m->memfd = dup(memfd);
    m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (m->kvm < 0)
        err(125, "/dev/kvm");
    m->vm = CALL(m->kvm, KVM_CREATE_VM, 0);
    map_memory(m, MAP_PRIVATE);
    create_chips(m);
    new_vcpu(m);
    CALL(m->vcpu, KVM_SET_CPUID2, s->cpuid);
    for (uint32_t chip = 0; chip < 3; chip++)
        CALL(m->vm, KVM_SET_IRQCHIP, &s->chips[chip]);
    CALL(m->vcpu, KVM_SET_SREGS, &s->sregs);
    CALL(m->vcpu, KVM_SET_XCRS, &s->xcrs);
    CALL(m->vcpu, KVM_SET_XSAVE, &s->xsave);
    CALL(m->vcpu, KVM_SET_MSRS, s->msrs);
    CALL(m->vcpu, KVM_SET_LAPIC, &s->lapic);
    CALL(m->vcpu, KVM_SET_REGS, &s->regs);
    CALL(m->vcpu, KVM_SET_DEBUGREGS, &s->debugregs);
    CALL(m->vcpu, KVM_SET_MP_STATE, &s->mp_state);
    CALL(m->vcpu, KVM_SET_VCPU_EVENTS, &s->events);
    CALL(m->vm, KVM_SET_PIT2, &s->pit);
    CALL(m->vm, KVM_SET_CLOCK, &s->clock);
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
    int kick, call, file, ends[2];
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
        if (echo->ends[0] >= 0 && (send(echo->ends[0], echo->buffer, echo->size, 0) < 0 ||
                                   recv(echo->ends[1], echo->buffer, echo->size, 0) < 0))
            err(125, "a datagram");
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
    echo.ends[0] = -1;
    if (file != NULL) {
        echo.size = strtoul(size, NULL, 0);
        echo.buffer = calloc(1, echo.size);
        int ready = strcmp(file, "-") == 0 ? socketpair(AF_UNIX, SOCK_DGRAM, 0, echo.ends)
                                           : (echo.file = open(file, O_RDONLY));
        if (ready < 0 || echo.buffer == NULL)
            err(125, "%s", file);
    }
    struct kvm_ioeventfd ioeventfd = {.addr = NOTIFY, .len = 4, .fd = echo.kick};
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

/* The second machine that goes on from there is measured, as in create.py. */
static int bench_restore(struct machine *m)
{
    struct state state;
    uint64_t times[3];

    run(m);
    run(m);
    capture(m, &state);
    for (int i = 0; i < 2; i++) {
        struct machine other;
        times[0] = now_ns();
        restore(&other, &state, m->memfd, m->size);
        run(&other);
        times[1] = now_ns();
        destroy(&other);
        times[2] = now_ns();
    }
    printf("%llu %llu\n", (unsigned long long)(times[1] - times[0]),
           (unsigned long long)(times[2] - times[1]));
    return 0;
}

int main(int argc, char **argv)
{
    static uint8_t guest[1 << 16];
    struct machine m;
    int warm = 0; /* create: the second machine of the process is measured, as in create.py */

    if (argc < 4)
        errx(125, "usage: floor exits|echo|create|restore|start GUEST SIZE [REST]");
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
        if (strcmp(argv[1], "restore") == 0)
            return bench_restore(&m);
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

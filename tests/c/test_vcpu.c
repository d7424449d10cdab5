/* KVM_RUN and its decoding, with guests of a few real-mode instructions. Needs /dev/kvm. */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

#define MEMORY 0x10000u /* 64 KiB: what a real-mode program reaches with DS = 0 */
#define CODE   0x1000u
#define BUFFER 0x600u
#define MMIO   0xf0000u /* F000:0000, where no memory is */

static int kvm_fd, vm_fd;
static struct pk_mem mem;
static struct pk_bus *bus;
static struct pk_vcpu vcpu;

/* A vCPU at the first byte of `code`, all segments 0. Without an irqchip HLT comes to us. */
static void boot(const char *code, size_t size)
{
    vm_fd = pk_ioctl_val(kvm_fd, KVM_CREATE_VM, 0);
    CHECK(vm_fd >= 0);
    CHECK_EQ(pk_mem_create(MEMORY, MEMORY, MMIO, &mem), 0);
    CHECK_EQ(pk_vm_map(vm_fd, &mem, 0), 0);
    bus = pk_bus_create();
    CHECK_EQ(pk_vcpu_create(kvm_fd, vm_fd, 0, bus, &vcpu), 0);

    struct kvm_sregs sregs;
    CHECK_EQ(pk_ioctl(vcpu.fd, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    CHECK_EQ(pk_ioctl(vcpu.fd, KVM_SET_SREGS, &sregs), 0);
    struct kvm_regs regs = {.rip = CODE, .rsp = 0x8000, .rflags = 2};
    CHECK_EQ(pk_ioctl(vcpu.fd, KVM_SET_REGS, &regs), 0);
    memcpy(pk_mem_ptr(&mem, CODE, size), code, size);
}

#define BOOT(code) boot(code, sizeof(code) - 1)

static void power_off(void)
{
    pk_vcpu_destroy(&vcpu);
    pk_bus_destroy(bus);
    pk_mem_destroy(&mem);
    close(vm_fd);
}

static void run(void)
{
    CHECK_EQ(pk_vcpu_run(&vcpu), 0);
}

static void expect(enum pk_exit_kind kind, uint64_t addr, uint32_t size, uint32_t is_write)
{
    run();
    CHECK_EQ(vcpu.exit.kind, kind);
    CHECK_EQ(vcpu.exit.addr, addr);
    CHECK_EQ(vcpu.exit.size, size);
    CHECK_EQ(vcpu.exit.is_write, is_write);
}

static void expect_halt(void)
{
    run();
    CHECK_EQ(vcpu.exit.kind, PK_EXIT_HLT);
}

/* ── one access ─────────────────────────────────────────────────────────────────────────────── */

static void out_shows_port_size_and_value(void)
{
    BOOT("\xb8\x34\x12" /* mov ax, 0x1234 */
         "\xe6\x10"     /* out 0x10, al */
         "\xe7\x11"     /* out 0x11, ax */
         "\x66\xe7\x12" /* out 0x12, eax */
         "\xf4");
    expect(PK_EXIT_PIO, 0x10, 1, 1);
    CHECK_EQ(vcpu.exit.data, 0x34);
    CHECK_EQ(vcpu.exit.reason, KVM_EXIT_IO);
    expect(PK_EXIT_PIO, 0x11, 2, 1);
    CHECK_EQ(vcpu.exit.data, 0x1234);
    expect(PK_EXIT_PIO, 0x12, 4, 1);
    CHECK_EQ(vcpu.exit.data, 0x1234);
    expect_halt();
    CHECK_EQ(vcpu.exits, 4);
    power_off();
}

static void in_is_answered_by_data_cut_to_its_size(void)
{
    BOOT("\xb8\x00\xff"     /* mov ax, 0xff00 */
         "\xe4\x10"         /* in al, 0x10 */
         "\xa3\x00\x06"     /* mov [BUFFER], ax */
         "\x66\xe5\x11"     /* in eax, 0x11 */
         "\x66\xa3\x02\x06" /* mov [BUFFER + 2], eax */
         "\xf4");
    expect(PK_EXIT_PIO, 0x10, 1, 0);
    CHECK_EQ(vcpu.exit.data, 0);
    vcpu.exit.data = 0xdeadbeef12345678;
    expect(PK_EXIT_PIO, 0x11, 4, 0);
    vcpu.exit.data = 0xdeadbeef12345678;
    expect_halt();
    CHECK(memcmp(mem.hva + BUFFER, "\x78\xff\x78\x56\x34\x12", 6) == 0);
    power_off();
}

static void a_memory_access_without_memory_is_mmio(void)
{
    BOOT("\xb8\x00\xf0"     /* mov ax, 0xf000 */
         "\x8e\xd8"         /* mov ds, ax */
         "\xa2\x04\x00"     /* mov [4], al */
         "\xa3\x10\x00"     /* mov [0x10], ax */
         "\x66\xa1\x20\x00" /* mov eax, [0x20] */
         "\x66\xe7\x12"     /* out 0x12, eax */
         "\xf4");
    expect(PK_EXIT_MMIO, MMIO + 4, 1, 1);
    CHECK_EQ(vcpu.exit.data, 0x00);
    expect(PK_EXIT_MMIO, MMIO + 0x10, 2, 1);
    CHECK_EQ(vcpu.exit.data, 0xf000);
    expect(PK_EXIT_MMIO, MMIO + 0x20, 4, 0);
    vcpu.exit.data = 0xffffffff89abcdef;
    expect(PK_EXIT_PIO, 0x12, 4, 1);
    CHECK_EQ(vcpu.exit.data, 0x89abcdef);
    expect_halt();
    power_off();
}

static void the_exit_knows_where_the_guest_was_and_where_before(void)
{
    BOOT("\xe6\x10" /* out 0x10, al */
         "\xe6\x11" /* out 0x11, al */
         "\xf4\xf4");
    run();
    uint64_t first = vcpu.exit.rip;
    CHECK(first == CODE || first == CODE + 2); /* KVM steps over OUT before or after the exit */
    run();
    CHECK_EQ(vcpu.exit.last_rip, first);
    CHECK_EQ(vcpu.exit.rip, first + 2);
    power_off();
}

/* ── string instructions ────────────────────────────────────────────────────────────────────── */

static void rep_outsb_is_presented_element_by_element(void)
{
    BOOT("\xbe\x00\x06" /* mov si, BUFFER */
         "\xb9\x05\x00" /* mov cx, 5 */
         "\xba\x10\x00" /* mov dx, 0x10 */
         "\xfc"         /* cld */
         "\xf3\x6e"     /* rep outsb */
         "\xf4");
    memcpy(mem.hva + BUFFER, "hello", 5);
    for (const char *text = "hello"; *text; text++) {
        expect(PK_EXIT_PIO, 0x10, 1, 1);
        CHECK_EQ(vcpu.exit.data, *text);
    }
    expect_halt();
    power_off();
}

static void rep_insw_takes_an_answer_for_each_element(void)
{
    BOOT("\xbf\x00\x06" /* mov di, BUFFER */
         "\xb9\x03\x00" /* mov cx, 3 */
         "\xba\x10\x00" /* mov dx, 0x10 */
         "\xfc"         /* cld */
         "\xf3\x6d"     /* rep insw */
         "\xf4");
    for (uint64_t value = 0x1111; value <= 0x3333; value += 0x1111) {
        expect(PK_EXIT_PIO, 0x10, 2, 0);
        vcpu.exit.data = value;
    }
    expect_halt();
    CHECK(memcmp(mem.hva + BUFFER, "\x11\x11\x22\x22\x33\x33\0\0", 8) == 0);
    power_off();
}

/* ── devices in C ───────────────────────────────────────────────────────────────────────────── */

/* Remembers what it was told and leaves every `refuse`th access to Python. */
struct recorder {
    uint32_t calls, refuse;
    char text[64];
};

static int record(void *device, uint64_t offset, uint32_t size, int is_write, uint64_t *value)
{
    struct recorder *recorder = device;
    CHECK_EQ(offset, 0);
    CHECK(size == 1 || size == 2);
    recorder->calls++;
    if (recorder->refuse != 0 && recorder->calls % recorder->refuse == 0)
        return 0;
    if (is_write)
        recorder->text[strlen(recorder->text)] = (char)*value;
    else
        *value = 'A' + recorder->calls;
    return 1;
}

static void an_access_served_in_c_never_leaves_run(void)
{
    BOOT("\xb0\x58" /* mov al, 'X' */
         "\xe6\x10" /* out 0x10, al */
         "\xe4\x10" /* in al, 0x10 */
         "\xe6\x11" /* out 0x11, al */
         "\xf4");
    struct recorder recorder = {0};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x10, 1, record, &recorder), 0);
    expect(PK_EXIT_PIO, 0x11, 1, 1);
    CHECK_EQ(vcpu.exit.data, 'A' + 2);
    CHECK(strcmp(recorder.text, "X") == 0);
    CHECK_EQ(pk_bus_count(bus), 2);
    CHECK_EQ(vcpu.exits, 3);
    expect_halt();
    power_off();
}

static void mmio_is_served_in_c_too(void)
{
    BOOT("\xb8\x00\xf0" /* mov ax, 0xf000 */
         "\x8e\xd8"     /* mov ds, ax */
         "\xb0\x59"     /* mov al, 'Y' */
         "\xa2\x00\x00" /* mov [0], al */
         "\xa0\x00\x00" /* mov al, [0] */
         "\xe6\x11"     /* out 0x11, al */
         "\xf4");
    struct recorder recorder = {0};
    CHECK_EQ(pk_bus_add(bus, PK_MMIO, MMIO, 1, record, &recorder), 0);
    expect(PK_EXIT_PIO, 0x11, 1, 1);
    CHECK_EQ(vcpu.exit.data, 'A' + 2);
    CHECK(strcmp(recorder.text, "Y") == 0);
    expect_halt();
    power_off();
}

static void a_string_is_shared_between_c_and_the_caller(void)
{
    BOOT("\xbe\x00\x06" /* mov si, BUFFER */
         "\xb9\x08\x00" /* mov cx, 8 */
         "\xba\x10\x00" /* mov dx, 0x10 */
         "\xfc"         /* cld */
         "\xf3\x6e"     /* rep outsb */
         "\xf4");
    struct recorder recorder = {.refuse = 3};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x10, 1, record, &recorder), 0);
    memcpy(mem.hva + BUFFER, "abcdefgh", 8);
    expect(PK_EXIT_PIO, 0x10, 1, 1);
    CHECK_EQ(vcpu.exit.data, 'c');
    expect(PK_EXIT_PIO, 0x10, 1, 1);
    CHECK_EQ(vcpu.exit.data, 'f');
    expect_halt();
    CHECK(strcmp(recorder.text, "abdegh") == 0);
    power_off();
}

/* ── other ends ─────────────────────────────────────────────────────────────────────────────── */

static void a_triple_fault_is_a_shutdown(void)
{
    BOOT("\x0f\x0b"); /* ud2, with an IDT of no entries */
    struct kvm_sregs sregs;
    CHECK_EQ(pk_ioctl(vcpu.fd, KVM_GET_SREGS, &sregs), 0);
    sregs.cs = (struct kvm_segment){.selector = 0x8, .limit = 0xffffffff, .type = 0xb};
    sregs.cs.present = sregs.cs.s = sregs.cs.db = sregs.cs.g = 1;
    sregs.ss = sregs.cs;
    sregs.ss.selector = 0x10;
    sregs.ss.type = 0x3;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss;
    sregs.idt.limit = 0;
    sregs.cr0 |= 1; /* protected mode: real mode's IVT has no limit in KVM's emulator */
    CHECK_EQ(pk_ioctl(vcpu.fd, KVM_SET_SREGS, &sregs), 0);
    run();
    CHECK_EQ(vcpu.exit.kind, PK_EXIT_SHUTDOWN);
    power_off();
}

static void failures_are_errno_and_leak_nothing(void)
{
    BOOT("\xf4");
    struct pk_vcpu other;
    int next = dup(0);
    close(next);
    CHECK_EQ(pk_vcpu_create(kvm_fd, vm_fd, 0, bus, &other), -EEXIST);
    CHECK_EQ(pk_vcpu_create(kvm_fd, -1, 1, bus, &other), -EBADF);
    CHECK_EQ(pk_vcpu_create(-1, vm_fd, 1, bus, &other), -EBADF);
    CHECK_EQ(pk_open_kvm("/nonexistent/kvm"), -ENOENT);
    CHECK_EQ(pk_ioctl_val(vm_fd, KVM_RUN, 0), -ENOTTY);
    int same = dup(0);
    CHECK_EQ(same, next);
    close(same);
    power_off();
}

static void a_destroyed_vcpu_may_be_kicked_and_destroyed_again(void)
{
    BOOT("\xf4");
    pk_vcpu_destroy(&vcpu);
    CHECK_EQ(pk_vcpu_kick(&vcpu), 0);
    CHECK_EQ(pk_vcpu_run(&vcpu), -EBADF);
    power_off();
}

/* ── kicks ──────────────────────────────────────────────────────────────────────────────────── */

static void a_kick_before_run_is_not_lost_and_counts_once(void)
{
    BOOT("\xe6\x10\xf4"); /* out 0x10, al; hlt */
    CHECK_EQ(pk_vcpu_kick(&vcpu), 0);
    CHECK_EQ(pk_vcpu_kick(&vcpu), 0);
    run();
    CHECK_EQ(vcpu.exit.kind, PK_EXIT_KICK);
    expect(PK_EXIT_PIO, 0x10, 1, 1);
    expect_halt();
    power_off();
}

static void a_kick_does_not_swallow_the_answer_of_a_read(void)
{
    BOOT("\xe4\x10" /* in al, 0x10 */
         "\xe6\x11" /* out 0x11, al */
         "\xf4");
    expect(PK_EXIT_PIO, 0x10, 1, 0);
    vcpu.exit.data = 0x42;
    CHECK_EQ(pk_vcpu_kick(&vcpu), 0);
    run();
    CHECK_EQ(vcpu.exit.kind, PK_EXIT_KICK);
    expect(PK_EXIT_PIO, 0x11, 1, 1);
    CHECK_EQ(vcpu.exit.data, 0x42);
    power_off();
}

#define KICKS 300u

static uint32_t kicks_seen;

static void *run_until_kicked_often(void *argument)
{
    (void)argument;
    while (__atomic_load_n(&kicks_seen, __ATOMIC_SEQ_CST) < KICKS) {
        run();
        CHECK_EQ(vcpu.exit.kind, PK_EXIT_KICK);
        __atomic_add_fetch(&kicks_seen, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

/* Wait for each kick to arrive before the next: one that is lost would hang here. */
static void kick_often(void)
{
    pthread_t thread;
    kicks_seen = 0;
    CHECK_EQ(pthread_create(&thread, NULL, run_until_kicked_often, NULL), 0);
    for (uint32_t i = 0; i < KICKS; i++) {
        CHECK_EQ(pk_vcpu_kick(&vcpu), 0);
        while (__atomic_load_n(&kicks_seen, __ATOMIC_SEQ_CST) <= i)
            usleep(10);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(kicks_seen, KICKS);
}

static void no_kick_is_lost_on_a_guest_that_spins(void)
{
    BOOT("\xeb\xfe"); /* jmp to itself */
    kick_often();
    power_off();
}

static void no_kick_is_lost_between_exits_served_in_c(void)
{
    BOOT("\xe4\x10\xeb\xfc"); /* in al, 0x10; jmp back */
    struct recorder recorder = {0};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x10, 1, record, &recorder), 0);
    kick_often();
    CHECK(pk_bus_count(bus) > 0);
    power_off();
}

int main(void)
{
    kvm_fd = pk_open_kvm("/dev/kvm");
    if (kvm_fd < 0)
        SKIP("no usable /dev/kvm here");
    RUN(out_shows_port_size_and_value);
    RUN(in_is_answered_by_data_cut_to_its_size);
    RUN(a_memory_access_without_memory_is_mmio);
    RUN(the_exit_knows_where_the_guest_was_and_where_before);
    RUN(rep_outsb_is_presented_element_by_element);
    RUN(rep_insw_takes_an_answer_for_each_element);
    RUN(an_access_served_in_c_never_leaves_run);
    RUN(mmio_is_served_in_c_too);
    RUN(a_string_is_shared_between_c_and_the_caller);
    RUN(a_triple_fault_is_a_shutdown);
    RUN(failures_are_errno_and_leak_nothing);
    RUN(a_destroyed_vcpu_may_be_kicked_and_destroyed_again);
    RUN(a_kick_before_run_is_not_lost_and_counts_once);
    RUN(a_kick_does_not_swallow_the_answer_of_a_read);
    RUN(no_kick_is_lost_on_a_guest_that_spins);
    RUN(no_kick_is_lost_between_exits_served_in_c);
    close(kvm_fd);
    return 0;
}

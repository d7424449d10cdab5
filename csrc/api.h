/* The only contract between C and Python: plain declarations, read by the compiler and by cffi.
 *
 * Every function returns a result that is not negative, or -errno. `ret` is the last parameter
 * where the result is a structure. Kernel constants and structures are in uapi.cdef.
 */

/* ── mem.c: guest memory, one file mapped once ──────────────────────────────────────────────── */

struct pk_vcpu;

struct pk_mem {
    int fd;             /* the memfd, MFD_CLOEXEC; -1 when the memory is private */
    int base_fd;        /* private memory: the file beneath, which nobody writes; else -1 */
    uint8_t *hva;       /* host virtual address of the first byte; low memory, then high memory */
    uint64_t size;      /* bytes */
    uint64_t low_size;  /* bytes below the hole: gpa [0, low_size) */
    uint64_t high_base; /* gpa of the first byte above the hole: offset low_size in the memfd */
};

/* Make `size` bytes of guest memory, of which at most `hole` sit below `hole_end`. */
int pk_mem_create(uint64_t size, uint64_t hole, uint64_t hole_end, struct pk_mem *ret);
/* Make guest memory of the file `fd`, which must have `size` bytes and keep them: a private copy,
 * page by page as pages are written. */
int pk_mem_map(int fd, uint64_t size, uint64_t hole, uint64_t hole_end, struct pk_mem *ret);
/* Go on as a private copy of the memory as it is now, at the same address; the memfd becomes the
 * file beneath and is sealed. Nobody may write to the memory meanwhile. */
int pk_mem_freeze(struct pk_mem *mem);
void pk_mem_destroy(struct pk_mem *mem);

/* Private memory: go on as a private copy of `fd`, which holds what the memory is now. */
int pk_mem_rebase(struct pk_mem *mem, int fd);

/* A range of guest memory, as offsets from mem->hva. */
struct pk_mem_range {
    uint64_t offset;
    uint64_t size;
};
/* Private memory: the ranges of pages that have a copy of their own, from offset `from` on, lowest
 * first. Returns how many of `num` ranges are filled in; fewer than `num` means that these are all.
 */
int pk_mem_private_ranges(const struct pk_mem *mem, uint64_t from, uint32_t num,
                          struct pk_mem_range *ret);
/* Private memory: make it what the file beneath is, by giving up each page's own copy (drop) or by
 * overwriting it. Returns the number of pages. */
int pk_mem_revert(struct pk_mem *mem, int drop);
/* Private memory: let ranges of whole pages be what the file `fd` has at the same places, which
 * nobody writes: as the file beneath (pk_mem_revert must drop then), or `copied`, like a write. */
int pk_mem_lay(const struct pk_mem *mem, int fd, const struct pk_mem_range *ranges, uint32_t num,
               int copied);
/* Private memory: map all of it now. Pages get no copies of their own by that. */
int pk_mem_prefault(const struct pk_mem *mem);

/* The one checked accessor: the host address of gpa [gpa, gpa + len), or NULL when any byte of it
 * is not guest memory. A range never straddles the hole. */
void *pk_mem_ptr(const struct pk_mem *mem, uint64_t gpa, uint64_t len);
/* Give the host back the whole pages [gpa, gpa + len), which nobody needs as they are: they read as
 * zeros then; those of private memory as the file beneath. */
int pk_mem_discard(const struct pk_mem *mem, uint64_t gpa, uint64_t len);

/* ── lazy.c: private memory whose pages are read when they are first needed ─────────────────── */

/* The memory must be a private copy (pk_mem_map) of an empty memfd of its size. */
struct pk_lazy_source {
    int fd;              /* a file with all of it, which nobody writes */
    int cache_fd;        /* the memfd; several memories may share it */
    uint32_t piece;      /* bytes, of whole pages, that have one checksum */
    const int64_t *crcs; /* CRC-32 of each piece of the memory, or -1: it is all zeros, and no
                            matter what `fd` has there */
};

struct pk_lazy;
/* Begin. -EPERM: this user may not; -ENOSYS: this kernel cannot. Both descriptors and the checksums
 * must stay until the end. */
int pk_lazy_create(const struct pk_mem *mem, const struct pk_lazy_source *source,
                   struct pk_lazy **ret);
/* End: what was not needed so far reads as zeros. */
void pk_lazy_destroy(struct pk_lazy *lazy);
/* Let the vCPU run no further once a piece cannot be had: pk_vcpu_run() returns -EIO. */
void pk_lazy_add_vcpu(struct pk_lazy *lazy, struct pk_vcpu *vcpu);
/* Whether a piece could not be had: 0, or why (-errno; -EBADMSG: it does not match its checksum)
 * and in `ret` the offset in the memory. */
int pk_lazy_lost(const struct pk_lazy *lazy, uint64_t *ret);
uint64_t pk_lazy_pieces(const struct pk_lazy *lazy); /* how many were read for this memory */

/* ── file.c ─────────────────────────────────────────────────────────────────────────────────── */

/* Let two files or folders of one file system change places, in one step. */
int pk_file_exchange(const char *one, const char *other);
/* What kind of file system a file is on: a number of statfs(2). */
int64_t pk_file_system(int fd);

/* ── vm.c: ioctls ───────────────────────────────────────────────────────────────────────────── */

int pk_open_kvm(const char *path);
int pk_ioctl(int fd, unsigned long request, void *arg);
int pk_ioctl_val(int fd, unsigned long request, unsigned long arg);
/* The host's own CPUID: EAX, EBX, ECX, EDX into ret[0] to ret[3]. */
void pk_cpuid(uint32_t function, uint32_t index, uint32_t *ret);
int pk_vm_map(int vm_fd, const struct pk_mem *mem, uint32_t flags);
/* Raise (1) or lower (0) an interrupt line of the in-kernel irqchip. */
int pk_vm_irq_line(int vm_fd, uint32_t gsi, int level);

#define PK_MESSAGES_MAX 128

/* A GSI that stands for a message-signalled interrupt. */
struct pk_message {
    uint32_t gsi; /* from 24 on: below are the pins of the PICs and the IOAPIC */
    uint32_t data;
    uint64_t address;
};
/* Route the pins as KVM does by default, and these messages beside them; no others any more. */
int pk_vm_set_messages(int vm_fd, const struct pk_message *messages, uint32_t num);

/* ── calls.c: ioctls made in one go ─────────────────────────────────────────────────────────── */

struct pk_call {
    uint32_t fd; /* which of the descriptors given */
    uint64_t request;
    void *arg;
};
/* Make the calls in order, until one fails: returns 0 or its -errno, and its number in `done`.
 * KVM_SET_MSRS fails unless every MSR is taken, or has the value already when KVM refuses it. */
int pk_calls_make(const int *fds, const struct pk_call *calls, uint32_t num, uint32_t *done);

/* ── bus.c: the devices that C answers itself ───────────────────────────────────────────────── */

enum pk_space { PK_PIO = 0, PK_MMIO = 1 };

struct pk_bus;
struct pk_bus *pk_bus_create(void);
void pk_bus_destroy(struct pk_bus *bus);
/* One access; `*value` is read or written. Returns 1 when a device took it, 0 when none is there
 * or the device leaves this access to Python. */
int pk_bus_access(struct pk_bus *bus, int space, uint64_t addr, uint32_t size, int is_write,
                  uint64_t *value);
uint64_t pk_bus_count(const struct pk_bus *bus); /* accesses served in C so far */

/* ── serial.c: 16550A registers ─────────────────────────────────────────────────────────────── */

struct pk_serial;
/* A UART at PIO `base` on `bus`, interrupting `gsi` of `vm_fd` (vm_fd < 0: no interrupts). */
int pk_serial_create(struct pk_bus *bus, uint64_t base, int vm_fd, uint32_t gsi,
                     struct pk_serial **ret);
void pk_serial_destroy(struct pk_serial *serial);
int pk_serial_event_fd(const struct pk_serial *serial); /* readable: bytes wait to be taken */
/* Take up to `size` bytes the guest sent; returns how many. */
int pk_serial_take(struct pk_serial *serial, uint8_t *buf, uint32_t size);
/* Give up to `size` bytes to the guest; returns how many its FIFO had room for. */
int pk_serial_give(struct pk_serial *serial, const uint8_t *buf, uint32_t size);
/* Access a register (0 to 7) as the bus does. Returns 0 for a THR write that found the transmit
 * buffer full: take bytes and try again. */
int pk_serial_access(struct pk_serial *serial, uint32_t reg, int is_write, uint8_t *value);
int pk_serial_input_fd(const struct pk_serial *serial); /* readable: the receive FIFO has room */
void pk_serial_reset(struct pk_serial *serial);

#define PK_SERIAL_STATE_SIZE 32
void pk_serial_save(struct pk_serial *serial, uint8_t *buf);
void pk_serial_load(struct pk_serial *serial, const uint8_t *buf);

/* ── trace.c: what happened, in rings, until it is taken ────────────────────────────────────── */

enum pk_trace_kind {
    PK_TRACE_EXIT = 1,   /* KVM_RUN returned: with `reason`, and for accesses addr, size, data */
    PK_TRACE_KICK,       /* pk_vcpu_kick() made it return */
    PK_TRACE_SAMPLE,     /* the trace's own timer did (struct pk_trace_config, hz) */
    PK_TRACE_LINE,       /* addr = GSI, data = level: an interrupt line, by KVM_IRQ_LINE */
    PK_TRACE_INTERRUPT,  /* addr = the device's GSI, data = cause: an eventfd of interrupt.c's */
    PK_TRACE_QUEUE_KICK, /* addr = the device's GSI, data = queue: an ioeventfd */
    PK_TRACE_QUEUE_USED  /* the same; count = chains given back */
};

struct pk_trace_record {
    uint64_t time;       /* ns of CLOCK_MONOTONIC: KVM_RUN's return, or when it happened */
    uint64_t guest_ns;   /* in KVM_RUN before that: the guest, and KVM itself */
    uint64_t handler_ns; /* from then to the next KVM_RUN */
    uint64_t addr;       /* port, gpa, GSI */
    uint64_t data;       /* the first element, written or answered */
    uint64_t rip;        /* as KVM gives it: some exits are told after the instruction */
    uint32_t count;      /* elements of string I/O */
    uint16_t source;     /* vCPU */
    uint8_t kind;        /* enum pk_trace_kind */
    uint8_t reason;      /* KVM_EXIT_* */
    uint8_t size;        /* bytes of one element; 0: no access */
    uint8_t is_write;
    uint8_t in_c; /* Python never knew */
};

struct pk_trace_config {
    uint32_t num;    /* records the ring holds, a power of two; 0: no ring */
    uint32_t hz;     /* samples a second of a vCPU that is in the guest; 0: none */
    uint32_t stats;  /* count exits, too: pk_trace_stats() */
    uint32_t newest; /* a full ring loses the oldest: nobody takes any while something happens */
    uint16_t source; /* vCPU */
    int event_fd;    /* written when the ring is half full; or -1 */
};

struct pk_trace;
uint64_t pk_trace_now(void); /* ns of CLOCK_MONOTONIC */
int pk_trace_create(const struct pk_trace_config *config, struct pk_trace **ret);
void pk_trace_destroy(struct pk_trace *trace);
/* Collect the events of a machine that are no exits (PK_TRACE_LINE and later); vm_fd < 0: stop. */
void pk_trace_watch(struct pk_trace *trace, int vm_fd);
/* The vCPU's thread has ended: record its last exit, stop sampling. */
void pk_trace_finish(struct pk_trace *trace);
/* Take up to `num` records, oldest first; returns how many. One thread at a time. */
int pk_trace_take(struct pk_trace *trace, struct pk_trace_record *ret, uint32_t num);
uint64_t pk_trace_lost(const struct pk_trace *trace); /* found the ring full */

/* ── trace_stats.c: exits counted, by reason and address ────────────────────────────────────── */

#define PK_STATS_MAX     512 /* kinds of exits told apart */
#define PK_STATS_BUCKETS 272 /* 8 each power of two, up to 2^36 ns: a minute */

struct pk_exit_stats {
    uint64_t addr;
    uint32_t kind, reason, is_write; /* as in pk_trace_record; kind 0: all that found no room */
    uint64_t count, in_c;
    uint64_t handler_ns, guest_ns, max_ns; /* sums, and the longest in the handler */
    uint32_t histogram[PK_STATS_BUCKETS];  /* of handler_ns */
};
/* Row `index`, 0 to PK_STATS_MAX: 1 and a copy, 0 when nothing is there. Any thread. */
int pk_trace_stats(const struct pk_trace *trace, uint32_t index, struct pk_exit_stats *ret);
uint32_t pk_stats_bucket(uint64_t ns);
uint64_t pk_stats_bucket_start(uint32_t bucket); /* the lowest figure in it, ns */

/* ── trace_text.c: records as text ──────────────────────────────────────────────────────────── */

#define PK_GSI            2   /* beside PK_PIO and PK_MMIO: a space that has names */
#define PK_TRACE_TEXT_MAX 512 /* bytes of one record, at most */

/* Tracks: thread ids of a trace event, each shown as a line of its own. */
#define PK_TRACK_VCPUS      1     /* + vCPU */
#define PK_TRACK_INTERRUPTS 10000 /* what we inject */
#define PK_TRACK_QUEUES     10100 /* + GSI: a virtio device's queues */

struct pk_trace_name {
    uint64_t base, len;
    uint32_t space;
    char name[36]; /* with a space in front; nothing that JSON or CSV would have to quote */
};

struct pk_trace_text {
    uint64_t origin; /* ns: where the file's time begins */
    const struct pk_trace_name *names;
    uint32_t num_names;
    uint32_t pid;
    uint32_t csv; /* a line each; else a JSON event each, a comma in front */
};
/* Write as many of `num` records as fit in `size` bytes; returns the bytes. */
int pk_trace_format(const struct pk_trace_text *text, const struct pk_trace_record *records,
                    uint32_t num, char *ret, uint32_t size);
const char *pk_trace_reason(uint32_t reason); /* KVM_EXIT_*, without the prefix */

/* ── vcpu.c: KVM_RUN ────────────────────────────────────────────────────────────────────────── */

enum pk_exit_kind {
    PK_EXIT_PIO = 1,    /* addr = port */
    PK_EXIT_MMIO,       /* addr = gpa */
    PK_EXIT_KICK,       /* pk_vcpu_kick(), or a signal */
    PK_EXIT_HLT,        /* only without the in-kernel irqchip */
    PK_EXIT_SHUTDOWN,   /* triple fault */
    PK_EXIT_DEBUG,      /* guest debugging: addr = pc, data = dr6 << 32 | exception */
    PK_EXIT_FAIL_ENTRY, /* data = hardware_entry_failure_reason */
    PK_EXIT_INTERNAL,   /* data = suberror */
    PK_EXIT_SYSTEM,     /* data = KVM_SYSTEM_EVENT_* */
    PK_EXIT_OTHER       /* look at reason */
};

struct pk_exit {
    uint32_t kind;       /* enum pk_exit_kind */
    uint32_t reason;     /* KVM_EXIT_*, as the kernel gave it */
    uint64_t addr;       /* port or gpa */
    uint64_t data;       /* the value written; or to be filled in for a read */
    uint32_t size;       /* bytes of one access: 1, 2, 4 or 8 */
    uint32_t is_write;   /* 0: put the answer into data before the next pk_vcpu_run() */
    uint64_t rip;        /* at this exit */
    uint64_t last_rip;   /* at the exit before */
    uint64_t detail[16]; /* PK_EXIT_INTERNAL: what KVM tells of it */
    uint32_t detail_count;
};

struct pk_vcpu {
    int fd;
    struct kvm_run *run;
    uint32_t run_size;
    struct pk_bus *bus;
    int tid;          /* of the thread inside KVM_RUN, or 0 */
    uint32_t pending; /* string I/O: elements of this exit not yet served */
    uint32_t done;    /* elements served */
    uint64_t exits;   /* returns of KVM_RUN, those served in C included */
    struct pk_exit exit;
    struct pk_trace *trace; /* or NULL; changed only while the vCPU does not run */
    struct pk_lazy *lazy;   /* its memory, when that is lazy, or NULL */
    struct pk_vcpu *lazy_next;
};

int pk_vcpu_create(int kvm_fd, int vm_fd, uint32_t id, struct pk_bus *bus, struct pk_vcpu *ret);
void pk_vcpu_destroy(struct pk_vcpu *vcpu);
/* Run the guest until something is left to Python; the answer is vcpu->exit. Completes the access
 * of the last exit first. One element of a string instruction at a time. */
int pk_vcpu_run(struct pk_vcpu *vcpu);
/* Make pk_vcpu_run() return PK_EXIT_KICK soon; from any thread. */
int pk_vcpu_kick(struct pk_vcpu *vcpu);
/* Name the calling thread, for ps, top and gdb; 15 characters at most. */
int pk_thread_name(const char *name);

/* ── virtq.c: the device's side of a split virtqueue (virtio 1.2 §2.7 Split Virtqueues) ─────── */

#define PK_VIRTQ_SIZE_MAX 256 /* the largest ring our devices offer, so the longest chain */

/* What a driver did wrong. A queue with a fault gives no chains any more. */
enum pk_virtq_fault {
    PK_VIRTQ_SOUND = 0,
    PK_VIRTQ_BAD_SIZE,     /* not a power of two, or larger than offered */
    PK_VIRTQ_BAD_RING,     /* a part misaligned or not (all) guest memory */
    PK_VIRTQ_BAD_AVAIL,    /* more chains made available than the ring holds */
    PK_VIRTQ_BAD_INDEX,    /* a head or next outside the descriptor table */
    PK_VIRTQ_TOO_LONG,     /* more descriptors than the ring's size: a loop is one of these */
    PK_VIRTQ_BAD_INDIRECT, /* not negotiated, nested, chained on, or of a bad length */
    PK_VIRTQ_BAD_BUFFER,   /* empty, or not (all) guest memory; or more than 4 GiB together */
    PK_VIRTQ_BAD_ORDER,    /* a readable buffer after a writable one */
    PK_VIRTQ_BAD_REQUEST   /* set by the device: no room for an answer */
};

struct pk_virtq {
    const struct pk_mem *mem;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint32_t size;
    uint32_t indirect, event_idx; /* VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX negotiated */
    uint32_t fault;               /* enum pk_virtq_fault; read by other threads */
    uint16_t avail_idx;           /* the next chain to take */
    uint16_t used_idx;            /* the next to give back */
    uint16_t signalled_idx;       /* used_idx when the driver was last asked about */
    uint8_t *desc, *avail, *used; /* host addresses, checked by pk_virtq_start() */
};

/* A descriptor chain, copied and checked: the buffers the device reads, then those it writes. */
struct pk_chain {
    uint32_t head;
    uint32_t out_num, in_num; /* buffers to read, to write */
    uint64_t out_len, in_len; /* bytes of them */
    struct iovec iov[PK_VIRTQ_SIZE_MAX];
};

/* Check the ring's place and size, once. Returns -EINVAL, with the fault set, when it is bad. */
int pk_virtq_start(struct pk_virtq *q);
/* Whether the driver has made chains available that were not taken. */
int pk_virtq_has_chains(const struct pk_virtq *q);
/* Take the next chain: 1, 0 when there is none, -EINVAL with a fault. */
int pk_virtq_pop(struct pk_virtq *q, struct pk_chain *ret);
/* Undo the last pop, nothing of whose chain was used: it will be taken again. */
void pk_virtq_unpop(struct pk_virtq *q);
/* Give a chain back, `len` bytes of its writable buffers written. */
void pk_virtq_push(struct pk_virtq *q, uint32_t head, uint32_t len);
/* The same in two steps, for chains that the driver must see together: put each, `ahead` of the
 * last one given back, then publish them all. */
void pk_virtq_put(struct pk_virtq *q, uint32_t ahead, uint32_t head, uint32_t len);
void pk_virtq_publish(struct pk_virtq *q, uint32_t count);
/* Whether the driver wants an interrupt for what was pushed since it was last asked about. */
int pk_virtq_wants_interrupt(struct pk_virtq *q);
/* Ask the driver for kicks, or not to bother. Asking returns 1 when there is a chain already. */
int pk_virtq_ask_kicks(struct pk_virtq *q);
void pk_virtq_refuse_kicks(struct pk_virtq *q);

/* ── interrupt.c: how a virtio device interrupts ────────────────────────────────────────────── */

#define PK_QUEUES_MAX 34 /* a console's sixteen ports and its control queues */

enum pk_isr { PK_ISR_QUEUE = 1, PK_ISR_CONFIG = 2 }; /* virtio 1.2 §4.1.4.5, §4.2.2 */

struct pk_interrupt;
/* `gsi` of `vm_fd` is the device's level-triggered line, for when it has one. */
int pk_interrupt_create(int vm_fd, uint32_t gsi, struct pk_interrupt **ret);
void pk_interrupt_destroy(struct pk_interrupt *irq);
/* Answer virtio-mmio's InterruptStatus and InterruptACK, 8 bytes at `gpa`, without Python. */
int pk_interrupt_serve(struct pk_interrupt *irq, struct pk_bus *bus, uint64_t gpa);
/* What signals a cause: an eventfd (an irqfd, mostly), or -1. Causes: 0 the configuration, 1 + n
 * queue n. */
void pk_interrupt_set_fd(struct pk_interrupt *irq, uint32_t cause, int fd);
/* Raise the line for causes without an eventfd, or leave it alone. */
void pk_interrupt_use_line(struct pk_interrupt *irq, int on);
/* Tell a trace, if there is one, of the device's queue: PK_TRACE_QUEUE_KICK or _USED. */
void pk_interrupt_trace(const struct pk_interrupt *irq, uint32_t kind, uint32_t queue,
                        uint32_t count);
void pk_interrupt_raise(struct pk_interrupt *irq, uint32_t cause);
uint32_t pk_interrupt_pending(struct pk_interrupt *irq); /* enum pk_isr, several */
/* Clear bits; the line falls with the last. Returns what was pending. */
uint32_t pk_interrupt_ack(struct pk_interrupt *irq, uint32_t bits);

/* ── relay.c: interrupts sent by another process ────────────────────────────────────────────── */

struct pk_relay;
/* A thread that raises cause 1 + n whenever `call_fds[n]`, a non-blocking eventfd, is written. */
int pk_relay_create(struct pk_interrupt *irq, const int *call_fds, uint32_t num,
                    struct pk_relay **ret);
void pk_relay_destroy(struct pk_relay *relay);

/* ── iothread.c and the data planes: a thread per device, or per pair of queues ─────────────── */

/* One queue of a running device. The array outlives the thread. */
struct pk_queue {
    struct pk_virtq virtq;
    int kick_fd; /* eventfd, non-blocking: an ioeventfd of the driver's kicks */
};

/* ratelimit.c: what a device may move. A burst is what may pass at once after a rest. */
struct pk_limits {
    uint64_t bytes, bytes_burst; /* a second; 0: no limit */
    uint64_t ops, ops_burst;
};

/* overlay.c: a disk whose writes go to a file of its own, over a base that is only read. */
#define PK_OVERLAY_CLUSTER 4096

struct pk_overlay_config {
    int base_fd;
    int fd;             /* sparse, of data_at + size bytes */
    uint64_t size;      /* of the disk, in bytes */
    uint64_t bitmap_at; /* where in the file the bitmap is kept; 0: it is not */
    uint64_t data_at;   /* where in the file byte 0 of the disk is */
};

struct pk_overlay;
int pk_overlay_create(const struct pk_overlay_config *config, struct pk_overlay **ret);
void pk_overlay_destroy(struct pk_overlay *overlay);
uint64_t pk_overlay_count(const struct pk_overlay *overlay); /* clusters that are in it */
/* Drop all that is in it, one that is not kept. While its disk is stopped, as the next. */
int pk_overlay_empty(struct pk_overlay *overlay);
/* Let `to` have what `from` has, and nothing else: overlays of one size; the first is not kept. */
int pk_overlay_assign(struct pk_overlay *to, struct pk_overlay *from);
/* Let `to` have what `from` has, over what it has itself. */
int pk_overlay_add(struct pk_overlay *to, struct pk_overlay *from);
/* As pk_overlay_add(), of what was written to `from` since it was taken last; 0. Or of all that it
 * has; 1: so it is wanted, it was never taken, or lost what it had then. -errno: so the next is. */
int pk_overlay_take(struct pk_overlay *to, struct pk_overlay *from, int all);
/* Write the clusters that are in it to their places in `fd`, which has the base's content. */
int pk_overlay_copy(struct pk_overlay *overlay, int fd);
/* Write the bitmap to the file, if it is kept: when `durable`, after the data, and both synced. */
int pk_overlay_flush(struct pk_overlay *overlay, int durable);

struct pk_blk_config {
    int fd;             /* the file or block device */
    uint64_t sectors;   /* capacity, of 512 bytes */
    uint32_t align;     /* O_DIRECT: what buffers must be aligned to; else 1 */
    uint32_t read_only; /* refuse what writes */
    uint32_t unsafe;    /* a flush does nothing */
    uint32_t no_uring;  /* do not try io_uring */
    char id[20];        /* VIRTIO_BLK_T_GET_ID, NUL-padded */
    char name[256];     /* for messages, NUL-terminated */
    struct pk_limits limits;
    struct pk_overlay *overlay; /* or NULL; outlives the disk */
};

struct pk_blk;
int pk_blk_create(const struct pk_blk_config *config, struct pk_blk **ret);
void pk_blk_destroy(struct pk_blk *blk);
/* Writes are done when the page cache has them (1), or when the disk has (0). */
void pk_blk_set_writeback(struct pk_blk *blk, int on);
/* Serve `num` queues, each started, until stopped. Stopping finishes what is in flight. */
int pk_blk_start(struct pk_blk *blk, struct pk_queue *queues, uint32_t num,
                 struct pk_interrupt *irq);
void pk_blk_stop(struct pk_blk *blk);

#define PK_NET_PAIRS_MAX 8

enum pk_net_kind {
    PK_NET_TAP = 0, /* a TAP with vnet_hdr of 12 bytes, a file for each pair of queues */
    PK_NET_STREAM,  /* a unix stream socket: 32-bit big-endian length, frame; as QEMU and passt */
    PK_NET_DGRAM    /* a unix datagram socket: a frame a datagram */
};

struct pk_net_config {
    uint32_t kind;  /* enum pk_net_kind */
    uint32_t pairs; /* of queues; at most PK_NET_PAIRS_MAX, and 1 but for a TAP */
    int fds[8];     /* non-blocking; of a TAP one for each pair. They stay the caller's. */
    int listening;  /* PK_NET_STREAM: fds[0] is where the other end will connect to */
    char peer[108]; /* PK_NET_DGRAM: path of the other end's socket; none when it is connected */
    char name[64];  /* for messages */
    struct pk_limits limits; /* of each direction; operations are frames */
};

struct pk_net;
int pk_net_create(const struct pk_net_config *config, struct pk_net **ret);
void pk_net_destroy(struct pk_net *net);
/* Serve the pairs of `queues`, receive queue first, each started, until stopped: all of them when
 * `features` (as negotiated) has VIRTIO_NET_F_MQ, else the first. Frames held at a stop are lost.
 */
int pk_net_start(struct pk_net *net, struct pk_queue *queues, uint64_t features,
                 struct pk_interrupt *irq);
void pk_net_stop(struct pk_net *net);
/* How many pairs of a running device receive: the rest are idle. From any one thread. */
int pk_net_set_pairs(struct pk_net *net, uint32_t pairs);
/* What a TAP may leave to the driver: VIRTIO_NET_F_GUEST_* bits. Returns -errno of TUNSETOFFLOAD.
 */
int pk_net_set_offloads(struct pk_net *net, uint64_t features);
/* The other end of a PK_NET_STREAM knows nothing of the TCP connections that the guest has: end
 * them with a reset when it sends on one. Only while stopped. */
int pk_net_forget_connections(struct pk_net *net);
/* Whether the other end is there. It changes with a configuration interrupt. */
int pk_net_link(const struct pk_net *net);
/* Frames that could not be passed on since the device was made, both ways. */
uint64_t pk_net_dropped(const struct pk_net *net);

struct pk_vsock_config {
    uint64_t cid;   /* the guest's */
    int listen_fd;  /* a unix stream socket that listens at `path`, non-blocking; not owned */
    char path[108]; /* a guest's connection to port P goes to PATH_P; NUL-terminated */
};

struct pk_vsock;
int pk_vsock_create(const struct pk_vsock_config *config, struct pk_vsock **ret);
void pk_vsock_destroy(struct pk_vsock *vsock);
/* Serve the queues rx, tx and event until stopped. Connections outlive that, */
int pk_vsock_start(struct pk_vsock *vsock, struct pk_queue *queues, uint32_t num,
                   struct pk_interrupt *irq);
void pk_vsock_stop(struct pk_vsock *vsock);
/* but not this: close them all. Only while stopped. */
void pk_vsock_forget(struct pk_vsock *vsock);
/* Let the guest have another address. Only while stopped. */
void pk_vsock_set_cid(struct pk_vsock *vsock, uint64_t cid);
/* Tell the driver that its connections are gone, when the event queue is kicked next. */
void pk_vsock_announce_reset(struct pk_vsock *vsock);
uint32_t pk_vsock_count(const struct pk_vsock *vsock); /* connections; only while stopped */

/* ── virtio_console.c ───────────────────────────────────────────────────────────────────────── */

#define PK_CONSOLE_PORTS_MAX 16

/* What a port leads to on the host; -1 for none. The device makes descriptors of its own of them.
 */
struct pk_console_port {
    int in_fd;     /* its bytes go to the guest */
    int out_fd;    /* the guest's bytes go there */
    int listen_fd; /* a socket: one client at a time is both */
};

struct pk_console;
/* `event_fd` is written when somebody on the host has come to a port or gone. */
int pk_console_create(const struct pk_console_port *ports, uint32_t num, int event_fd,
                      struct pk_console **ret);
void pk_console_destroy(struct pk_console *console);
/* A program of the guest's has opened a port, or closed it. The receive queue wants a kick then. */
void pk_console_open(struct pk_console *console, uint32_t port, int on);
/* Counts who came and who went: odd while somebody is connected. */
uint32_t pk_console_host(const struct pk_console *console, uint32_t port);
/* Ask that all the guest has sent so far be written; a transmit queue wants a kick then. Returns
 * what pk_console_flushed() is to be asked about. */
uint32_t pk_console_flush(struct pk_console *console);
int pk_console_flushed(const struct pk_console *console, uint32_t flush);
/* Serve the ports' queues, not the control queues (2 and 3), until stopped. */
int pk_console_start(struct pk_console *console, struct pk_queue *queues, uint32_t num,
                     struct pk_interrupt *irq);
void pk_console_stop(struct pk_console *console);

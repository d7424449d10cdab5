/* Lazy memory: what it holds is read from its source, and checked, when somebody first needs it.
 *
 *   hva        ..[copy]........[copy]..   private, as in cow.c: a page's own copy, once written
 *   cache_fd   ==[======]......[======]   a memfd: the pieces that were needed, by any machine
 *   source fd  ========================   a snapshot's memory, wherever it is
 *
 *   guest, KVM, device, Python ── page that the memfd lacks ──> userfaultfd ──> this thread:
 *       read the piece from the source, compare its CRC-32, put it into the memfd, wake who waits
 *
 * UFFDIO_COPY goes to a shared mapping of the memfd. To the memory itself, it would give copies of
 * its own: forks would not share them, and they would look like written pages. And a write(2) to
 * the memfd may bring a huge page, with zeros where nothing was read yet. Source: Linux
 * Documentation/admin-guide/mm/userfaultfd.rst.
 *
 * A piece that cannot be had ends the machine: its vCPUs are kicked and never run again, and only
 * then are those woken that wait (lost.c says what they find).
 */
#include "lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096u
/* Of zeros, which cost no reading: as much as the kernel maps around a fault. */
#define CLUSTER (64u << 10)

struct pk_lazy {
    const struct pk_mem *mem;
    struct pk_lazy_source source;
    uint8_t *shared; /* of the memfd, where pages are put */
    int fd;          /* the userfaultfd */
    int stop_fd;
    pthread_t thread;
    uint8_t *piece;        /* the thread's own */
    uint64_t pieces;       /* atomic: how many were read */
    int lost;              /* atomic: -errno of the first loss, or 0 */
    uint64_t lost_at;      /* its offset; written before `lost` */
    pthread_mutex_t lock;  /* of: */
    struct pk_vcpu *vcpus; /* linked by lazy_next */
};

/* ── bringing pages ─────────────────────────────────────────────────────────────────────────── */

/* Whether the memfd has the page, from another machine's need or a neighbour's. */
static int is_there(const struct pk_lazy *lazy, uint64_t offset)
{
    return lseek(lazy->source.cache_fd, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

/* Let the memfd have pages, but for those that it has already: they are the same. */
static int put(struct pk_lazy *lazy, uint64_t offset, const uint8_t *data, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)lazy->shared + offset + done,
            .src = (uintptr_t)data + done,
            .len = size - done,
            .mode = UFFDIO_COPY_MODE_DONTWAKE,
        };
        if (ioctl(lazy->fd, UFFDIO_COPY, &copy) == 0)
            return 0;
        if (copy.copy > 0)
            done += (uint64_t)copy.copy;
        else if (errno == EEXIST)
            done += PAGE;
        else if (errno != EAGAIN)
            return -errno;
    }
    return 0;
}

/* Read the piece at `start`, check it, let the memfd have it. */
static int read_piece(struct pk_lazy *lazy, uint64_t start, uint64_t size, int64_t crc)
{
    struct iovec iov = {lazy->piece, size};
    int result = pk_file_transfer(lazy->source.fd, 0, &iov, 1, (off_t)start, 0);
    if (result < 0)
        return result;
    if (pk_crc32(lazy->piece, size) != (uint32_t)crc)
        return -EBADMSG;
    __atomic_store_n(&lazy->pieces, lazy->pieces + 1, __ATOMIC_RELAXED);
    return put(lazy, start, lazy->piece, size);
}

/* Let the memfd have the page at `offset`, and others of its piece. */
static int bring(struct pk_lazy *lazy, uint64_t offset, uint64_t start, uint64_t size)
{
    static const uint8_t zeros[CLUSTER];
    int64_t crc = lazy->source.crcs[start / lazy->source.piece];

    if (is_there(lazy, offset))
        return 0;
    if (crc >= 0)
        return read_piece(lazy, start, size, crc);
    start = offset - offset % CLUSTER;
    size = lazy->mem->size - start < CLUSTER ? lazy->mem->size - start : CLUSTER;
    return put(lazy, start, zeros, size);
}

/* The page at `offset` cannot be had. What the vCPUs read of it must not get anywhere. */
static int lose(struct pk_lazy *lazy, uint64_t offset, int err)
{
    if (!lazy->lost) {
        lazy->lost_at = offset;
        __atomic_store_n(&lazy->lost, err, __ATOMIC_SEQ_CST); /* before the kicks */
    }
    pthread_mutex_lock(&lazy->lock);
    for (struct pk_vcpu *vcpu = lazy->vcpus; vcpu != NULL; vcpu = vcpu->lazy_next)
        pk_vcpu_kick(vcpu);
    pthread_mutex_unlock(&lazy->lock);
    return pk_lost_add(lazy->mem, offset);
}

static void serve(struct pk_lazy *lazy, uint64_t address)
{
    uint64_t offset = (address & ~(uint64_t)(PAGE - 1)) - (uintptr_t)lazy->mem->hva;
    uint64_t start = offset - offset % lazy->source.piece, left = lazy->mem->size - start;
    uint64_t size = left < lazy->source.piece ? left : lazy->source.piece;
    int result = lazy->lost ? lazy->lost : bring(lazy, offset, start, size);

    if (result < 0 && lose(lazy, offset, result) < 0)
        abort(); /* no memory for a mapping: who waits would wait for ever */
    struct uffdio_range range = {(uintptr_t)lazy->mem->hva + start, size};
    ioctl(lazy->fd, UFFDIO_WAKE, &range);
}

static void *run(void *argument)
{
    struct pk_lazy *lazy = argument;
    struct pollfd fds[] = {{lazy->stop_fd, POLLIN, 0}, {lazy->fd, POLLIN, 0}};
    struct uffd_msg message;

    for (;;) {
        while (poll(fds, 2, -1) < 0)
            continue; /* EINTR, or no memory for now */
        if (fds[0].revents)
            return NULL;
        /* EAGAIN: who waited has been woken by another's piece. */
        while (read(lazy->fd, &message, sizeof(message)) == (ssize_t)sizeof(message))
            if (message.event == UFFD_EVENT_PAGEFAULT)
                serve(lazy, message.arg.pagefault.address);
    }
}

/* ── beginning and end ──────────────────────────────────────────────────────────────────────── */

/* A userfaultfd that is told of the kernel's own faults, too: KVM's and a device's are such. The
 * system call wants CAP_SYS_PTRACE or vm.unprivileged_userfaultfd, the device its file's rights. */
static int open_userfaultfd(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), err = errno;

    if (fd < 0) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device < 0)
            return -err;
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        err = errno;
        close(device);
        if (fd < 0)
            return -err;
    }
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return -ENOSYS;
    }
    return fd;
}

/* Begin to be told of a mapping's missing pages. */
static int listen_to(const struct pk_lazy *lazy, uint8_t *hva)
{
    struct uffdio_register wanted = {
        .range = {(uintptr_t)hva, lazy->mem->size},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    /* Nor may huge pages be made of small ones with zeros between them. (A kernel that has none
     * refuses.) */
    madvise(hva, lazy->mem->size, MADV_NOHUGEPAGE);
    /* A child of fork(2) would find zeros, for its faults are not ours: let it find nothing. */
    if (madvise(hva, lazy->mem->size, MADV_DONTFORK) < 0)
        return -errno;
    return ioctl(lazy->fd, UFFDIO_REGISTER, &wanted) < 0 ? -errno : 0;
}

static int start(struct pk_lazy *lazy)
{
    sigset_t all, old;

    if (lazy->piece == NULL)
        return -ENOMEM;
    if ((lazy->fd = open_userfaultfd()) < 0)
        return lazy->fd;
    if ((lazy->stop_fd = eventfd(0, EFD_CLOEXEC)) < 0)
        return -errno;
    lazy->shared = mmap(NULL, lazy->mem->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        lazy->source.cache_fd, 0);
    if (lazy->shared == MAP_FAILED)
        return -errno;
    int result = listen_to(lazy, lazy->shared);
    if (result == 0)
        result = listen_to(lazy, lazy->mem->hva);
    if (result < 0)
        return result;
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    result = pthread_create(&lazy->thread, NULL, run, lazy);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (result == 0)
        pthread_setname_np(lazy->thread, "lazy memory");
    return -result;
}

static void release(struct pk_lazy *lazy)
{
    for (struct pk_vcpu *vcpu = lazy->vcpus; vcpu != NULL; vcpu = vcpu->lazy_next)
        vcpu->lazy = NULL;
    if (lazy->fd >= 0)
        close(lazy->fd);
    if (lazy->stop_fd >= 0)
        close(lazy->stop_fd);
    if (lazy->shared != MAP_FAILED)
        munmap(lazy->shared, lazy->mem->size);
    pthread_mutex_destroy(&lazy->lock);
    free(lazy->piece);
    free(lazy);
}

int pk_lazy_create(const struct pk_mem *mem, const struct pk_lazy_source *source,
                   struct pk_lazy **ret)
{
    struct pk_lazy *lazy = calloc(1, sizeof(*lazy));
    if (lazy == NULL)
        return -ENOMEM;
    *lazy = (struct pk_lazy){.mem = mem, .source = *source, .fd = -1, .stop_fd = -1};
    lazy->shared = MAP_FAILED;
    lazy->piece = malloc(source->piece);
    pthread_mutex_init(&lazy->lock, NULL);
    int result = start(lazy);
    if (result < 0) {
        release(lazy);
        return result;
    }
    *ret = lazy;
    return 0;
}

void pk_lazy_destroy(struct pk_lazy *lazy)
{
    uint64_t one = 1;
    ssize_t result = write(lazy->stop_fd, &one, sizeof(one));
    (void)result; /* an eventfd at zero takes it */
    pthread_join(lazy->thread, NULL);
    pk_lost_remove(lazy->mem);
    release(lazy);
}

/* ── its vCPUs ──────────────────────────────────────────────────────────────────────────────── */

void pk_lazy_add_vcpu(struct pk_lazy *lazy, struct pk_vcpu *vcpu)
{
    pthread_mutex_lock(&lazy->lock);
    vcpu->lazy = lazy;
    vcpu->lazy_next = lazy->vcpus;
    lazy->vcpus = vcpu;
    pthread_mutex_unlock(&lazy->lock);
}

void pk_lazy_remove_vcpu(struct pk_lazy *lazy, struct pk_vcpu *vcpu)
{
    pthread_mutex_lock(&lazy->lock);
    for (struct pk_vcpu **link = &lazy->vcpus; *link != NULL; link = &(*link)->lazy_next)
        if (*link == vcpu) {
            *link = vcpu->lazy_next;
            break;
        }
    pthread_mutex_unlock(&lazy->lock);
}

int pk_lazy_is_lost(const struct pk_lazy *lazy)
{
    return __atomic_load_n(&lazy->lost, __ATOMIC_ACQUIRE) != 0;
}

int pk_lazy_lost(const struct pk_lazy *lazy, uint64_t *ret)
{
    int lost = __atomic_load_n(&lazy->lost, __ATOMIC_ACQUIRE);
    if (lost)
        *ret = lazy->lost_at;
    return lost;
}

uint64_t pk_lazy_pieces(const struct pk_lazy *lazy)
{
    return __atomic_load_n(&lazy->pieces, __ATOMIC_RELAXED);
}

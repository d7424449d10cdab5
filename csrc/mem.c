/* Guest memory: one memfd, mapped once, seen by the guest below and above the hole. (A restored or
 * forked machine's is a private copy of a file: cow.c.)
 *
 *   memfd / hva   [0 ............ low_size)[low_size ............ size)
 *   gpa           [0 ............ low_size)      [high_base ........ )
 *
 * A memfd, not anonymous memory: vhost-user back ends and snapshots share it by descriptor.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int pk_mem_create(uint64_t size, uint64_t hole, uint64_t hole_end, struct pk_mem *ret)
{
    if (size == 0 || size > SIZE_MAX / 2)
        return -EINVAL;
    int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) < 0)
        goto fail;
    /* NORESERVE: a guest may be larger than what the host has free; pages come on first touch. */
    void *hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (hva == MAP_FAILED)
        goto fail;
    /* Huge pages, where the host lets a memfd have them (shmem_enabled: advise); else no harm. */
    madvise(hva, size, MADV_HUGEPAGE);
    *ret = (struct pk_mem){
        .fd = fd,
        .base_fd = -1,
        .hva = hva,
        .size = size,
        .low_size = size < hole ? size : hole,
        .high_base = hole_end,
    };
    return 0;
fail:;
    int err = errno;
    close(fd);
    return -err;
}

void pk_mem_destroy(struct pk_mem *mem)
{
    if (mem->hva != NULL) {
        munmap(mem->hva, mem->size);
        close(mem->fd >= 0 ? mem->fd : mem->base_fd);
    }
    *mem = (struct pk_mem){.fd = -1, .base_fd = -1};
}

int pk_mem_discard(const struct pk_mem *mem, uint64_t gpa, uint64_t len)
{
    uint8_t *hva = pk_mem_ptr(mem, gpa, len);
    if (hva == NULL)
        return -EFAULT;
    /* A memfd's pages are everybody's who maps it: they go there. A private copy's are our own. */
    int result = mem->fd >= 0 ? fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                          (off_t)(hva - mem->hva), (off_t)len)
                              : madvise(hva, len, MADV_DONTNEED);
    return result < 0 ? -errno : 0;
}

void *pk_mem_ptr(const struct pk_mem *mem, uint64_t gpa, uint64_t len)
{
    /* Subtractions only: gpa + len may wrap, and gpa is the guest's. */
    if (gpa < mem->low_size)
        return len <= mem->low_size - gpa ? mem->hva + gpa : NULL;
    if (gpa < mem->high_base)
        return NULL;
    uint64_t offset = gpa - mem->high_base;
    uint64_t high_size = mem->size - mem->low_size;
    if (offset >= high_size || len > high_size - offset)
        return NULL;
    return mem->hva + mem->low_size + offset;
}

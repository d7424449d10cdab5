/* Private guest memory: a file beneath that nobody writes, and a page's own copy once it is
 * written.
 *
 *   hva      ........[copy]..........[copy]....     written by the guest, KVM, a device or Python
 *   layers   ..........======....==============     of the differential snapshots on it: pk_mem_lay
 *   base_fd  ==================================     a snapshot's memory, or a template's memfd
 *
 * The kernel's copy-on-write tells what was written, whoever wrote it, and in which process: KVM's
 * dirty log would know of the guest alone. A page has a copy of its own when its mapping is no page
 * of the file (Linux Documentation/admin-guide/mm/pagemap.rst, bit 61). Read mem.c beside it.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u

/* PAGEMAP_SCAN, Linux 6.7: older headers do not have it. The same document, "Pagemap Scan IOCTL".
 */
struct page_region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end;
    uint64_t vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN         _IOWR('f', 16, struct scan)
#define SCAN_FILE    (1u << 2)
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)

/* Bits of an entry of /proc/self/pagemap. */
#define ENTRY_FILE    (1ull << 61)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRY_PRESENT (1ull << 63)

int pk_mem_map(int fd, uint64_t size, uint64_t hole, uint64_t hole_end, struct pk_mem *ret)
{
    if (size == 0 || size > SIZE_MAX / 2)
        return -EINVAL;
    int base_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (base_fd < 0)
        return -errno;
    void *hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, base_fd, 0);
    if (hva == MAP_FAILED) {
        int err = errno;
        close(base_fd);
        return -err;
    }
    *ret = (struct pk_mem){
        .fd = -1,
        .base_fd = base_fd,
        .hva = hva,
        .size = size,
        .low_size = size < hole ? size : hole,
        .high_base = hole_end,
    };
    return 0;
}

static int remap(const struct pk_mem *mem, int fd, int sharing)
{
    void *hva = mmap(mem->hva, mem->size, PROT_READ | PROT_WRITE,
                     sharing | MAP_NORESERVE | MAP_FIXED, fd, 0);
    return hva == MAP_FAILED ? -errno : 0;
}

int pk_mem_freeze(struct pk_mem *mem)
{
    if (mem->fd < 0)
        return -EINVAL;
    int result = remap(mem, mem->fd, MAP_PRIVATE);
    if (result < 0)
        return result;
    /* It fails while another process can write to the memory: a vhost-user back end, say. */
    if (fcntl(mem->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        int err = errno;
        result = remap(mem, mem->fd, MAP_SHARED);
        return result < 0 ? result : -err;
    }
    mem->base_fd = mem->fd;
    mem->fd = -1;
    return 0;
}

int pk_mem_rebase(struct pk_mem *mem, int fd)
{
    if (mem->base_fd < 0)
        return -EINVAL;
    int base_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (base_fd < 0)
        return -errno;
    int result = remap(mem, base_fd, MAP_PRIVATE);
    if (result < 0) {
        close(base_fd);
        return result;
    }
    close(mem->base_fd);
    mem->base_fd = base_fd;
    return 0;
}

/* Append a range, joining it to the one before where they touch. Returns the new number. */
static uint32_t append(struct pk_mem_range *ranges, uint32_t count, uint64_t offset, uint64_t size)
{
    if (count > 0 && ranges[count - 1].offset + ranges[count - 1].size == offset) {
        ranges[count - 1].size += size;
        return count;
    }
    ranges[count] = (struct pk_mem_range){offset, size};
    return count + 1;
}

/* The pages of their own by PAGEMAP_SCAN: what is not mapped at all costs next to nothing. */
static int scan(int pagemap, const struct pk_mem *mem, uint64_t from, uint32_t num,
                struct pk_mem_range *ret)
{
    struct page_region regions[64];
    uint64_t base = (uint64_t)(uintptr_t)mem->hva;
    uint32_t count = 0;

    while (from < mem->size && count < num) {
        uint32_t room = num - count < 64 ? num - count : 64;
        struct scan arg = {
            .size = sizeof(arg),
            .start = base + from,
            .end = base + mem->size,
            .vec = (uint64_t)(uintptr_t)regions,
            .vec_len = room,
            .category_inverted = SCAN_FILE,
            .category_mask = SCAN_FILE,
            .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
            .return_mask = SCAN_FILE,
        };
        int found = ioctl(pagemap, SCAN, &arg);
        if (found < 0)
            return -errno;
        for (int i = 0; i < found; i++)
            count = append(ret, count, regions[i].start - base, regions[i].end - regions[i].start);
        from = arg.walk_end - base;
    }
    return (int)count;
}

/* The same by reading an entry for every page: for kernels before 6.7. */
static int look(int pagemap, const struct pk_mem *mem, uint64_t from, uint32_t num,
                struct pk_mem_range *ret)
{
    uint64_t entries[512];
    uint32_t count = 0;

    while (from < mem->size) {
        uint64_t left = (mem->size - from) / PAGE;
        uint64_t want = left < 512 ? left : 512;
        uint64_t at = ((uint64_t)(uintptr_t)mem->hva + from) / PAGE * sizeof(entries[0]);
        ssize_t got = pread(pagemap, entries, want * sizeof(entries[0]), (off_t)at);
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        for (uint64_t i = 0; i < (uint64_t)got / sizeof(entries[0]); i++, from += PAGE) {
            if (!(entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) || (entries[i] & ENTRY_FILE))
                continue;
            int joins = count > 0 && ret[count - 1].offset + ret[count - 1].size == from;
            if (count == num && !joins)
                return (int)count;
            count = append(ret, count, from, PAGE);
        }
    }
    return (int)count;
}

int pk_mem_private_ranges(const struct pk_mem *mem, uint64_t from, uint32_t num,
                          struct pk_mem_range *ret)
{
    if (mem->base_fd < 0)
        return -EINVAL;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return -errno;
    int result = scan(pagemap, mem, from, num, ret);
    if (result == -ENOTTY || result == -EINVAL)
        result = look(pagemap, mem, from, num, ret);
    close(pagemap);
    return result;
}

/* Overwrite a range with what the file `fd` has there. */
static int copy_back(const struct pk_mem *mem, int fd, const struct pk_mem_range *range)
{
    for (uint64_t done = 0; done < range->size;) {
        uint64_t at = range->offset + done;
        ssize_t got = pread(fd, mem->hva + at, range->size - done, (off_t)at);
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got == 0)
            return -EIO; /* the file has become shorter */
        if (got > 0)
            done += (uint64_t)got;
    }
    return 0;
}

int pk_mem_revert(struct pk_mem *mem, int drop)
{
    struct pk_mem_range ranges[64];
    uint64_t from = 0, pages = 0;
    int count;

    do {
        count = pk_mem_private_ranges(mem, from, 64, ranges);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++) {
            int result = 0;
            if (!drop)
                result = copy_back(mem, mem->base_fd, &ranges[i]);
            else if (madvise(mem->hva + ranges[i].offset, ranges[i].size, MADV_DONTNEED) < 0)
                result = -errno;
            if (result < 0)
                return result;
            pages += ranges[i].size / PAGE;
            from = ranges[i].offset + ranges[i].size;
        }
    } while (count == 64);
    return (int)pages;
}

int pk_mem_lay(const struct pk_mem *mem, int fd, const struct pk_mem_range *ranges, uint32_t num,
               int copied)
{
    if (mem->base_fd < 0)
        return -EINVAL;
    for (uint32_t i = 0; i < num; i++) {
        uint64_t offset = ranges[i].offset, size = ranges[i].size;
        if (offset % PAGE != 0 || size % PAGE != 0 || offset > mem->size ||
            size > mem->size - offset)
            return -EINVAL;
        if (copied) {
            int result = copy_back(mem, fd, &ranges[i]);
            if (result < 0)
                return result;
        } else if (mmap(mem->hva + offset, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED) {
            return -errno;
        }
    }
    return 0;
}

int pk_mem_prefault(const struct pk_mem *mem)
{
    /* Not MAP_POPULATE: it would write to each page, and so copy it. */
    return madvise(mem->hva, mem->size, MADV_POPULATE_READ) < 0 ? -errno : 0;
}

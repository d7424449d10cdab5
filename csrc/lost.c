/* Pages of lazy memory that cannot be had. They lie in mappings without any right, so the kernel
 * refuses them (EFAULT) and KVM lets no guest have them; but a device's thread or Python, which
 * look for themselves, would be ended by SIGSEGV, and the whole process with them. Their machine is
 * about to end and nothing that they find matters: they find zeros, in a page that the handler puts
 * there.
 *
 * The handler is there from the first loss on; other faults go to the one before it. Read lazy.c.
 */
#include "lazy.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#define PAGE 4096u

/* The memories with losses; size 0: a free place. The handler reads them at any time, so a size is
 * written last, and taken away first. */
enum { PLACES = 64 };
static struct {
    uintptr_t begin;
    size_t size;
} places[PLACES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for who writes to them */
static struct sigaction before;
static int is_handled; /* under lock */

static void on_fault(int signo, siginfo_t *info, void *context)
{
    int err = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    void *page = (void *)(at & ~(uintptr_t)(PAGE - 1));
    (void)context;

    for (int i = 0; i < PLACES; i++) {
        size_t size = __atomic_load_n(&places[i].size, __ATOMIC_ACQUIRE);
        if (at - places[i].begin < size && mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0) {
            errno = err;
            return;
        }
    }
    sigaction(signo, &before, NULL); /* the instruction meets its fault again, at once */
}

/* The place of the memory at `begin`, or else a free one; PLACES when there is none. */
static int find(uintptr_t begin)
{
    int found = PLACES;
    for (int i = 0; i < PLACES; i++) {
        if (places[i].size != 0 && places[i].begin == begin)
            return i;
        if (places[i].size == 0)
            found = i;
    }
    return found;
}

int pk_lost_add(const struct pk_mem *mem, uint64_t offset)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int result = 0;

    pthread_mutex_lock(&lock);
    int place = find((uintptr_t)mem->hva);
    if (place < PLACES) {
        places[place].begin = (uintptr_t)mem->hva;
        __atomic_store_n(&places[place].size, mem->size, __ATOMIC_RELEASE);
    }
    if (!is_handled)
        is_handled = sigaction(SIGSEGV, &action, &before) == 0;
    if (mmap(mem->hva + offset, PAGE, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        result = -errno;
    pthread_mutex_unlock(&lock);
    return result;
}

void pk_lost_remove(const struct pk_mem *mem)
{
    pthread_mutex_lock(&lock);
    int place = find((uintptr_t)mem->hva);
    if (place < PLACES)
        __atomic_store_n(&places[place].size, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

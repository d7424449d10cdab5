/* A split virtqueue, the device's side. Source: virtio 1.2 §2.7 Split Virtqueues.
 *
 *   descriptor table   avail: flags idx ring[size] used_event    used: flags idx ring[size]
 * avail_event the driver writes  the driver writes                         the device writes
 *
 * All of it is guest memory: another CPU may change any byte at any time. So the three parts are
 * checked once, in pk_virtq_start(); each descriptor is copied once, the copy is checked, and only
 * the copy is used. A queue belongs to one thread; only `fault` is looked at by others.
 *
 * The same in Python, for reading and as a second opinion in tests: pykvm/virtio/queue.py.
 */
#include "core.h"

#include <errno.h>
#include <string.h>

/* virtio 1.2 §2.7.5 The Virtqueue Descriptor Table. Little-endian, as this host is. */
struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct descriptor) == 16, "the driver's layout");

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

/* Offsets in the two rings, whose `idx` follows 16 bits of flags. */
enum { FLAGS = 0, IDX = 2, RING = 4, AVAIL_ENTRY = 2, USED_ENTRY = 8 };

static uint16_t *at16(uint8_t *part, uint32_t offset)
{
    return (uint16_t *)(void *)(part + offset);
}

static uint32_t used_event(const struct pk_virtq *q)
{
    return RING + AVAIL_ENTRY * q->size;
}

static uint32_t avail_event(const struct pk_virtq *q)
{
    return RING + USED_ENTRY * q->size;
}

static int fail(struct pk_virtq *q, enum pk_virtq_fault fault)
{
    /* Relaxed: whoever reads it acts on the value alone. */
    __atomic_store_n(&q->fault, fault, __ATOMIC_RELAXED);
    return -EINVAL;
}

static uint8_t *part(const struct pk_virtq *q, uint64_t gpa, uint64_t len, uint64_t align)
{
    return gpa % align == 0 ? pk_mem_ptr(q->mem, gpa, len) : NULL;
}

int pk_virtq_start(struct pk_virtq *q)
{
    if (q->size == 0 || q->size > PK_VIRTQ_SIZE_MAX || (q->size & (q->size - 1)) != 0)
        return fail(q, PK_VIRTQ_BAD_SIZE);
    q->desc = part(q, q->desc_gpa, sizeof(struct descriptor) * q->size, 16);
    q->avail = part(q, q->avail_gpa, used_event(q) + 2, 2);
    q->used = part(q, q->used_gpa, avail_event(q) + 2, 4);
    if (q->desc == NULL || q->avail == NULL || q->used == NULL)
        return fail(q, PK_VIRTQ_BAD_RING);
    q->signalled_idx = q->used_idx;
    q->fault = PK_VIRTQ_SOUND;
    return 0;
}

/* Append one descriptor's buffer to the chain. */
static int add_buffer(struct pk_virtq *q, const struct descriptor *d, struct pk_chain *chain)
{
    uint32_t count = chain->out_num + chain->in_num;
    /* §2.7.5.3.1: "A driver MUST NOT create a descriptor chain longer than the Queue Size". */
    if (count == q->size)
        return fail(q, PK_VIRTQ_TOO_LONG);
    void *hva = d->len > 0 ? pk_mem_ptr(q->mem, d->addr, d->len) : NULL;
    /* §2.7.5: the buffers of a chain have fewer than 2^32 bytes together. */
    if (hva == NULL || chain->out_len + chain->in_len + d->len > UINT32_MAX)
        return fail(q, PK_VIRTQ_BAD_BUFFER);
    if (d->flags & DESC_WRITE) {
        chain->in_num++;
        chain->in_len += d->len;
    } else {
        /* §2.7.4.2: readable buffers come before writable ones. */
        if (chain->in_num > 0)
            return fail(q, PK_VIRTQ_BAD_ORDER);
        chain->out_num++;
        chain->out_len += d->len;
    }
    chain->iov[count] = (struct iovec){.iov_base = hva, .iov_len = d->len};
    return 0;
}

/* Follow a chain from descriptor `index`. It ends: every turn adds one of at most `size` buffers,
 * or enters an indirect table, which happens once. */
static int follow(struct pk_virtq *q, uint32_t index, struct pk_chain *chain)
{
    const uint8_t *table = q->desc;
    uint32_t num = q->size;
    int in_indirect = 0;

    for (;;) {
        struct descriptor d;
        if (index >= num)
            return fail(q, PK_VIRTQ_BAD_INDEX);
        memcpy(&d, table + sizeof(d) * index, sizeof(d));
        /* The compiler must not read the guest's bytes again where the copy is used. */
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        if (d.flags & DESC_INDIRECT) {
            /* §2.7.5.3.1 Driver Requirements: Indirect Descriptors */
            num = d.len / (uint32_t)sizeof(d);
            if (!q->indirect || in_indirect || (d.flags & DESC_NEXT) || num == 0 ||
                d.len % sizeof(d) != 0)
                return fail(q, PK_VIRTQ_BAD_INDIRECT);
            if (num > q->size)
                return fail(q, PK_VIRTQ_TOO_LONG);
            table = pk_mem_ptr(q->mem, d.addr, d.len);
            if (table == NULL)
                return fail(q, PK_VIRTQ_BAD_INDIRECT);
            in_indirect = 1;
            index = 0;
            continue;
        }
        int result = add_buffer(q, &d, chain);
        if (result < 0)
            return result;
        if (!(d.flags & DESC_NEXT))
            return 1;
        index = d.next;
    }
}

/* Acquire: descriptors and ring entries up to this idx are seen. Its partner is the driver's
 * barrier before it writes idx (§2.7.13.3 Updating idx). */
static uint16_t load_avail_idx(const struct pk_virtq *q)
{
    return __atomic_load_n(at16(q->avail, IDX), __ATOMIC_ACQUIRE);
}

int pk_virtq_has_chains(const struct pk_virtq *q)
{
    return load_avail_idx(q) != q->avail_idx;
}

int pk_virtq_pop(struct pk_virtq *q, struct pk_chain *ret)
{
    if (q->fault)
        return -EINVAL;
    uint16_t count = (uint16_t)(load_avail_idx(q) - q->avail_idx);
    if (count == 0)
        return 0;
    if (count > q->size)
        return fail(q, PK_VIRTQ_BAD_AVAIL);
    uint32_t entry = RING + AVAIL_ENTRY * (q->avail_idx & (q->size - 1));
    ret->head = __atomic_load_n(at16(q->avail, entry), __ATOMIC_RELAXED);
    ret->out_num = ret->in_num = 0;
    ret->out_len = ret->in_len = 0;
    int result = follow(q, ret->head, ret);
    if (result > 0)
        q->avail_idx++;
    return result;
}

void pk_virtq_unpop(struct pk_virtq *q)
{
    q->avail_idx--;
}

void pk_virtq_put(struct pk_virtq *q, uint32_t ahead, uint32_t head, uint32_t len)
{
    uint32_t element[2] = {head, len}; /* §2.7.8 The Virtqueue Used Ring */
    uint32_t entry = (q->used_idx + ahead) & (q->size - 1);
    memcpy(q->used + RING + USED_ENTRY * entry, element, sizeof(element));
}

void pk_virtq_publish(struct pk_virtq *q, uint32_t count)
{
    q->used_idx = (uint16_t)(q->used_idx + count);
    /* Release: the buffers and the elements are seen before idx. Its partner is the driver's
     * barrier after it read idx (§2.7.14 Receiving Used Buffers From The Device). */
    __atomic_store_n(at16(q->used, IDX), q->used_idx, __ATOMIC_RELEASE);
}

void pk_virtq_push(struct pk_virtq *q, uint32_t head, uint32_t len)
{
    pk_virtq_put(q, 0, head, len);
    pk_virtq_publish(q, 1);
}

int pk_virtq_wants_interrupt(struct pk_virtq *q)
{
    uint16_t before = q->signalled_idx;
    if (q->used_idx == before)
        return 0;
    q->signalled_idx = q->used_idx;
    /* Full barrier: either we see the driver's wish, or it sees our used idx. Its partner stands
     * between the driver's write of used_event (or flags) and its last look at used idx
     * (§2.7.14; §2.7.7.2 Device Requirements: Used Buffer Notification Suppression). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->event_idx)
        return !(__atomic_load_n(at16(q->avail, FLAGS), __ATOMIC_RELAXED) & AVAIL_NO_INTERRUPT);
    uint16_t event = __atomic_load_n(at16(q->avail, used_event(q)), __ATOMIC_RELAXED);
    /* Was the element `event` among those pushed since? Modulo 2^16, like the indices. */
    return (uint16_t)(q->used_idx - event - 1) < (uint16_t)(q->used_idx - before);
}

int pk_virtq_ask_kicks(struct pk_virtq *q)
{
    if (q->fault)
        return 0;
    if (q->event_idx)
        __atomic_store_n(at16(q->used, avail_event(q)), q->avail_idx, __ATOMIC_RELAXED);
    else
        __atomic_store_n(at16(q->used, FLAGS), 0, __ATOMIC_RELAXED);
    /* Full barrier: either the driver sees that we ask, or we see its avail idx. Its partner stands
     * between the driver's write of avail idx and its look at avail_event (or flags)
     * (§2.7.13.4 Notifying The Device). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return pk_virtq_has_chains(q);
}

void pk_virtq_refuse_kicks(struct pk_virtq *q)
{
    /* With EVENT_IDX an old avail_event is refusal enough. */
    if (!q->event_idx && !q->fault)
        __atomic_store_n(at16(q->used, FLAGS), USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

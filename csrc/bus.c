/* The bus of devices that C answers itself: a short table, searched in order.
 *
 * Devices are added before the first KVM_RUN and stay until the bus goes, so readers take no lock.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>

#define PK_BUS_MAX 16

struct pk_range {
    int space;
    uint64_t base;
    uint64_t len;
    pk_access_fn *access;
    void *device;
};

struct pk_bus {
    struct pk_range ranges[PK_BUS_MAX];
    uint32_t num;
    uint64_t count;
};

struct pk_bus *pk_bus_create(void)
{
    return calloc(1, sizeof(struct pk_bus));
}

void pk_bus_destroy(struct pk_bus *bus)
{
    free(bus);
}

int pk_bus_add(struct pk_bus *bus, int space, uint64_t base, uint64_t len, pk_access_fn *access,
               void *device)
{
    if (bus->num == PK_BUS_MAX)
        return -ENOSPC;
    bus->ranges[bus->num++] = (struct pk_range){space, base, len, access, device};
    return 0;
}

int pk_bus_access(struct pk_bus *bus, int space, uint64_t addr, uint32_t size, int is_write,
                  uint64_t *value)
{
    for (uint32_t i = 0; i < bus->num; i++) {
        const struct pk_range *range = &bus->ranges[i];
        if (range->space != space || addr - range->base >= range->len)
            continue;
        if (!range->access(range->device, addr - range->base, size, is_write, value))
            return 0;
        /* Relaxed: a statistic, ordered with nothing. */
        __atomic_fetch_add(&bus->count, 1, __ATOMIC_RELAXED);
        return 1;
    }
    return 0;
}

uint64_t pk_bus_count(const struct pk_bus *bus)
{
    return __atomic_load_n(&bus->count, __ATOMIC_RELAXED);
}

/* The bus of C devices: who is asked, with which offset, and what is counted. */
#include "core.h"

#include <errno.h>

#include "check.h"

struct probe {
    int served; /* what to answer */
    uint32_t calls;
    uint64_t offset;
    uint32_t size;
    int is_write;
    uint64_t value;
};

static int probe_access(void *device, uint64_t offset, uint32_t size, int is_write, uint64_t *value)
{
    struct probe *probe = device;
    probe->calls++;
    probe->offset = offset;
    probe->size = size;
    probe->is_write = is_write;
    if (is_write)
        probe->value = *value;
    else
        *value = 0x1234;
    return probe->served;
}

static void a_write_reaches_the_device_with_its_offset(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe probe = {.served = 1};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x3f8, 8, probe_access, &probe), 0);
    uint64_t value = 0xabcd;
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0x3fa, 2, 1, &value), 1);
    CHECK_EQ(probe.offset, 2);
    CHECK_EQ(probe.size, 2);
    CHECK_EQ(probe.is_write, 1);
    CHECK_EQ(probe.value, 0xabcd);
    pk_bus_destroy(bus);
}

static void a_read_brings_the_devices_value(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe probe = {.served = 1};
    CHECK_EQ(pk_bus_add(bus, PK_MMIO, 0xd0000000, 0x1000, probe_access, &probe), 0);
    uint64_t value = 0;
    CHECK_EQ(pk_bus_access(bus, PK_MMIO, 0xd0000fff, 1, 0, &value), 1);
    CHECK_EQ(value, 0x1234);
    CHECK_EQ(probe.offset, 0xfff);
    pk_bus_destroy(bus);
}

static void a_range_has_its_first_and_last_address_and_no_more(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe probe = {.served = 1};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x100, 4, probe_access, &probe), 0);
    uint64_t value = 0;
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0x0ff, 1, 0, &value), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0x104, 1, 0, &value), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0, 1, 0, &value), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, UINT64_MAX, 1, 0, &value), 0);
    CHECK_EQ(probe.calls, 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0x100, 1, 0, &value), 1);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 0x103, 1, 0, &value), 1);
    pk_bus_destroy(bus);
}

static void ports_and_memory_are_two_spaces(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe port = {.served = 1}, memory = {.served = 1};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 0x100, 1, probe_access, &port), 0);
    CHECK_EQ(pk_bus_add(bus, PK_MMIO, 0x100, 1, probe_access, &memory), 0);
    uint64_t value = 0;
    CHECK_EQ(pk_bus_access(bus, PK_MMIO, 0x100, 1, 0, &value), 1);
    CHECK_EQ(port.calls, 0);
    CHECK_EQ(memory.calls, 1);
    pk_bus_destroy(bus);
}

static void what_a_device_leaves_to_python_is_not_counted(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe willing = {.served = 1}, unwilling = {.served = 0};
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 1, 1, probe_access, &willing), 0);
    CHECK_EQ(pk_bus_add(bus, PK_PIO, 2, 1, probe_access, &unwilling), 0);
    uint64_t value = 0;
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 2, 1, 0, &value), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 3, 1, 0, &value), 0);
    CHECK_EQ(unwilling.calls, 1);
    CHECK_EQ(pk_bus_count(bus), 0);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, 1, 1, 0, &value), 1);
    CHECK_EQ(pk_bus_count(bus), 1);
    pk_bus_destroy(bus);
}

static void a_full_bus_takes_no_more(void)
{
    struct pk_bus *bus = pk_bus_create();
    struct probe probe = {.served = 1};
    uint64_t added = 0, value = 0;
    while (pk_bus_add(bus, PK_PIO, added, 1, probe_access, &probe) == 0)
        added++;
    CHECK(added >= 8);
    CHECK_EQ(pk_bus_add(bus, PK_PIO, added, 1, probe_access, &probe), -ENOSPC);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, added - 1, 1, 0, &value), 1);
    CHECK_EQ(pk_bus_access(bus, PK_PIO, added, 1, 0, &value), 0);
    pk_bus_destroy(bus);
}

int main(void)
{
    RUN(a_write_reaches_the_device_with_its_offset);
    RUN(a_read_brings_the_devices_value);
    RUN(a_range_has_its_first_and_last_address_and_no_more);
    RUN(ports_and_memory_are_two_spaces);
    RUN(what_a_device_leaves_to_python_is_not_counted);
    RUN(a_full_bus_takes_no_more);
    return 0;
}

/* Trace records as text: Chrome's trace event format, or comma-separated values.
 *
 * In C because it is done for every exit, and because Python would hold the GIL for it, for which
 * exits that are served in Python wait. The file's first and last lines are pykvm/debug/trace.py's.
 * Source: "Trace Event Format", Google: "Event Descriptions" (ph, ts and dur in microseconds).
 */
#include "core.h"

#include <inttypes.h>
#include <stdio.h>

/* KVM_EXIT_* of <linux/kvm.h>, without the prefix. */
static const char *const reasons[] = {
    "UNKNOWN",
    "EXCEPTION",
    "IO",
    "HYPERCALL",
    "DEBUG",
    "HLT",
    "MMIO",
    "IRQ_WINDOW",
    "SHUTDOWN",
    "FAIL_ENTRY",
    "INTR",
    "SET_TPR",
    "TPR_ACCESS",
    "S390_SIEIC",
    "S390_RESET",
    "DCR",
    "NMI",
    "INTERNAL_ERROR",
    "OSI",
    "PAPR_HCALL",
    "S390_UCONTROL",
    "WATCHDOG",
    "S390_TSCH",
    "EPR",
    "SYSTEM_EVENT",
    "S390_STSI",
    "IOAPIC_EOI",
    "HYPERV",
    "ARM_NISV",
    "X86_RDMSR",
    "X86_WRMSR",
    "DIRTY_RING_FULL",
    "AP_RESET_HOLD",
    "X86_BUS_LOCK",
    "XEN",
};

const char *pk_trace_reason(uint32_t reason)
{
    return reason < sizeof(reasons) / sizeof(reasons[0]) ? reasons[reason] : "OTHER";
}

/* The name of what is at `addr`, with a space in front, or "". */
static const char *name_at(const struct pk_trace_text *text, uint32_t space, uint64_t addr)
{
    for (uint32_t i = 0; i < text->num_names; i++) {
        const struct pk_trace_name *name = &text->names[i];
        if (name->space == space && addr - name->base < name->len)
            return name->name;
    }
    return "";
}

/* What a slice or a mark is called. */
static void describe(const struct pk_trace_text *text, const struct pk_trace_record *r, char *ret,
                     size_t size)
{
    const char *device;
    switch (r->kind) {
    case PK_TRACE_EXIT:
        if (r->reason == KVM_EXIT_IO) {
            device = name_at(text, PK_PIO, r->addr);
            snprintf(ret, size, "%s %#" PRIx64 "%s", r->is_write ? "out" : "in", r->addr, device);
        } else if (r->reason == KVM_EXIT_MMIO) {
            device = name_at(text, PK_MMIO, r->addr);
            snprintf(ret, size, "%s %#" PRIx64 "%s", r->is_write ? "write" : "read", r->addr,
                     device);
        } else {
            snprintf(ret, size, "%s", pk_trace_reason(r->reason));
        }
        return;
    case PK_TRACE_KICK:
        snprintf(ret, size, "kick");
        return;
    case PK_TRACE_SAMPLE:
        snprintf(ret, size, "sample");
        return;
    }
    device = name_at(text, PK_GSI, r->addr);
    if (r->kind == PK_TRACE_LINE)
        snprintf(ret, size, "GSI %" PRIu64 " %s%s", r->addr, r->data ? "up" : "down", device);
    else if (r->kind == PK_TRACE_INTERRUPT && r->data == 0)
        snprintf(ret, size, "interrupt: configuration%s", device);
    else if (r->kind == PK_TRACE_INTERRUPT)
        snprintf(ret, size, "interrupt: queue %" PRIu64 "%s", r->data - 1, device);
    else if (r->kind == PK_TRACE_QUEUE_KICK)
        snprintf(ret, size, "kick queue %" PRIu64, r->data);
    else
        snprintf(ret, size, "used queue %" PRIu64, r->data);
}

static int is_exit(const struct pk_trace_record *r)
{
    return r->kind <= PK_TRACE_SAMPLE;
}

static uint32_t track(const struct pk_trace_record *r)
{
    if (is_exit(r))
        return PK_TRACK_VCPUS + r->source;
    if (r->kind == PK_TRACE_QUEUE_KICK || r->kind == PK_TRACE_QUEUE_USED)
        return PK_TRACK_QUEUES + (uint32_t)r->addr;
    return PK_TRACK_INTERRUPTS;
}

static const char *category(const struct pk_trace_record *r)
{
    static const char *const names[] = {
        [PK_TRACE_EXIT] = "exit",
        [PK_TRACE_KICK] = "kick",
        [PK_TRACE_SAMPLE] = "sample",
        [PK_TRACE_LINE] = "line",
        [PK_TRACE_INTERRUPT] = "interrupt",
        [PK_TRACE_QUEUE_KICK] = "queue-kick",
        [PK_TRACE_QUEUE_USED] = "queue-used",
    };
    return names[r->kind];
}

/* Nanoseconds as microseconds with three decimals, as two arguments of "%" PRIu64 ".%03u". */
#define US(ns)    (ns) / 1000, (unsigned)((ns) % 1000)
#define US_FORMAT "%" PRIu64 ".%03u"

static int json(const struct pk_trace_text *text, const struct pk_trace_record *r, char *buf,
                size_t size)
{
    char name[96];
    describe(text, r, name, sizeof(name));
    uint64_t time = r->time - text->origin;
    if (!is_exit(r))
        return snprintf(buf, size,
                        ",\n{\"ph\":\"i\",\"s\":\"t\",\"pid\":%u,\"tid\":%u,\"ts\":" US_FORMAT
                        ",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{\"gsi\":%" PRIu64
                        ",\"value\":%" PRIu64 ",\"count\":%u}}",
                        text->pid, track(r), US(time), category(r), name, r->addr, r->data,
                        r->count);
    int used = snprintf(
        buf, size,
        ",\n{\"ph\":\"X\",\"pid\":%u,\"tid\":%u,\"ts\":" US_FORMAT ",\"dur\":" US_FORMAT
        ",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{"
        "\"reason\":\"%s\",\"rip\":\"0x%" PRIx64 "\",\"guest_us\":" US_FORMAT ",\"by\":\"%s\"",
        text->pid, track(r), US(time), US(r->handler_ns), category(r), name,
        pk_trace_reason(r->reason), r->rip, US(r->guest_ns), r->in_c ? "C" : "Python");
    if (r->size > 0 && used >= 0 && (size_t)used < size)
        used += snprintf(buf + used, size - (size_t)used,
                         ",\"address\":\"0x%" PRIx64
                         "\",\"size\":%u,\"write\":%s,\"value\":\"0x%" PRIx64 "\",\"count\":%u",
                         r->addr, r->size, r->is_write ? "true" : "false", r->data, r->count);
    if (used >= 0 && (size_t)used < size)
        used += snprintf(buf + used, size - (size_t)used, "}}");
    return used;
}

static int csv(const struct pk_trace_text *text, const struct pk_trace_record *r, char *buf,
               size_t size)
{
    char name[96];
    describe(text, r, name, sizeof(name));
    uint64_t time = r->time - text->origin;
    if (!is_exit(r))
        return snprintf(buf, size, US_FORMAT ",%u,%s,,%" PRIu64 ",,,%" PRIu64 ",,,,%u,,%s\n",
                        US(time), track(r), category(r), r->addr, r->data, r->count, name);
    return snprintf(buf, size,
                    US_FORMAT ",%u,%s,%s,0x%" PRIx64 ",%u,%u,0x%" PRIx64 ",0x%" PRIx64 "," US_FORMAT
                              "," US_FORMAT ",%u,%s,%s\n",
                    US(time), track(r), category(r), pk_trace_reason(r->reason), r->addr, r->size,
                    r->is_write, r->data, r->rip, US(r->guest_ns), US(r->handler_ns), r->count,
                    r->in_c ? "C" : "Python", name);
}

int pk_trace_format(const struct pk_trace_text *text, const struct pk_trace_record *records,
                    uint32_t num, char *ret, uint32_t size)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < num && size - used >= PK_TRACE_TEXT_MAX; i++) {
        int length = (text->csv ? csv : json)(text, &records[i], ret + used, size - used);
        used += (uint32_t)length;
    }
    return (int)used;
}

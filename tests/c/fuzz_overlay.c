/* A damaged overlay: any bitmap in its file, over any contents, and any requests after that. What
 * must hold: it reads as a model does that knows which clusters are there, the base is never
 * written, what was flushed is there after the end of the process, and nothing outside of the
 * buffers is touched.
 *
 * Each input is one overlay's life.
 */
#include "overlay.h"

#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLUSTER  PK_OVERLAY_CLUSTER
#define CLUSTERS 11u /* so that the last byte of the bitmap has bits of nothing */
#define SIZE     ((CLUSTERS - 1) * CLUSTER + 1536u)
#define SECTOR   512u
#define BITMAP   4096u
#define DATA     8192u

static uint8_t base[SIZE], model[SIZE], content[SIZE], zeroes[SIZE];
static uint8_t is_there[CLUSTERS], is_kept[CLUSTERS]; /* in memory, and in the file */
static int base_fd = -1, fd;
static struct pk_overlay_config config;
static struct pk_overlay *overlay;

static void setup(void)
{
    base_fd = memfd_create("base", MFD_CLOEXEC);
    fd = memfd_create("overlay", MFD_CLOEXEC);
    for (uint32_t i = 0; i < SIZE; i++) {
        base[i] = (uint8_t)(i / SECTOR + 1);
        content[i] = (uint8_t)~base[i];
    }
    CHECK_EQ(pwrite(base_fd, base, SIZE, 0), SIZE);
}

static uint32_t end_of(uint32_t cluster)
{
    return (cluster + 1) * CLUSTER < SIZE ? (cluster + 1) * CLUSTER : SIZE;
}

/* What an overlay is that was opened just now: all that its file says is there, and the base. */
static void forget(void)
{
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        uint32_t at = i * CLUSTER;
        if (!is_kept[i])
            memcpy(model + at, base + at, end_of(i) - at);
        is_there[i] = is_kept[i];
    }
}

static void begin(struct input *in)
{
    int kept = take(in) & 1;
    config = (struct pk_overlay_config){.base_fd = base_fd, .fd = fd, .size = SIZE};
    if (kept) {
        config.bitmap_at = BITMAP;
        config.data_at = DATA;
    }
    CHECK_EQ(ftruncate(fd, 0), 0);
    CHECK_EQ(ftruncate(fd, (off_t)config.data_at + SIZE), 0);
    CHECK_EQ(pwrite(fd, content, SIZE, (off_t)config.data_at), SIZE);
    memcpy(model, content, SIZE);
    memset(is_kept, 0, sizeof(is_kept));
    uint8_t bitmap[2] = {(uint8_t)take(in), (uint8_t)take(in)};
    for (uint32_t i = 0; i < CLUSTERS && kept; i++)
        is_kept[i] = (bitmap[i / 8] >> i % 8) & 1;
    if (kept)
        CHECK_EQ(pwrite(fd, bitmap, 2, BITMAP), 2);
    forget();
    CHECK_EQ(pk_overlay_create(&config, &overlay), 0);
}

static void mark(uint32_t at, uint32_t len)
{
    for (uint32_t i = at / CLUSTER; i * CLUSTER < at + len; i++)
        is_there[i] = 1;
}

/* One file with all of it, or the overlay has it in several places. */
static void look_up(uint32_t at, uint32_t len, int to_write)
{
    uint8_t bytes[SIZE];
    uint64_t place = at;
    int file = -1, same = 1;

    for (uint32_t i = at / CLUSTER; i * CLUSTER < at + len; i++)
        same &= is_there[i] == is_there[at / CLUSTER];
    int found = pk_overlay_find(overlay, len, to_write, &file, &place);
    CHECK_EQ(found, same && (!to_write || is_there[at / CLUSTER]));
    if (!found)
        return;
    CHECK(file == fd || (file == base_fd && !to_write));
    CHECK_EQ(pread(file, bytes, len, (off_t)place), (ssize_t)len);
    CHECK(memcmp(bytes, model + at, len) == 0);
}

static void request(struct input *in, uint32_t kind)
{
    uint32_t at = take(in) * SECTOR % SIZE;
    uint32_t len = (take(in) % ((SIZE - at) / SECTOR) + 1) * SECTOR;
    uint32_t first = take(in) * 64 % (len + 1);
    uint8_t *bytes = malloc(len); /* so that a byte too many is seen */
    struct iovec iov[3] = {{bytes, first}, {bytes + first, 0}, {bytes + first, len - first}};

    CHECK(bytes != NULL);
    memset(bytes, (int)take(in), len);
    switch (kind) {
    case 0:
        CHECK_EQ(pk_overlay_read(overlay, iov, 3, at), 0);
        CHECK(memcmp(bytes, model + at, len) == 0);
        break;
    case 1:
        CHECK_EQ(pk_overlay_write(overlay, iov, 3, at), 0);
        memcpy(model + at, bytes, len);
        mark(at, len);
        break;
    case 2:
        CHECK_EQ(pk_overlay_clear(overlay, at, len), 0);
        memcpy(model + at, zeroes, len);
        mark(at, len);
        break;
    default:
        look_up(at, len, kind & 1);
    }
    free(bytes);
}

/* The process ends, and another goes on: what the file does not say is gone. */
static void open_again(void)
{
    pk_overlay_destroy(overlay);
    forget();
    CHECK_EQ(pk_overlay_create(&config, &overlay), 0);
}

static void settle(uint32_t kind)
{
    int kept = config.bitmap_at != 0;
    if (kind & 1) {
        CHECK_EQ(pk_overlay_flush(overlay, (int)(kind & 2)), 0);
        if (kept)
            memcpy(is_kept, is_there, sizeof(is_kept));
    } else if (kept) {
        open_again();
    } else {
        CHECK_EQ(pk_overlay_empty(overlay), 0);
        forget();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t bytes[SIZE];
    struct input in = {data, size};

    if (base_fd < 0)
        setup();
    begin(&in);
    while (in.size > 0) {
        uint32_t kind = take(&in) % 8;
        if (kind < 5)
            request(&in, kind);
        else
            settle(kind);
    }
    struct iovec whole = {bytes, SIZE};
    CHECK_EQ(pk_overlay_read(overlay, &whole, 1, 0), 0);
    CHECK(memcmp(bytes, model, SIZE) == 0);
    CHECK_EQ(pread(base_fd, bytes, SIZE, 0), SIZE);
    CHECK(memcmp(bytes, base, SIZE) == 0);
    pk_overlay_destroy(overlay);
    return 0;
}

FUZZ_MAIN(3000, 200)

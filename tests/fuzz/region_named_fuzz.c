/* SPDX-License-Identifier: MIT */
/*
 * region_named_fuzz - bytes become damage to the files of a named region
 *
 *      | weather | what where where how how how | what where where how how how | ...
 *
 * A region is made once and its files kept in memory; each input begins with a
 * fresh pair of them. The first byte chooses what happened (a kill or a power
 * loss, a header whose sum was made right again, files cut off), then six bytes
 * are one change. Whatever it is: a view of it answers, and open answers, and if it
 * opens, the region can be walked, read, written, audited, closed, and opened again
 * without a loss.
 *
 * What was not touched must still be there, unless the damage was to something
 * that all items share. After a power loss whatever can be read is an item that
 * once was. Built with FUZZ_CANARY changed payload counts as not touched: a run
 * over the corpus that finds nothing then has not looked.
 */
#include <weir/region.h>
#include <weir/view.h>

#include "named.h"
#include "pattern.h"
#include "tmpdir.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define FUZZ_NAME       "fuzz"
#define FUZZ_ITEMS      40
#define FUZZ_OWNER      3
#define FUZZ_ITEM_BYTES (UINT64_C(700) << 10)
#define FUZZ_STEP_BYTES 6
#define FUZZ_STEPS_MAX  64

#ifdef FUZZ_CANARY
# define FUZZ_IS_CANARY true
#else
# define FUZZ_IS_CANARY false
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum fuzz_weather {
    FUZZ_POWER_LOSS = 1,
    FUZZ_HEADER_SUM = 2, /* made right again */
    FUZZ_CUT_DATA = 4,
    FUZZ_CUT_TABLES = 8,
    FUZZ_ALL_RESIDENT = 16,
    FUZZ_SYNC = 32,
};

enum fuzz_change {
    FUZZ_HEADER,
    FUZZ_FIGURES,
    FUZZ_PLACE,
    FUZZ_TAG,
    FUZZ_ENTRY_COPY,
    FUZZ_SPAN,
    FUZZ_KEY,
    FUZZ_SUM,
    FUZZ_PAYLOAD,
    FUZZ_CHUNK,
    FUZZ_CHANGE_COUNT,
};

struct fuzz_item {
    struct weir_slot slot;
    uint64_t key;
    uint64_t bytes;
    uint64_t offset;
    bool is_live;
    bool is_touched;
};

/* The region as it was made: the parts of its files that are used. */
struct fuzz_origin {
    char directory[PATH_MAX];
    struct weir__header header;
    struct weir__entry *entries;
    uint64_t *sums;
    char *data;
    uint64_t data_bytes;
    uint64_t table_bytes;
    uint64_t entry_count;
    struct fuzz_item items[FUZZ_ITEMS];
};

static struct fuzz_origin fuzz_origin;

static void fuzz_check(bool condition)
{
    if (!condition)
        abort();
}

/* ---- The origin ------------------------------------------------------------ */

static struct weir_region_config fuzz_config(const char *directory)
{
    return (struct weir_region_config){
        .directory = directory,
        .name = FUZZ_NAME,
        .bytes_initial = 2 * MIB,
        .bytes_max = 16 * MIB,
        .resident_bytes_max = 8 * MIB,
    };
}

static uint64_t fuzz_size(uint64_t key)
{
    uint64_t random = key;

    if (key % 9 == 0)
        return 0;
    return weir__random_below(&random, key % 13 == 5 ? FUZZ_ITEM_BYTES : 9000);
}

static void fuzz_put_all(struct weir_region *region, struct fuzz_origin *origin)
{
    for (uint64_t i = 0; i < FUZZ_ITEMS; i++) {
        struct fuzz_item *item = &origin->items[i];
        *item = (struct fuzz_item){.key = i + 1, .bytes = fuzz_size(i + 1), .is_live = true};
        char *data = malloc(item->bytes + 1);
        harness_fill(data, item->bytes, item->key, 0);
        fuzz_check(weir_region_put(region, data, item->bytes,
                                   (struct weir_label){item->key, FUZZ_OWNER}, &item->slot) == 0);
        free(data);
    }
    for (uint64_t i = 0; i < FUZZ_ITEMS; i += 4) {
        fuzz_check(weir_region_free(region, origin->items[i].slot) == 0);
        origin->items[i].is_live = false;
    }
    fuzz_check(weir_region_sync(region) == 0);
    /* Freed after they were confirmed. */
    for (uint64_t i = 1; i < FUZZ_ITEMS; i += 8) {
        fuzz_check(weir_region_free(region, origin->items[i].slot) == 0);
        origin->items[i].is_live = false;
    }
}

static void fuzz_keep(struct fuzz_origin *origin)
{
    const char *directory = origin->directory;
    struct weir__header *header = &origin->header;

    struct stat tables;
    int fd = harness_named_open(directory, FUZZ_NAME ".weir");

    fuzz_check(fstat(fd, &tables) == 0);
    close(fd);
    origin->table_bytes = (uint64_t)tables.st_size;
    harness_named_header(directory, FUZZ_NAME, header);
    origin->entry_count = header->figures.entry_count;
    uint64_t rows = origin->entry_count + 1;
    origin->entries = malloc(rows * sizeof(*origin->entries));
    origin->sums = malloc(rows * sizeof(*origin->sums));
    harness_named_read(directory, FUZZ_NAME ".weir", header->entry_offset, origin->entries,
                       rows * sizeof(*origin->entries));
    harness_named_read(directory, FUZZ_NAME ".weir", header->sum_offset, origin->sums,
                       rows * sizeof(*origin->sums));
    origin->data_bytes = weir__round_up(header->figures.mark_bytes, LAYOUT_CHUNK_BYTES);
    origin->data = malloc(origin->data_bytes);
    harness_named_read(directory, FUZZ_NAME ".weir-data", 0, origin->data, origin->data_bytes);
    for (size_t i = 0; i < FUZZ_ITEMS; i++)
        origin->items[i].offset =
            weir__place_offset(origin->entries[origin->items[i].slot.index].place);
}

static void fuzz_make(struct fuzz_origin *origin)
{
    struct weir_region *region;

    snprintf(origin->directory, sizeof(origin->directory), "%s/fuzz", harness_tmpdir());
    fuzz_check(mkdir(origin->directory, 0700) == 0);
    struct weir_region_config config = fuzz_config(origin->directory);
    fuzz_check(weir_region_open(&config, &region) == 0);
    fuzz_put_all(region, origin);
    weir_region_close(region);
    fuzz_keep(origin);
}

/* ---- Damage ---------------------------------------------------------------- */

struct fuzz_case {
    struct weir__header header;
    struct weir__entry *entries;
    uint64_t *sums;
    char *data;
    struct fuzz_item items[FUZZ_ITEMS];
    bool is_shared; /* something is damaged that more than one item depends on */
};

static void fuzz_touch(struct fuzz_case *input, uint64_t index)
{
    for (size_t i = 0; i < FUZZ_ITEMS; i++)
        if (input->items[i].slot.index == index)
            input->items[i].is_touched = true;
}

static void fuzz_change_payload(struct fuzz_case *input, uint64_t at)
{
    input->data[at] ^= 1;
    for (size_t i = 0; i < FUZZ_ITEMS && !FUZZ_IS_CANARY; i++) {
        struct fuzz_item *item = &input->items[i];
        if (item->offset <= at && at < item->offset + item->bytes)
            item->is_touched = true;
    }
}

/* Bits, a small number, a large one: what the three bytes make of a word. */
static uint64_t fuzz_word(uint64_t word, const uint8_t *how)
{
    uint64_t value = (uint64_t)how[1] | (uint64_t)how[2] << 8;

    switch (how[0] % 4) {
    case 0:
        return word ^ UINT64_C(1) << how[1] % 64;
    case 1:
        return value;
    case 2:
        return word + value - 32768;
    default:
        return word ^ value << how[0] / 4 % 64;
    }
}

static void fuzz_change(struct fuzz_case *input, const uint8_t *step)
{
    struct fuzz_origin *origin = &fuzz_origin;
    uint64_t where = (uint64_t)step[1] | (uint64_t)step[2] << 8;
    uint64_t index = where % origin->entry_count + 1;
    struct weir__entry *entry = &input->entries[index];
    uint64_t *words = (uint64_t *)(void *)&input->header;

    /* What all depend on is hit seldom, or nothing else would ever be looked at. */
    bool is_seldom = step[2] % 16 == 0;

    switch ((enum fuzz_change)(step[0] % FUZZ_CHANGE_COUNT)) {
    case FUZZ_HEADER:
        if (!is_seldom)
            return;
        where %= offsetof(struct weir__header, figures) / 8;
        words[where] = fuzz_word(words[where], step + 3);
        input->is_shared = true;
        return;
    case FUZZ_FIGURES:
        if (!is_seldom)
            return;
        where = (offsetof(struct weir__header, figures) +
                 where % (sizeof(input->header) - offsetof(struct weir__header, figures))) /
                8;
        words[where] = fuzz_word(words[where], step + 3);
        input->is_shared = true;
        return;
    case FUZZ_PLACE:
        entry->place = fuzz_word(entry->place, step + 3);
        break;
    case FUZZ_TAG:
        entry->tag = fuzz_word(entry->tag, step + 3);
        break;
    case FUZZ_ENTRY_COPY:
        *entry = input->entries[((uint64_t)step[3] | (uint64_t)step[4] << 8) % origin->entry_count];
        break;
    case FUZZ_SPAN:
        entry->span = fuzz_word(entry->span, step + 3);
        return; /* not believed anyway */
    case FUZZ_KEY:
        entry->key = fuzz_word(entry->key, step + 3);
        break;
    case FUZZ_SUM:
        input->sums[index] = fuzz_word(input->sums[index], step + 3);
        input->is_shared |= input->sums[index] == 0;
        break;
    case FUZZ_PAYLOAD:
        fuzz_change_payload(input, (where << 8 | step[3]) * 64 % origin->data_bytes);
        return;
    case FUZZ_CHUNK:
    case FUZZ_CHANGE_COUNT:
        return; /* the table is written as zeroes in any case */
    }
    fuzz_touch(input, index);
}

static void fuzz_create(const char *name, uint64_t bytes)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.4000s/%s", fuzz_origin.directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fuzz_check(fd >= 0);
    fuzz_check(ftruncate(fd, (off_t)bytes) == 0);
    close(fd);
}

static void fuzz_cut(struct fuzz_case *input, const char *name, uint64_t bytes)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.4000s/%s", fuzz_origin.directory, name);
    fuzz_check(truncate(path, (off_t)bytes) == 0);
    input->is_shared = true;
}

static void fuzz_write(struct fuzz_case *input, uint8_t weather, uint64_t random)
{
    const struct fuzz_origin *origin = &fuzz_origin;
    const char *directory = origin->directory;
    uint64_t rows = origin->entry_count + 1;

    fuzz_create(FUZZ_NAME ".weir", origin->table_bytes);
    fuzz_create(FUZZ_NAME ".weir-data", origin->data_bytes);
    harness_named_write(directory, FUZZ_NAME ".weir-data", 0, input->data, origin->data_bytes);
    harness_named_write(directory, FUZZ_NAME ".weir", origin->header.entry_offset, input->entries,
                        rows * sizeof(*input->entries));
    harness_named_write(directory, FUZZ_NAME ".weir", origin->header.sum_offset, input->sums,
                        rows * sizeof(*input->sums));
    if (weather & FUZZ_POWER_LOSS)
        input->header.boot++;
    if (weather & (FUZZ_HEADER_SUM | FUZZ_POWER_LOSS))
        harness_named_set_header(directory, FUZZ_NAME, &input->header);
    else
        harness_named_write(directory, FUZZ_NAME ".weir", 0, &input->header, sizeof(input->header));
    if (weather & FUZZ_CUT_DATA)
        fuzz_cut(input, FUZZ_NAME ".weir-data", weir__random_below(&random, origin->data_bytes));
    if (weather & FUZZ_CUT_TABLES)
        fuzz_cut(input, FUZZ_NAME ".weir",
                 weir__random_below(&random, 2) == 0
                     ? weir__random_below(&random, 8192)
                     : origin->header.entry_offset + weir__random_below(&random, 20000));
}

/* ---- What must hold -------------------------------------------------------- */

/* Whether these bytes were put once: the item of some key. */
static bool fuzz_once_was(const char *data, uint64_t bytes)
{
    for (uint64_t key = 1; key <= FUZZ_ITEMS; key++)
        if (fuzz_size(key) == bytes && harness_differs_at(data, bytes, key, 0) == bytes)
            return true;
    return false;
}

static int fuzz_read(struct weir_region *region, struct weir_slot slot, bool must_be_whole)
{
    struct weir_slot_info info;
    size_t count = 0;

    fuzz_check(weir_region_slot(region, slot, &info) == 0);
    char *data = malloc(info.bytes + 1);
    int r = weir_region_read(region, slot, 0, data, info.bytes, &count);
    fuzz_check(r == 0 || r == -EBADMSG);
    fuzz_check(r < 0 || count == info.bytes);
    if (must_be_whole)
        fuzz_check(r == 0 && fuzz_once_was(data, count));
    free(data);
    return r;
}

static void fuzz_walk(struct weir_region *region, const struct fuzz_case *input)
{
    struct weir_region_report report;
    struct weir_slot slot = {0};
    uint64_t count = 0;

    weir_region_report(region, &report);
    for (; weir_region_next(region, &slot); count++)
        if (fuzz_read(region, slot, report.after_power_loss) < 0) /* or it is lost once more */
            fuzz_check(weir_region_free(region, slot) == 0);
    fuzz_check(count == report.kept_slot_count);
    fuzz_check((report.lost_slot_count > 0 || report.damaged_entry_count > 0) ==
               (report.first_error != 0));

    for (size_t i = 0; i < FUZZ_ITEMS && !input->is_shared; i++) {
        const struct fuzz_item *item = &input->items[i];
        struct weir_slot_info info;
        /* Any two items of no bytes have one checksum: in one place none is the right one. */
        if (!item->is_live || item->is_touched || item->bytes == 0)
            continue;
        fuzz_check(weir_region_slot(region, item->slot, &info) == 0);
        fuzz_check(info.bytes == item->bytes && info.label.key == item->key);
        fuzz_check(fuzz_read(region, item->slot, true) == 0);
    }
}

static void fuzz_use(struct weir_region *region, uint8_t weather)
{
    struct weir_slot slots[8];
    struct weir_slot slot = {0};
    char data[3000] = {0};
    size_t count = 0;

    for (; count < 8; count++) {
        int r =
            weir_region_put(region, data, 1 + count * 371, (struct weir_label){0}, &slots[count]);
        fuzz_check(r == 0 || r == -EAGAIN || r == -EDQUOT || r == -ENOSPC);
        if (r < 0)
            break;
    }
    for (uint64_t i = 0; weir_region_next(region, &slot); i++)
        if (i % 3 == 0)
            fuzz_check(weir_region_free(region, slot) == 0);
    weir_region_audit(region);
    fuzz_check(weir_region_poll(region) >= 0);
    if (weather & FUZZ_SYNC)
        fuzz_check(weir_region_sync(region) == 0);
    weir_region_audit(region);
}

/* Opened once, it is sound. */
static void fuzz_open_again(const struct weir_region_config *config)
{
    struct weir_region_report report;
    struct weir_region *region;

    fuzz_check(weir_region_open(config, &region) == 0);
    weir_region_report(region, &report);
    fuzz_check(report.clean_shutdown);
    fuzz_check(report.first_error == 0);
    weir_region_audit(region);
    weir_region_close(region);
}

/* ---- A look from outside --------------------------------------------------- */

static bool fuzz_is_view_answer(int r)
{
    return r == 0 || r == -ENOENT || r == -ESTALE || r == -EAGAIN || r == -EBADMSG || r == -EIO;
}

static int fuzz_view_read(const struct weir_view *view, struct weir_slot slot,
                          const struct fuzz_item *whole)
{
    static char data[FUZZ_ITEM_BYTES];
    size_t count = 0;
    int r = weir_view_read(view, slot, 0, data, sizeof(data), &count);
    int verified = weir_view_verify(view, slot);

    fuzz_check(fuzz_is_view_answer(r) && fuzz_is_view_answer(verified));
    if (whole != NULL) {
        fuzz_check(r == 0 && verified == 0 && count == whole->bytes);
        fuzz_check(harness_differs_at(data, count, whole->key, 0) == count);
    }
    return r;
}

static void fuzz_view_all(const struct weir_view *view, const struct fuzz_case *input)
{
    struct weir_view_summary summary;
    struct weir_view_extent extent;
    struct weir_view_chunk chunk;

    weir_view_summary(view, &summary);
    for (uint32_t i = 0; i < fuzz_origin.entry_count + 2; i++) {
        int r = weir_view_extent(view, i, &extent);
        fuzz_check(fuzz_is_view_answer(r) || (r == -EINVAL && (i == 0 || i > summary.entry_count)));
        if (r == 0 && extent.slot.index != 0)
            (void)fuzz_view_read(view, extent.slot, NULL);
    }
    for (uint64_t i = 0; i < fuzz_origin.data_bytes / WEIR_CHUNK_BYTES; i++) {
        int r = weir_view_chunk(view, i, &chunk);
        fuzz_check(fuzz_is_view_answer(r) || (r == -EINVAL && i >= summary.chunk_count));
    }
    for (size_t i = 0; i < FUZZ_ITEMS && !input->is_shared; i++) {
        const struct fuzz_item *item = &input->items[i];
        if (!item->is_touched && item->is_live)
            (void)fuzz_view_read(view, item->slot, item);
        else if (!item->is_touched)
            fuzz_check(fuzz_view_read(view, item->slot, NULL) == -ESTALE);
    }
}

/* Of files that nobody owns: nothing was repaired yet. */
static void fuzz_view(const struct fuzz_case *input)
{
    int fd = harness_named_open(fuzz_origin.directory, FUZZ_NAME ".weir");
    struct weir_view *view;
    int r = weir_view_open(0, fd, &view);

    if (r < 0) {
        fuzz_check(input->is_shared);
        fuzz_check(r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EIO);
    } else {
        fuzz_view_all(view, input);
        weir_view_close(view);
    }
    close(fd);
}

/* ---- All of it ------------------------------------------------------------- */

static void fuzz_run(struct fuzz_case *input, uint8_t weather)
{
    struct weir_region_config config = fuzz_config(fuzz_origin.directory);
    struct weir_region *region;

    config.bytes_max = 0;
    if (weather & FUZZ_ALL_RESIDENT)
        config.resident_bytes_max = UINT64_MAX;
    int r = weir_region_open(&config, &region);
    if (r < 0) {
        fuzz_check(input->is_shared);
        fuzz_check(r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EEXIST || r == -EDQUOT ||
                   r == -ENOMEM || r == -ENOSPC);
        return;
    }
    weir_region_audit(region);
    fuzz_walk(region, input);
    fuzz_use(region, weather);
    weir_region_close(region);
    fuzz_open_again(&config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fuzz_origin *origin = &fuzz_origin;
    struct fuzz_case input;

    if (bytes < 1 || harness_tmpdir() == NULL)
        return 0;
    if (origin->data == NULL)
        fuzz_make(origin);
    uint64_t rows = origin->entry_count + 1;
    input = (struct fuzz_case){
        .header = origin->header,
        .entries = malloc(rows * sizeof(*input.entries)),
        .sums = malloc(rows * sizeof(*input.sums)),
        .data = malloc(origin->data_bytes),
    };
    memcpy(input.entries, origin->entries, rows * sizeof(*input.entries));
    memcpy(input.sums, origin->sums, rows * sizeof(*input.sums));
    memcpy(input.data, origin->data, origin->data_bytes);
    memcpy(input.items, origin->items, sizeof(input.items));

    size_t at = 1;
    for (int i = 0; i < FUZZ_STEPS_MAX && at + FUZZ_STEP_BYTES <= bytes; i++, at += FUZZ_STEP_BYTES)
        fuzz_change(&input, data + at);
    fuzz_write(&input, data[0], XXH3_64bits(data, bytes));
    fuzz_view(&input);
    fuzz_run(&input, data[0]);
    free(input.entries);
    free(input.sums);
    free(input.data);
    return 0;
}

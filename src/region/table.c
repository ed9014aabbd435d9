/* SPDX-License-Identifier: MIT */
/*
 * table - the memory of a region's tables, and what views see of it
 *
 *      0        4096         entry_offset         sum_offset     vacant_offset
 *      | header | chunks ... | entries ... ->     | sums ... ->  | vacant ... -> |
 *
 * The table file has its full length from the start and is sparse; what is used
 * of it grows by steps, ahead of need, so that put and free allocate nothing.
 * Its length is sealed: a view that maps it cannot be cut short. A page of it costs
 * more than a microsecond, to get it and to fault it in, so the ring does both
 * ahead of need; who is faster than that reserves by himself, and faults. Where
 * entries are many they come by large pages, 65536 at a time: these are made in a
 * sixth of the time, and whoever goes through entries at random misses less.
 *
 * That of a named region is a file with blocks under whatever is stored to, so
 * that a full disk is no signal here either. Its chunk table has room for the
 * largest region there is: bytes_max may grow, and the tables behind stay where
 * they are.
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#ifndef MADV_COLLAPSE /* Linux 6.1 */
# define MADV_COLLAPSE 25
#endif

#define TABLE_WINDOW_BYTES LAYOUT_CHUNK_BYTES
#define TABLE_BESIDE_BYTES (UINT64_C(4) << 20) /* heads, ring and a chunk, to be mapped next */
/* So many must be in use before a window of them may wait to be used. */
#define TABLE_WINDOW_USED (5 * TABLE_WINDOW_BYTES / sizeof(struct weir__entry))
/* So many are left when the next window is begun: a put at full speed takes 80 ns. */
#define TABLE_WINDOW_AHEAD    (TABLE_WINDOW_BYTES / sizeof(struct weir__entry) / 2)
#define TABLE_GENERATION_STEP (SLOT_AGE_MAX / 8) /* at least, after a power loss */

struct table_plan {
    uint64_t chunk_count;
    uint64_t entry_count;
    uint64_t entry_offset;
    uint64_t sum_offset;
    uint64_t vacant_offset;
    uint64_t bytes;
};

static struct table_plan table_plan(uint64_t chunk_count, uint64_t entry_count)
{
    uint64_t page_bytes = LAYOUT_HEADER_BYTES;
    struct table_plan plan = {.chunk_count = chunk_count, .entry_count = entry_count};

    plan.entry_offset = LAYOUT_HEADER_BYTES +
                        weir__round_up(plan.chunk_count * sizeof(struct weir__chunk), page_bytes);
    plan.sum_offset =
        plan.entry_offset +
        weir__round_up((plan.entry_count + 1) * sizeof(struct weir__entry), page_bytes);
    plan.vacant_offset =
        plan.sum_offset + weir__round_up((plan.entry_count + 1) * sizeof(uint64_t), page_bytes);
    plan.bytes =
        plan.vacant_offset + weir__round_up((plan.entry_count + 1) * sizeof(uint32_t), page_bytes);
    return plan;
}

/* A page that cannot be read is an error here, and a signal where it is touched. */
static int table_populate(struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    uint64_t end = weir__round_up(offset + bytes, LAYOUT_HEADER_BYTES);
    int r;

    offset = weir__round_down(offset, LAYOUT_HEADER_BYTES);
    r = weir__sys_madvise((char *)region->header + offset, end - offset, MADV_POPULATE_READ);
    if (r == -EINVAL) /* before Linux 5.14 */
        return 0;
    return r == -EFAULT ? -EIO : r;
}

static int table_reserve(struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    int r = weir__sys_fallocate(region->table_fd, 0, offset, bytes);

    /* Of a memfd it is memory that there is no more of. */
    return r == -ENOSPC && !weir__region_is_named(region) ? -ENOMEM : r;
}

/* What another owner left there is read now. */
static int table_extend(struct weir_region *region, uint64_t offset, uint64_t bytes_from,
                        uint64_t bytes_to)
{
    if (bytes_to <= bytes_from)
        return 0;
    int r = table_reserve(region, offset + bytes_from, bytes_to - bytes_from);
    if (r < 0 || !region->named.report.existed)
        return r;
    return table_populate(region, offset + bytes_from, bytes_to - bytes_from);
}

/*
 * Words for the bits of entries @from .. @to - 1 (S2), which say of none that it is
 * vacant; what was there before us is another owner's.
 */
static int table_extend_vacant(struct weir_region *region, uint64_t from, uint64_t to)
{
    char *base = (char *)region->header;
    uint64_t bytes = 0;

    from = from == 1 ? 0 : from; /* entry 0 is never used, but its word is */
    for (uint32_t level = 0; level < SLOT_LEVEL_COUNT; level++) {
        uint64_t *words = region->slots.levels[level];
        uint64_t first = weir__slots_words(from, level);
        uint64_t end = weir__slots_words(to, level);
        int r = table_extend(region, (uint64_t)((char *)words - base), first * sizeof(*words),
                             end * sizeof(*words));
        if (r < 0)
            return r;
        memset(words + first, 0, (end - first) * sizeof(*words));
        bytes += (end - first) * sizeof(*words);
    }
    weir__heap_account(&region->heap, (int64_t)bytes);
    return 0;
}

bool weir__table_is_ours(const struct weir__header *header)
{
    if (header->chunk_count_max != LAYOUT_BYTES_LIMIT / LAYOUT_CHUNK_BYTES ||
        header->entry_count_max == 0 || header->entry_count_max > SLOT_COUNT_LIMIT)
        return false;

    struct table_plan plan = table_plan(header->chunk_count_max, header->entry_count_max);
    return header->header_bytes == LAYOUT_HEADER_BYTES &&
           header->chunk_offset == LAYOUT_HEADER_BYTES &&
           header->entry_offset == plan.entry_offset && header->sum_offset == plan.sum_offset &&
           header->vacant_offset == plan.vacant_offset;
}

/* Where many are in use they come and go in greater number. */
static uint64_t table_step(const struct weir_region *region)
{
    return weir__min(weir__max(region->slots.used_count / 8, TABLE_ENTRY_STEP),
                     TABLE_ENTRY_STEP_MAX);
}

/* Whether they come by large pages. */
static bool table_has_windows(const struct weir_region *region)
{
    return !region->tables.cannot_collapse && region->slots.used_count >= TABLE_WINDOW_USED;
}

/* That of a named region needs blocks first, and is not in such a hurry. */
static bool table_may_populate(const struct weir_region *region)
{
    const struct weir__tables *tables = &region->tables;

    return !tables->is_under_way && !tables->cannot_populate && !weir__region_is_named(region) &&
           region->slots.ready_count < region->slots.count_max;
}

/* When it is time for more: a large page takes longer to be made than many small ones. */
static void table_look_again(struct weir_region *region)
{
    uint64_t ahead = table_has_windows(region) ? TABLE_WINDOW_AHEAD : table_step(region) / 2;

    region->spare_ahead = region->spare_min + (table_may_populate(region) ? ahead : 0);
}

/* Entries up to @to, which is one too many, have all their memory: they may be used. */
static int table_accept(struct weir_region *region, uint64_t from, uint64_t to)
{
    int r = table_extend_vacant(region, from, to);

    if (r < 0)
        return r;
    region->slots.ready_count = (uint32_t)(to - 1);
    weir__heap_account(&region->heap,
                       (int64_t)((to - from) * (sizeof(struct weir__entry) + sizeof(uint64_t))));
    table_look_again(region);
    return 0;
}

/* Blocks and memory for entries up to @to, which is one too many. */
static int table_extend_to(struct weir_region *region, uint64_t from, uint64_t to)
{
    const struct weir__header *header = region->header;
    int r = table_extend(region, header->entry_offset, from * sizeof(struct weir__entry),
                         to * sizeof(struct weir__entry));

    if (r == 0)
        r = table_extend(region, header->sum_offset, from * sizeof(uint64_t),
                         to * sizeof(uint64_t));
    return r == 0 ? table_accept(region, from, to) : r;
}

/* ---- Chunks ------------------------------------------------------------- */

/* Rows for at least @count chunks; of what another owner left there nothing is believed. */
static int table_extend_chunks(struct weir_region *region, uint64_t count)
{
    struct weir__chunks *chunks = &region->chunks;
    uint64_t row = sizeof(*chunks->table);
    uint64_t page = LAYOUT_HEADER_BYTES;
    uint64_t from = weir__round_up(chunks->ready_count * row, page);
    uint64_t to = weir__round_up(count * row, page);
    int r = table_extend(region, LAYOUT_HEADER_BYTES, from, to);

    if (r < 0)
        return r;
    uint64_t ready = weir__min(to / row, region->bytes_max / LAYOUT_CHUNK_BYTES);
    if (region->named.report.existed)
        memset(chunks->table + chunks->ready_count, 0, (ready - chunks->ready_count) * row);
    chunks->ready_count = ready;
    weir__heap_account(&region->heap, (int64_t)(to - from));
    return 0;
}

int weir__table_cover(struct weir_region *region, uint64_t file_bytes)
{
    uint64_t count = weir__chunk_of(file_bytes);

    return count > region->chunks.ready_count ? table_extend_chunks(region, count) : 0;
}

void weir__table_spare(struct weir_region *region, uint64_t file_bytes)
{
    region->spare_min = weir__max(region->spare_min, weir__region_spare(file_bytes));
    table_look_again(region);
}

/* ---- Ahead -------------------------------------------------------------- */

/* The first entry behind the window that holds entry @index. */
static uint64_t table_window_end(const struct weir_region *region, uint64_t index)
{
    uint64_t entry_offset = region->header->entry_offset;
    uint64_t at = entry_offset + index * sizeof(struct weir__entry);

    return (weir__round_down(at, TABLE_WINDOW_BYTES) + TABLE_WINDOW_BYTES - entry_offset) /
           sizeof(struct weir__entry);
}

/*
 * Which entries are next: a step, or what is left of its window, or all of one.
 * There must be a page in a window that is to become a large one.
 */
static void table_plan_ahead(struct weir_region *region)
{
    struct weir__tables *tables = &region->tables;
    uint64_t end = (uint64_t)region->slots.count_max + 1;

    tables->from = (uint64_t)region->slots.ready_count + 1;
    tables->to = weir__min(tables->from + table_step(region), end);
    tables->is_window = false;
    tables->has_entries = false;
    if (!table_has_windows(region))
        return;

    uint64_t window_end = table_window_end(region, tables->from);
    uint64_t at = region->header->entry_offset + tables->from * sizeof(struct weir__entry);
    tables->is_window =
        at % TABLE_WINDOW_BYTES == 0 && window_end <= end &&
        weir__sys_fallocate(region->table_fd, 0, at, sizeof(struct weir__entry)) == 0;
    tables->to = tables->is_window ? window_end : weir__min(tables->to, window_end);
}

static void table_advise_ahead(struct weir_region *region, char *rows, uint64_t row_bytes,
                               int advice)
{
    struct weir__tables *tables = &region->tables;
    uint64_t page = LAYOUT_HEADER_BYTES;
    uint64_t from = weir__round_down((uint64_t)rows + tables->from * row_bytes, page);
    uint64_t to = weir__round_up((uint64_t)rows + tables->to * row_bytes, page);

    weir__ring_madvise(region->ring, &tables->operation, (void *)(uintptr_t)from,
                       (uint32_t)(to - from), advice);
}

static void table_ahead_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__tables *tables = WEIR_CONTAINER_OF(operation, struct weir__tables, operation);
    struct weir_region *region = tables->region;

    (void)flags;
    if (result == 0 && !tables->has_entries) {
        tables->has_entries = true;
        table_advise_ahead(region, (char *)region->slots.sums, sizeof(uint64_t),
                           MADV_POPULATE_WRITE);
        return;
    }
    /* Somebody may have been faster, for some of them or for all. */
    uint64_t from = (uint64_t)region->slots.ready_count + 1;
    bool is_collapse = tables->is_window && !tables->has_entries;
    tables->is_under_way = false;
    if (result < 0 && is_collapse && tables->from == from)
        tables->cannot_collapse = true; /* small pages will do */
    else if (result == -EINVAL && !is_collapse)
        tables->cannot_populate = true;      /* before Linux 5.14 */
    region->spare_ahead = region->spare_min; /* after a failure: not before the next need */
    if (is_collapse || (result == 0 && tables->to <= from))
        table_look_again(region);
    else if (result == 0)
        (void)!table_accept(region, from, tables->to);
}

void weir__table_ahead(struct weir_region *region)
{
    struct weir__tables *tables = &region->tables;

    if (weir__slots_spare(&region->slots) >= region->spare_ahead || !table_may_populate(region))
        return;
    tables->operation = (struct weir_operation){table_ahead_complete};
    tables->region = region;
    tables->is_under_way = true;
    table_plan_ahead(region);
    region->spare_ahead = region->spare_min;
    table_advise_ahead(region, (char *)region->slots.entries, sizeof(struct weir__entry),
                       tables->is_window ? MADV_COLLAPSE : MADV_POPULATE_WRITE);
}

int weir__table_ready(struct weir_region *region, uint64_t spare)
{
    const struct weir__slots *slots = &region->slots;

    if (WEIR_LIKELY(weir__slots_spare(slots) >= spare))
        return 0;
    if (slots->ready_count == slots->count_max)
        return -EDQUOT;

    uint64_t from = (uint64_t)slots->ready_count + 1;
    uint64_t step = weir__round_up(weir__max(spare, TABLE_ENTRY_STEP), TABLE_ENTRY_STEP);
    uint64_t to = weir__min(from + step, (uint64_t)slots->count_max + 1);
    int r = table_extend_to(region, from, to);
    if (r < 0)
        return r;
    return weir__slots_spare(slots) >= spare ? 0 : -EDQUOT;
}

/* @beside_bytes of address space are left for others. */
static int table_map_plan(struct weir_region *region, const struct table_plan *plan,
                          uint64_t beside_bytes, void **ret_tables)
{
    int r = weir__sys_ftruncate(region->table_fd, plan->bytes);

    if (r < 0)
        return r;

    /* Where a large page of the file is one of the mapping, too. */
    uint64_t reserved_bytes = plan->bytes + TABLE_WINDOW_BYTES + beside_bytes;
    void *reserved;
    r = weir__sys_mmap(NULL, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0, &reserved);
    if (r < 0)
        return r;
    uint64_t gap = -(uint64_t)(uintptr_t)reserved % TABLE_WINDOW_BYTES;
    char *base = (char *)reserved + gap;
    r = weir__sys_mmap(base, plan->bytes, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_NORESERVE | MAP_FIXED, region->table_fd, 0, ret_tables);
    if (r < 0) {
        weir__sys_munmap(reserved, reserved_bytes);
        return r;
    }
    if (gap > 0)
        weir__sys_munmap(reserved, gap);
    if (reserved_bytes > gap + plan->bytes)
        weir__sys_munmap(base + plan->bytes, reserved_bytes - gap - plan->bytes);
    return 0;
}

/*
 * The whole plan is mapped and sparse; where that is refused, for fewer entries. No
 * more than half of the address space there is: what comes next needs some as well.
 */
static int table_map(struct weir_region *region, struct table_plan *ret_plan, void **ret_tables)
{
    uint64_t chunk_bytes = weir__region_is_named(region) ? LAYOUT_BYTES_LIMIT : region->bytes_max;
    uint64_t spare = weir__region_spare(region->bytes_max);
    /* An extent takes a granule at least. */
    uint64_t entry_count = weir__min(region->bytes_max / LAYOUT_GRANULE + spare, SLOT_COUNT_LIMIT);
    uint64_t least = spare + TABLE_ENTRY_STEP;
    int r = -EDQUOT;

    for (; entry_count >= least && r < 0; entry_count /= 2) {
        *ret_plan = table_plan(chunk_bytes / LAYOUT_CHUNK_BYTES, entry_count);
        if (ret_plan->bytes > weir__sys_file_bytes_max())
            continue;
        r = table_map_plan(region, ret_plan, ret_plan->bytes + TABLE_BESIDE_BYTES, ret_tables);
    }
    return r;
}

/* As it was found; an end that was cut off is zeroes, and no entry stands there. */
static int table_map_found(struct weir_region *region, struct table_plan *ret_plan,
                           void **ret_tables)
{
    const struct weir__header *found = &region->named.found;

    *ret_plan = table_plan(found->chunk_count_max, found->entry_count_max);
    if (ret_plan->bytes > weir__sys_file_bytes_max())
        return -EDQUOT;
    return table_map_plan(region, ret_plan, 0, ret_tables);
}

/* That of a named region is open already. */
static int table_open_file(struct weir_region *region)
{
    return region->table_fd >= 0 ? 0 : weir__sys_memfd(LAYOUT_NAME, &region->table_fd);
}

/* The page of the header has its memory from the start. */
static int table_open_header(struct weir_region *region)
{
    int r = table_reserve(region, 0, LAYOUT_HEADER_BYTES);

    if (r == 0)
        weir__heap_account(&region->heap, LAYOUT_HEADER_BYTES);
    return r;
}

/*
 * After a power loss nobody knows which handles there were, and none of them comes again:
 * it begins further on, and what is kept is of a generation before (S3).
 */
static uint32_t table_found_generation(const struct weir_region *region)
{
    uint32_t step = TABLE_GENERATION_STEP + (uint32_t)weir__sys_entropy() % TABLE_GENERATION_STEP;
    uint32_t generation = region->named.found.generation;

    return region->named.report.after_power_loss ? generation + step / 2 * 2 : generation;
}

static void table_point(struct weir_region *region, const struct table_plan *plan, void *heads)
{
    char *base = (char *)region->header;

    region->slots = (struct weir__slots){
        .entries = (struct weir__entry *)(void *)(base + plan->entry_offset),
        .sums = (uint64_t *)(void *)(base + plan->sum_offset),
        .count_max = (uint32_t)plan->entry_count,
        .generation = (uint32_t)weir__sys_entropy() & ~UINT32_C(1),
    };
    if (region->named.report.existed)
        region->slots.generation = table_found_generation(region);
    weir__slots_lay(&region->slots, (uint64_t *)(void *)(base + plan->vacant_offset));
    region->chunks.table = (struct weir__chunk *)(void *)(base + LAYOUT_HEADER_BYTES);
    weir__extents_init(&region->extents, region->slots.entries, heads, region->bytes_max);
}

static int table_begin(struct weir_region *region, const struct table_plan *plan)
{
    *region->header = (struct weir__header){
        .version = LAYOUT_VERSION,
        .header_bytes = (uint32_t)LAYOUT_HEADER_BYTES,
        .bytes_max = region->bytes_max,
        .resident_bytes_max = region->resident_bytes_max,
        .chunk_count_max = plan->chunk_count,
        .entry_count_max = plan->entry_count,
        .chunk_offset = LAYOUT_HEADER_BYTES,
        .entry_offset = plan->entry_offset,
        .sum_offset = plan->sum_offset,
        .vacant_offset = plan->vacant_offset,
        .generation = region->slots.generation,
        .named = weir__region_is_named(region),
    };
    return weir__table_ready(region, region->spare_min);
}

int weir__table_open(struct weir_region *region)
{
    bool existed = region->named.report.existed;
    struct table_plan plan = {0};
    void *tables;
    void *heads;
    int r = table_open_file(region);

    if (r == 0)
        r = existed ? table_map_found(region, &plan, &tables) : table_map(region, &plan, &tables);
    if (r < 0)
        return r;
    region->header = tables;
    region->table_bytes = plan.bytes;
    if (!weir__region_is_named(region)) {
        r = weir__sys_seal_length(region->table_fd); /* views refuse to map what could shrink */
        if (r < 0)
            return r;
    }
    weir__sys_madvise(tables, plan.bytes, MADV_DONTDUMP);
    weir__sys_madvise(tables, plan.bytes, MADV_DONTFORK);
    r = table_open_header(region);
    if (r < 0)
        return r;
    r = weir__sys_mmap(NULL, EXTENT_HEAD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0, &heads);
    if (r < 0)
        return r;
    weir__sys_madvise(heads, EXTENT_HEAD_BYTES, MADV_DONTDUMP);
    weir__sys_madvise(heads, EXTENT_HEAD_BYTES, MADV_DONTFORK);
    weir__heap_account(&region->heap, (int64_t)EXTENT_HEAD_BYTES);
    table_point(region, &plan, heads);
    return existed ? 0 : table_begin(region, &plan);
}

int weir__table_read_head(struct weir_region *region)
{
    return table_populate(region, 0, LAYOUT_HEADER_BYTES);
}

int weir__table_reopen(struct weir_region *region, uint64_t entry_count)
{
    uint64_t to = weir__round_up(entry_count + 1, TABLE_ENTRY_STEP);
    int r = table_extend_to(region, 0, weir__min(to, (uint64_t)region->slots.count_max + 1));

    if (r == 0)
        region->slots.used_count = (uint32_t)entry_count;
    return r;
}

static void table_renew(struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    char *base = (char *)region->header;

    offset = weir__round_down(offset, LAYOUT_HEADER_BYTES);
    for (uint64_t at = offset; at < offset + bytes; at += LAYOUT_HEADER_BYTES) {
        uint64_t *word = (uint64_t *)(void *)(base + at);
        __atomic_store_n((volatile uint64_t *)word, weir__word_load(word), __ATOMIC_RELAXED);
    }
}

void weir__table_renew(struct weir_region *region)
{
    const struct weir__header *header = region->header;
    uint64_t count = (uint64_t)region->slots.ready_count + 1;

    table_renew(region, 0, LAYOUT_HEADER_BYTES);
    table_renew(region, header->entry_offset, count * sizeof(struct weir__entry));
    table_renew(region, header->sum_offset, count * sizeof(uint64_t));
}

void weir__table_close(struct weir_region *region)
{
    if (region->extents.heads != NULL)
        weir__sys_munmap(region->extents.heads, EXTENT_HEAD_BYTES);
    weir__sys_munmap(region->header, region->table_bytes);
    if (weir__region_is_named(region)) /* to close it is not enough while a child has it, too */
        weir__sys_unlock(region->table_fd);
    weir__sys_close(region->table_fd);
}

uint64_t weir__header_sum(const struct weir__header *header)
{
    const char *from = (const char *)&header->version;

    return XXH3_64bits(from, (size_t)((const char *)&header->fixed_sum - from));
}

/*
 * The fixed part of a header that was there is replaced by a single write inside
 * one sector, which is whole or not at all whatever ends us.
 */
static int table_replace_header(struct weir_region *region, struct weir__header *fixed)
{
    fixed->fixed_sum = weir__header_sum(fixed);
    return weir__sys_pwrite_all(region->table_fd, fixed, offsetof(struct weir__header, figures), 0);
}

/* Nobody knows what of the region is on the disk: as if it were of another boot. */
int weir__table_doubt(struct weir_region *region)
{
    struct weir__header fixed = region->named.found;

    fixed.boot = 0;
    fixed.generation = region->slots.generation;
    int r = table_replace_header(region, &fixed);
    return r == 0 ? weir__sys_fdatasync(region->table_fd) : r;
}

/* From here on views may look: the magic of a new header is stored last. */
int weir__table_publish(struct weir_region *region, const char *directory)
{
    struct weir__header *header = region->header;
    struct weir__header fixed = *header;
    struct stat data;
    int r = weir__sys_fstat(region->store.data_fd, &data);

    if (r < 0)
        return r;
    fixed.bytes_max = region->bytes_max;
    fixed.resident_bytes_max = region->resident_bytes_max;
    fixed.generation = region->slots.generation;
    fixed.data_device = data.st_dev;
    fixed.data_inode = data.st_ino;
    fixed.pid = getpid();
    fixed.table_fd = region->table_fd;
    fixed.data_fd = region->store.data_fd;
    fixed.boot = region->named.boot;
    memset(fixed.directory, 0, sizeof(fixed.directory));
    memcpy(fixed.directory, directory, strnlen(directory, sizeof(fixed.directory) - 1));

    if (region->named.report.existed) {
        weir__word_store(&header->closed, 0);
        return table_replace_header(region, &fixed);
    }
    fixed.fixed_sum = weir__header_sum(&fixed);
    memcpy(&header->version, &fixed.version,
           offsetof(struct weir__header, figures) - offsetof(struct weir__header, version));
    __atomic_store_n(&header->magic, LAYOUT_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

/* Figures that views read and that nobody else keeps; once a tick. */
void weir__table_publish_figures(struct weir_region *region)
{
    struct weir__figures *figures = weir__region_figures(region);
    const struct weir__chunks *chunks = &region->chunks;

    weir__word_store(&figures->mark_bytes, region->mark_bytes);
    weir__word_store(&figures->free_bytes, region->extents.free_bytes + region->resting_bytes);
    weir__word_store(&figures->resident_bytes, chunks->resident_count * LAYOUT_CHUNK_BYTES);
    weir__word_store(&figures->dirty_bytes, weir__chunks_dirty(chunks) * LAYOUT_CHUNK_BYTES);
    weir__word_store(&figures->metadata_bytes, region->heap.bytes);
    weir__word_store(&figures->free_extent_count,
                     region->extents.free_count + region->resting_count);
    weir__word_store(&figures->entry_count, region->slots.used_count);
    weir__word_store(&figures->degraded, weir__region_is_degraded(region));
}

/* SPDX-License-Identifier: MIT */
/*
 * table - the memory of a region's tables, and what views see of it
 *
 *      0        4096         entry_offset         sum_offset     vacant_offset
 *      | header | chunks ... | entries ... ->     | sums ... ->  | vacant ... -> |
 *
 * The table file has its full length from the start and is sparse; what is used
 * of it grows by steps, ahead of need, so that put and free allocate nothing.
 * Its length is sealed: a view that maps it cannot be cut short.
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

struct table_plan {
    uint64_t chunk_count;
    uint64_t entry_count;
    uint64_t entry_offset;
    uint64_t sum_offset;
    uint64_t vacant_offset;
    uint64_t bytes;
};

static struct table_plan table_plan(uint64_t bytes_max, uint64_t entry_count)
{
    uint64_t page_bytes = LAYOUT_HEADER_BYTES;
    struct table_plan plan = {
        .chunk_count = bytes_max / LAYOUT_CHUNK_BYTES,
        .entry_count = entry_count,
    };

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

static int table_extend(struct weir_region *region, uint64_t offset, uint64_t bytes_from,
                        uint64_t bytes_to)
{
    if (bytes_to <= bytes_from)
        return 0;
    return weir__sys_fallocate(region->table_fd, 0, offset + bytes_from, bytes_to - bytes_from);
}

int weir__table_ready(struct weir_region *region, uint64_t spare)
{
    struct weir__slots *slots = &region->slots;
    const struct weir__header *header = region->header;

    if (WEIR_LIKELY(weir__slots_spare(slots) >= spare))
        return 0;
    if (slots->ready_count == slots->count_max)
        return -EDQUOT;

    uint64_t from = (uint64_t)slots->ready_count + 1;
    uint64_t step = weir__round_up(weir__max(spare, TABLE_ENTRY_STEP), TABLE_ENTRY_STEP);
    uint64_t to = weir__min(from + step, (uint64_t)slots->count_max + 1);
    int r = table_extend(region, header->entry_offset, from * sizeof(struct weir__entry),
                         to * sizeof(struct weir__entry));
    if (r == 0)
        r = table_extend(region, header->sum_offset, from * sizeof(uint64_t),
                         to * sizeof(uint64_t));
    if (r == 0)
        r = table_extend(region, header->vacant_offset, from * sizeof(uint32_t),
                         to * sizeof(uint32_t));
    if (r < 0)
        return r == -ENOSPC ? -ENOMEM : r;

    slots->ready_count = (uint32_t)(to - 1);
    weir__heap_account(&region->heap,
                       (int64_t)((to - from) * (sizeof(struct weir__entry) + sizeof(uint64_t) +
                                                sizeof(uint32_t))));
    return weir__slots_spare(slots) >= spare ? 0 : -EDQUOT;
}

/* The whole plan is mapped and sparse; where that is refused, for fewer entries. */
static int table_map(struct weir_region *region, struct table_plan *ret_plan, void **ret_tables)
{
    /* An extent takes a granule at least. */
    uint64_t entry_count = weir__min(region->bytes_max / LAYOUT_GRANULE + 1, SLOT_COUNT_LIMIT);
    int r = -ENOMEM;

    for (; entry_count >= region->spare_min + TABLE_ENTRY_STEP && r < 0; entry_count /= 2) {
        *ret_plan = table_plan(region->bytes_max, entry_count);
        if (ret_plan->bytes > weir__sys_file_bytes_max())
            continue;
        r = weir__sys_ftruncate(region->table_fd, ret_plan->bytes);
        if (r == 0)
            r = weir__sys_mmap(NULL, ret_plan->bytes, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_NORESERVE, region->table_fd, 0, ret_tables);
    }
    return r;
}

int weir__table_open(struct weir_region *region)
{
    struct table_plan plan;
    void *tables;
    void *heads;
    int r = weir__sys_memfd(LAYOUT_NAME, &region->table_fd);

    if (r < 0)
        return r;
    r = table_map(region, &plan, &tables);
    if (r < 0)
        return r;
    region->header = tables;
    region->table_bytes = plan.bytes;
    r = weir__sys_seal_length(region->table_fd); /* views refuse to map what could shrink */
    if (r < 0)
        return r;
    weir__sys_madvise(tables, plan.bytes, MADV_DONTDUMP);
    weir__sys_madvise(tables, plan.bytes, MADV_DONTFORK);
    r = weir__sys_fallocate(region->table_fd, 0, 0, plan.entry_offset);
    if (r < 0)
        return r == -ENOSPC ? -ENOMEM : r;
    r = weir__sys_mmap(NULL, EXTENT_HEAD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0, &heads);
    if (r < 0)
        return r;
    weir__sys_madvise(heads, EXTENT_HEAD_BYTES, MADV_DONTDUMP);
    weir__sys_madvise(heads, EXTENT_HEAD_BYTES, MADV_DONTFORK);
    weir__heap_account(&region->heap, (int64_t)(plan.entry_offset + EXTENT_HEAD_BYTES));

    char *base = tables;
    region->slots = (struct weir__slots){
        .entries = (struct weir__entry *)(void *)(base + plan.entry_offset),
        .sums = (uint64_t *)(void *)(base + plan.sum_offset),
        .vacant = (uint32_t *)(void *)(base + plan.vacant_offset),
        .count_max = (uint32_t)plan.entry_count,
        .generation = (uint32_t)weir__sys_entropy() & ~UINT32_C(1),
    };
    region->chunks.table = (struct weir__chunk *)(void *)(base + LAYOUT_HEADER_BYTES);
    region->chunks.count_max = plan.chunk_count;
    weir__extents_init(&region->extents, region->slots.entries, heads, region->bytes_max);
    *region->header = (struct weir__header){
        .version = LAYOUT_VERSION,
        .header_bytes = (uint32_t)LAYOUT_HEADER_BYTES,
        .bytes_max = region->bytes_max,
        .resident_bytes_max = region->resident_bytes_max,
        .chunk_count_max = plan.chunk_count,
        .entry_count_max = plan.entry_count,
        .chunk_offset = LAYOUT_HEADER_BYTES,
        .entry_offset = plan.entry_offset,
        .sum_offset = plan.sum_offset,
        .vacant_offset = plan.vacant_offset,
    };
    return weir__table_ready(region, region->spare_min);
}

void weir__table_close(struct weir_region *region)
{
    if (region->extents.heads != NULL)
        weir__sys_munmap(region->extents.heads, EXTENT_HEAD_BYTES);
    weir__sys_munmap(region->header, region->table_bytes);
    weir__sys_close(region->table_fd);
}

/* From here on views may look; the magic is stored last. */
int weir__table_publish(struct weir_region *region, const char *directory)
{
    struct weir__header *header = region->header;
    struct stat data;
    int r = weir__sys_fstat(region->store.data_fd, &data);

    if (r < 0)
        return r;
    header->data_device = data.st_dev;
    header->data_inode = data.st_ino;
    header->pid = getpid();
    header->table_fd = region->table_fd;
    header->data_fd = region->store.data_fd;
    size_t length = strnlen(directory, sizeof(header->directory) - 1);
    memcpy(header->directory, directory, length);
    header->directory[length] = '\0';

    const char *from = (const char *)&header->version;
    header->fixed_sum = XXH3_64bits(from, (size_t)((const char *)&header->fixed_sum - from));
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
    weir__word_store(&figures->dirty_bytes, (uint64_t)(chunks->queues[CHUNK_DIRTY].count +
                                                       chunks->queues[CHUNK_WRITING].count) *
                                                LAYOUT_CHUNK_BYTES);
    weir__word_store(&figures->metadata_bytes, region->heap.bytes);
    weir__word_store(&figures->free_extent_count,
                     region->extents.free_count + region->resting_count);
    weir__word_store(&figures->entry_count, region->slots.used_count);
    weir__word_store(&figures->degraded, region->pager.suspect_count > 0);
}

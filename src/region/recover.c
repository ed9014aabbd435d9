/* SPDX-License-Identifier: MIT */
/*
 * recover - a named region is found again
 *
 *      tables:  place and tag of each entry        believed after a look at each
 *               neighbours, chunks, free extents,
 *               stack, figures                     forgotten, and made anew
 *
 * An item is published by one store of its tag, after all else is there, and
 * moved by one store of its place, after its bytes are in both. So whatever
 * moment the owner died at, an entry that says LIVE is a whole item, in the
 * memory of the kernel if not yet on disk. Nothing else in the tables has that
 * property, and nothing else is needed: the items sorted by offset leave the
 * holes between them.
 *
 *      load      tables -> items, checked one by one, sorted; those that overlap
 *                are not both right. Bytes are written out and leave the memory.
 *      rebuild   items -> extents, chunks, figures. All chunks that hold items
 *                are COLD, the others FRESH: nothing is resident at first.
 *
 * After a power loss the tables are a mixture of moments, and so are the bytes:
 * each item is compared with its checksum, and one without is not believed (what
 * sync confirmed has one). After a kill only what has none yet gets one, for a
 * cold item must have it; and what lies in the chunk that was just being stored
 * anew, after a failed write, is compared too. What has one and cannot be read now
 * is kept: it is compared when it can.
 *
 * A process that dies here changed nothing that the next would read otherwise.
 *
 *   V1  items are sorted, do not overlap, and lie below kept_bytes
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#define RECOVER_PIECE_BYTES (UINT64_C(256) << 10)
#define RECOVER_ITEM_STEP   UINT64_C(4096)
#define RECOVER_SPARE_MIN   2 /* what rests at both ends of a hole, beside what is between */

/* ---- Losses ------------------------------------------------------------- */

static void recover_vacate(struct weir_region *region, uint32_t index)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t tag = weir__word_load(&entry->tag);
    uint32_t generation = weir__tag_generation(tag);

    /* Never used; or, after a power loss, used by nobody knows which items. */
    if (tag == 0 || region->named.report.after_power_loss)
        generation = region->slots.generation;
    generation += generation % 2; /* a handle to it is stale */
    weir__word_store(&entry->tag, weir__entry_tag(generation, 0, EXTENT_VACANT, 0));
    weir__slots_give(&region->slots, index);
}

static void recover_note(struct weir_region *region, int error)
{
    struct weir_region_report *report = &region->named.report;

    if (report->first_error == 0)
        report->first_error = error;
}

/* A committed item is gone; its handle is stale from now on. */
static void recover_lose(struct weir_region *region, uint32_t index, int error)
{
    struct weir_region_report *report = &region->named.report;
    const struct weir__entry *entry = weir__region_entry(region, index);

    recover_note(region, error);
    if (report->lost_slot_count++ == 0)
        report->first_lost = (struct weir_slot){index, weir__entry_generation(entry)};
    report->lost_bytes += weir__entry_bytes(entry);
    recover_vacate(region, index);
}

static void recover_drop(struct weir_region *region, const struct weir__found *item, int error)
{
    if (item->is_freed)
        recover_vacate(region, item->index);
    else
        recover_lose(region, item->index, error);
}

/* ---- Entries ------------------------------------------------------------ */

static int recover_add(struct weir_region *region, uint32_t index, bool is_freed, bool is_doubted)
{
    struct weir__named *named = &region->named;
    uint64_t max = named->item_max;

    if (named->item_count == max) {
        uint64_t more = max + weir__max(max, RECOVER_ITEM_STEP);
        struct weir__found *items = weir__heap_resize(&region->heap, named->items,
                                                      max * sizeof(*items), more * sizeof(*items));
        if (items == NULL)
            return -ENOMEM;
        named->items = items;
        named->item_max = more;
    }
    named->items[named->item_count++] = (struct weir__found){
        .offset = weir__entry_offset(weir__region_entry(region, index)),
        .index = index,
        .is_freed = is_freed,
        .is_doubted = is_doubted,
    };
    return 0;
}

static bool recover_is_inside(const struct weir_region *region, const struct weir__entry *entry,
                              uint64_t data_bytes)
{
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t end = weir__min(data_bytes, region->bytes_max);
    uint64_t alignment =
        weir__tag_alignment(weir__tag_with(weir__word_load(&entry->tag), EXTENT_LIVE));

    return bytes <= region->item_bytes_max && weir__entry_offset(entry) <= end &&
           weir__entry_space(entry) <= end - weir__entry_offset(entry) &&
           alignment <= LAYOUT_ALIGN_LIMIT && weir__entry_offset(entry) % alignment == 0;
}

/*
 * Freed since the last sync. After a kill that has happened, but its space is
 * used by nobody before the next sync; after a power loss it has not happened.
 * Which count is on disk is known now (recover_flush).
 */
static int recover_look_at_freed(struct weir_region *region, uint32_t index, uint64_t data_bytes)
{
    const struct weir__named *named = &region->named;
    struct weir__entry *entry = weir__region_entry(region, index);
    enum weir__extent_state current = weir__state_freed(named->sync_count);

    if (weir__entry_state(entry) == EXTENT_FREED_DOUBTED)
        weir__word_store(&entry->tag, weir__tag_with(weir__word_load(&entry->tag), current));
    if (weir__entry_state(entry) != current || !recover_is_inside(region, entry, data_bytes)) {
        recover_vacate(region, index);
        return 0;
    }
    return recover_add(region, index, true, named->report.after_power_loss);
}

/* Its chunk was being stored anew when the last owner died: there may be zeroes. */
static bool recover_was_renewed(const struct weir_region *region, const struct weir__entry *entry)
{
    uint64_t renewing = region->named.found.figures.renewing;
    uint64_t offset = weir__entry_offset(entry);

    return renewing != 0 && weir__chunk_of(offset) < renewing &&
           weir__chunk_of(offset + weir__entry_space(entry) - 1) >= renewing - 1;
}

static int recover_look_at(struct weir_region *region, uint32_t index, uint64_t data_bytes)
{
    struct weir_region_report *report = &region->named.report;
    const struct weir__entry *entry = weir__region_entry(region, index);
    enum weir__extent_state state = weir__entry_state(entry);
    bool is_odd = weir__entry_generation(entry) % 2 == 1;
    bool may_be_odd = (weir__state_is_item(state) && state != EXTENT_STAGED) ||
                      weir__state_is_freed(state); /* nothing is staged where there is a name */
    bool may_be_even = state <= EXTENT_ZOMBIE && state != EXTENT_LIVE;

    if (is_odd ? !may_be_odd : !may_be_even) {
        report->damaged_entry_count++;
        recover_note(region, -EBADMSG);
        recover_vacate(region, index);
        return 0;
    }
    if (weir__state_is_freed(state))
        return recover_look_at_freed(region, index, data_bytes);
    if (state != EXTENT_LIVE && state != EXTENT_DAMAGED) {
        report->unfinished_slot_count += is_odd;
        recover_vacate(region, index);
        return 0;
    }
    if (state == EXTENT_DAMAGED || !recover_is_inside(region, entry, data_bytes)) {
        recover_lose(region, index, -EBADMSG);
        return 0;
    }
    return recover_add(region, index, false,
                       report->after_power_loss || recover_was_renewed(region, entry));
}

/* At most so many have blocks in the file. */
static int recover_entry_limit(const struct weir_region *region, uint64_t *ret_limit)
{
    struct stat file;
    int r = weir__sys_fstat(region->table_fd, &file);

    if (r < 0)
        return r;
    uint64_t blocks = (uint64_t)file.st_blocks * 512;
    *ret_limit = weir__min(blocks / sizeof(struct weir__entry), region->slots.count_max);
    return 0;
}

/*
 * How many entries were used. The figure is not covered by the header's sum: it
 * is bounded by the blocks of the file and led on by what stands behind it.
 */
static int recover_entry_count(struct weir_region *region, uint64_t limit, uint64_t *ret_count)
{
    uint64_t count = weir__min(weir__word_load(&weir__region_figures(region)->entry_count), limit);
    int r;

    for (; count < limit; count++) {
        uint64_t tag;
        uint64_t at = region->header->entry_offset + (count + 1) * sizeof(struct weir__entry) +
                      offsetof(struct weir__entry, tag);
        r = weir__sys_pread_all(region->table_fd, &tag, sizeof(tag), at);
        if (r < 0)
            return r;
        if (tag == 0)
            break;
    }
    *ret_count = count;
    return 0;
}

/*
 * After a power loss pages of entries may lie behind one that never reached the
 * disk. What they say was never confirmed, we do not look at it, and the next owner
 * would, once ours have led him there.
 */
static int recover_forget_behind(struct weir_region *region, uint64_t count, uint64_t limit)
{
    struct weir__entry found[64];

    for (uint64_t index = count + 1; index <= limit; index += 64) {
        uint64_t some = weir__min(limit + 1 - index, 64);
        int r = weir__sys_pread_all(region->table_fd, found, some * sizeof(*found),
                                    region->header->entry_offset + index * sizeof(*found));
        if (r < 0)
            return r;
        for (uint64_t i = 0; i < some; i++)
            if (found[i].tag != 0)
                weir__word_store(&weir__region_entry(region, (uint32_t)(index + i))->tag, 0);
    }
    return 0;
}

/* ---- Order -------------------------------------------------------------- */

static int recover_compare(const void *a, const void *b)
{
    const struct weir__found *one = a;
    const struct weir__found *two = b;

    if (one->offset != two->offset)
        return one->offset < two->offset ? -1 : 1;
    return one->index < two->index ? -1 : 1;
}

static uint64_t recover_end(const struct weir_region *region, const struct weir__found *item)
{
    return item->offset + weir__entry_space(weir__region_entry(region, item->index));
}

/* Two items in one place: at most one of them is right, and only a checksum can tell. */
static void recover_doubt_overlaps(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    struct weir__found *widest = NULL; /* of those before, what reaches furthest */

    for (uint64_t i = 0; i < named->item_count; i++) {
        struct weir__found *item = &named->items[i];
        if (widest != NULL && item->offset < recover_end(region, widest)) {
            item->is_doubted = true;
            widest->is_doubted = true;
        }
        if (widest == NULL || recover_end(region, item) > recover_end(region, widest))
            widest = item;
    }
}

/*
 * An empty item has the checksum of any other, a freed one is nobody's loss, and of
 * one that could not be read nobody knows.
 */
static bool recover_is_weak(const struct weir_region *region, const struct weir__found *item)
{
    return item->is_freed || item->is_unread ||
           weir__entry_bytes(weir__region_entry(region, item->index)) == 0;
}

/*
 * V1: of those that still overlap the first in the file stays, unless it is weak
 * and the other is not. What is kept does not overlap, so only the last of it can.
 */
static void recover_drop_overlaps(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    uint64_t kept = 0;
    uint64_t end = 0;

    for (uint64_t i = 0; i < named->item_count; i++) {
        struct weir__found item = named->items[i];
        bool overlaps = item.offset < end;
        if (overlaps &&
            (recover_is_weak(region, &item) || !recover_is_weak(region, &named->items[kept - 1]))) {
            recover_drop(region, &item, -EBADMSG);
            continue;
        }
        if (overlaps)
            recover_drop(region, &named->items[--kept], -EBADMSG);
        end = recover_end(region, &item);
        named->items[kept++] = item;
    }
    named->item_count = kept;
    named->kept_bytes = weir__round_up(end, LAYOUT_CHUNK_BYTES);
}

/* ---- Bytes -------------------------------------------------------------- */

static int recover_sum(const struct weir_region *region, const struct weir__entry *entry,
                       char *buffer, uint64_t *ret_sum)
{
    uint64_t offset = weir__entry_offset(entry);
    uint64_t bytes = weir__entry_bytes(entry);
    XXH3_state_t state;

    XXH3_64bits_reset(&state);
    while (bytes > 0) {
        uint64_t piece = weir__min(bytes, RECOVER_PIECE_BYTES);
        int r = weir__sys_pread_all(region->store.data_fd, buffer, piece, offset);
        if (r < 0)
            return r;
        XXH3_64bits_update(&state, buffer, piece);
        offset += piece;
        bytes -= piece;
    }
    *ret_sum = weir__sum_of(weir__word_load(&entry->key), weir__word_load(&entry->tag),
                            XXH3_64bits_digest(&state));
    return 0;
}

/* 0: the item is what it should be, or is taken for it; else why not. */
static int recover_verify(struct weir_region *region, const struct weir__found *item, char *buffer)
{
    const struct weir__entry *entry = weir__region_entry(region, item->index);
    uint64_t *expected = &region->slots.sums[item->index];
    uint64_t sum;

    if (*expected == 0 && item->is_doubted)
        return -EBADMSG; /* nothing speaks for it */
    if (*expected != 0 && !item->is_doubted)
        return 0;
    int r = recover_sum(region, entry, buffer, &sum);
    if (r < 0)
        return r;
    if (*expected == 0)
        weir__word_store(expected, sum);
    return *expected == sum ? 0 : -EBADMSG;
}

/* In order of the file; what was read leaves the memory behind us. */
static void recover_verify_all(struct weir_region *region, char *buffer)
{
    struct weir__named *named = &region->named;
    uint64_t dropped = 0;
    uint64_t kept = 0;

    for (uint64_t i = 0; i < named->item_count; i++) {
        struct weir__found item = named->items[i];
        int r = recover_verify(region, &item, buffer);
        uint64_t end = weir__round_down(recover_end(region, &item), LAYOUT_CHUNK_BYTES);
        if (end > dropped) {
            (void)weir__sys_fadvise(region->store.data_fd, dropped, end - dropped,
                                    POSIX_FADV_DONTNEED);
            dropped = end;
        }
        /* A disk that does not answer now says nothing of what is there. */
        item.is_unread = r < 0 && r != -EBADMSG && region->slots.sums[item.index] != 0;
        if (item.is_unread)
            recover_note(region, r);
        if (r == 0 || item.is_unread)
            named->items[kept++] = item;
        else
            recover_drop(region, &item, r);
    }
    named->item_count = kept;
}

static int recover_read(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    char *buffer = weir__heap_alloc(&region->heap, RECOVER_PIECE_BYTES);
    if (buffer == NULL)
        return -ENOMEM;
    if (named->item_count > 0)
        qsort(named->items, named->item_count, sizeof(*named->items), recover_compare);
    recover_doubt_overlaps(region);
    recover_verify_all(region, buffer);
    recover_drop_overlaps(region);
    weir__heap_free(&region->heap, buffer, RECOVER_PIECE_BYTES);
    return weir__sys_fadvise(region->store.data_fd, 0, 0, POSIX_FADV_DONTNEED);
}

/*
 * What the last owner left in memory goes to the disk first. The tables too: he may
 * have died in sync(), and what that gave up for free in memory is used by us next,
 * while the disk does not yet know. If it cannot, the kernel calls those pages clean,
 * keeps or drops them as it likes, and tells nobody again: whoever opens next looks
 * at the disk, as after a power loss. A mark says so to him, which may be in memory
 * only, and be dropped with the rest: it is on the disk first. And with it, after a
 * power loss, the generation that handles begin with now.
 */
static int recover_flush(struct weir_region *region)
{
    int r = region->named.report.after_power_loss ? weir__table_doubt(region) : 0;

    if (r < 0)
        return r;
    r = weir__sys_fdatasync(region->store.data_fd);
    if (r == 0)
        r = weir__sys_fdatasync(region->table_fd);
    if (r < 0)
        (void)!weir__table_doubt(region);
    return r;
}

/* What memory says may be no more than what the disk refused. */
static int recover_drop_pages(const struct weir_region *region)
{
    int r = weir__sys_fadvise(region->store.data_fd, 0, 0, POSIX_FADV_DONTNEED);

    return r == 0 ? weir__sys_fadvise(region->table_fd, 0, 0, POSIX_FADV_DONTNEED) : r;
}

int weir__recover_load(struct weir_region *region)
{
    struct stat data;
    uint64_t count = 0;
    uint64_t limit = 0;
    int r = weir__sys_fstat(region->store.data_fd, &data);

    if (r == 0)
        r = recover_flush(region);
    if (r == 0 && region->named.report.after_power_loss)
        r = recover_drop_pages(region);
    if (r == 0)
        r = weir__table_read_head(region);
    if (r == 0)
        r = recover_entry_limit(region, &limit);
    if (r == 0)
        r = recover_entry_count(region, limit, &count);
    if (r == 0)
        r = recover_forget_behind(region, count, limit);
    if (r == 0)
        r = weir__table_reopen(region, count);
    if (r < 0)
        return r;
    /* Not what is being renewed: if we die, the next looks again. */
    memset(weir__region_figures(region), 0, offsetof(struct weir__figures, renewing));
    weir__word_store(&weir__region_figures(region)->entry_count, count);
    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        r = recover_look_at(region, index, (uint64_t)data.st_size);
        if (r < 0)
            return r;
    }
    return recover_read(region);
}

/* ---- Rebuilding --------------------------------------------------------- */

/*
 * Entries for a hole and its cuts. With no slot left the last owner kept fewer than
 * we would like: enough for what he left to come free, and so for this.
 */
static int recover_ready(struct weir_region *region)
{
    int r = weir__table_ready(region, region->spare_min);

    return r == -EDQUOT && weir__slots_spare(&region->slots) >= RECOVER_SPARE_MIN ? 0 : r;
}

/* The mark moves to @end over what is no item, for now as one extent in no index. */
static int recover_fill(struct weir_region *region, uint64_t end)
{
    if (end == region->mark_bytes)
        return 0;
    int r = recover_ready(region);
    if (r == 0)
        (void)weir__space_bump(region, end - region->mark_bytes);
    return r;
}

/* After a power loss what was freed since the last sync is an item again. */
static void recover_restore(struct weir_region *region, uint32_t index)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t tag = weir__word_load(&entry->tag);

    weir__word_store(&entry->tag, weir__tag_with(tag, EXTENT_LIVE));
    region->named.report.restored_slot_count++;
}

static void recover_adopt(struct weir_region *region, const struct weir__found *item)
{
    struct weir_region_report *report = &region->named.report;
    const struct weir__entry *entry = weir__region_entry(region, item->index);

    weir__space_adopt(region, item->index);
    if (item->is_freed && !report->after_power_loss) {
        region->named.freed_bytes += weir__entry_space(entry);
        return;
    }
    if (item->is_freed)
        recover_restore(region, item->index);
    report->kept_slot_count++;
    report->kept_bytes += weir__entry_bytes(entry);
}

/* What lies between the items is free; the items on either side stay as they are. */
static int recover_free_holes(struct weir_region *region)
{
    uint32_t index = region->mark_bytes > 0 ? region->chunks.table[0].first : 0;

    while (index != 0) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        bool is_hole = weir__entry_state(entry) == EXTENT_BUILT;
        uint32_t next = weir__entry_next(entry);
        int r = recover_ready(region);
        if (r < 0)
            return r;
        if (is_hole)
            weir__space_release(region, index);
        index = next;
    }
    return 0;
}

int weir__recover_rebuild(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    struct weir__figures *figures = weir__region_figures(region);
    int r = 0;

    for (uint64_t i = 0; i < named->item_count && r == 0; i++) {
        r = recover_fill(region, named->items[i].offset);
        if (r == 0)
            recover_adopt(region, &named->items[i]);
    }
    if (r == 0)
        r = recover_fill(region,
                         named->kept_bytes); /* its chunk is on disk: the rest of it rests */
    if (r == 0)
        r = recover_free_holes(region);
    if (r < 0)
        return r;
    weir__heap_free(&region->heap, named->items, named->item_max * sizeof(*named->items));
    named->items = NULL;
    named->item_max = 0;

    weir__word_store(&figures->renewing, 0);
    weir__word_store(&figures->slot_count, named->report.kept_slot_count);
    weir__word_store(&figures->live_bytes, named->report.kept_bytes);
    weir__word_store(&figures->entry_count, region->slots.used_count);
    region->live_bytes_peak = named->report.kept_bytes;
    return named->sync_count > 0 ? weir__sync_confirm(region) : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * listing - text that can be read, and cut into columns by a script
 *
 * The owner goes on while we list: entries that change are left out, so a list
 * is what was there at some moment for each line, not for all lines together.
 */
#include "listing.h"

#include "terminal.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LISTING_SIZES      41 /* powers of two up to 1 TiB */
#define LISTING_BAR        40
#define LISTING_HEX_STEP   16
#define LISTING_READ_BYTES 65536

static uint32_t listing_entry_count(const struct weir_view *view)
{
    struct weir_view_summary summary;

    weir_view_summary(view, &summary);
    return (uint32_t)summary.entry_count;
}

/* The name is another process's word: nothing in it may speak to the terminal. */
static void listing_text(const char *text)
{
    for (const char *at = text; *at != '\0'; at++)
        putchar(iscntrl((unsigned char)*at) ? '?' : *at);
    putchar('\n');
}

void listing_summary(const struct weir_view *view, size_t region)
{
    struct weir_view_summary s;
    char a[TERMINAL_BYTES_MAX];
    char b[TERMINAL_BYTES_MAX];
    char c[TERMINAL_BYTES_MAX];
    char d[TERMINAL_BYTES_MAX];

    weir_view_summary(view, &s);
    printf("region %zu of process %ld, in ", region, (long)s.pid);
    listing_text(s.directory);
    printf("  file       %10s  of at most %s; %s on disk, mark at %s\n",
           terminal_bytes(s.file_bytes, a), terminal_bytes(s.bytes_max, b),
           terminal_bytes(s.disk_bytes, c), terminal_bytes(s.mark_bytes, d));
    printf("  live       %10s  in %" PRIu64 " slots\n", terminal_bytes(s.live_bytes, a),
           s.slot_count);
    printf("  free       %10s  in %" PRIu64 " extents\n", terminal_bytes(s.free_bytes, a),
           s.free_extent_count);
    if (s.resident_bytes_max == UINT64_MAX)
        printf("  in memory  %10s  of any; ", terminal_bytes(s.resident_bytes, a));
    else
        printf("  in memory  %10s  of at most %s; ", terminal_bytes(s.resident_bytes, a),
               terminal_bytes(s.resident_bytes_max, b));
    printf("%s dirty, %s fetched, %s pinned\n", terminal_bytes(s.dirty_bytes, b),
           terminal_bytes(s.fetched_bytes, c), terminal_bytes(s.pinned_bytes, d));
    printf("  tables     %10s\n", terminal_bytes(s.metadata_bytes, a));
    printf("  put        %10s  ever; %s written back, %s read back\n",
           terminal_bytes(s.put_bytes, a), terminal_bytes(s.written_bytes, b),
           terminal_bytes(s.read_bytes, c));
    printf("  state      %10s%s\n", s.bounded ? "bounded" : "unbounded",
           s.degraded ? "  degraded: a write-back failed" : "");
}

/* ---- Extents ---------------------------------------------------------------- */

const char *listing_chunk_state_at(const struct weir_view *view, uint64_t offset)
{
    struct weir_view_chunk chunk;

    if (weir_view_chunk(view, offset / WEIR_CHUNK_BYTES, &chunk) < 0)
        return "?";
    return terminal_chunk_state(chunk.state);
}

void listing_slots(const struct weir_view *view)
{
    uint32_t entry_count = listing_entry_count(view);

    printf("%10s %10s %6s %20s %14s %12s %5s  %-8s %s\n", "INDEX", "GENERATION", "OWNER", "KEY",
           "OFFSET", "BYTES", "ALIGN", "STATE", "SUM");
    for (uint32_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        if (weir_view_extent(view, index, &extent) < 0 || weir_slot_is_none(extent.slot))
            continue;
        printf("%10" PRIu32 " %10" PRIu32 " %6" PRIu16 " %20" PRIu64 " %14" PRIu64 " %12" PRIu64
               " %5" PRIu64 "  %-8s %s\n",
               extent.slot.index, extent.slot.generation, extent.label.owner, extent.label.key,
               extent.offset, extent.bytes, extent.alignment,
               extent.committed ? listing_chunk_state_at(view, extent.offset) : "built",
               extent.summed ? "yes" : "no");
    }
}

void listing_free(const struct weir_view *view)
{
    uint32_t entry_count = listing_entry_count(view);

    printf("%14s %14s  %-8s %s\n", "OFFSET", "BYTES", "STATE", "");
    for (uint32_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        if (weir_view_extent(view, index, &extent) < 0 || !weir_slot_is_none(extent.slot))
            continue;
        printf("%14" PRIu64 " %14" PRIu64 "  %-8s %s\n", extent.offset, extent.extent_bytes,
               listing_chunk_state_at(view, extent.offset), extent.held ? "held" : "");
    }
}

/* 0 for nothing, else the power of two that holds @bytes: 1, 2, 3 .. 4, 5 .. 8, ... */
static size_t listing_size_class(uint64_t bytes)
{
    size_t class = 0;

    while (class < LISTING_SIZES - 1 && bytes > UINT64_C(1) << class)
        class ++;
    return class;
}

static void listing_bar(uint64_t count, uint64_t count_max)
{
    uint64_t cells = count_max == 0 ? 0 : (count * LISTING_BAR + count_max - 1) / count_max;

    for (uint64_t i = 0; i < LISTING_BAR; i++)
        putchar(i < cells ? '#' : ' ');
}

void listing_histogram(const struct weir_view *view)
{
    uint64_t live[LISTING_SIZES] = {0};
    uint64_t vacant[LISTING_SIZES] = {0};
    uint32_t entry_count = listing_entry_count(view);
    uint64_t count_max = 0;

    for (uint32_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        if (weir_view_extent(view, index, &extent) < 0 || extent.held)
            continue;
        uint64_t *counts = weir_slot_is_none(extent.slot) ? vacant : live;
        uint64_t count = ++counts[listing_size_class(extent.bytes)];
        if (counts == live && count > count_max)
            count_max = count;
    }

    char text[TERMINAL_BYTES_MAX];
    printf("%12s %12s %-*s %12s\n", "UP TO", "SLOTS", LISTING_BAR, "", "FREE EXTENTS");
    for (size_t class = 0; class < LISTING_SIZES; class ++) {
        if (live[class] == 0 && vacant[class] == 0)
            continue;
        printf("%12s %12" PRIu64 " ", terminal_bytes(UINT64_C(1) << class, text), live[class]);
        listing_bar(live[class], count_max);
        printf(" %12" PRIu64 "\n", vacant[class]);
    }
}

/* ---- One slot --------------------------------------------------------------- */

static void listing_hex_line(uint64_t offset, const unsigned char *data, size_t count)
{
    printf("%10" PRIx64 " ", offset);
    for (size_t i = 0; i < LISTING_HEX_STEP; i++)
        if (i < count)
            printf(" %02x", data[i]);
        else
            printf("   ");
    printf("  ");
    for (size_t i = 0; i < count; i++)
        putchar(data[i] >= 0x20 && data[i] < 0x7f ? data[i] : '.');
    putchar('\n');
}

int listing_hex(const struct weir_view *view, uint32_t index)
{
    static unsigned char data[LISTING_READ_BYTES];
    struct weir_view_extent extent;

    int r = weir_view_extent(view, index, &extent);
    if (r < 0)
        return r;
    if (weir_slot_is_none(extent.slot))
        return -ENOENT;

    printf("slot %" PRIu32 ".%" PRIu32 "  owner %" PRIu16 "  key %" PRIu64 "  offset %" PRIu64
           "  bytes %" PRIu64 "\n",
           extent.slot.index, extent.slot.generation, extent.label.owner, extent.label.key,
           extent.offset, extent.bytes);
    for (uint64_t offset = 0; offset < extent.bytes;) {
        size_t count;
        r = weir_view_read(view, extent.slot, offset, data, sizeof(data), &count);
        if (r < 0)
            return r;
        for (size_t i = 0; i < count; i += LISTING_HEX_STEP)
            listing_hex_line(offset + i, data + i,
                             count - i < LISTING_HEX_STEP ? count - i : LISTING_HEX_STEP);
        offset += count;
    }
    return 0;
}

/* ---- Checksums -------------------------------------------------------------- */

void listing_verify(const struct weir_view *view, struct verdict *ret_verdict, listing_bad_fn *bad,
                    void *context)
{
    uint32_t entry_count = listing_entry_count(view);

    *ret_verdict = (struct verdict){0};
    for (uint32_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        int r = weir_view_extent(view, index, &extent);
        if (r == -EAGAIN)
            ret_verdict->changed++;
        if (r < 0 && r != -EAGAIN && r != -ENOENT) {
            ret_verdict->bad++;
            extent = (struct weir_view_extent){.slot = {.index = index}};
            bad(context, &extent, r);
        }
        if (r < 0 || !extent.committed)
            continue;

        r = weir_view_verify(view, extent.slot);
        if (r == 0) {
            ret_verdict->good++;
        } else if (r == -ENOENT) {
            ret_verdict->unsummed++;
        } else if (r == -ESTALE || r == -EAGAIN) {
            ret_verdict->changed++;
        } else {
            ret_verdict->bad++;
            bad(context, &extent, r);
        }
    }
}

static void listing_bad(void *context, const struct weir_view_extent *extent, int result)
{
    const size_t *region = context;

    if (extent->slot.generation == 0) {
        printf("bad: region %zu entry %" PRIu32 ": %s\n", *region, extent->slot.index,
               result == -EBADMSG ? "makes no sense" : strerror(-result));
        return;
    }
    printf("bad: region %zu slot %" PRIu32 ".%" PRIu32 " owner %" PRIu16 " key %" PRIu64
           " offset %" PRIu64 " bytes %" PRIu64 ": %s\n",
           *region, extent->slot.index, extent->slot.generation, extent->label.owner,
           extent->label.key, extent->offset, extent->bytes,
           result == -EBADMSG ? "checksum differs" : strerror(-result));
}

void listing_verdict(const struct weir_view *view, size_t region, struct verdict *ret_verdict)
{
    listing_verify(view, ret_verdict, listing_bad, &region);
    printf("region %zu: %" PRIu64 " good, %" PRIu64 " bad, %" PRIu64
           " without a checksum yet, %" PRIu64 " changed meanwhile\n",
           region, ret_verdict->good, ret_verdict->bad, ret_verdict->unsummed,
           ret_verdict->changed);
}

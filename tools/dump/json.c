/* SPDX-License-Identifier: MIT */
/*
 * json - the same facts without the words
 *
 * Integers are written in full; keys of 64 bits are beyond what a reader that
 * keeps numbers as doubles can hold. Strings escape everything that is not
 * plain ASCII byte by byte: a directory is bytes, not text.
 */
#include "json.h"

#include "terminal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void json_string(const char *text)
{
    putchar('"');
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++)
        if (*at == '"' || *at == '\\')
            printf("\\%c", *at);
        else if (*at < 0x20 || *at > 0x7e)
            printf("\\u%04x", *at);
        else
            putchar(*at);
    putchar('"');
}

static void json_number(const char *name, uint64_t value)
{
    printf(",\"%s\":%" PRIu64, name, value);
}

static void json_summary(const struct weir_view_summary *s, size_t region)
{
    printf("{\"region\":%zu,\"pid\":%ld,\"table_fd\":%d,\"data_fd\":%d,\"directory\":", region,
           (long)s->pid, s->table_fd, s->data_fd);
    json_string(s->directory);
    json_number("bytes_max", s->bytes_max);
    json_number("resident_bytes_max", s->resident_bytes_max);
    json_number("file_bytes", s->file_bytes);
    json_number("disk_bytes", s->disk_bytes);
    json_number("mark_bytes", s->mark_bytes);
    json_number("live_bytes", s->live_bytes);
    json_number("free_bytes", s->free_bytes);
    json_number("resident_bytes", s->resident_bytes);
    json_number("dirty_bytes", s->dirty_bytes);
    json_number("fetched_bytes", s->fetched_bytes);
    json_number("pinned_bytes", s->pinned_bytes);
    json_number("metadata_bytes", s->metadata_bytes);
    json_number("put_bytes", s->put_bytes);
    json_number("written_bytes", s->written_bytes);
    json_number("read_bytes", s->read_bytes);
    json_number("slot_count", s->slot_count);
    json_number("free_extent_count", s->free_extent_count);
    json_number("entry_count", s->entry_count);
    json_number("chunk_count", s->chunk_count);
    printf(",\"bounded\":%s,\"degraded\":%s", s->bounded ? "true" : "false",
           s->degraded ? "true" : "false");
}

static void json_slot(const struct weir_view_extent *extent)
{
    printf("{\"index\":%" PRIu32 ",\"generation\":%" PRIu32, extent->slot.index,
           extent->slot.generation);
    json_number("owner", extent->label.owner);
    json_number("key", extent->label.key);
    json_number("offset", extent->offset);
    json_number("bytes", extent->bytes);
    json_number("alignment", extent->alignment);
}

static void json_slots(const struct weir_view *view, uint64_t entry_count)
{
    const char *comma = "";

    printf(",\"slots\":[");
    for (uint64_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        if (weir_view_extent(view, (uint32_t)index, &extent) < 0 || weir_slot_is_none(extent.slot))
            continue;
        printf("%s\n", comma);
        json_slot(&extent);
        printf(",\"committed\":%s,\"summed\":%s,\"chunk\":\"%s\"}",
               extent.committed ? "true" : "false", extent.summed ? "true" : "false",
               listing_chunk_state_at(view, extent.offset));
        comma = ",";
    }
    printf("]");
}

static void json_free(const struct weir_view *view, uint64_t entry_count)
{
    const char *comma = "";

    printf(",\"free\":[");
    for (uint64_t index = 1; index <= entry_count; index++) {
        struct weir_view_extent extent;
        if (weir_view_extent(view, (uint32_t)index, &extent) < 0 || !weir_slot_is_none(extent.slot))
            continue;
        printf("%s\n{\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"held\":%s}", comma,
               extent.offset, extent.extent_bytes, extent.held ? "true" : "false");
        comma = ",";
    }
    printf("]");
}

static void json_chunks(const struct weir_view *view, uint64_t chunk_count)
{
    const char *comma = "";

    printf(",\"chunks\":[");
    for (uint64_t index = 0; index < chunk_count; index++) {
        struct weir_view_chunk chunk;
        if (weir_view_chunk(view, index, &chunk) < 0)
            chunk = (struct weir_view_chunk){.state = WEIR_CHUNK_NONE};
        printf("%s\n{\"state\":\"%s\",\"live_bytes\":%" PRIu32 ",\"pinned_count\":%" PRIu32 "}",
               comma, terminal_chunk_state(chunk.state), chunk.live_bytes, chunk.pinned_count);
        comma = ",";
    }
    printf("]");
}

static void json_bad(void *context, const struct weir_view_extent *extent, int result)
{
    const char **comma = context;

    printf("%s\n", *comma);
    json_slot(extent);
    printf(",\"error\":");
    json_string(strerror(-result));
    printf("}");
    *comma = ",";
}

void json_region(const struct weir_view *view, size_t region, const struct json_wanted *wanted,
                 struct verdict *ret_verdict)
{
    struct weir_view_summary summary;

    weir_view_summary(view, &summary);
    json_summary(&summary, region);
    if (wanted->slots)
        json_slots(view, summary.entry_count);
    if (wanted->free)
        json_free(view, summary.entry_count);
    if (wanted->chunks)
        json_chunks(view, summary.chunk_count);
    if (wanted->verify) {
        const char *comma = "";
        printf(",\"bad_slots\":[");
        listing_verify(view, ret_verdict, json_bad, &comma);
        printf("],\"verify\":{\"good\":%" PRIu64, ret_verdict->good);
        json_number("bad", ret_verdict->bad);
        json_number("unsummed", ret_verdict->unsummed);
        json_number("changed", ret_verdict->changed);
        printf("}");
    }
    printf("}");
}

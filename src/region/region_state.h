/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_STATE_H
#define WEIR_REGION_STATE_H

/*
 * region_state - what a region is made of, for the files of this folder
 *
 *      region.c   the public calls, each in a few steps of the rooms below
 *      space      which extent an item gets, and what happens when it is freed
 *      table      the memory of the tables
 *      store      the mapped chunk store: the file, and what a chunk is made of
 *      growth     how long the file is, where it has blocks: ahead of need, and back
 *      pager      which chunks are in memory: written, dropped, brought back
 *      bound      how much memory there is for all of that, and how it changes
 *      fetch      what is addressable for a while: pins, and items brought back
 *      clean      what is live moves out of sparse chunks
 *      stage      large items are written into holes of chunks that are not in memory
 *      compact    holes in memory become one before the file grows
 *      named      the files of a named region: lock, creation, leftovers
 *      recover    a named region is found again
 *      sync       what survives a power loss
 *      move       what a sync confirmed gets another place with the next
 *      quick      the short way of nearly every put and free
 *      ranges     what of all this is memory, and on which nodes
 *
 *      arena      memory for what is fetched and copied
 *      extent, slot, chunk   the tables they work on, pure
 */

#include <weir/region.h>

#include "base/heap.h"
#include "base/list.h"
#include "base/region_layout.h"
#include "base/ring.h"
#include "region/arena.h"
#include "region/chunk.h"
#include "region/extent.h"
#include "region/slot.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define REGION_WRITE_COUNT    4
#define REGION_PREFAULT_COUNT 2
#define REGION_HOLD_BUCKETS   1024
#define REGION_ZERO_COUNT     4
#define REGION_STAGE_COUNT    64
#define REGION_MOVE_MARKS     1024
#define CLEAN_WINDOW_COUNT    2
#define CLEAN_TICK_BYTES      (UINT64_C(256) << 10) /* moved at most by one poll */
#define CLEAN_PUT_BYTES       (UINT64_C(128) << 10) /* moved at most by one put */
#define CLEAN_WAIT_BYTES      LAYOUT_CHUNK_BYTES    /* by a put that waits for nothing else */
#define PAGER_TICK_BYTES      (UINT64_C(256) << 10) /* summed at most by one poll */
#define PAGER_PUT_BYTES       (UINT64_C(128) << 10) /* by one put */
#define PAGER_WAIT_BYTES      UINT64_MAX            /* by one that waits for nothing else */
#define STAGE_BYTES_MIN       (UINT64_C(16) << 10)  /* smaller items are not staged */
#define STAGE_PAGE_BYTES      UINT64_C(4096)
#define REGION_SPARE_MIN      UINT64_C(64)
#define TABLE_ENTRY_STEP      UINT64_C(4096)  /* entries by which the tables grow */
#define TABLE_ENTRY_STEP_MAX  UINT64_C(16384) /* ahead of need, where many are in use */

/* How far the items of a chunk have been looked at, which takes more than one tick. */
struct weir__walk {
    uint64_t chunk;
    uint32_t index;      /* the item to begin with; 0: the first */
    uint32_t generation; /* if it is still that one */
    bool is_done;
};

/* One write-back under way. */
struct weir__write {
    struct weir_operation operation;
    struct weir_region *region;
    struct weir__walk sums; /* before it is submitted: checksums are computed */
    uint64_t chunk;         /* CHUNK_NO: none */
    uint64_t ticket;        /* 0: not under way */
    uint64_t begun_ns;
    bool doubted; /* another one failed meanwhile: its success proves nothing */
};

/* A chunk in which nothing is live: its blocks are made unwritten. */
struct weir__zeroing {
    struct weir_operation operation;
    struct weir_region *region;
    uint64_t chunk; /* CHUNK_NO: none */
};

/* A chunk on its way back, to be stored to. */
struct weir__revival {
    struct weir_operation operation;
    struct weir_region *region;
    struct weir__walk items; /* what was verified of it */
    uint64_t chunk;
    bool is_under_way; /* until all of it is verified */
    bool is_verifying; /* the ring is done with it */
    uint64_t count;    /* of chunks brought back so far */
};

struct weir__store {
    int data_fd;
    int direct_fd;           /* O_DIRECT where the file system has it, else a plain one */
    char *base;              /* of the mapping; fixed unless movable */
    uint64_t reserved_bytes; /* mapped for good; 0: movable */
    uint64_t mapped_bytes;
    uint64_t file_bytes;  /* whole chunks; what may be used of the file */
    uint64_t floor_bytes; /* fixed */
    bool syncs_file;      /* fixed: ranged write-back does nothing here, fdatasync does */
    bool bounded;         /* fixed */
    bool direct;          /* fixed: direct_fd is O_DIRECT */
};

/* What of the file's length and blocks changes at the moment. */
enum weir__growth_kind {
    GROWTH_NONE,
    GROWTH_EXTEND, /* blocks are reserved behind its end */
    GROWTH_SHRINK, /* the blocks of the tail are given back, and then the tail */
    GROWTH_PUNCH,  /* the blocks of free chunks are given back */
    GROWTH_REFILL, /* and reserved again */
};

/* A chunk that is made ready: its pages are being made. */
struct weir__prefault {
    struct weir_operation operation;
    struct weir_region *region;
    uint64_t chunk; /* CHUNK_NO: none */
};

struct weir__growth {
    struct weir_operation operation;
    struct weir_region *region;
    struct weir_disk_cap cap;    /* fixed */
    enum weir__growth_kind kind; /* of what is under way */
    uint64_t from;               /* of that: which bytes of the file */
    uint64_t to;
    uint64_t end_bytes;   /* G1 */
    uint64_t taken_bytes; /* G2 */
    uint64_t hole_bytes;  /* G3 */
    uint64_t hole_low;    /* no hole lies lower */
    uint64_t retry_ns;    /* after a failure: nothing is reserved ahead before */
    uint64_t refused_ns;  /* when a put last heard that the disk is full; 0: never */

    uint64_t ahead_bytes; /* room above the mark that is held ready */
    uint64_t look_at;     /* from this mark on a put looks whether there is enough */
    uint64_t pace_chunk;  /* of the mark, when it was last looked at */
    uint64_t pace_ns;
    struct weir__prefault prefaults[REGION_PREFAULT_COUNT];
    uint32_t prefault_count;
    bool cannot_prefault;

    bool is_trimming;
    bool cannot_punch;
    uint64_t window_ns;   /* when mark_peak began */
    uint64_t peak_before; /* of the mark, in the window before */
    uint64_t peak_ever;   /* of the mark, since the tail was last given back */
    uint64_t back_ns;     /* when something was last given back */
    uint64_t look_ns;     /* when the look at free chunks last began */
    uint64_t look_chunk;  /* where it is */
    uint64_t look_free_count;
};

/* How much may be in memory: see bound.c. */
struct weir__bound {
    uint64_t bytes_min;     /* fixed */
    uint64_t wish_bytes;    /* as set last */
    uint64_t applied_bytes; /* what the sizes of the parts follow from */
    uint64_t bound_bytes;   /* B1 */
    bool is_changing;       /* B3 */
};

/* What each part has of it. */
struct weir__bound_split {
    uint64_t chunk_count;
    uint64_t fetch_bytes;
    uint64_t clean_bytes;
};

struct weir__pager {
    bool writes_back;               /* fixed: not everything may stay resident */
    bool cannot_zero;               /* blocks were not made unwritten when last asked */
    bool wanted;                    /* somebody waits for room: write back beyond the target */
    bool refused;                   /* nobody has got room since somebody got none */
    bool is_slow;                   /* the disk, as the last write-back was */
    uint64_t ticket_last;           /* of the last write-back submitted */
    uint64_t retry_ns;              /* after an error: not before */
    uint64_t suspect_count;         /* chunks to be written again after an error */
    int error;                      /* of the last write-back that failed, while degraded */
    int error_fresh;                /* of a write-back or revival; not yet told by poll */
    uint64_t no_hole_bytes;         /* no chunk on disk had a hole of so many bytes */
    uint64_t no_hole_resting_bytes; /* when so much rested */
    uint64_t no_hole_resting_count;
    struct weir__write writes[REGION_WRITE_COUNT];
    struct weir__revival revival;
    struct weir__zeroing zeroings[REGION_ZERO_COUNT];
    uint32_t zeroing_count;
};

struct weir__fetches {
    struct weir__arena arena;  /* buffers; no books, they are part of resident_bytes_max */
    uint64_t bytes_max;        /* now: see bound */
    uint64_t bytes_min;        /* fixed: never less than that */
    uint64_t step_bytes;       /* fixed; of these, what only pieces may take */
    uint64_t bytes;            /* of all buffers */
    uint64_t piece_bytes;      /* of these, of pieces */
    uint64_t peak_bytes;       /* F4 */
    uint64_t peak_before;      /* the same of the window before */
    uint64_t window_ns;        /* when the window began */
    struct weir__list pending; /* reads that wait for a buffer, in order */
    struct weir__list pending_pieces;
    struct weir__list told; /* requests whose answer is known, for the next poll */
    struct weir__list told_pieces;
    struct weir__list idle;   /* unpinned holds with a buffer, oldest first */
    struct weir__list staged; /* buffers of staged items, oldest first */
    uint64_t staged_bytes;    /* F5 */
    uint32_t reading_count;   /* reads and pieces under way in the ring */
    uint64_t hold_count;      /* in the buckets; 0 nearly always: then no free looks there */
    struct weir__hold *buckets[REGION_HOLD_BUCKETS];
};

/* Some items of a chunk that is being emptied, as they lie in the file. */
struct weir__window {
    struct weir_operation operation;
    struct weir_region *region;
    uint64_t chunk; /* CHUNK_NO: none */
    uint64_t from;  /* in the file, of what is in the buffer */
    uint64_t bytes; /* of it */
    uint64_t next;  /* in the file: where what comes after it begins */
    bool is_reading;
    bool is_read;
    bool is_void;     /* the chunk was emptied or brought back meanwhile */
    bool waits;       /* it is empty only after the next sync */
    uint32_t doubted; /* read once more: it came back other than it was put; 0: none */
};

/* Moving what is live out of sparse chunks. */
struct weir__cleaner {
    struct weir__window windows[CLEAN_WINDOW_COUNT];
    struct weir__arena arena; /* without pages of its own: the buffer is a mapping */
    char *buffer;             /* NULL: nothing was cleaned for a while */
    uint64_t buffer_bytes;    /* of it, or of the next */
    bool is_resizing;         /* buffer_bytes changes when nothing is in it: no window begins */
    uint32_t first;           /* the window whose chunk is emptied first */
    uint64_t nest_chunk;      /* where survivors go; CHUNK_NO: none */
    uint32_t nest;            /* the extent that is left of it; 0: none */
    bool needs_all;           /* an item needs the whole buffer: one window at a time */
    bool is_stuck;            /* there was no room in memory */
    uint64_t borrowed_bytes;  /* by which the file had to grow beyond its goal: not for puts */
    uint64_t seen_count;      /* of items, at the last look */
    uint32_t fall_count;      /* looks in a row that saw fewer, or as many */
    uint64_t drained_ns;      /* when there were fewer than before; 0: never */
    uint64_t full_until_ns;   /* the file could not grow: not tried again before */
    uint64_t no_room_bytes;   /* chunks are set aside until so many fit in one piece; 0: none */
    uint64_t moved_bytes;     /* ever */
    uint64_t promised_count;  /* chunks that the next sync empties */
    uint64_t short_bytes;     /* put before it was short of these */
};

/* An item that recover found: where it lies, and whether it is to be believed. */
struct weir__found {
    uint64_t offset;
    uint32_t index;
    bool is_freed;   /* freed since the last sync: not an item, but its space is taken */
    bool is_doubted; /* its bytes are compared with its checksum */
    bool is_unread;  /* they could not be */
};

/* A bit for each entry: it was an item at the last sync; it has a copy at a new place. */
struct weir__marks {
    uint64_t confirmed;
    uint64_t moving;
};

/* What only a named region has; of an anonymous one all is zero or -1. */
struct weir__named {
    const char *name;          /* the caller's, while open is under way */
    int directory_fd;          /* -1 after open */
    int sync_fd;               /* a description of its own: it hears of each write error itself */
    int found_data_fd;         /* until store has it */
    char temporary[2][32];     /* names of the tables and the data until they have their own; "" */
    struct weir__header found; /* of a region that was there, checked */
    uint64_t boot;
    bool has_name; /* both files have theirs: what happens now is for the next owner */
    struct weir_region_report report;

    struct weir__found *items; /* by offset; between load and rebuild */
    uint64_t item_count;
    uint64_t item_max;
    uint64_t kept_bytes; /* whole chunks of the data file that hold items */

    uint64_t sync_count; /* as in the header */
    bool is_doubted;     /* the header on disk may have one more, of a sync that failed */
    struct weir__marks *marks;
    uint64_t mark_count;   /* entries below have a bit; 0: nothing was ever confirmed */
    uint64_t freed_bytes;  /* space of confirmed items freed since */
    uint64_t moving_bytes; /* N4 */
    uint64_t moving_count; /* of these places */
    uint64_t put_bytes;    /* ever, when the last sync ended */
    uint64_t put_before;   /* between it and the one before */
};

/* Memory for more entries, ahead of need. */
struct weir__tables {
    struct weir_operation operation;
    struct weir_region *region;
    uint64_t from; /* which entries; as many as @to */
    uint64_t to;
    bool is_under_way;
    bool is_window;   /* it is one large page for all of them */
    bool has_entries; /* theirs is there, that of their checksums is not */
    bool cannot_populate;
    bool cannot_collapse;
};

/* One item on its way into a hole. */
struct weir__stage {
    struct weir_operation operation;
    struct weir_region *region;
    struct weir_slot slot; /* index 0: none */
    char *buffer;          /* kept until it ends */
    uint64_t offset;       /* in the file; whole pages */
    uint64_t bytes;
    uint64_t written_bytes;
    uint32_t again_count;
    bool is_failed; /* the disk refused it: it is put anew elsewhere */
};

/* Writing large items into holes of chunks that are not in memory. */
struct weir__stager {
    bool is_able;                   /* fixed */
    bool is_refused;                /* this disk does not take writes of whole pages */
    struct weir__extent_tree holes; /* D1 */
    uint32_t under_way_count;
    uint32_t failed_count; /* while there are any the region is degraded */
    uint64_t retry_ns;     /* after an error: nothing is staged before; 0: none */
    uint64_t staged_bytes; /* ever, of items */
    struct weir__stage stages[REGION_STAGE_COUNT];
};

/* Making room among what is in memory. */
struct weir__compactor {
    uint64_t chunk;       /* in which it looks; UINT64_MAX: none */
    uint32_t cursor;      /* the extent of it where it goes on; 0: at its begin */
    uint64_t next_chunk;  /* where it looks for another */
    uint32_t vain_count;  /* looks in vain in a row */
    uint64_t left_mark;   /* where the mark was after the last */
    uint64_t pause_bytes; /* so far it moves before there is another */
    uint64_t moved_bytes; /* ever */
};

struct weir_region {
    pthread_t owner; /* fixed: the one thread that may call us */
    struct weir__heap heap;
    struct weir_ring *ring;
    bool owns_ring;
    bool wipes;                 /* fixed: what is freed is overwritten */
    uint64_t pin_count;         /* pinned slots */
    uint64_t fetched_pin_count; /* of these, in fetch buffers */
    bool delivers;              /* inside a callback of fetch: poll and close are forbidden */

    uint64_t bytes_max;          /* fixed; whole chunks */
    uint64_t resident_bytes_max; /* fixed */
    uint64_t item_bytes_max;
    uint64_t put_bytes_max;
    uint64_t spare_min;   /* entries that must be there before one is taken; frees need them */
    uint64_t spare_ahead; /* fewer: it is time for weir__table_ahead() */

    uint64_t placed_max; /* fixed; chunks in which items may be filled in place */

    uint64_t mark_bytes; /* R1 */
    uint64_t mark_peak;  /* highest of late from which it came down */
    uint32_t last;       /* the extent that ends at the mark; 0: none */
    uint64_t resting_bytes;
    uint64_t resting_count;

    int table_fd;
    uint64_t table_bytes;
    struct weir__tables tables;
    struct weir__header *header; /* the table file, mapped whole */
    struct weir__slots slots;
    struct weir__extents extents;
    struct weir__chunks chunks;
    struct weir__store store;
    struct weir__growth growth;
    struct weir__bound bound;
    struct weir__pager pager;
    struct weir__fetches fetches;
    struct weir__cleaner cleaner;
    struct weir__stager stager;
    struct weir__compactor compactor;
    struct weir__named named;

    uint64_t damaged_count;                 /* items */
    uint32_t move_marks[REGION_MOVE_MARKS]; /* how often items with this number moved */
    uint64_t step_bytes;                    /* put since the background was looked at */
    uint64_t live_bytes_peak;               /* from which it came down */
    uint64_t put_count;
    uint64_t fetch_count;
    uint64_t write_error_count;
    uint64_t read_error_count;
    uint64_t growth_error_count;
};

static inline struct weir__entry *weir__region_entry(const struct weir_region *region,
                                                     uint32_t index)
{
    return &region->slots.entries[index];
}

static inline struct weir__figures *weir__region_figures(const struct weir_region *region)
{
    return &region->header->figures;
}

/*
 * Other than it was: the item may have moved, and perhaps back to where it was, and
 * something else was there in between. Some others that move look the same.
 */
static inline uint32_t weir__region_move_mark(const struct weir_region *region, uint32_t index)
{
    return region->move_marks[index % REGION_MOVE_MARKS];
}

/* Whether all bytes of the item are in memory; no bytes always are. */
static inline bool weir__region_is_resident(const struct weir_region *region,
                                            const struct weir__entry *entry)
{
    uint64_t bytes = weir__entry_bytes(entry);

    return bytes == 0 || weir__chunks_are_resident(&region->chunks, weir__entry_offset(entry),
                                                   weir__extent_space(bytes));
}

/*
 * Entries to be left while the file is as long. Freeing cuts what is free at chunk
 * borders, in the end at all of them, and allocates nothing.
 */
static inline uint64_t weir__region_spare(uint64_t file_bytes)
{
    return REGION_SPARE_MIN + file_bytes / LAYOUT_CHUNK_BYTES;
}

/* Whether bytes that were put wait for a disk that refused them. */
static inline bool weir__region_is_degraded(const struct weir_region *region)
{
    return region->pager.suspect_count > 0 || region->stager.failed_count > 0;
}

/* The highest mark of late. */
static inline uint64_t weir__region_mark_peak(const struct weir_region *region)
{
    return weir__max(region->mark_peak, region->mark_bytes);
}

/* Space of what is live. */
static inline uint64_t weir__region_live(const struct weir_region *region)
{
    return region->mark_bytes - region->extents.free_bytes - region->resting_bytes;
}

/* ---- table.c ------------------------------------------------------------ */

int weir__table_open(struct weir_region *region);
void weir__table_close(struct weir_region *region);

/* Rows for the chunks of a file of @file_bytes, before it is as long. */
int weir__table_cover(struct weir_region *region, uint64_t file_bytes);

/* It is as long: so many entries are to spare from now on. */
void weir__table_spare(struct weir_region *region, uint64_t file_bytes);

/* Whether entries can be taken for a split; grows the tables if it must. */
int weir__table_ready(struct weir_region *region, uint64_t spare);

/* Have memory for the next entries made, through the ring; where that fails it is made at need. */
void weir__table_ahead(struct weir_region *region);

/* The tables of a region that was there: their head is in memory; -EIO: it cannot be read. */
int weir__table_read_head(struct weir_region *region);

/* Blocks and memory for its entries 1 .. @entry_count. */
int weir__table_reopen(struct weir_region *region, uint64_t entry_count);

/* Whether a header's tables lie where we would lay them. */
bool weir__table_is_ours(const struct weir__header *header);

/* What could not be written is as new as if just stored. */
void weir__table_renew(struct weir_region *region);

/* Named, and a flush failed before it was ours: the next open is as after a power loss. 0: the disk says so. */
int weir__table_doubt(struct weir_region *region);

/* From here on views may look. */
int weir__table_publish(struct weir_region *region, const char *directory);

/* Figures that views read and that nobody else keeps; once a tick. */
void weir__table_publish_figures(struct weir_region *region);

/* ---- space.c ------------------------------------------------------------ */

/* What an extent must have to hold @space bytes at a multiple of @alignment wherever it begins. */
static inline uint64_t weir__space_most(uint64_t space, uint64_t alignment)
{
    return space + alignment - LAYOUT_GRANULE;
}

/* The best-fitting extent that may be stored to; 0: none. It stays where it is. */
uint32_t weir__space_find(const struct weir_region *region, uint64_t space, uint64_t alignment);

/* Where an item would lie in the free extent @index, or at the mark for 0. */
uint64_t weir__space_place(const struct weir_region *region, uint32_t index, uint64_t alignment);

/*
 * What is there becomes an extent of @space bytes of its own: state BUILT,
 * generation even. What of the free extent is before and behind it stays free.
 */
uint32_t weir__space_take(struct weir_region *region, uint32_t index, uint64_t space,
                          uint64_t alignment);

/* The same of a RESTING extent, at @offset in it: what is before and behind it rests. */
uint32_t weir__space_take_resting(struct weir_region *region, uint32_t index, uint64_t offset,
                                  uint64_t space);

/* The same at the mark; the file reaches there. */
uint32_t weir__space_bump(struct weir_region *region, uint64_t space);
uint32_t weir__space_bump_aligned(struct weir_region *region, uint64_t space, uint64_t alignment);

/* All of a chunk that is FRESH, below the mark or right above it: state ZOMBIE, generation even. */
uint32_t weir__space_take_chunk(struct weir_region *region, uint64_t chunk);

/* The front of such an extent, as of weir__space_take(); *@extent is what is left, 0: nothing. */
uint32_t weir__space_carve(struct weir_region *region, uint32_t *extent, uint64_t space);

/* An extent comes free: its generation is even, its length whole granules. */
void weir__space_release(struct weir_region *region, uint32_t index);

/* An item that was there before: it begins at the mark, which moves right over it. */
void weir__space_adopt(struct weir_region *region, uint32_t index);

/* Item @index changes places with the new extent @target, which is then released. */
void weir__space_move(struct weir_region *region, uint32_t index, uint32_t target);

/*
 * The two change places, and @target, a zombie then, keeps what was the item's.
 * Views count batches, for no item moves twice in one: @is_first.
 */
void weir__space_trade(struct weir_region *region, uint32_t index, uint32_t target, bool is_first);

/* The same for another item of the same batch. */
void weir__space_move_next(struct weir_region *region, uint32_t index, uint32_t target);

/* @chunk may not be stored to from now on, or may be again: its free extents follow. */
void weir__space_rest(struct weir_region *region, uint64_t chunk);
void weir__space_wake(struct weir_region *region, uint64_t chunk);

/* What lies in @offset .. mark is free and rests: the mark is there now. */
void weir__space_cut(struct weir_region *region, uint64_t offset);

/*
 * Checksums for all items that touch a chunk and have none, about @budget bytes at
 * a time; what is left of it. All of the items is in memory, nothing is stored to.
 */
uint64_t weir__space_sum(struct weir_region *region, struct weir__walk *walk, uint64_t budget);

/*
 * The same for what came back from disk: who is not what its checksum says is
 * damaged from then on. Items that lie in chunks that are not here are left out.
 */
uint64_t weir__space_verify(struct weir_region *region, struct weir__walk *walk, uint64_t budget);

/* The item's bytes are lost: it is told by no address any more. */
void weir__space_damage(struct weir_region *region, uint32_t index);

/* Whether @chunk has a free extent of @space bytes. */
bool weir__space_has_hole(const struct weir_region *region, uint64_t chunk, uint64_t space);

void weir__space_audit(const struct weir_region *region);

/* ---- store.c ------------------------------------------------------------ */

int weir__store_open(struct weir_region *region, const struct weir_region_config *config);
void weir__store_close(struct weir_region *region);

/* The file is mapped up to @end afterwards; its blocks are there. */
int weir__store_map(struct weir_region *region, uint64_t end);

/* The chunk store: what a chunk in memory is made of. */
static inline char *weir__store_address(const struct weir_region *region, uint64_t chunk)
{
    return region->store.base + chunk * LAYOUT_CHUNK_BYTES;
}

/* Start to write it out, or to bring it back so that it can be stored to. */
void weir__store_write(struct weir_region *region, struct weir_operation *operation,
                       uint64_t chunk);
void weir__store_fill(struct weir_region *region, struct weir_operation *operation, uint64_t chunk);

/* Its memory is given up: it is on disk, or (zero) what is in it is nobody's. */
int weir__store_drop(struct weir_region *region, uint64_t chunk);
int weir__store_zero(struct weir_region *region, uint64_t chunk);

/* It could not be written: it is as new as if just stored. */
void weir__store_renew(struct weir_region *region, uint64_t chunk);

/* ---- growth.c ----------------------------------------------------------- */

/* The first reservation. */
int weir__growth_open(struct weir_region *region, const struct weir_region_config *config);
void weir__growth_close(struct weir_region *region);

/* The file reaches @end afterwards; it waits for the disk. -EAGAIN: not now. */
int weir__growth_reach(struct weir_region *region, uint64_t end);

/* Holes where @space bytes fit are reserved again; -ENOSPC: there are none. */
int weir__growth_refill(struct weir_region *region, uint64_t space);

/* Have the next room ready; once for each chunk that the mark begins. */
void weir__growth_ahead(struct weir_region *region);

/* One tick: ahead, and back to the file system. */
void weir__growth_advance(struct weir_region *region);

/* Memory that was made ready is wanted for something else; false: none can be had now. */
bool weir__growth_take_back(struct weir_region *region);

/* Nothing is ready any more: it is as dirty as what was stored to. */
void weir__growth_doubt(struct weir_region *region);

/* Whether pages of @chunk are being made: it is neither written nor given up meanwhile. */
bool weir__growth_is_prefaulting(const struct weir_region *region, uint64_t chunk);

bool weir__growth_is_under_way(const struct weir_region *region);

/* Whether blocks are being freed: other changes of the file's blocks would wait for it. */
static inline bool weir__growth_gives_back(const struct weir_region *region)
{
    return region->growth.kind == GROWTH_SHRINK || region->growth.kind == GROWTH_PUNCH;
}
void weir__growth_audit(const struct weir_region *region);

/* Free space that rests and has its blocks. */
static inline uint64_t weir__growth_resting(const struct weir_region *region)
{
    return region->resting_bytes - region->chunks.hole_count * LAYOUT_CHUNK_BYTES;
}

/* ---- pager.c ------------------------------------------------------------ */

void weir__pager_init(struct weir_region *region);

/* So many chunks may be in memory: also what fetches have not used of late. */
uint64_t weir__pager_chunks_max(const struct weir_region *region);

/* @bytes have room beside the chunks in memory, of which some may go; false: not now. */
bool weir__pager_yield(struct weir_region *region, uint64_t bytes);

/* The same, if that is possible at once; nobody waits for it. */
bool weir__pager_spares(struct weir_region *region, uint64_t bytes);

/* Make room in memory for @chunk_count more chunks; false: not now. */
bool weir__pager_make_room(struct weir_region *region, uint64_t chunk_count);

/* A clean chunk leaves the memory; false: none may, now. */
bool weir__pager_drop(struct weir_region *region);

/* Whether there is room for one more, and nothing in doubt. */
bool weir__pager_has_room(const struct weir_region *region);

/* Nothing is live in @chunk: its memory is given up and it can be stored to again. */
void weir__pager_empty(struct weir_region *region, uint64_t chunk);

/* A chunk with a hole of @space bytes is brought back, or will be; false: there is none. */
bool weir__pager_revive(struct weir_region *region, uint64_t space);

/* @chunk, which may not be stored to now, is brought back if that is possible. */
void weir__pager_revive_chunk(struct weir_region *region, uint64_t chunk);

/* Start what should be under way: checksums of about @budget bytes, write-back, drops. */
void weir__pager_advance(struct weir_region *region, uint64_t budget);

/* Whether a write-back or revival is under way in the ring. */
bool weir__pager_is_busy(const struct weir_region *region);

/* Whether the next poll has checksums to compute: nothing of the ring's is to be waited for. */
bool weir__pager_has_sums(const struct weir_region *region);

/* A write-back failed, nobody knows which: all that is in memory is written again. */
void weir__pager_doubt(struct weir_region *region, int error);

/* 0, or why a flush now would not see all that was stored. */
int weir__pager_in_doubt(const struct weir_region *region);

/* An item in [offset, offset + space) is filled in place no more: what was put off is done. */
void weir__pager_unplace(struct weir_region *region, uint64_t offset, uint64_t space);

/* @chunk leaves the file: it need not be written again. */
void weir__pager_forget_suspect(struct weir_region *region, uint64_t chunk);

/* ---- bound.c --------------------------------------------------------- */

/* @bytes_min: 0: as @bytes_max. */
void weir__bound_init(struct weir_region *region, uint64_t bytes_max, uint64_t bytes_min);

/* How @bytes of memory are parted. */
struct weir__bound_split weir__bound_split(const struct weir_region *region, uint64_t bytes);

/* Whether there is but one sum: then one part may use what another does not. */
static inline bool weir__bound_is_fixed(const struct weir_region *region)
{
    return region->bound.bytes_min == region->resident_bytes_max;
}

/* One tick of the way down. */
void weir__bound_advance(struct weir_region *region);
void weir__bound_audit(const struct weir_region *region);

/* ---- fetch.c ------------------------------------------------------------ */

/* @bytes_min: of @bytes_max, what weir__fetches_resize() always leaves. */
void weir__fetches_init(struct weir_region *region, uint64_t bytes_max, uint64_t bytes_min);
void weir__fetches_deinit(struct weir_region *region);

/* What of their memory they have used of late: the rest is lent to chunks. */
static inline uint64_t weir__fetches_recent(const struct weir_region *region)
{
    const struct weir__fetches *fetches = &region->fetches;

    return fetches->peak_bytes > fetches->peak_before ? fetches->peak_bytes : fetches->peak_before;
}

/* Not more than weir__fetches_init() said. What is there stays: weir__fetches_shrink(). */
void weir__fetches_resize(struct weir_region *region, uint64_t bytes_max);

/* What nobody pins goes, oldest first, as far as there is more than may be. */
void weir__fetches_shrink(struct weir_region *region);

/* What bounds the buffers while there is more than may be; it does not rise then. */
uint64_t weir__fetches_bound(const struct weir_region *region);

/* Answer what is known, start what fits; how many were answered. */
int weir__fetches_advance(struct weir_region *region);

/* Start what fits. */
void weir__fetches_start(struct weir_region *region);

/* Address of a fetched item; NULL: it is not here. */
const void *weir__fetches_at(const struct weir_region *region, struct weir_slot slot);

/* Copy bytes of the file, blocking. */
int weir__fetches_read(struct weir_region *region, uint64_t offset, void *buffer, uint64_t bytes);

/* The slot is freed: true if its space must wait for the last unpin. */
bool weir__fetches_free(struct weir_region *region, struct weir_slot slot);

/* The largest item that a buffer takes whole. */
uint64_t weir__fetches_item_max(const struct weir_region *region);

/*
 * An item under construction: what was written, in order, and where the next
 * piece goes. Begun before the entry is named, so that it can be refused.
 */
int weir__build_begin(struct weir_region *region, struct weir_slot slot, uint64_t bytes);
uint64_t weir__build_written(const struct weir_region *region, struct weir_slot slot);
uint64_t weir__build_given(const struct weir_region *region, struct weir_slot slot);
void weir__build_give(struct weir_region *region, struct weir_slot slot, uint64_t bytes);
void weir__build_wrote(struct weir_region *region, struct weir_slot slot, const void *data,
                       size_t bytes);
uint64_t weir__build_end(struct weir_region *region, struct weir_slot slot); /* its checksum */

/* The checksum of the item @entry, whose bytes are @data. */
uint64_t weir__sum(const struct weir__entry *entry, const void *data);

/* A read of the cleaner: @bytes of the file at @offset, both aligned. */
void weir__fetches_read_own(struct weir_region *region, struct weir_operation *operation,
                            char *buffer, uint64_t bytes, uint64_t offset);

/* What a read of the file left in the page cache is not counted there: it goes. */
void weir__fetches_uncache(const struct weir_region *region, uint64_t offset, uint64_t bytes);

/* What of [offset, offset + bytes) is in memory is taken from there. */
void weir__fetches_overlay(const struct weir_region *region, uint64_t offset, uint64_t bytes,
                           char *to);

/*
 * A buffer of whole pages for an item of @bytes that is named in a moment. It answers
 * for the item, and is kept until weir__fetches_unkeep(), which gives up the item's
 * space if it was freed meanwhile. NULL: there is no idle memory.
 */
char *weir__fetches_keep(struct weir_region *region, struct weir_slot slot, uint64_t offset,
                         uint64_t bytes);
void weir__fetches_unkeep(struct weir_region *region, struct weir_slot slot);

/* Whether there might be one of @bytes, whole pages; what lingers of earlier ones goes for it. */
bool weir__fetches_may_keep(struct weir_region *region, uint64_t bytes);

/* Somebody pins @slot, or builds it: it stays where it is. */
bool weir__fetches_are_held(const struct weir_region *region, struct weir_slot slot);

/* ---- clean.c ------------------------------------------------------------ */

/* @bytes: of the buffer that it takes when it needs it. */
void weir__clean_init(struct weir_region *region, uint64_t bytes);
void weir__clean_deinit(struct weir_region *region);

/*
 * Go on with moving live items out of sparse chunks, at most @budget bytes of
 * them, if chunks are needed, or if @urgent and there is a sparse one at all.
 */
void weir__clean_advance(struct weir_region *region, bool urgent, uint64_t budget);

/* Whether a read of ours is under way in the ring. */
bool weir__clean_is_reading(const struct weir_region *region);

/* Another size for the buffer, as soon as nothing is in it. */
void weir__clean_resize(struct weir_region *region, uint64_t bytes);

/* Bytes of memory that are held for it. */
uint64_t weir__clean_bytes(const struct weir_region *region);

/* Whether nothing is cleaned at the moment: writes fail, or nearly all is pinned. */
bool weir__clean_is_idle(const struct weir_region *region);

/* The buffer goes, for somebody who needs the memory more; false: something is read into it. */
bool weir__clean_yield(struct weir_region *region);

/* @entry is no longer held where it is: its chunk may be cleaned. */
void weir__clean_look_again(struct weir_region *region, const struct weir__entry *entry);

/* What was confirmed has changed, and chunks may be empty that were not. */
void weir__clean_resume(struct weir_region *region);

/* @chunk is no longer on disk only: what was read of it means nothing. */
void weir__clean_forget(struct weir_region *region, uint64_t chunk);

/* Whether the file may get longer by @bytes without anything being cleaned. */
bool weir__clean_may_grow(const struct weir_region *region, uint64_t bytes);

/* Whether a put of @space bytes may begin a chunk; false: the cleaner is at it, and has more soon. */
bool weir__clean_lets_begin(struct weir_region *region, uint64_t space);

/* Whether the file is as long as it should be and little of it may be stored to. */
bool weir__clean_is_tight(const struct weir_region *region);

/* Whether @chunk is being emptied. */
bool weir__clean_is_at(const struct weir_region *region, uint64_t chunk);

/* ---- stage.c ------------------------------------------------------------ */

/* After the store: whether it is done here at all. */
void weir__stage_init(struct weir_region *region);
void weir__stage_deinit(struct weir_region *region);

/* The extent @index rests from now on, or does so no more. */
void weir__stage_add_hole(struct weir_region *region, uint32_t index);
void weir__stage_remove_hole(struct weir_region *region, uint32_t index);

/*
 * A put of at least STAGE_BYTES_MIN is done by a write into a hole; false: it is
 * not, and nothing has changed.
 */
bool weir__stage_put(struct weir_region *region, const void *data, uint64_t bytes,
                     struct weir_label label, struct weir_slot *ret_slot);

/* Whether items were freed on their way: their space comes free when that has ended. */
bool weir__stage_has_freed(const struct weir_region *region);

/* What the disk refused is put anew, as far as there is room. */
void weir__stage_advance(struct weir_region *region);
void weir__stage_audit(const struct weir_region *region);

/* ---- compact.c ---------------------------------------------------------- */

#define COMPACT_FREE_MIN   (LAYOUT_CHUNK_BYTES / 4) /* below that it is not worth it */
#define COMPACT_FREE_SHARE 48                       /* nor below this part of what is live */

/* Enough is free to be worth it: else compaction would only delay growth, at a high price. */
static inline bool weir__compact_is_due(const struct weir_region *region)
{
    uint64_t free_bytes = region->extents.free_bytes;

    if (free_bytes <= COMPACT_FREE_MIN)
        return false;
    return free_bytes > COMPACT_FREE_MIN + weir__region_live(region) / COMPACT_FREE_SHARE;
}

/*
 * Make a free extent of @space bytes out of smaller ones, by moving items that
 * are in memory; true: there is one now, or the mark came down by as much.
 */
bool weir__compact_make_place(struct weir_region *region, uint64_t space);

/* ---- named.c ------------------------------------------------------------ */

/* Find the files, or make them under temporary names; the tables are locked. */
int weir__named_open(struct weir_region *region, const struct weir_region_config *config);

/* The files get their names, or (it was there) the header tells of us. */
int weir__named_publish(struct weir_region *region);
void weir__named_close(struct weir_region *region);

static inline bool weir__region_is_named(const struct weir_region *region)
{
    return region->named.name != NULL || region->named.has_name;
}

/* XXH3 of all of a header that never changes while the region is open. */
uint64_t weir__header_sum(const struct weir__header *header);

/* ---- recover.c ---------------------------------------------------------- */

/* Which entries are items, by the tables alone; their bytes are on disk and not in memory then. */
int weir__recover_load(struct weir_region *region);

/* Everything else follows from these. */
int weir__recover_rebuild(struct weir_region *region);

/* ---- sync.c ------------------------------------------------------------- */

static inline bool weir__sync_is_confirmed(const struct weir_region *region, uint32_t index)
{
    const struct weir__named *named = &region->named;

    return WEIR_UNLIKELY(index < named->mark_count) &&
           (named->marks[index / 64].confirmed >> index % 64 & 1) != 0;
}

/* The tag of the confirmed item @index from now on: it is freed. */
uint64_t weir__sync_freed_tag(struct weir_region *region, uint32_t index);

/* Nobody holds the freed item @index any more: its space is free, or will be with the next sync. */
void weir__sync_release(struct weir_region *region, uint32_t index);

/* All live items are confirmed: as they are in the tables now. */
int weir__sync_confirm(struct weir_region *region);

/* From extent @index on, the first before @end whose bytes must not leave the disk for a moment; 0: none. */
uint32_t weir__sync_next_kept(const struct weir_region *region, uint32_t index, uint64_t end);

/* Whether @chunk holds any. */
bool weir__sync_has_confirmed(const struct weir_region *region, uint64_t chunk);

/* ---- move.c ------------------------------------------------------------- */

static inline enum weir__beside weir__entry_beside(const struct weir__entry *entry)
{
    uint64_t tag = weir__word_load(&entry->tag);

    return weir__tag_state(tag) == EXTENT_ZOMBIE ? (enum weir__beside)weir__tag_owner(tag)
                                                 : BESIDE_NOTHING;
}

/* Whether the item @index has a copy at a new place. */
static inline bool weir__move_is_under_way(const struct weir_region *region, uint32_t index)
{
    const struct weir__named *named = &region->named;

    return WEIR_UNLIKELY(index < named->mark_count) &&
           (named->marks[index / 64].moving >> index % 64 & 1) != 0;
}

/* Whether what @index holds is free after the next sync, without anybody doing more. */
static inline bool weir__move_frees(const struct weir_region *region, uint32_t index)
{
    const struct weir__entry *entry = weir__region_entry(region, index);

    return weir__state_is_freed(weir__entry_state(entry)) ||
           weir__entry_beside(entry) == BESIDE_OLD || weir__move_is_under_way(region, index);
}

/* Space that the next sync frees. */
static inline uint64_t weir__move_waiting(const struct weir_region *region)
{
    return region->named.freed_bytes + region->named.moving_bytes;
}

/* The confirmed item @index was copied to the new extent @target, and goes there with the next sync. */
void weir__move_begin(struct weir_region *region, uint32_t index, uint32_t target);

/* The copies are on disk, and in no table: now all of them, or what is left of them, are the items. */
void weir__move_switch(struct weir_region *region);

/* That is on disk: the old places are free. */
void weir__move_settle(struct weir_region *region);

void weir__move_audit(const struct weir_region *region);

/* ---- region.c ----------------------------------------------------------- */

/* An extent for @space bytes that may be stored to at once; -EAGAIN and the like: not now. */
int weir__region_take(struct weir_region *region, uint64_t space, uint64_t alignment,
                      uint32_t *ret_index);

#endif

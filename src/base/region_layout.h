/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_REGION_LAYOUT_H
#define WEIR_BASE_REGION_LAYOUT_H

/*
 * region_layout - the bytes of a region, known to region and view alike
 *
 * A region is two files. The data file holds nothing but payload: extents of
 * whole 16-byte granules, none of it described there. The table file (a memfd;
 * of a named region a file like the other) describes it:
 *
 *      0        4096         entry_offset         sum_offset            vacant_offset
 *      | header | chunks ... | entries ... (32 B) | checksums ... (8 B) | vacant ... |
 *
 * (vacant is what the owner knows of entries to use again.) The tables have
 * their full length from the start and are sparse: only what was used takes
 * memory. All words are written by the owner with relaxed atomic stores; a
 * reader checks the generation before and after:
 *
 *      owner, put     payload; place, span, key; fence; tag with odd generation
 *      owner, free    tag with even generation; fence; payload may change
 *      owner, move    payload at the new place; move_count; fence; place
 *      reader         move_count; tag, place; payload; fence; tag, place again:
 *                     equal? move_count: at most one more, as it takes two moves
 *                     to leave a place and come back to it; renewing: no chunk of it?
 *
 * An entry is one extent, live or free:
 *
 *      place   offset in granules : 36 | length, low 28 bits
 *      span    previous : 32 | next : 32      neighbours in the file, by index
 *      tag     generation : 32 | owner : 16 | state : 4 | length, high 12 bits;
 *              generation odd, of an item: length, high 8 bits | alignment : 4
 *      key     the user's key; free: links of the index of free extents
 */

#include "base/bits.h"
#include "base/check.h"
#include "base/random.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LAYOUT_MAGIC        UINT64_C(0x31626174726977ff) /* "\xff" "wirtab1" */
#define LAYOUT_VERSION      UINT32_C(2)
#define LAYOUT_HEADER_BYTES UINT64_C(4096)
#define LAYOUT_GRANULE      UINT64_C(16)
#define LAYOUT_CHUNK_BYTES  (UINT64_C(2) << 20)
#define LAYOUT_BYTES_LIMIT  (UINT64_C(1) << 40)
#define LAYOUT_ITEM_LIMIT   (UINT64_C(1) << 36) /* the length of an item is less */
#define LAYOUT_ALIGN_LIMIT  UINT64_C(4096)
#define LAYOUT_NAME         "weir.region" /* of the memfd: readlink shows /memfd:weir.region */
#define LAYOUT_TABLE_SUFFIX ".weir"       /* of a named region's files, behind its name */
#define LAYOUT_DATA_SUFFIX  ".weir-data"
#define LAYOUT_TEMPORARY    ".weir-" /* begins the names that are gone at the next open */

_Static_assert(LAYOUT_BYTES_LIMIT / LAYOUT_GRANULE == UINT64_C(1) << 36, "offsets fit 36 bits");
_Static_assert(LAYOUT_CHUNK_BYTES % LAYOUT_GRANULE == 0, "a chunk is whole granules");

/* What the owner publishes; each is read and written as one relaxed word. */
struct weir__figures {
    uint64_t file_bytes;
    uint64_t disk_bytes;
    uint64_t mark_bytes;
    uint64_t live_bytes;
    uint64_t free_bytes;
    uint64_t resident_bytes;
    uint64_t dirty_bytes;
    uint64_t fetched_bytes;
    uint64_t pinned_bytes;
    uint64_t metadata_bytes;
    uint64_t put_bytes;
    uint64_t written_bytes;
    uint64_t read_bytes;
    uint64_t slot_count;
    uint64_t free_extent_count;
    uint64_t entry_count; /* entries 1 .. entry_count were ever used */
    uint64_t bounded;
    uint64_t degraded;
    uint64_t move_count; /* of items that changed places; counted before each does */
    uint64_t renewing;   /* chunk + 1 whose bytes are being put back, or 0; counts as two moves */
};

struct weir__header {
    uint64_t magic; /* stored last at open, with release */
    uint32_t version;
    uint32_t header_bytes; /* LAYOUT_HEADER_BYTES */
    uint64_t bytes_max;
    uint64_t resident_bytes_max;
    uint64_t chunk_count_max;
    uint64_t entry_count_max;
    uint64_t chunk_offset; /* of the tables in this file */
    uint64_t entry_offset;
    uint64_t sum_offset;
    uint64_t vacant_offset;
    uint64_t data_device; /* st_dev and st_ino of the data file */
    uint64_t data_inode;
    int64_t pid;
    int32_t table_fd;
    int32_t data_fd;
    char directory[256];
    uint64_t boot;       /* XXH3 of the kernel's boot id when it was opened; 0: not known */
    uint32_t generation; /* even: what a new entry begins with, further on after a power loss */
    uint32_t named;      /* 1: the files have names */
    uint64_t fixed_sum;  /* XXH3 of all above, magic left out */
    struct weir__figures figures;
    uint64_t born;       /* 1: both files have their names; before, nothing was ever put */
    uint64_t closed;     /* 1: the last owner closed it */
    uint64_t sync_count; /* how often all that was there was confirmed */
};

_Static_assert(sizeof(struct weir__header) <= LAYOUT_HEADER_BYTES, "the header fits its page");
_Static_assert(offsetof(struct weir__header, figures) <= 512, "what has a sum is one sector");

struct weir__entry {
    uint64_t place;
    uint64_t span;
    uint64_t tag;
    uint64_t key;
};

_Static_assert(sizeof(struct weir__entry) == 32, "half a cache line");

/* One chunk of the data file; the words behind the first are the owner's own. */
struct weir__chunk {
    uint64_t word;  /* live bytes : 32 | pins : 24 | state : 8 */
    uint32_t first; /* the extent that holds the chunk's first byte; 0: none, above the mark */
    uint32_t next;  /* in the queue of its state, chunk number + 1 */
    uint32_t previous;
    uint32_t open;      /* items under construction whose next piece goes here */
    uint64_t ticket;    /* CLEAN: dropped only when all write-backs up to here succeeded */
    uint32_t fill_next; /* among those about as full as it, chunk number + 1 */
    uint32_t fill_previous;
    uint32_t fill;       /* which list that is, from 1; 0: none; else it was set aside */
    uint16_t unfillable; /* could not be brought back: not asked for again before it is emptied */
    uint16_t idle;       /* looks in a row that found nothing live in it */
    uint32_t placed;     /* items that are filled in place: it stays as it is */
    uint8_t doubted;     /* not 0: to be renewed when nothing is placed there any more */
    uint8_t ready;       /* FRESH, not 0: its pages are made, or are being made */
    uint16_t staged;     /* COLD: writes of single items into it that are under way */
};

_Static_assert(sizeof(struct weir__chunk) == 56, "seven words");

enum weir__extent_state {
    EXTENT_VACANT,  /* the entry is not in use */
    EXTENT_FREE,    /* a free extent that may be stored to */
    EXTENT_RESTING, /* a free extent of chunks that may not be stored to now */
    EXTENT_LIVE,
    EXTENT_BUILT,   /* under construction: allocated, not committed */
    EXTENT_ZOMBIE,  /* no slot: freed while pinned, or held by the owner for an item to come */
    EXTENT_PLACED,  /* under construction, filled in place by its owner */
    EXTENT_DAMAGED, /* an item whose bytes came back other than they were put */
    /*
     * Freed since the sync() that confirmed it, whose count was even or odd: no
     * slot any more, but an item again after a power loss. Keeps all else that it
     * had, its generation too; the space comes free with the next sync().
     */
    EXTENT_FREED_EVEN,
    EXTENT_FREED_ODD,
    EXTENT_STAGED, /* an item that is not in the file yet: its owner has it in a buffer */
    /* Freed as above, after a sync() that failed, while nobody knows whose count the disk has. */
    EXTENT_FREED_DOUBTED,
};

/* Whether an extent of this state is an item: it has a slot, or will have one at once. */
static inline bool weir__state_is_item(enum weir__extent_state state)
{
    const uint32_t items = 1u << EXTENT_LIVE | 1u << EXTENT_BUILT | 1u << EXTENT_PLACED |
                           1u << EXTENT_DAMAGED | 1u << EXTENT_STAGED;

    return (items >> state & 1) != 0;
}

/* What a zombie is beside an item that sync() confirmed: its owner tag. */
enum weir__beside {
    BESIDE_NOTHING,
    BESIDE_NEW, /* a copy, where it will be from the next sync() on; key: index, generation << 32 */
    BESIDE_OLD, /* where it was, or was to be: free after the next sync() */
};

/* ---- Words ---------------------------------------------------------------- */

static inline uint64_t weir__word_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void weir__word_store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* By the one writer: no read-modify-write is needed. */
static inline void weir__word_add(uint64_t *word, uint64_t value)
{
    weir__word_store(word, weir__word_load(word) + value);
}

/*
 * One half of a word of two links, 0: the low one. A store to a half needs
 * nothing of the other, so it does not wait for the line to come.
 */
static inline uint32_t *weir__word_half(uint64_t *word, unsigned half)
{
    return (uint32_t *)word + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? half : 1 - half);
}

static inline uint32_t weir__half_load(const uint64_t *word, unsigned half)
{
    return __atomic_load_n(weir__word_half((uint64_t *)word, half), __ATOMIC_RELAXED);
}

static inline void weir__half_store(uint64_t *word, unsigned half, uint32_t value)
{
    __atomic_store_n(weir__word_half(word, half), value, __ATOMIC_RELAXED);
}

/* ---- Entries -------------------------------------------------------------- */

static inline uint64_t weir__place_offset(uint64_t place)
{
    return (place & ((UINT64_C(1) << 36) - 1)) * LAYOUT_GRANULE;
}

static inline uint32_t weir__tag_generation(uint64_t tag)
{
    return (uint32_t)tag;
}

static inline uint16_t weir__tag_owner(uint64_t tag)
{
    return (uint16_t)(tag >> 32);
}

static inline enum weir__extent_state weir__tag_state(uint64_t tag)
{
    return (enum weir__extent_state)(tag >> 48 & 0xf);
}

/* What an item is that is freed after this many syncs. */
static inline enum weir__extent_state weir__state_freed(uint64_t sync_count)
{
    return sync_count % 2 == 0 ? EXTENT_FREED_EVEN : EXTENT_FREED_ODD;
}

/* All that it says but the state. */
static inline uint64_t weir__tag_with(uint64_t tag, enum weir__extent_state state)
{
    return (tag & ~(UINT64_C(0xf) << 48)) | (uint64_t)state << 48;
}

static inline bool weir__state_is_freed(enum weir__extent_state state)
{
    return state == EXTENT_FREED_EVEN || state == EXTENT_FREED_ODD || state == EXTENT_FREED_DOUBTED;
}

static inline uint64_t weir__entry_bytes_of(uint64_t place, uint64_t tag)
{
    uint64_t mask = 0xff | ((tag & 1) - 1); /* no branch: every step of a walk comes here */

    return place >> 36 | (tag >> 52 & mask) << 28;
}

/* Of an item: a power of two from 16 on. */
static inline uint64_t weir__tag_alignment(uint64_t tag)
{
    WEIR_ASSERT(weir__state_is_item(weir__tag_state(tag)));
    return LAYOUT_GRANULE << (tag >> 60);
}

/*
 * The checksum of an item: of its bytes (XXH3) and of whose they are. After a power
 * loss the pages of an entry and of its checksum are of different moments; bytes
 * that another item has in this place since must not pass for this one's. Never 0,
 * which stands for "not known".
 */
static inline uint64_t weir__sum_of(uint64_t key, uint64_t tag, uint64_t sum_of_bytes)
{
    uint64_t whose = (uint64_t)weir__tag_owner(tag) << 32 | weir__tag_generation(tag);
    uint64_t sum = sum_of_bytes ^ weir__mix(key ^ weir__mix(whose));

    return sum != 0 ? sum : 1;
}

/* The space that @bytes take: an item of no bytes takes a granule, so that every extent has a place. */
static inline uint64_t weir__extent_space(uint64_t bytes)
{
    return bytes == 0 ? LAYOUT_GRANULE : weir__round_up(bytes, LAYOUT_GRANULE);
}

static inline uint64_t weir__entry_place(uint64_t offset, uint64_t bytes)
{
    WEIR_ASSERT(offset % LAYOUT_GRANULE == 0);
    WEIR_ASSERT(offset < LAYOUT_BYTES_LIMIT);
    return offset / LAYOUT_GRANULE | bytes << 36;
}

static inline uint64_t weir__entry_tag(uint32_t generation, uint16_t owner,
                                       enum weir__extent_state state, uint64_t bytes)
{
    WEIR_ASSERT(bytes <= LAYOUT_BYTES_LIMIT);
    if (weir__state_is_item(state))
        WEIR_ASSERT(bytes < LAYOUT_ITEM_LIMIT);
    return (uint64_t)generation | (uint64_t)owner << 32 | (uint64_t)state << 48 | bytes >> 28 << 52;
}

/* The tag of an item that is aligned to 16 bytes, for another alignment. */
static inline uint64_t weir__tag_align(uint64_t tag, uint64_t alignment)
{
    WEIR_ASSERT(weir__tag_alignment(tag) == LAYOUT_GRANULE);
    WEIR_ASSERT(alignment >= LAYOUT_GRANULE && alignment <= LAYOUT_ALIGN_LIMIT);
    WEIR_ASSERT((alignment & (alignment - 1)) == 0);
    return tag | (uint64_t)__builtin_ctzll(alignment / LAYOUT_GRANULE) << 60;
}

/* The same item in another state of items. */
static inline uint64_t weir__tag_turn(uint64_t tag, enum weir__extent_state state)
{
    WEIR_ASSERT(weir__state_is_item(weir__tag_state(tag)) && weir__state_is_item(state));
    return (tag & ~(UINT64_C(0xf) << 48)) | (uint64_t)state << 48;
}

/* ---- Chunks --------------------------------------------------------------- */

static inline uint64_t weir__chunk_word(uint32_t live_bytes, uint32_t pins, uint32_t state)
{
    WEIR_ASSERT(pins < (1u << 24));
    WEIR_ASSERT(state < 256);
    return (uint64_t)live_bytes | (uint64_t)pins << 32 | (uint64_t)state << 56;
}

static inline uint32_t weir__chunk_word_live(uint64_t word)
{
    return (uint32_t)word;
}

static inline uint32_t weir__chunk_word_pins(uint64_t word)
{
    return (uint32_t)(word >> 32 & 0xffffff);
}

static inline uint32_t weir__chunk_word_state(uint64_t word)
{
    return (uint32_t)(word >> 56);
}

#endif

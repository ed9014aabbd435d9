/* SPDX-License-Identifier: MIT */
/*
 * piece - slabs and pieces, and objects that are cut from them
 *
 *   A1  a slab is in `free` exactly if a bit of its mask is set
 *   A2  a piece that is free has no page in memory
 *
 * One slab that is wholly free is kept, so that a buffer that comes and goes does
 * not map and unmap; it holds address space, no memory.
 */
#include "writebuf/piece.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SLAB_PIECES 32u
#define SLAB_BYTES  (PIECE_BYTES * SLAB_PIECES)
#define SLAB_FREE   UINT32_MAX
#define PAGE_BYTES  UINT64_C(4096)

struct weir__piece_slab {
    struct weir__list link;
    char *base;
    uint32_t free_mask; /* A1 */
};

static int pieces_map(struct weir__pieces *pieces, uint64_t bytes, char **ret_data)
{
    void *data;
    int r = weir__sys_mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &data);

    if (r < 0)
        return -ENOMEM;
    /* One page that is written must not bring in 2 MiB. */
    (void)weir__sys_madvise(data, bytes, MADV_NOHUGEPAGE);
    pieces->mapped_bytes += bytes;
    *ret_data = data;
    return 0;
}

static void pieces_unmap(struct weir__pieces *pieces, char *data, uint64_t bytes)
{
    weir__sys_munmap(data, bytes);
    pieces->mapped_bytes -= bytes;
}

static void pieces_drop_slab(struct weir__pieces *pieces, struct weir__piece_slab *slab)
{
    weir__list_remove(&slab->link);
    pieces_unmap(pieces, slab->base, SLAB_BYTES);
    weir__heap_free(pieces->heap, slab, sizeof(*slab));
}

void weir__pieces_init(struct weir__pieces *pieces, struct weir__heap *heap)
{
    *pieces = (struct weir__pieces){.heap = heap};
    weir__list_init(&pieces->free);
    weir__list_init(&pieces->full);
}

void weir__pieces_deinit(struct weir__pieces *pieces)
{
    WEIR_CHECK(pieces->piece_bytes == 0);
    WEIR_CHECK(weir__list_is_empty(&pieces->full));
    while (!weir__list_is_empty(&pieces->free))
        pieces_drop_slab(pieces,
                         WEIR_CONTAINER_OF(pieces->free.next, struct weir__piece_slab, link));
}

static int pieces_add_slab(struct weir__pieces *pieces)
{
    struct weir__piece_slab *slab = weir__heap_alloc(pieces->heap, sizeof(*slab));
    int r;

    if (slab == NULL)
        return -ENOMEM;
    r = pieces_map(pieces, SLAB_BYTES, &slab->base);
    if (r < 0) {
        weir__heap_free(pieces->heap, slab, sizeof(*slab));
        return r;
    }
    slab->free_mask = SLAB_FREE;
    weir__list_append(&pieces->free, &slab->link);
    return 0;
}

int weir__pieces_take(struct weir__pieces *pieces, uint64_t bytes, struct weir__piece *ret_piece)
{
    int r;

    if (bytes > PIECE_BYTES) {
        char *data;

        bytes = weir__round_up(bytes, PAGE_BYTES);
        r = pieces_map(pieces, bytes, &data);
        if (r < 0)
            return r;
        *ret_piece = (struct weir__piece){.data = data, .bytes = bytes};
        pieces->piece_bytes += bytes;
        return 0;
    }

    if (weir__list_is_empty(&pieces->free)) {
        r = pieces_add_slab(pieces);
        if (r < 0)
            return r;
    }
    struct weir__piece_slab *slab =
        WEIR_CONTAINER_OF(pieces->free.next, struct weir__piece_slab, link);
    uint32_t index = weir__lowest_bit(slab->free_mask);
    slab->free_mask &= ~(UINT32_C(1) << index);
    if (slab->free_mask == 0) {
        weir__list_remove(&slab->link);
        weir__list_append(&pieces->full, &slab->link);
    }
    *ret_piece = (struct weir__piece){
        .data = slab->base + index * PIECE_BYTES,
        .bytes = PIECE_BYTES,
        .slab = slab,
    };
    pieces->piece_bytes += PIECE_BYTES;
    return 0;
}

void weir__pieces_give(struct weir__pieces *pieces, struct weir__piece *piece)
{
    struct weir__piece_slab *slab = piece->slab;

    if (piece->data == NULL)
        return;
    pieces->piece_bytes -= piece->bytes;
    if (slab == NULL) {
        pieces_unmap(pieces, piece->data, piece->bytes);
        *piece = (struct weir__piece){0};
        return;
    }

    uint32_t index = (uint32_t)((uint64_t)(piece->data - slab->base) / PIECE_BYTES);
    WEIR_CHECK(index < SLAB_PIECES);
    WEIR_CHECK((slab->free_mask & (UINT32_C(1) << index)) == 0);
    (void)weir__sys_madvise(piece->data, piece->bytes, MADV_DONTNEED); /* A2 */
    if (slab->free_mask == 0) {
        weir__list_remove(&slab->link);
        weir__list_append(&pieces->free, &slab->link);
    }
    slab->free_mask |= UINT32_C(1) << index;
    if (slab->free_mask == SLAB_FREE && pieces->free.next != pieces->free.previous)
        pieces_drop_slab(pieces, slab);
    *piece = (struct weir__piece){0};
}

/* ---- Pools ---------------------------------------------------------------------- */

/* At the beginning of a piece; what follows are places. */
struct pool_shelf {
    struct weir__list link;
    struct weir__piece piece;
    struct pool_place *free; /* given back; linked */
    uint32_t used_count;
    uint32_t fresh_index; /* from here on never used, and their pages not touched */
};

/* An object and where it is from; while it is free, the next that is free. */
struct pool_place {
    union {
        struct pool_shelf *shelf;
        struct pool_place *next;
    } link;
    char object[];
};
_Static_assert(sizeof(struct pool_shelf) % 8 == 0, "places are aligned");

static uint32_t pool_place_count(const struct weir__pool *pool)
{
    return (uint32_t)((PIECE_BYTES - sizeof(struct pool_shelf)) /
                      (sizeof(struct pool_place) + pool->object_bytes));
}

static struct pool_place *pool_place_at(const struct weir__pool *pool, struct pool_shelf *shelf,
                                        uint32_t index)
{
    return (struct pool_place *)(void *)((char *)(shelf + 1) +
                                         index * (sizeof(struct pool_place) + pool->object_bytes));
}

void weir__pool_init(struct weir__pool *pool, struct weir__pieces *pieces, struct weir__heap *heap,
                     uint64_t object_bytes)
{
    WEIR_CHECK(object_bytes % 8 == 0);
    *pool = (struct weir__pool){.pieces = pieces, .heap = heap, .object_bytes = object_bytes};
    weir__list_init(&pool->free);
    weir__list_init(&pool->full);
}

static bool pool_add_shelf(struct weir__pool *pool)
{
    struct weir__piece piece;

    if (weir__pieces_take(pool->pieces, PIECE_BYTES, &piece) < 0)
        return false;
    struct pool_shelf *shelf = (void *)piece.data;
    *shelf = (struct pool_shelf){.piece = piece};
    weir__list_append(&pool->free, &shelf->link);
    pool->bytes += piece.bytes;
    weir__heap_account(pool->heap, (int64_t)piece.bytes);
    return true;
}

void *weir__pool_take(struct weir__pool *pool)
{
    struct pool_place *place;

    if (weir__list_is_empty(&pool->free) && !pool_add_shelf(pool))
        return NULL;
    struct pool_shelf *shelf = WEIR_CONTAINER_OF(pool->free.next, struct pool_shelf, link);
    if (shelf->free != NULL) {
        place = shelf->free;
        shelf->free = place->link.next;
    } else {
        place = pool_place_at(pool, shelf, shelf->fresh_index++);
    }
    shelf->used_count++;
    if (shelf->used_count == pool_place_count(pool)) {
        weir__list_remove(&shelf->link);
        weir__list_append(&pool->full, &shelf->link);
    }
    place->link.shelf = shelf;
    memset(place->object, 0, pool->object_bytes);
    return place->object;
}

void weir__pool_give(struct weir__pool *pool, void *object)
{
    if (object == NULL)
        return;
    struct pool_place *place = WEIR_CONTAINER_OF(object, struct pool_place, object);
    struct pool_shelf *shelf = place->link.shelf;

    if (shelf->used_count == pool_place_count(pool)) {
        weir__list_remove(&shelf->link);
        weir__list_append(&pool->free, &shelf->link);
    }
    place->link.next = shelf->free;
    shelf->free = place;
    if (--shelf->used_count > 0)
        return;

    struct weir__piece piece = shelf->piece;
    weir__list_remove(&shelf->link);
    pool->bytes -= piece.bytes;
    weir__heap_account(pool->heap, -(int64_t)piece.bytes);
    weir__pieces_give(pool->pieces, &piece);
}

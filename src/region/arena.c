/* SPDX-License-Identifier: MIT */
/*
 * arena - memory for payload that is not in the mapping
 *
 *      taken | 1 1 1 0 0 1 1 0 0 0 0 ...     a bit for each page, the first fit
 *      base  | read  |   |piece|   never used
 *
 * malloc() would do, but its pages are in core dumps and in children, and advice
 * on them would have to be taken back before each free. So there is one mapping
 * that is advised once. What was fetched lingers until the room is needed, so
 * nearly all of it is in use nearly always and no page is given back before
 * close. Where pins leave no gap that is long enough a buffer gets a mapping of
 * its own; meanwhile the gaps give their memory up, so that all together stays
 * within what was asked for at open. The same is done when the limit is lowered, as
 * long as buffers lie behind it.
 *
 *   A1  a page is taken by one buffer at most; all pages before @from are taken
 */
#include "region/arena.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
# define ARENA_POISON 1
#elif defined(__has_feature)
# if __has_feature(address_sanitizer)
#  define ARENA_POISON 1
# endif
#endif
#ifdef ARENA_POISON
# include <sanitizer/asan_interface.h>
#else
# define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
# define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

static void *arena_map(uint64_t bytes)
{
    void *data;

    if (weir__sys_mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &data) < 0)
        return NULL;
    weir__sys_madvise(data, bytes, MADV_DONTDUMP);
    weir__sys_madvise(data, bytes, MADV_DONTFORK);
    return data;
}

static uint64_t arena_front_bytes(uint64_t count)
{
    return weir__round_up((count + 63) / 64 * sizeof(uint64_t), ARENA_PAGE_BYTES);
}

static bool arena_is_taken(const struct weir__arena *arena, uint64_t page)
{
    return (arena->taken[page / 64] >> page % 64 & 1) != 0;
}

/* The first page from @page on that is taken, or is not; count: none. */
static uint64_t arena_next(const struct weir__arena *arena, uint64_t page, bool is_taken)
{
    while (page < arena->count) {
        uint64_t word = arena->taken[page / 64];
        uint64_t bits = (is_taken ? word : ~word) >> page % 64;
        if (bits != 0)
            return weir__min(page + (uint64_t)__builtin_ctzll(bits), arena->count);
        page = (page / 64 + 1) * 64;
    }
    return arena->count;
}

static void arena_mark(struct weir__arena *arena, uint64_t page, uint64_t count, bool is_taken)
{
    for (uint64_t i = page; i < page + count; i++) {
        WEIR_ASSERT(arena_is_taken(arena, i) != is_taken); /* A1 */
        arena->taken[i / 64] ^= UINT64_C(1) << i % 64;
    }
}

/* The memory of all gaps goes; the addresses stay. */
static void arena_give_back(struct weir__arena *arena)
{
    for (uint64_t page = arena_next(arena, 0, false); page < arena->count;) {
        uint64_t end = arena_next(arena, page, true);
        weir__sys_madvise(arena->base + page * ARENA_PAGE_BYTES, (end - page) * ARENA_PAGE_BYTES,
                          MADV_DONTNEED);
        page = arena_next(arena, end, false);
    }
}

void weir__arena_open(struct weir__arena *arena, uint64_t bytes, bool wipes)
{
    uint64_t count = bytes / ARENA_PAGE_BYTES;
    uint64_t front_bytes = arena_front_bytes(count);
    char *front = arena_map(front_bytes + bytes);

    *arena = (struct weir__arena){.wipes = wipes};
    if (front == NULL)
        return;
    arena->taken = (uint64_t *)(void *)front;
    arena->base = front + front_bytes;
    arena->count = count;
    arena->limit = count;
    ASAN_POISON_MEMORY_REGION(arena->base, bytes);
}

void weir__arena_close(struct weir__arena *arena)
{
    if (arena->base != NULL) {
        uint64_t bytes = arena->count * ARENA_PAGE_BYTES;
        uint64_t front_bytes = arena_front_bytes(arena->count);
        WEIR_CHECK(arena_next(arena, 0, true) == arena->count);
        ASAN_UNPOISON_MEMORY_REGION(arena->base, bytes);
        weir__sys_munmap(arena->taken, front_bytes + bytes);
    }
    WEIR_CHECK(arena->own_count == 0);
    *arena = (struct weir__arena){.base = NULL};
}

void weir__arena_limit(struct weir__arena *arena, uint64_t bytes)
{
    uint64_t limit = weir__min(bytes / ARENA_PAGE_BYTES, arena->count);
    bool is_less = limit < arena->limit;

    if (arena->base == NULL)
        return;
    arena->limit = limit;
    arena->over = 0;
    for (uint64_t page = arena_next(arena, limit, true); page < arena->count;) {
        uint64_t end = arena_next(arena, page, false);
        arena->over += end - page;
        page = arena_next(arena, end, true);
    }
    if (is_less)
        arena_give_back(arena);
}

void *weir__arena_alloc(struct weir__arena *arena, uint64_t bytes)
{
    uint64_t count = weir__round_up(bytes, ARENA_PAGE_BYTES) / ARENA_PAGE_BYTES;

    WEIR_ASSERT(bytes > 0);

    arena->from = arena_next(arena, arena->from, false);
    for (uint64_t page = arena->from; page < arena->limit;) {
        uint64_t end = weir__min(arena_next(arena, page, true), arena->limit);
        if (end - page >= count) {
            arena_mark(arena, page, count, true);
            char *data = arena->base + page * ARENA_PAGE_BYTES;
            ASAN_UNPOISON_MEMORY_REGION(data, bytes);
            return data;
        }
        page = arena_next(arena, end, false);
    }
    arena_give_back(arena);
    void *data = arena_map(count * ARENA_PAGE_BYTES);
    arena->own_count += data != NULL;
    return data;
}

void weir__arena_free(struct weir__arena *arena, void *data, uint64_t bytes)
{
    uint64_t count = weir__round_up(bytes, ARENA_PAGE_BYTES) / ARENA_PAGE_BYTES;
    uint64_t offset = (uint64_t)((uintptr_t)data - (uintptr_t)arena->base);

    if (arena->base == NULL || offset >= arena->count * ARENA_PAGE_BYTES) {
        WEIR_ASSERT(arena->own_count > 0);
        arena->own_count--;
        weir__sys_munmap(data, count * ARENA_PAGE_BYTES);
        return;
    }
    if (arena->wipes)
        memset(data, 0, bytes);

    uint64_t page = offset / ARENA_PAGE_BYTES;
    bool is_tight = arena->own_count > 0 || arena->over > 0;
    arena_mark(arena, page, count, false);
    arena->from = weir__min(arena->from, page);
    if (page + count > arena->limit)
        arena->over -= page + count - weir__max(page, arena->limit);
    if (is_tight)
        weir__sys_madvise(data, count * ARENA_PAGE_BYTES, MADV_DONTNEED);
    ASAN_POISON_MEMORY_REGION(data, count * ARENA_PAGE_BYTES);
}

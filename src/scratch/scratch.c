/* SPDX-License-Identifier: MIT */
/*
 * scratch - a store: one cap over all its files
 *
 * The cap counts bytes that were appended, wherever they are. An append takes
 * what it brings before anything else happens, and gives it back if it fails; a
 * body gives back what it holds when nobody holds it any more. There is no other
 * way in or out, and the audit is a sum.
 *
 * Nothing is touched on disk before the first file rolls; the directory is made
 * then, with its parents, and the last part of it goes with the store if the
 * store made it and nobody else uses it.
 */
#include "scratch/scratch_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <weir/governor.h>

#include <errno.h>
#include <string.h>

#define SCRATCH_BYTES_DEFAULT (UINT64_C(1) << 30)
#define SCRATCH_RING_ENTRIES  64

bool weir__scratch_is_mine(const struct weir_scratch *scratch)
{
    return pthread_equal(scratch->owner, pthread_self());
}

/* ---- The cap ------------------------------------------------------------ */

int weir__scratch_take(struct weir_scratch *scratch, uint64_t bytes)
{
    struct weir_scratch_stats *figures = &scratch->figures;

    if (bytes > scratch->bytes_max - figures->used_bytes) {
        figures->refused_count++;
        return -EDQUOT;
    }
    figures->used_bytes += bytes;
    figures->used_bytes_peak = weir__max(figures->used_bytes_peak, figures->used_bytes);
    return 0;
}

void weir__scratch_give(struct weir_scratch *scratch, uint64_t bytes)
{
    WEIR_CHECK(bytes <= scratch->figures.used_bytes); /* B1 */
    scratch->figures.used_bytes -= bytes;
}

/* Asked only: the heap charges what is then taken. */
bool weir__scratch_has_memory(const struct weir_scratch *scratch, uint64_t bytes)
{
    enum weir_verdict verdict;

    if (scratch->account == NULL || bytes == 0)
        return true;
    if (weir_account_charge(scratch->account, bytes, &verdict) < 0)
        return false;
    if (verdict != WEIR_ADMIT && verdict != WEIR_FLUSH)
        return false;
    weir_account_refund(scratch->account, bytes);
    return verdict == WEIR_ADMIT;
}

/* ---- The directory ------------------------------------------------------ */

/* All parts of the path that are missing. */
static int scratch_make_path(struct weir_scratch *scratch)
{
    char *path = scratch->directory;
    int r = -ENOENT;

    for (char *at = path + 1;; at++) {
        if (*at != '/' && *at != '\0')
            continue;
        char end = *at;
        *at = '\0';
        r = weir__sys_make_directory(path);
        *at = end;
        if (end == '\0' || (r < 0 && r != -EEXIST))
            return r;
    }
}

int weir__scratch_prepare(struct weir_scratch *scratch)
{
    int r = weir__sys_make_directory(scratch->directory);

    if (r == -ENOENT)
        r = scratch_make_path(scratch);
    scratch->made_directory |= r == 0;
    return r == -EEXIST ? 0 : r;
}

/* ---- Lifecycle ---------------------------------------------------------- */

static bool scratch_config_is_valid(const struct weir_scratch_config *config)
{
    if (config == NULL || !weir__reserved_is_zero(config->reserved))
        return false;
    if (config->memory_bytes_max > SCRATCH_BLOCK_BYTES && config->memory_bytes_max != UINT64_MAX)
        return false;
    if ((config->disk_cap.take == NULL) != (config->disk_cap.give == NULL))
        return false;
    const struct weir_scratch_store *store = config->store;
    if (store != NULL)
        return store->create != NULL && store->write != NULL && store->read != NULL &&
               store->remove != NULL;
    return config->directory != NULL && config->directory[0] != '\0';
}

static uint64_t scratch_memory_max(const struct weir_scratch_config *config)
{
    if (config->memory_bytes_max == UINT64_MAX)
        return 0;
    return config->memory_bytes_max != 0 ? config->memory_bytes_max : SCRATCH_MEMORY_BYTES;
}

static int scratch_open_parts(struct weir_scratch *scratch,
                              const struct weir_scratch_config *config)
{
    if (config->store != NULL) {
        scratch->store = *config->store;
    } else {
        scratch->directory_bytes = strlen(config->directory) + 1;
        scratch->directory = weir__heap_alloc(&scratch->heap, scratch->directory_bytes);
        if (scratch->directory == NULL)
            return -ENOMEM;
        memcpy(scratch->directory, config->directory, scratch->directory_bytes);
    }
    if (config->ring != NULL) {
        scratch->ring = config->ring;
        return 0;
    }
    int r = weir__ring_open(SCRATCH_RING_ENTRIES, true, &scratch->ring);
    scratch->owns_ring = r == 0;
    return r;
}

int weir_scratch_open(const struct weir_scratch_config *config, struct weir_scratch **ret_scratch)
{
    if (!scratch_config_is_valid(config) || ret_scratch == NULL)
        return -EINVAL;

    struct weir_scratch *scratch = weir__heap_alloc(NULL, sizeof(*scratch));
    if (scratch == NULL)
        return -ENOMEM;
    *scratch = (struct weir_scratch){
        .owner = pthread_self(),
        .account = config->account,
        .bytes_max = config->bytes_max != 0 ? config->bytes_max : SCRATCH_BYTES_DEFAULT,
        .memory_max = scratch_memory_max(config),
        .floor_bytes = config->disk_floor_bytes,
        .cap = config->disk_cap,
    };
    weir__list_init(&scratch->done);
    if (config->account != NULL)
        scratch->heap.books = weir_account_books(config->account);
    weir__heap_account(&scratch->heap, sizeof(*scratch));

    int r = scratch_open_parts(scratch, config);
    if (r < 0) {
        weir_scratch_close(scratch);
        return r;
    }
    *ret_scratch = scratch;
    return 0;
}

void weir_scratch_close(struct weir_scratch *scratch)
{
    if (scratch == NULL)
        return;

    const struct weir_scratch_stats *figures = &scratch->figures;
    WEIR_CHECK(weir__scratch_is_mine(scratch));
    WEIR_CHECK(figures->writer_count + figures->file_count + figures->reader_count == 0);
    WEIR_CHECK(scratch->under_way_count == 0);
    WEIR_CHECK(figures->used_bytes == 0 && figures->disk_bytes == 0); /* B1 */

    if (scratch->made_directory)
        weir__sys_remove_directory(scratch->directory);
    weir__heap_free(&scratch->heap, scratch->directory, scratch->directory_bytes);
    if (scratch->owns_ring)
        weir__ring_close(scratch->ring);

    struct weir__heap heap = scratch->heap;
    WEIR_CHECK(heap.bytes == sizeof(*scratch));
    weir__heap_account(&heap, -(int64_t)heap.bytes);
    weir__heap_free(NULL, scratch, sizeof(*scratch));
}

/* ---- Background and figures --------------------------------------------- */

int weir_scratch_poll(struct weir_scratch *scratch, uint64_t timeout_ns)
{
    WEIR_ASSERT(weir__scratch_is_mine(scratch));

    if (!scratch->owns_ring)
        return 0;
    int done = weir__transfers_complete(scratch);
    bool sleeps = done == 0 && timeout_ns > 0 && scratch->under_way_count > 0;
    int r = sleeps ? weir__ring_wait(scratch->ring, timeout_ns) : weir__ring_reap(scratch->ring);
    return r < 0 ? r : r + done;
}

void weir_scratch_stats(const struct weir_scratch *scratch, struct weir_scratch_stats *ret_stats)
{
    WEIR_ASSERT(weir__scratch_is_mine(scratch));

    *ret_stats = scratch->figures;
    ret_stats->bytes_max = scratch->bytes_max;
    ret_stats->buffer_bytes = scratch->heap.bytes;
    ret_stats->synchronous = weir__ring_is_synchronous(scratch->ring);
}

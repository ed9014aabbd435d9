/* SPDX-License-Identifier: MIT */
#include <weir.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESIDENT_BYTES (8 << 20)
#define EVICTIONS_MAX  1024 /* for one set: at the end of its file a region may ask for hundreds */

struct entry {
    struct weir_slot slot; /* none: the entry is free */
    uint64_t key;
    uint32_t bytes;
    uint32_t next; /* in its bucket or among the free, index + 1; 0: the last */
    bool used;     /* since the hand was here last */
};

/* Values by key on one thread, at most so many and so many bytes; who is asked for least goes: CLOCK. */
struct cache {
    struct weir_account *account;
    struct weir_region *region;
    struct entry *entries;
    uint32_t *buckets; /* index + 1; as many as entries */
    uint32_t free, hand;
    uint32_t count, count_max;
    uint64_t bytes, bytes_max;
    uint64_t hit_count, cold_count, miss_count, evicted_count;
};

/* A question, embedded by who asks; alive until it is answered. */
struct get {
    void (*done)(struct get *get, const void *value, size_t bytes, int result);
    struct cache *cache;
    uint64_t key;
};

static uint64_t cache_reserve(uint32_t count_max)
{
    return RESIDENT_BYTES + (uint64_t)count_max * (sizeof(struct entry) + sizeof(uint32_t));
}

/* The memory it ever needs: that, and the tables of the region, also where each item has a gap. */
static uint64_t cache_memory(uint32_t count_max)
{
    return cache_reserve(count_max) + (3 << 19) + (uint64_t)count_max * (48 + 48);
}

/* Whatever it returns, close it. */
static int cache_open(struct cache *cache, struct weir_governor *governor, const char *directory,
                      uint32_t count_max, uint64_t bytes_max)
{
    struct weir_account_config holder = {.name = "cache",
                                         .reserve_bytes = cache_reserve(count_max)};
    struct weir_region_config file = {.directory = directory,
                                      .bytes_max = bytes_max / 3 * 4, /* or room is dear to make */
                                      .resident_bytes_max = RESIDENT_BYTES};

    *cache = (struct cache){.count_max = count_max, .bytes_max = bytes_max};
    if (count_max == 0)
        return -EINVAL;
    int r = weir_account_open(governor, &holder, &cache->account); /* charged before it is used */
    if (r < 0)
        return r;

    file.books = weir_account_books(cache->account); /* the tables, as they grow */
    r = weir_region_open(&file, &cache->region);
    cache->entries = calloc(count_max, sizeof(*cache->entries));
    cache->buckets = calloc(count_max, sizeof(*cache->buckets));
    if (r < 0 || cache->entries == NULL || cache->buckets == NULL)
        return r < 0 ? r : -ENOMEM;
    for (uint32_t i = count_max; i > 0; i--) {
        cache->entries[i - 1].next = cache->free;
        cache->free = i;
    }
    return 0;
}

static void cache_close(struct cache *cache)
{
    weir_region_close(cache->region); /* who is not answered yet never is */
    weir_account_close(cache->account);
    free(cache->entries);
    free(cache->buckets);
}

/* Where the index of @key stands, or would. Keys that strangers choose want a secret in here. */
static uint32_t *cache_find(struct cache *cache, uint64_t key)
{
    uint64_t hash = (key * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
    uint32_t *link = &cache->buckets[hash * cache->count_max >> 32];

    while (*link > 0 && cache->entries[*link - 1].key != key)
        link = &cache->entries[*link - 1].next;
    return link;
}

static void cache_drop(struct cache *cache, uint64_t key)
{
    uint32_t *link = cache_find(cache, key);
    uint32_t index = *link;

    if (index == 0)
        return;
    struct entry *entry = &cache->entries[index - 1];
    weir_region_free(cache->region, entry->slot); /* a fetch of it that is under way: -ESTALE */
    cache->count--;
    cache->bytes -= entry->bytes;
    *link = entry->next;
    *entry = (struct entry){.next = cache->free};
    cache->free = index;
}

/* Who was used since the hand's last round stays for another; some value must be there. */
static void cache_evict(struct cache *cache)
{
    for (;;) {
        struct entry *entry = &cache->entries[cache->hand];
        cache->hand = (cache->hand + 1) % cache->count_max;
        if (!weir_slot_is_none(entry->slot) && !entry->used) {
            cache->evicted_count++;
            cache_drop(cache, entry->key);
            return;
        }
        entry->used = false;
    }
}

/* On failure the value is not kept, and the older one is gone, too: no answer is ever stale. */
static int cache_set(struct cache *cache, uint64_t key, const void *value, size_t bytes)
{
    struct weir_label label = {.key = key};
    struct weir_slot slot;
    int r;

    cache_drop(cache, key);
    if (bytes > cache->bytes_max)
        return -EFBIG;
    while (cache->count == cache->count_max || cache->bytes + bytes > cache->bytes_max)
        cache_evict(cache);
    for (int i = 0;; i++) {
        r = weir_region_put(cache->region, value, bytes, label, &slot);
        if ((r != -EDQUOT && r != -ENOSPC) || cache->count == 0 || i == EVICTIONS_MAX)
            break;
        cache_evict(cache); /* the file is full of gaps, or the disk of others: less is kept */
    }
    if (r < 0)
        return r; /* -EAGAIN too: when the disk is behind a cache need not wait for it */

    uint32_t index = cache->free;
    struct entry *entry = &cache->entries[index - 1];
    cache->free = entry->next;
    *entry = (struct entry){.slot = slot, .key = key, .bytes = (uint32_t)bytes};
    *cache_find(cache, key) = index;
    cache->count++;
    cache->bytes += bytes;
    return 0;
}

static void cache_answer(struct get *get, const void *value, size_t bytes, int result, bool cold)
{
    struct cache *cache = get->cache;

    *(result < 0 ? &cache->miss_count : cold ? &cache->cold_count : &cache->hit_count) += 1;
    if (result == -EBADMSG || result == -EFBIG)
        cache_drop(cache, get->key); /* damaged on disk, or too large to come back whole */
    get->done(get, value, bytes, result);
}

static void cache_arrived(void *context, struct weir_slot slot, int result)
{
    struct get *get = context;
    const void *value = NULL;
    size_t bytes = 0;

    if (result == 0)
        result = weir_region_at(get->cache->region, slot, &value, &bytes);
    cache_answer(get, value, bytes, result, true);
}

/*
 * @get->done is called once: from here, or from poll and wait on the region if the value is cold.
 * Any error is a miss. The value is good until done returns, or calls the cache.
 */
static void cache_get(struct cache *cache, uint64_t key, struct get *get)
{
    const void *value = NULL;
    size_t bytes = 0;
    uint32_t index = *cache_find(cache, key);
    int r = -ENOENT;

    get->cache = cache;
    get->key = key;
    if (index > 0) {
        struct entry *entry = &cache->entries[index - 1];
        entry->used = true;
        r = weir_region_at(cache->region, entry->slot, &value, &bytes);
        if (r == -EAGAIN) {
            r = weir_region_fetch(cache->region, &entry->slot, 1, cache_arrived, get);
            if (r == 0)
                return;
        }
    }
    cache_answer(get, value, bytes, r, false);
}

/* ---- A program that uses it ------------------------------------------------- */

#define KEY_COUNT 5000
#define GET_COUNT 6000
#define AT_ONCE   32
#define COUNT_MAX 1400
#define BYTES_MAX (11 << 20)

struct request {
    struct get get; /* first: a get is its request */
    bool under_way, failed;
    uint64_t value[2048];
};

/* What is cached: 64 bytes to 16 KiB that follow from the key. */
static size_t origin(uint64_t key, uint64_t *value)
{
    size_t count = 8 + key * 7919 % 2041;

    for (size_t i = 0; i < count; i++)
        value[i] = key + i;
    return count * sizeof(*value);
}

static void answered(struct get *get, const void *value, size_t bytes, int result)
{
    struct request *request = (struct request *)get;
    size_t origin_bytes = origin(get->key, request->value);

    request->under_way = false;
    if (result == 0)
        request->failed = bytes != origin_bytes || memcmp(value, request->value, bytes) != 0;
    else if (cache_set(get->cache, get->key, request->value, origin_bytes) == -EFBIG)
        request->failed = true; /* what else is refused is not kept, that is all */
}

/* Few keys are asked for often and many now and then, 32 at a time; what is not there is put there. */
int main(int argc, char **argv)
{
    struct weir_governor_config limit = {.bytes_max = cache_memory(COUNT_MAX),
                                         .node_count = 1}; /* one thread has all of it */
    struct request *requests = calloc(AT_ONCE, sizeof(*requests));
    struct weir_governor *governor = NULL;
    struct weir_governor_stats memory;
    struct weir_region_stats stats;
    struct cache cache = {.region = NULL};
    uint64_t random = 1;
    bool held = requests != NULL;

    int r = weir_governor_create(&limit, &governor);
    r = r < 0 ? r
              : cache_open(&cache, governor, argc > 1 ? argv[1] : "/var/tmp", COUNT_MAX, BYTES_MAX);
    for (uint32_t i = 0; r >= 0 && held && i < GET_COUNT + AT_ONCE; i++) {
        struct request *request = &requests[i % AT_ONCE];
        r = weir_region_poll(cache.region);
        while (r >= 0 && request->under_way)
            r = weir_region_wait(cache.region, 1000000000);
        if (r >= 0 && i < GET_COUNT) {
            random = random * 6364136223846793005 + 1442695040888963407;
            uint64_t draw = (random >> 33) % KEY_COUNT;
            request->get.done = answered;
            request->under_way = true;
            cache_get(&cache, draw * draw / KEY_COUNT * draw / KEY_COUNT, &request->get);
        }
        held = !request->failed && cache.count <= COUNT_MAX && cache.bytes <= BYTES_MAX;
    }

    if (r >= 0) {
        double found = (double)(cache.hit_count + cache.cold_count);
        weir_region_stats(cache.region, &stats);
        weir_governor_stats(governor, &memory);
        held = held && stats.slot_count == cache.count && stats.live_bytes == cache.bytes;
        held = held && memory.charged_bytes == cache_reserve(COUNT_MAX) + stats.metadata_bytes;
        held = held && memory.peak_bytes <= limit.bytes_max && cache.cold_count > 0;
        printf("hit rate %.1f %%, %.1f %% from disk; %.2f of %.2f MiB of memory at most\n",
               100 * found / (found + (double)cache.miss_count),
               100 * (double)cache.cold_count / found, (double)memory.peak_bytes / (1 << 20),
               (double)limit.bytes_max / (1 << 20));
    }

    cache_close(&cache);
    weir_governor_destroy(governor);
    free(requests);
    return r >= 0 && held ? 0 : 1;
}

/* SPDX-License-Identifier: MIT */
/*
 * writebuf - how changes are kept until they are flushed
 *
 *      first                                        tail
 *      | slot | slot | slot | memory | memory | memory, open |
 *        `--- the region -'   `- spill_next
 *
 * A buffer is a row of blocks of 64 KiB, each some encoded records one after the
 * other. A block that spills goes to the region as it is, one slot for all its
 * records; the oldest go first, for a flush needs them first and fetches them
 * while it works. A block that a flush fetches back keeps its slot until its
 * records are committed, so that a flush that fails has lost nothing and writes
 * nothing twice.
 *
 * The account is asked per block, not per record; the first block of a buffer is
 * charged in steps as it fills, for most of hundreds of buffers hold little. Where
 * the governor refuses, some block of the set goes to the region and its charge is
 * taken over: paused and failing buffers give first, then the one that holds
 * most. No memory is needed for that, for the region takes a copy.
 *
 * Numbers in comments name the invariant that a check defends:
 *
 *   W1  the records of a buffer's blocks, one after the other, have rising
 *       sequences, all above the position of the buffer from head_offset on,
 *       but for those that the sink has told us it has
 *   W2  charged_bytes + lent_bytes == the charges of blocks and tables + credit_bytes;
 *       memory_bytes are those of blocks without a slot, loaded_bytes those with
 *   W3  spill_next is the first block that has no slot and is in no round
 *   W4  a round is the first blocks up to `last`; they stay as they are until
 *       it ends
 *   W5  credit_bytes are 0 between two calls
 *   W6  poll has nothing to do by the clock before due_ns
 *   W7  lent_bytes, of the working set to blocks of appends, are at most what each
 *       window can spare beside the largest block, and no window uses them
 *
 * Not here: charges and spill (spill.c), what the account is asked for (demand.c),
 * the gate (gate.c), the flush (flush.c), the memory of blocks (piece.c), the table
 * of keys (keys.c), the bytes of a record (record.c).
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/random.h"
#include "base/sys.h"
#include "writebuf/record.h"

#include <weir/governor.h>

#include <errno.h>
#include <string.h>

#define WRITEBUF_RECORD_BYTES  (UINT64_C(256) << 10)
#define WRITEBUF_COLLECT_BYTES (UINT64_C(16) << 20)
#define WRITEBUF_FLUSH_BYTES   (UINT64_C(512) << 20)
#define WRITEBUF_FLUSHES       4u
#define WRITEBUF_FLUSHES_MAX   64u
#define WRITEBUF_AGE_NS        UINT64_C(5000000000)
#define WRITEBUF_QUIET_NS      UINT64_C(100000000)
#define WRITEBUF_RETRY_NS      UINT64_C(1000000000)
#define WRITEBUF_RETRY_NS_MAX  UINT64_C(60000000000)
#define WRITEBUF_STALL_NS      UINT64_C(60000000000)
#define WRITEBUF_HASH_MIN      64u

/* What a flush has of the working set for blocks, unless the config says otherwise. */
#define WRITEBUF_WINDOW_BYTES (UINT64_C(1) << 20)

static _Thread_local struct weir__list writebuf_sets;
static _Thread_local uint64_t writebuf_id;

bool weir__writebuf_is_mine(const struct weir_writebuf_set *set)
{
    return pthread_equal(set->owner, pthread_self());
}

void weir__writebuf_due(struct weir_writebuf_set *set, uint64_t ns)
{
    set->due_ns = weir__min(set->due_ns, ns);
}

/* ---- Lifecycle ------------------------------------------------------------------ */

static uint64_t writebuf_default(uint64_t value, uint64_t if_zero)
{
    return value != 0 ? value : if_zero;
}

static bool writebuf_config_is_valid(const struct weir_writebuf_config *config)
{
    if (config == NULL || !weir__reserved_is_zero(config->reserved))
        return false;
    if (config->sink.begin == NULL || config->sink.put == NULL || config->sink.remove == NULL ||
        config->sink.commit == NULL || config->sink.abort == NULL)
        return false;
    return config->flushes_max <= WRITEBUF_FLUSHES_MAX &&
           config->record_bytes_max <= RECORD_VALUE_MAX;
}

static void writebuf_fill_defaults(struct weir_writebuf_config *config)
{
    config->record_bytes_max = writebuf_default(config->record_bytes_max, WRITEBUF_RECORD_BYTES);
    config->collect_bytes_max = writebuf_default(config->collect_bytes_max, WRITEBUF_COLLECT_BYTES);
    config->flush_bytes_max = writebuf_default(config->flush_bytes_max, WRITEBUF_FLUSH_BYTES);
    config->held_bytes_max = writebuf_default(config->held_bytes_max, UINT64_MAX);
    config->backlog_bytes_max = writebuf_default(config->backlog_bytes_max, UINT64_MAX);
    if (config->flushes_max == 0)
        config->flushes_max = WRITEBUF_FLUSHES;
    config->trigger_bytes = writebuf_default(config->trigger_bytes, config->collect_bytes_max / 2);
    config->trigger_rows = writebuf_default(config->trigger_rows, UINT64_MAX);
    config->trigger_age_ns = writebuf_default(config->trigger_age_ns, WRITEBUF_AGE_NS);
    config->quiet_ns = writebuf_default(config->quiet_ns, WRITEBUF_QUIET_NS);
    config->retry_ns = writebuf_default(config->retry_ns, WRITEBUF_RETRY_NS);
    config->retry_ns_max =
        weir__max(writebuf_default(config->retry_ns_max, WRITEBUF_RETRY_NS_MAX), config->retry_ns);
    config->stall_ns_max = writebuf_default(config->stall_ns_max, WRITEBUF_STALL_NS);
}

/* The largest block there will be. */
static uint64_t writebuf_block_bytes_max(const struct weir_writebuf_config *config)
{
    uint64_t bytes =
        weir__round_up(RECORD_HEADER_BYTES + config->record_bytes_max, WRITEBUF_PAGE_BYTES);

    return weir__max(bytes, PIECE_BYTES);
}

static int writebuf_check_caps(const struct weir_writebuf_config *config)
{
    uint64_t block_bytes = writebuf_block_bytes_max(config);

    if (config->collect_bytes_max < 2 * block_bytes || config->flush_bytes_max < 2 * block_bytes)
        return -EINVAL;
    if (config->region != NULL) {
        struct weir_region_stats stats;

        weir_region_stats(config->region, &stats);
        if (stats.put_bytes_max < block_bytes || stats.fetch_bytes_max < block_bytes)
            return -EINVAL;
    }
    return 0;
}

static int writebuf_make_parts(struct weir_writebuf_set *set)
{
    set->hash = weir__heap_alloc(&set->heap, WRITEBUF_HASH_MIN * sizeof(*set->hash));
    if (set->hash == NULL)
        return -ENOMEM;
    set->hash_count = WRITEBUF_HASH_MIN;
    set->flushes = weir__heap_alloc(&set->heap, set->config.flushes_max * sizeof(*set->flushes));
    if (set->flushes == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < set->config.flushes_max; i++) {
        /* Part of the working set: the account has it already. */
        set->flushes[i].index_memory = weir__heap_alloc(NULL, WRITEBUF_INDEX_BYTES);
        if (set->flushes[i].index_memory == NULL)
            return -ENOMEM;
    }
    return 0;
}

static void writebuf_free_parts(struct weir_writebuf_set *set)
{
    for (uint32_t i = 0; set->flushes != NULL && i < set->config.flushes_max; i++)
        weir__heap_free(NULL, set->flushes[i].index_memory, WRITEBUF_INDEX_BYTES);
    weir__heap_free(&set->heap, set->flushes, set->config.flushes_max * sizeof(*set->flushes));
    weir__heap_free(&set->heap, set->hash, set->hash_count * sizeof(*set->hash));
    weir__pieces_deinit(&set->pieces);
}

static int writebuf_take_working_set(struct weir_writebuf_set *set)
{
    enum weir_verdict verdict;
    uint64_t window_bytes =
        weir__max(WRITEBUF_WINDOW_BYTES, writebuf_block_bytes_max(&set->config));

    if (set->config.working_bytes != 0) {
        uint64_t part = set->config.working_bytes / set->config.flushes_max;

        if (part < WRITEBUF_INDEX_BYTES + writebuf_block_bytes_max(&set->config))
            return -EINVAL;
        window_bytes = weir__round_down(part - WRITEBUF_INDEX_BYTES, WRITEBUF_PAGE_BYTES);
    }
    set->window_bytes_max = window_bytes;
    set->lend_bytes_max = weir__min(writebuf_block_bytes_max(&set->config),
                                    window_bytes - writebuf_block_bytes_max(&set->config));
    set->working_bytes = set->config.flushes_max * (window_bytes + WRITEBUF_INDEX_BYTES);
    if (set->config.account == NULL)
        return 0;
    if (weir_account_charge(set->config.account, set->working_bytes, &verdict) < 0)
        return -EDQUOT;
    return verdict == WEIR_ADMIT || verdict == WEIR_FLUSH ? 0 : -EDQUOT;
}

int weir_writebuf_create(const struct weir_writebuf_config *config,
                         struct weir_writebuf_set **ret_set)
{
    struct weir_writebuf_set *set;
    int r;

    if (!writebuf_config_is_valid(config) || ret_set == NULL)
        return -EINVAL;
    set = weir__heap_alloc(NULL, sizeof(*set));
    if (set == NULL)
        return -ENOMEM;
    set->config = *config;
    writebuf_fill_defaults(&set->config);
    r = writebuf_check_caps(&set->config);
    if (r == 0)
        r = writebuf_take_working_set(set);
    if (r < 0) {
        weir__heap_free(NULL, set, sizeof(*set));
        return r;
    }

    if (config->account != NULL)
        set->heap.books = weir_account_books(config->account);
    set->owner = pthread_self();
    set->keys_seed = weir__sys_entropy();
    set->due_ns = UINT64_MAX;
    weir__list_init(&set->buffers);
    weir__list_init(&set->gate);
    weir__list_init(&set->loads);
    weir__list_init(&set->finished);
    weir__pieces_init(&set->pieces, &set->heap);
    weir__pool_init(&set->blocks, &set->pieces, &set->heap, sizeof(struct writebuf_block));
    r = writebuf_make_parts(set);
    if (r < 0) {
        writebuf_free_parts(set);
        if (config->account != NULL)
            weir_account_refund(config->account, set->working_bytes);
        weir__heap_free(NULL, set, sizeof(*set));
        return r;
    }
    if (writebuf_sets.next == NULL)
        weir__list_init(&writebuf_sets);
    set->id = ++writebuf_id;
    weir__list_append(&writebuf_sets, &set->link);
    weir__demand_open(set);
    *ret_set = set;
    return 0;
}

void weir_writebuf_destroy(struct weir_writebuf_set *set)
{
    struct weir_account *account;

    if (set == NULL)
        return;
    WEIR_ASSERT(weir__writebuf_is_mine(set));
    WEIR_CHECK(!set->in_callback);

    weir__demand_close(set);
    while (!weir__list_is_empty(&set->buffers))
        weir_writebuf_clear(WEIR_CONTAINER_OF(set->buffers.next, struct weir_writebuf, link));
    (void)weir__gate_tell(set);
    WEIR_CHECK(set->charged_bytes == 0 && set->lent_bytes == 0);
    WEIR_CHECK(weir__list_is_empty(&set->loads));
    account = set->config.account;
    weir__list_remove(&set->link);
    writebuf_free_parts(set);
    WEIR_CHECK(set->heap.bytes == 0);
    if (account != NULL)
        weir_account_refund(account, set->working_bytes);
    weir__heap_free(NULL, set, sizeof(*set));
}

struct weir_writebuf_set *weir__writebuf_set_of(uint64_t id)
{
    if (writebuf_sets.next == NULL)
        return NULL;
    WEIR_LIST_FOREACH (link, &writebuf_sets) {
        struct weir_writebuf_set *set = WEIR_CONTAINER_OF(link, struct weir_writebuf_set, link);

        if (set->id == id)
            return set;
    }
    return NULL;
}

/* ---- Buffers -------------------------------------------------------------------- */

static struct weir_writebuf **writebuf_bucket(const struct weir_writebuf_set *set, uint64_t id)
{
    return &set->hash[weir__mix(id) & (set->hash_count - 1)];
}

/* Twice the buckets; where there is no memory for them, chains are longer. */
static void writebuf_grow_hash(struct weir_writebuf_set *set)
{
    uint64_t count = set->hash_count;
    struct weir_writebuf **hash = set->hash;
    struct weir_writebuf **larger = weir__heap_alloc(&set->heap, count * 2 * sizeof(*larger));

    if (larger == NULL)
        return;
    set->hash = larger;
    set->hash_count = count * 2;
    WEIR_LIST_FOREACH (link, &set->buffers) {
        struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);
        struct weir_writebuf **bucket = writebuf_bucket(set, buffer->id);

        buffer->hash_next = *bucket;
        *bucket = buffer;
    }
    weir__heap_free(&set->heap, hash, count * sizeof(*hash));
}

int weir_writebuf_ensure(struct weir_writebuf_set *set, uint64_t id,
                         struct weir_writebuf **ret_buffer)
{
    struct weir_writebuf **bucket;
    struct weir_writebuf *buffer;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    for (buffer = *writebuf_bucket(set, id); buffer != NULL; buffer = buffer->hash_next) {
        if (buffer->id == id) {
            *ret_buffer = buffer;
            return 0;
        }
    }

    buffer = weir__heap_alloc(&set->heap, sizeof(*buffer));
    if (buffer == NULL)
        return -ENOMEM;
    buffer->set = set;
    buffer->id = id;
    buffer->is_counted = true;
    buffer->is_position_known = set->config.sink.position == NULL;
    weir__list_init(&buffer->waiting);
    weir__list_init(&buffer->tickets);
    weir__list_init(&buffer->blocks);
    if (set->buffer_count >= set->hash_count)
        writebuf_grow_hash(set);
    bucket = writebuf_bucket(set, id);
    buffer->hash_next = *bucket;
    *bucket = buffer;
    weir__list_append(&set->buffers, &buffer->link);
    set->buffer_count++;
    *ret_buffer = buffer;
    return 0;
}

void weir_writebuf_clear(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set;
    struct weir_writebuf **link;

    if (buffer == NULL)
        return;
    set = buffer->set;
    WEIR_ASSERT(weir__writebuf_is_mine(set));
    WEIR_CHECK(!set->in_callback);

    weir__gate_stop(buffer, -ECANCELED);
    while (!weir__list_is_empty(&buffer->blocks))
        weir__writebuf_drop_block(buffer, weir__writebuf_first(buffer));
    weir__writebuf_settle(set);
    for (link = writebuf_bucket(set, buffer->id); *link != buffer; link = &(*link)->hash_next)
        WEIR_ASSERT(*link != NULL);
    *link = buffer->hash_next;
    weir__list_remove(&buffer->link);
    set->buffer_count--;
    set->paused_count -= buffer->is_paused;
    set->failing_count -= buffer->failure_count > 0;
    weir__heap_free(&set->heap, buffer, sizeof(*buffer));
    (void)weir__gate_tell(set);
}

struct weir_writebuf *weir_writebuf_next(const struct weir_writebuf_set *set,
                                         const struct weir_writebuf *buffer)
{
    const struct weir__list *link = buffer != NULL ? buffer->link.next : set->buffers.next;

    WEIR_ASSERT(weir__writebuf_is_mine(set));
    return link == &set->buffers ? NULL : WEIR_CONTAINER_OF(link, struct weir_writebuf, link);
}

void weir_writebuf_pause(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set = buffer->set;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    if (buffer->is_paused)
        return;
    buffer->is_paused = true;
    set->paused_count++;
    weir__gate_leave(buffer);
    weir__writebuf_count(buffer);
}

void weir_writebuf_resume(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set = buffer->set;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    set->paused_count -= buffer->is_paused;
    buffer->is_paused = false;
    buffer->retry_ns = 0;
    weir__writebuf_count(buffer);
    if (buffer->reasons != 0)
        weir__gate_want(buffer, (enum writebuf_reason)buffer->reasons);
    weir__writebuf_due(set, set->now_ns);
}

/* ---- Append --------------------------------------------------------------------- */

/* Charge @bytes for a block of this buffer, within its cap. */
static int writebuf_take_memory(struct weir_writebuf *buffer, uint64_t bytes,
                                const struct writebuf_block *kept)
{
    struct weir_writebuf_set *set = buffer->set;
    uint64_t cap = set->config.collect_bytes_max;

    if (buffer->flush != NULL) {
        uint64_t used = buffer->loaded_bytes + buffer->flush->index_charged_bytes;
        uint64_t bytes_max = set->config.flush_bytes_max;

        cap = weir__max(cap, bytes_max - weir__min(bytes_max, used));
    }

    /* After a flush that failed it can be far above: not all of that in one append. */
    while (buffer->memory_bytes + bytes > cap && set->credit_bytes < 2 * bytes) {
        int r;

        weir__gate_want(buffer, WRITEBUF_FOR_MEMORY);
        if (set->config.region == NULL || buffer->spill_next == NULL || buffer->spill_next == kept)
            return -EAGAIN;
        r = weir__writebuf_spill_block(buffer);
        if (r < 0)
            return r;
    }
    return weir__writebuf_charge(set, bytes, kept);
}

static void writebuf_add_charge(struct weir_writebuf *buffer, struct writebuf_block *block,
                                uint64_t bytes)
{
    block->charged_bytes += bytes;
    buffer->memory_bytes += bytes;
    buffer->set->memory_bytes += bytes;
}

/* The open block has address space for @bytes more: have it charged. */
static int writebuf_extend(struct weir_writebuf *buffer, uint64_t bytes)
{
    struct writebuf_block *tail = buffer->tail;
    uint64_t wanted = weir__max(tail->charged_bytes * 2,
                                weir__round_up(tail->fill_bytes + bytes, WRITEBUF_PAGE_BYTES));
    uint64_t more = weir__min(wanted, tail->piece.bytes) - tail->charged_bytes;
    int r = writebuf_take_memory(buffer, more, tail);

    if (r == 0)
        writebuf_add_charge(buffer, tail, more);
    return r;
}

static int writebuf_open_block(struct weir_writebuf *buffer, uint64_t bytes)
{
    struct weir_writebuf_set *set = buffer->set;
    bool is_first = weir__list_is_empty(&buffer->blocks);
    uint64_t charge = weir__round_up(bytes, WRITEBUF_PAGE_BYTES);
    struct writebuf_block *block;
    int r;

    if (!is_first)
        charge = weir__max(charge, PIECE_BYTES);
    r = writebuf_take_memory(buffer, charge, NULL);
    if (r < 0)
        return r;
    block = weir__pool_take(&set->blocks);
    r = block != NULL ? weir__pieces_take(&set->pieces, charge, &block->piece) : -ENOMEM;
    if (r < 0) {
        weir__pool_give(&set->blocks, block);
        set->credit_bytes += charge;
        return r;
    }
    weir__list_init(&block->loading);
    weir__list_append(&buffer->blocks, &block->link);
    buffer->tail = block;
    if (buffer->spill_next == NULL)
        buffer->spill_next = block;
    writebuf_add_charge(buffer, block, charge);
    return 0;
}

static int writebuf_make_room(struct weir_writebuf *buffer, uint64_t bytes)
{
    const struct writebuf_block *tail = buffer->tail;
    int r = tail != NULL && tail->fill_bytes + bytes <= tail->piece.bytes
                ? writebuf_extend(buffer, bytes)
                : writebuf_open_block(buffer, bytes);

    weir__writebuf_settle(buffer->set);
    return r;
}

/* Whether the set holds as much as it may for now. */
static bool writebuf_is_full(struct weir_writebuf_set *set, uint64_t bytes)
{
    uint64_t bytes_max = set->config.backlog_bytes_max;

    if (bytes_max == UINT64_MAX)
        return false;
    if (set->is_full && set->backlog_bytes <= bytes_max / 8 * 7)
        set->is_full = false;
    /* What is alone is let in, whatever its size. */
    if (!set->is_full && set->backlog_bytes > 0 && set->backlog_bytes + bytes > bytes_max)
        set->is_full = true;
    if (set->is_full)
        set->is_short = true;
    return set->is_full;
}

static int writebuf_admits(struct weir_writebuf *buffer, const struct weir_writebuf_record *record)
{
    struct weir_writebuf_set *set = buffer->set;
    uint64_t bytes = (uint64_t)record->key_bytes + record->value_bytes;

    if ((unsigned)record->operation > WEIR_WRITEBUF_BARRIER || record->sequence == 0)
        return -EINVAL;
    if (record->key_bytes > RECORD_KEY_MAX || record->value_bytes > set->config.record_bytes_max ||
        bytes > set->config.record_bytes_max)
        return -EFBIG;
    if (record->sequence <= buffer->last_sequence)
        return -ERANGE;
    if (buffer->held_bytes + bytes > set->config.held_bytes_max) {
        weir__gate_want(buffer, WRITEBUF_FOR_BYTES);
        return -EDQUOT;
    }
    if (buffer->is_counted && writebuf_is_full(set, bytes))
        return -EAGAIN;
    return 0;
}

static void writebuf_note(struct weir_writebuf *buffer, struct writebuf_block *tail,
                          const struct weir_writebuf_record *record)
{
    struct weir_writebuf_set *set = buffer->set;

    if (tail->record_count++ == 0)
        tail->first_sequence = record->sequence;
    tail->last_sequence = record->sequence;
    tail->insert_count += record->operation == WEIR_WRITEBUF_INSERT;
    tail->barrier_count += record->operation == WEIR_WRITEBUF_BARRIER;
    buffer->last_sequence = record->sequence;
    set->ever.appended_count++;
    set->ever.appended_bytes += record->key_bytes + record->value_bytes;
    if (buffer->record_count == 1) {
        buffer->oldest_ns = set->now_ns;
        if (set->config.trigger_age_ns != UINT64_MAX)
            weir__writebuf_due(set, set->now_ns + set->config.trigger_age_ns);
    }
    if (buffer->held_bytes >= set->config.trigger_bytes)
        weir__gate_want(buffer, WRITEBUF_FOR_BYTES);
    if (buffer->record_count >= set->config.trigger_rows)
        weir__gate_want(buffer, WRITEBUF_FOR_ROWS);
}

int weir_writebuf_append(struct weir_writebuf *buffer, const struct weir_writebuf_record *record)
{
    struct weir_writebuf_set *set = buffer->set;
    struct writebuf_block *tail = buffer->tail;
    uint64_t bytes = weir__record_bytes(record);
    int r;

    WEIR_ASSERT(weir__writebuf_is_mine(set));
    WEIR_ASSERT(record->key != NULL || record->key_bytes == 0);
    WEIR_ASSERT(record->value != NULL || record->value_bytes == 0);

    r = writebuf_admits(buffer, record);
    if (r == 0 && (tail == NULL || tail->fill_bytes + bytes > tail->charged_bytes))
        r = writebuf_make_room(buffer, bytes);
    if (r < 0) {
        if (r == -EAGAIN) {
            set->ever.refused_count++;
            set->is_refused = true;
        }
        return r;
    }

    tail = buffer->tail;
    weir__record_encode(tail->piece.data + tail->fill_bytes, record);
    tail->fill_bytes += bytes;
    weir__writebuf_add_held(buffer, (int64_t)bytes, 1);
    writebuf_note(buffer, tail, record);
    return 0;
}

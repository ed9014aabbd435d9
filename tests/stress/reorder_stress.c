/* SPDX-License-Identifier: MIT */
/*
 * reorder - random operations on several buffers, against a plain model
 *
 * Built twice: on a real region and governor, where memory is a fraction of the
 * data, and on doubles (STRESS_ON_DOUBLES), which refuse and fail at random. At
 * the end all gaps are filled and all is delivered, by a consumer that after
 * -EAGAIN pops again only when it was told to.
 */
#include <weir/reorder.h>

#include "base/bits.h"
#include "pattern.h"
#include "seed.h"
#include "tmpdir.h"

#include <weir/governor.h>
#include <weir/region.h>

#ifdef STRESS_ON_DOUBLES
# include "double.h"
#endif

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define BUFFERS 4u
#define OUT_MAX 24u

#ifdef STRESS_ON_DOUBLES
# define HAS_FAULTS     true
# define SPAN           UINT64_C(2048) /* the window, in items */
# define ITEM_BYTES_MAX UINT64_C(12000)
#else
# define HAS_FAULTS     false
# define SPAN           UINT64_C(16384)
# define ITEM_BYTES_MAX UINT64_C(200000)
#endif

struct buffer {
    struct weir_reorder *reorder;
    uint64_t next;
    int64_t bytes[SPAN]; /* by sequence % SPAN; -1: not here */
    uint64_t item_count;
    uint64_t payload_bytes;
    struct weir_item out[OUT_MAX];
    uint32_t out_count;
    bool is_ready; /* not waiting for a call of ready */
};

struct world {
    uint64_t seed;
    uint64_t salt;
    struct weir_region *region;
    struct weir_account *account;
    struct buffer buffers[BUFFERS];
    char *scratch;
    uint64_t refused_count;
    uint64_t failed_count;
    uint64_t waited_count;
#ifdef STRESS_ON_DOUBLES
    struct weir_region region_double;
    struct weir_account account_double;
#else
    struct weir_governor *governor;
#endif
};

/* ---- Worlds --------------------------------------------------------------------- */

#ifdef STRESS_ON_DOUBLES

static bool world_open(struct world *world)
{
    double_region_init(&world->region_double);
    world->region_double.seed = world->seed + 1;
    double_account_init(&world->account_double);
    world->region = &world->region_double;
    world->account = &world->account_double;
    return true;
}

static void world_poll(struct world *world, bool is_waiting)
{
    (void)is_waiting;
    weir_region_poll(world->region);
}

/* Somebody else is short of memory. */
static void world_ask(struct world *world)
{
    (void)double_account_ask(world->account, "reorder", weir__random_below(&world->seed, 60000));
}

/* New weather: what the region and the account answer from now on. */
static void world_turn(struct world *world, bool has_faults)
{
    static const int put_results[] = {0, 0, 0, 0, -EAGAIN, -ENOSPC, -EDQUOT, -EIO};
    static const int fetch_results[] = {0, 0, 0, 0, -EIO, -EBADMSG};
    struct weir_region *region = world->region;
    struct weir_account *account = world->account;
    uint64_t charged = account->charged_bytes;

    region->put_result = has_faults ? put_results[weir__random_below(&world->seed, 8)] : 0;
    region->fetch_result = has_faults ? fetch_results[weir__random_below(&world->seed, 6)] : 0;
    region->writes_left = has_faults ? (uint32_t)weir__random_below(&world->seed, 4) : 0;
    region->forgets = weir__random_below(&world->seed, 2) == 0;
    region->puts_are_cold = weir__random_below(&world->seed, 2) == 0;
    region->pinned_bytes_max = ITEM_BYTES_MAX + weir__random_below(&world->seed, 60000);
    account->spill_at = charged + weir__random_below(&world->seed, 40000);
    account->wait_at = account->spill_at + weir__random_below(&world->seed, 20000);
    account->spill_at -= weir__min(account->spill_at, weir__random_below(&world->seed, 60000));
    account->flush_next = weir__random_below(&world->seed, 4) == 0;
    account->flush_bytes = weir__random_below(&world->seed, 100000);
    if (weir__random_below(&world->seed, 4) == 0)
        double_region_chill(region);
}

static void world_close(struct world *world)
{
    weir_region_poll(world->region);
    assert_int_equal(world->account_double.charged_bytes, 0);
    assert_int_equal(world->account_double.book_bytes, 0);
    double_region_deinit(world->region);
}

#else

static bool world_open(struct world *world)
{
    struct weir_governor_config governor_config = {.bytes_max = UINT64_C(6) << 20};
    struct weir_account_config account_config = {.name = "stress", .spillable = true};
    struct weir_region_config region_config = {
        .directory = harness_tmpdir(),
        .bytes_max = UINT64_C(1) << 30,
        .resident_bytes_max = UINT64_C(8) << 20,
    };

    if (region_config.directory == NULL)
        return false;
    assert_int_equal(weir_governor_create(&governor_config, &world->governor), 0);
    assert_int_equal(weir_account_open(world->governor, &account_config, &world->account), 0);
    region_config.books = weir_account_books(world->account);
    assert_int_equal(weir_region_open(&region_config, &world->region), 0);
    return true;
}

static void world_poll(struct world *world, bool is_waiting)
{
    int r = is_waiting ? weir_region_wait(world->region, UINT64_C(1000000000))
                       : weir_region_poll(world->region);

    assert_true(r >= 0);
}

static void world_ask(struct world *world)
{
    weir_account_poll(world->account);
}

static void world_turn(struct world *world, bool has_faults)
{
    (void)world;
    (void)has_faults;
}

static void world_close(struct world *world)
{
    struct weir_account_stats stats;

    weir_region_audit(world->region);
    weir_region_close(world->region);
    weir_account_stats(world->account, &stats);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.over_refund_count, 0);
    weir_account_close(world->account);
    weir_governor_destroy(world->governor);
}

#endif

/* ---- Buffers -------------------------------------------------------------------- */

static uint64_t item_seed(const struct world *world, const struct buffer *buffer, uint64_t sequence)
{
    return world->salt + sequence * BUFFERS + (uint64_t)(buffer - world->buffers);
}

static void on_ready(void *context)
{
    struct buffer *buffer = context;

    assert_false(buffer->is_ready);
    buffer->is_ready = true;
}

static void buffer_open(struct world *world, struct buffer *buffer)
{
    struct weir_reorder_config config = {
        .account = world->account,
        .region = world->region,
        .window_items_max = SPAN,
        .hot_items = (uint32_t)weir__random_below(&world->seed, 64),
        .owner = (uint16_t)(buffer - world->buffers + 1),
        .working_bytes = 32768,
        .ready = on_ready,
        .context = buffer,
    };
    int r;

    config.first_sequence = weir__random(&world->seed) >> weir__random_below(&world->seed, 64);
    config.first_sequence -= config.first_sequence > UINT64_MAX / 2 ? UINT64_MAX / 2 : 0;
    *buffer = (struct buffer){.next = config.first_sequence, .is_ready = true};
    for (uint64_t i = 0; i < SPAN; i++)
        buffer->bytes[i] = -1;
    r = weir_reorder_create(&config, &buffer->reorder);
    assert_true(r == 0 || r == -EDQUOT);
}

static void buffer_release(struct world *world, struct buffer *buffer, uint32_t index)
{
    struct weir_item *item = &buffer->out[index];

    if (item->data != NULL)
        assert_int_equal(harness_differs_at(item->data, item->bytes,
                                            item_seed(world, buffer, item->sequence), 0),
                         item->bytes);
    weir_reorder_release(buffer->reorder, item);
    *item = buffer->out[--buffer->out_count];
}

static void buffer_close(struct world *world, struct buffer *buffer)
{
    while (buffer->out_count > 0)
        buffer_release(world, buffer, 0);
    weir_reorder_destroy(buffer->reorder);
    buffer->reorder = NULL;
}

static void buffer_audit(const struct buffer *buffer)
{
    struct weir_reorder_stats stats;

    weir_reorder_audit(buffer->reorder);
    weir_reorder_stats(buffer->reorder, &stats);
    assert_int_equal(stats.next_sequence, buffer->next);
    assert_int_equal(stats.item_count, buffer->item_count);
    assert_int_equal(stats.payload_bytes, buffer->payload_bytes);
    assert_int_equal(stats.popped_count, buffer->out_count);
    assert_int_equal(stats.memory_count + stats.spilled_count, stats.item_count);
}

static void buffer_entered(struct buffer *buffer, uint64_t sequence, uint64_t bytes)
{
    buffer->bytes[sequence % SPAN] = (int64_t)bytes;
    buffer->item_count++;
    buffer->payload_bytes += bytes;
}

static void buffer_advance(struct buffer *buffer)
{
    int64_t *bytes = &buffer->bytes[buffer->next % SPAN];

    if (*bytes >= 0) {
        buffer->item_count--;
        buffer->payload_bytes -= (uint64_t)*bytes;
    }
    *bytes = -1;
    buffer->next++;
}

static uint64_t random_bytes(struct world *world)
{
    uint64_t dice = weir__random_below(&world->seed, 100);

    if (dice < 5)
        return 0;
    if (dice < 60)
        return weir__random_below(&world->seed, 200);
    if (dice < 97)
        return weir__random_below(&world->seed, 3000);
    return weir__random_below(&world->seed, ITEM_BYTES_MAX);
}

/* 0, or what push said. */
static int buffer_push(struct world *world, struct buffer *buffer, uint64_t sequence)
{
    bool is_past = sequence < buffer->next;
    bool is_far = !is_past && sequence - buffer->next >= SPAN;
    bool is_here = !is_past && !is_far && buffer->bytes[sequence % SPAN] >= 0;
    uint64_t bytes = random_bytes(world);
    int r;

    harness_fill(world->scratch, bytes, item_seed(world, buffer, sequence), 0);
    r = weir_reorder_push(buffer->reorder, sequence, world->scratch, bytes);
    if (is_past || is_far) {
        assert_int_equal(r, -ERANGE);
    } else if (is_here) {
        assert_int_equal(r, -EEXIST);
    } else if (r == 0) {
        buffer_entered(buffer, sequence, bytes);
    } else {
        /* The head is always let in. */
        assert_int_not_equal(sequence, buffer->next);
        assert_true(r == -EAGAIN || r == -EFBIG || r == -EDQUOT || r == -ENOSPC ||
                    (HAS_FAULTS && r == -EIO));
        world->refused_count++;
    }
    return r;
}

static void buffer_push_slot(struct world *world, struct buffer *buffer, uint64_t sequence)
{
    struct weir_label label = {.key = weir__random(&world->seed), .owner = 99};
    uint64_t bytes = weir__random_below(&world->seed, 4000);
    struct weir_slot slot;
    bool is_here = buffer->bytes[sequence % SPAN] >= 0;
    int r;

    harness_fill(world->scratch, bytes, item_seed(world, buffer, sequence), 0);
    r = weir_region_put(world->region, world->scratch, bytes, label, &slot);
    if (r < 0)
        return;
    r = weir_reorder_push_slot(buffer->reorder, sequence, slot);
    assert_int_equal(r, is_here ? -EEXIST : 0);
    if (r == 0)
        buffer_entered(buffer, sequence, bytes);
    else
        assert_int_equal(weir_region_free(world->region, slot), 0);
}

/* Pop one if it is time; returns what pop said, -EAGAIN while ready is awaited. */
static int buffer_pop(struct world *world, struct buffer *buffer)
{
    int64_t bytes = buffer->bytes[buffer->next % SPAN];
    struct weir_item *item = &buffer->out[buffer->out_count];
    int r;

    assert_true(buffer->out_count < OUT_MAX);
    if (!buffer->is_ready)
        return -EAGAIN;
    r = weir_reorder_pop(buffer->reorder, item);
    if (bytes < 0) {
        assert_int_equal(r, -ENOENT);
        return r;
    }
    if (r == 0) {
        assert_int_equal(item->sequence, buffer->next);
        assert_int_equal(item->bytes, bytes);
        if (item->data == NULL)
            assert_true(bytes == 0 || !weir_slot_is_none(item->slot));
        buffer->out_count++;
        buffer_advance(buffer);
        return 0;
    }
    if (r == -EAGAIN) {
        buffer->is_ready = false;
        world->waited_count++;
        return r;
    }
    /* A failure may be told long after it happened. */
    assert_true(HAS_FAULTS && (r == -EIO || r == -EBADMSG));
    world->failed_count++;
    return r;
}

static void buffer_skip(struct buffer *buffer)
{
    assert_int_equal(weir_reorder_skip(buffer->reorder), 0);
    buffer->is_ready = true;
    buffer_advance(buffer);
}

/* ---- Random operations ------------------------------------------------------------ */

static void buffer_step(struct world *world, struct buffer *buffer)
{
    uint64_t dice = weir__random_below(&world->seed, 1000);

    if (buffer->reorder == NULL) {
        buffer_open(world, buffer);
        return;
    }
    if (dice < 480) {
        uint64_t reach = SPAN >> weir__random_below(&world->seed, 12);

        buffer_push(world, buffer, buffer->next + weir__random_below(&world->seed, reach));
    } else if (dice < 500) {
        uint64_t back = weir__min(buffer->next, weir__random_below(&world->seed, 100));

        buffer_push(world, buffer,
                    buffer->next - back + weir__random_below(&world->seed, 3) * SPAN);
    } else if (dice < 520) {
        buffer_push_slot(world, buffer, buffer->next + weir__random_below(&world->seed, SPAN));
    } else if (dice < 560) {
        buffer_push(world, buffer, buffer->next);
    } else if (dice < 860) {
        while (buffer->out_count < OUT_MAX && weir__random_below(&world->seed, 8) > 0)
            if (buffer_pop(world, buffer) < 0)
                break;
    } else if (dice < 940) {
        while (buffer->out_count > OUT_MAX / 2 ||
               (buffer->out_count > 0 && weir__random_below(&world->seed, 3) > 0))
            buffer_release(world, buffer,
                           (uint32_t)weir__random_below(&world->seed, buffer->out_count));
    } else if (dice < 960) {
        buffer_skip(buffer);
    } else if (dice < 990) {
        if (weir__random_below(&world->seed, 2) == 0)
            weir_reorder_spill(buffer->reorder, weir__random_below(&world->seed, 20000));
        else
            world_ask(world);
    } else if (dice < 998) {
        buffer_audit(buffer);
    } else if (weir__random_below(&world->seed, 10) == 0) {
        buffer_close(world, buffer);
    }
}

/* Fill the gaps and deliver all, waiting for ready where we were told to. */
static void world_drain(struct world *world)
{
    uint64_t failed_count = world->failed_count;
    uint32_t idle_count = 0;
    bool is_done = false;

    while (!is_done) {
        bool has_moved = false;

        is_done = true;
        for (uint32_t i = 0; i < BUFFERS; i++) {
            struct buffer *buffer = &world->buffers[i];
            int r = 0;

            if (buffer->reorder == NULL || buffer->item_count == 0)
                continue;
            is_done = false;
            if (buffer->bytes[buffer->next % SPAN] < 0) {
                assert_int_equal(buffer_push(world, buffer, buffer->next), 0);
                has_moved = true;
            }
            while (r == 0) {
                r = buffer_pop(world, buffer);
                if (r == 0) {
                    buffer_release(world, buffer, buffer->out_count - 1);
                    has_moved = true;
                }
            }
        }
        /* Errors from before are told once. */
        assert_true(world->failed_count - failed_count <= BUFFERS);
        world_poll(world, !has_moved);
        idle_count = has_moved ? 0 : idle_count + 1;
        assert_true(idle_count < 1000);
    }
}

static uint64_t stress_seconds(void)
{
    const char *given = getenv("WEIR_STRESS_SECONDS");

    return given != NULL ? strtoull(given, NULL, 10) : 3;
}

static void test_random(void **state)
{
    struct world *world = *state;
    uint64_t until_ns;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    until_ns = (uint64_t)now.tv_sec + stress_seconds();
    for (uint64_t step = 0;; step++) {
        buffer_step(world, &world->buffers[weir__random_below(&world->seed, BUFFERS)]);
        if (weir__random_below(&world->seed, 8) == 0)
            world_poll(world, false);
        if (step % 64 == 0)
            world_turn(world, weir__random_below(&world->seed, 2) == 0);
        if (step % 1024 == 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            if ((uint64_t)now.tv_sec >= until_ns)
                break;
        }
        if (step % 16384 == 16383) {
            for (uint32_t i = 0; i < BUFFERS; i++)
                while (world->buffers[i].out_count > 0)
                    buffer_release(world, &world->buffers[i], 0);
            world_turn(world, false);
            world_drain(world);
        }
    }

    for (uint32_t i = 0; i < BUFFERS; i++)
        while (world->buffers[i].out_count > 0)
            buffer_release(world, &world->buffers[i], 0);
    world_turn(world, false);
    world_drain(world);
    for (uint32_t i = 0; i < BUFFERS; i++) {
        if (world->buffers[i].reorder == NULL)
            continue;
        buffer_audit(&world->buffers[i]);
        assert_int_equal(world->buffers[i].item_count, 0);
        buffer_close(world, &world->buffers[i]);
    }
    printf("# refused %llu, failed %llu, waited %llu\n", (unsigned long long)world->refused_count,
           (unsigned long long)world->failed_count, (unsigned long long)world->waited_count);
    assert_true(world->waited_count > 0);
}

static int begin(void **state)
{
    struct world *world = calloc(1, sizeof(*world));

    world->seed = harness_seed();
    world->salt = world->seed;
    world->scratch = malloc(ITEM_BYTES_MAX);
    if (!world_open(world)) {
        free(world->scratch);
        free(world);
        world = NULL;
    }
    *state = world;
    return world == NULL;
}

static int end(void **state)
{
    struct world *world = *state;

    /* There is something only where the case has failed. */
    for (uint32_t i = 0; i < BUFFERS; i++)
        if (world->buffers[i].reorder != NULL)
            buffer_close(world, &world->buffers[i]);
    world_close(world);
    free(world->scratch);
    free(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"random operations agree with a plain model, and all is delivered", test_random, begin,
         end, NULL},
    };

    return cmocka_run_group_tests_name("reorder", tests, NULL, NULL);
}

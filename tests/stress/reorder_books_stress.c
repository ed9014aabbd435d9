/* SPDX-License-Identifier: MIT */
/*
 * reorder - the books after any sequence of operations, against a plain model
 *
 * Bytes and objects are pushed, pushed twice, pushed too late and too far, taken,
 * skipped, spilled, delivered and kept, on doubles that refuse and fail at random.
 * After each operation what is charged for payload is what is held: the model
 * knows the payload of all that is here or out, the region what of it lies there,
 * and the codec which objects exist. The working set is one byte, so that hardly
 * anything can hide in it; and once so large that tables live on it at hard.
 *
 * WEIR_BOOKS_STEPS= says how many operations there are.
 */
#include <weir/reorder.h>

#include "base/bits.h"
#include "double.h"
#include "pattern.h"
#include "seed.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define STEPS          UINT64_C(200000)
#define SPAN           UINT64_C(256)
#define OUT_MAX        8u
#define ITEM_BYTES_MAX 700u
#define WORKING_BYTES  1u
#define TABLES_BYTES   8192u /* a working set that has some for tables */
#define ENCODED_BYTES  24u

struct place {
    bool is_here;
    bool is_object;
    uint64_t bytes; /* in memory */
};

struct world {
    uint64_t seed;
    struct weir_region region;
    struct weir_account account;
    struct weir_reorder *reorder;
    uint64_t working_bytes;
    uint64_t next;
    struct place places[SPAN]; /* by sequence % SPAN */
    struct weir_item out[OUT_MAX];
    struct place out_places[OUT_MAX];
    uint32_t out_count;
    uint64_t byte_payload;  /* of bytes that are here or out */
    uint64_t object_count;  /* here or out */
    uint64_t live_objects;  /* that exist */
    uint64_t live_measured; /* and what they take */
    bool codec_fails;
    uint64_t hard_count; /* pushes that lived on the working set */
    uint64_t counts[8];  /* of what came to pass, for who reads the log */
};

/* ---- Objects -------------------------------------------------------------------- */

struct object {
    uint64_t number;
    uint64_t bytes;
};

static size_t object_measure(void *context, const void *object)
{
    (void)context;
    return ((const struct object *)object)->bytes;
}

static int64_t object_encode(void *context, const void *object, void *buffer, size_t buffer_bytes)
{
    const struct world *world = context;

    if (buffer_bytes < ENCODED_BYTES || buffer == NULL)
        return ENCODED_BYTES;
    if (world->codec_fails)
        return -EIO;
    memset(buffer, 0, ENCODED_BYTES);
    memcpy(buffer, object, sizeof(struct object));
    return ENCODED_BYTES;
}

static int object_decode(void *context, const void *data, size_t bytes, void **ret_object)
{
    struct world *world = context;
    struct object *object;

    assert_int_equal(bytes, ENCODED_BYTES);
    if (world->codec_fails)
        return -EBADMSG;
    object = malloc(sizeof(*object));
    assert_non_null(object);
    memcpy(object, data, sizeof(*object));
    world->live_objects++;
    world->live_measured += object->bytes;
    *ret_object = object;
    return 0;
}

static void object_release(void *context, void *object)
{
    struct world *world = context;

    world->live_objects--;
    world->live_measured -= ((struct object *)object)->bytes;
    free(object);
}

/* ---- The books ------------------------------------------------------------------ */

static void check_books(const struct world *world)
{
    uint64_t encoded_count = world->object_count - world->live_objects;
    uint64_t in_region = world->region.live_bytes - encoded_count * ENCODED_BYTES;
    uint64_t held = world->byte_payload - in_region + world->live_measured;
    struct weir_reorder_stats stats;

    weir_reorder_stats(world->reorder, &stats);
    assert_int_equal(stats.memory_bytes, held);
    assert_int_equal(world->account.book_bytes, stats.metadata_bytes);
    assert_in_range(stats.lent_bytes, 0, world->working_bytes);
    assert_int_equal(world->account.charged_bytes,
                     world->working_bytes - stats.lent_bytes + held + stats.metadata_bytes);
    assert_int_equal(stats.next_sequence, world->next);
    assert_int_equal(stats.popped_count, world->out_count);
}

static uint64_t lent_bytes(const struct world *world)
{
    struct weir_reorder_stats stats;

    weir_reorder_stats(world->reorder, &stats);
    return stats.lent_bytes;
}

/* ---- Operations ----------------------------------------------------------------- */

static void entered(struct world *world, uint64_t sequence, bool is_object, uint64_t bytes)
{
    world->places[sequence % SPAN] =
        (struct place){.is_here = true, .is_object = is_object, .bytes = bytes};
    world->byte_payload += is_object ? 0 : bytes;
    world->object_count += is_object;
}

static void forget(struct world *world, const struct place *place)
{
    world->byte_payload -= place->is_object ? 0 : place->bytes;
    world->object_count -= place->is_object;
}

static int push_object(struct world *world, uint64_t sequence, uint64_t bytes)
{
    struct object *object = malloc(sizeof(*object));
    int r;

    assert_non_null(object);
    *object = (struct object){sequence, bytes};
    world->live_objects++;
    world->live_measured += bytes;
    r = weir_reorder_push_object(world->reorder, sequence, object);
    if (r < 0)
        object_release(world, object);
    return r;
}

static int push_bytes(struct world *world, uint64_t sequence, uint64_t bytes)
{
    char data[ITEM_BYTES_MAX];

    harness_fill(data, bytes, sequence, 0);
    return weir_reorder_push(world->reorder, sequence, data, bytes);
}

static void push(struct world *world, uint64_t sequence)
{
    bool is_past = sequence < world->next;
    bool is_far = !is_past && sequence - world->next >= SPAN;
    bool is_object = weir__random_below(&world->seed, 3) == 0;
    bool is_hard = world->account.charged_bytes >= world->account.hard_at;
    uint64_t lent = lent_bytes(world);
    uint64_t bytes = weir__random_below(&world->seed, ITEM_BYTES_MAX);
    int r = is_object ? push_object(world, sequence, bytes) : push_bytes(world, sequence, bytes);

    if (is_past || is_far) {
        assert_int_equal(r, -ERANGE);
    } else if (world->places[sequence % SPAN].is_here) {
        assert_int_equal(r, -EEXIST);
    } else if (r == 0) {
        world->hard_count += is_hard && sequence != world->next && lent_bytes(world) > lent;
        entered(world, sequence, is_object, bytes);
    } else {
        assert_int_not_equal(sequence, world->next);
        world->counts[0]++;
    }
}

static void check_item(const struct weir_item *item, const struct place *place)
{
    assert_int_equal(item->bytes, place->bytes);
    if (place->is_object)
        assert_int_equal(((struct object *)item->object)->number, item->sequence);
    else if (item->bytes > 0)
        assert_int_equal(harness_differs_at(item->data, item->bytes, item->sequence, 0),
                         item->bytes);
}

static void release(struct world *world, uint32_t index)
{
    struct weir_item *item = &world->out[index];

    check_item(item, &world->out_places[index]);
    if (item->object != NULL && weir__random_below(&world->seed, 4) == 0) {
        object_release(world, item->object);
        item->object = NULL;
    }
    forget(world, &world->out_places[index]);
    weir_reorder_release(world->reorder, item);
    world->out_count--;
    *item = world->out[world->out_count];
    world->out_places[index] = world->out_places[world->out_count];
}

/* Out by pop or by take; what cannot be had now stays. */
static void come_out(struct world *world, uint64_t sequence, bool is_pop)
{
    struct place *place = &world->places[sequence % SPAN];
    struct weir_item *item = &world->out[world->out_count];
    int r;

    if (world->out_count == OUT_MAX)
        return;
    r = is_pop ? weir_reorder_pop(world->reorder, item)
               : weir_reorder_take(world->reorder, sequence, item);
    if (r < 0) {
        assert_true(place->is_here ? r != -ENOENT : r == -ENOENT);
        world->counts[r == -EAGAIN ? 1 : r == -ENOENT ? 2 : 3]++;
        return;
    }
    assert_true(place->is_here);
    assert_int_equal(item->sequence, sequence);
    world->out_places[world->out_count++] = *place;
    *place = (struct place){0};
    world->next += is_pop;
}

static void give_up_head(struct world *world)
{
    struct place *place = &world->places[world->next % SPAN];

    assert_int_equal(weir_reorder_skip(world->reorder), 0);
    if (place->is_here)
        forget(world, place);
    *place = (struct place){0};
    world->next++;
}

/* New weather: what the region, the account and the codec answer from now on. */
static void turn(struct world *world)
{
    static const int put_results[] = {0, 0, 0, 0, 0, -EAGAIN, -ENOSPC, -EIO};
    static const int fetch_results[] = {0, 0, 0, 0, -EIO, -EBADMSG};
    struct weir_region *region = &world->region;
    struct weir_account *account = &world->account;
    uint64_t charged = account->charged_bytes;

    region->put_result = put_results[weir__random_below(&world->seed, 8)];
    region->fetch_result = fetch_results[weir__random_below(&world->seed, 6)];
    region->puts_are_cold = weir__random_below(&world->seed, 4) > 0;
    region->forgets = weir__random_below(&world->seed, 4) == 0;
    account->room_bytes = weir__random_below(&world->seed, 4) == 0 ? 300 : UINT64_MAX;
    account->spill_at = charged + weir__random_below(&world->seed, 8000);
    account->spill_at -= weir__min(account->spill_at, weir__random_below(&world->seed, 8000));
    account->wait_at = charged + weir__random_below(&world->seed, 8000);
    account->hard_at = UINT64_MAX;
    account->flush_next = weir__random_below(&world->seed, 4) == 0;
    account->flush_bytes = weir__random_below(&world->seed, 20000);
    world->codec_fails = weir__random_below(&world->seed, 8) == 0;
    if (weir__random_below(&world->seed, 4) == 0)
        double_region_chill(region);
    if (weir__random_below(&world->seed, 4) == 0) {
        /* Others have taken all memory, and next to nothing of ours is left in it. */
        account->spill_at = 0;
        weir_reorder_spill(world->reorder, UINT64_MAX);
        account->hard_at =
            account->charged_bytes - weir__random_below(&world->seed, 2) * ITEM_BYTES_MAX;
    }
}

static void step(struct world *world)
{
    uint64_t dice = weir__random_below(&world->seed, 1000);
    uint64_t near = world->next + weir__random_below(&world->seed, SPAN);

    if (dice < 400)
        push(world, near);
    else if (dice < 430)
        push(world, world->next - weir__min(world->next, weir__random_below(&world->seed, 20)));
    else if (dice < 450)
        push(world, near + SPAN);
    else if (dice < 500)
        push(world, world->next);
    else if (dice < 600)
        come_out(world, near, false);
    else if (dice < 750)
        come_out(world, world->next, true);
    else if (dice < 880 && world->out_count > 0)
        release(world, (uint32_t)weir__random_below(&world->seed, world->out_count));
    else if (dice < 900)
        give_up_head(world);
    else if (dice < 915)
        weir_reorder_spill(world->reorder, weir__random_below(&world->seed, 3000));
    else if (dice < 930)
        (void)double_account_ask(&world->account, "reorder",
                                 weir__random_below(&world->seed, 3000));
    else if (dice < 980)
        weir_region_poll(&world->region);
    else
        turn(world);
}

static void test_books(void **state)
{
    struct world *world = *state;
    const char *given = getenv("WEIR_BOOKS_STEPS");
    uint64_t steps = given != NULL ? strtoull(given, NULL, 10) : STEPS;

    for (uint64_t i = 0; i < steps; i++) {
        step(world);
        check_books(world);
        if (i % 1024 == 0)
            weir_reorder_audit(world->reorder);
    }
    printf("# refused %llu, awaited %llu, gaps %llu, failed %llu, lent %llu\n",
           (unsigned long long)world->counts[0], (unsigned long long)world->counts[1],
           (unsigned long long)world->counts[2], (unsigned long long)world->counts[3],
           (unsigned long long)world->hard_count);
    assert_true((world->hard_count > 0) == (world->working_bytes == TABLES_BYTES));
    for (uint32_t i = 0; i < 4; i++)
        assert_true(world->counts[i] > 0);
}

static int begin_with(void **state, uint64_t working_bytes)
{
    struct world *world = calloc(1, sizeof(*world));

    world->seed = harness_seed();
    double_region_init(&world->region);
    world->region.seed = world->seed + 1;
    double_account_init(&world->account);
    world->working_bytes = working_bytes;
    *state = world;
    return weir_reorder_create(
        &(struct weir_reorder_config){
            .account = &world->account,
            .region = &world->region,
            .window_items_max = SPAN,
            .hot_items = 3,
            .working_bytes = working_bytes,
            .codec =
                {
                    .measure = object_measure,
                    .encode = object_encode,
                    .decode = object_decode,
                    .release = object_release,
                    .context = world,
                },
        },
        &world->reorder);
}

static int begin(void **state)
{
    return begin_with(state, WORKING_BYTES);
}

static int begin_tables(void **state)
{
    return begin_with(state, TABLES_BYTES);
}

static int end(void **state)
{
    struct world *world = *state;

    while (world->out_count > 0)
        release(world, 0);
    weir_reorder_destroy(world->reorder);
    assert_int_equal(world->live_objects, 0);
    assert_int_equal(world->account.charged_bytes, 0);
    weir_region_poll(&world->region);
    double_region_deinit(&world->region);
    free(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"what is charged is what is held, whatever happens", test_books, begin, end, NULL},
        {"and where tables live on the working set", test_books, begin_tables, end, NULL},
    };

    return cmocka_run_group_tests_name("reorder_books", tests, NULL, NULL);
}

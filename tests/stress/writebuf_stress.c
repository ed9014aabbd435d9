/* SPDX-License-Identifier: MIT */
/*
 * writebuf_stress - random life of many buffers, against a plain replay
 *
 * Changes of all kinds and sizes, flushes with and without deadlines, pauses,
 * spills and clears come at random, into sinks that fail, stall and lie at random,
 * with time that jumps. On the real governor and region, which are small, and on
 * doubles (STRESS_ON_DOUBLES), which refuse and fail at random. In the end all is
 * healed, and every table is what a plain replay makes of it.
 */
#include <weir/writebuf.h>

#include "base/random.h"
#include "seed.h"
#include "target.h"
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

#define KIB     UINT64_C(1024)
#define MIB     (UINT64_C(1024) * KIB)
#define SECOND  UINT64_C(1000000000)
#define TABLES  16
#define TICKETS 32
#define WAIT_NS UINT64_C(10000000)

struct demand {
    struct weir_writebuf_ticket ticket;
    struct weir_writebuf *buffer;
    struct world *world;
    uint64_t id;
    uint64_t sequence; /* appended when it was asked for */
    bool is_pending;
};

struct world {
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffers[TABLES];
    uint64_t sequences[TABLES];
    bool is_paused[TABLES];
    struct demand demands[TICKETS];
    struct target target;
    struct weir_region *region;
    struct weir_account *account;
    uint64_t random;
    uint64_t now_ns;
    uint64_t refused_count;
    uint64_t done_count;
    uint64_t timeout_count;
#ifdef STRESS_ON_DOUBLES
    struct weir_region region_double;
    struct weir_account account_double;
#else
    struct weir_governor *governor;
#endif
};

static uint64_t below(struct world *world, uint64_t bound)
{
    return weir__random_below(&world->random, bound);
}

/* ---- Worlds --------------------------------------------------------------------- */

#ifdef STRESS_ON_DOUBLES

static bool world_open(struct world *world)
{
    double_region_init(&world->region_double);
    world->region_double.seed = world->random + 1;
    world->region_double.put_bytes_max = MIB;
    world->region_double.forgets = true;
    double_account_init(&world->account_double);
    world->region = &world->region_double;
    world->account = &world->account_double;
    return true;
}

static void world_close(struct world *world)
{
    assert_int_equal(world->account_double.charged_bytes, 0);
    weir_region_poll(world->region);
    double_region_deinit(world->region);
}

static void world_upset(struct world *world)
{
    static const int results[] = {0, 0, 0, -EAGAIN, -EDQUOT, -ENOSPC};
    struct weir_region *region = world->region;
    struct weir_account *account = world->account;

    region->put_result = results[below(world, 6)];
    region->puts_are_cold = below(world, 2) == 0;
    region->fetch_result = below(world, 6) == 0 ? -EIO : 0;
    if (below(world, 3) == 0)
        double_region_chill(region);
    account->spill_at = below(world, 3) == 0 ? UINT64_MAX : account->charged_bytes + 64 * KIB;
    account->wait_at = below(world, 4) == 0 ? account->charged_bytes + 32 * KIB : UINT64_MAX;
    account->flush_next = below(world, 3) == 0;
    account->flush_bytes = below(world, 3) == 0 ? MIB : 0;
}

static void world_heal(struct world *world)
{
    world->region->put_result = 0;
    world->region->fetch_result = 0;
    world->account->spill_at = UINT64_MAX;
    world->account->wait_at = UINT64_MAX;
    world->account->flush_bytes = 0;
}

static void world_poll(struct world *world, bool is_waiting)
{
    (void)is_waiting;
    weir_region_poll(world->region);
}

/* Somebody else is short of memory. */
static void world_ask(struct world *world)
{
    (void)double_account_ask(world->account, "writebuf spill", below(world, 512 * KIB));
    (void)world->account->reclaimers[0]->reclaim(world->account->reclaimers[0],
                                                 below(world, 512 * KIB));
}

#else

static bool world_open(struct world *world)
{
    struct weir_governor_config governor_config = {.bytes_max = 6 * MIB};
    struct weir_account_config account_config = {.name = "writebuf", .spillable = true};
    struct weir_region_config region_config = {
        .bytes_max = 64 * MIB,
        .bytes_initial = 8 * MIB,
        .resident_bytes_max = 8 * MIB,
        .directory = harness_tmpdir(),
    };

    if (region_config.directory == NULL)
        return false;
    assert_int_equal(weir_region_open(&region_config, &world->region), 0);
    assert_int_equal(weir_governor_create(&governor_config, &world->governor), 0);
    assert_int_equal(weir_account_open(world->governor, &account_config, &world->account), 0);
    return true;
}

static void world_close(struct world *world)
{
    struct weir_account_stats stats;
    struct weir_region_stats region_stats;

    weir_account_stats(world->account, &stats);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.over_refund_count, 0);
    weir_region_stats(world->region, &region_stats);
    assert_int_equal(region_stats.slot_count, 0);
    assert_int_equal(region_stats.pinned_bytes, 0);
    weir_account_close(world->account);
    weir_governor_destroy(world->governor);
    weir_region_close(world->region);
}

static void world_upset(struct world *world)
{
    (void)world;
}

static void world_heal(struct world *world)
{
    (void)world;
}

static void world_poll(struct world *world, bool is_waiting)
{
    int r = is_waiting ? weir_region_wait(world->region, WAIT_NS) : weir_region_poll(world->region);

    assert_true(r >= 0);
}

static void world_ask(struct world *world)
{
    weir_account_poll(world->account);
}

#endif

/* ---- Steps ---------------------------------------------------------------------- */

static void on_done(struct weir_writebuf_ticket *ticket, int result)
{
    struct demand *demand = (struct demand *)(void *)ticket;
    struct world *world = demand->world;

    assert_true(demand->is_pending);
    demand->is_pending = false;
    world->done_count++;
    world->timeout_count += result == -ETIMEDOUT;
    /* 0: all that was appended before is in the target. */
    if (result == 0)
        assert_true(world->target.tables[demand->id].position >= demand->sequence);
}

static void step_append(struct world *world, uint64_t id)
{
    static char value[64 << 10];
    uint64_t chance = below(world, 100);
    enum weir_writebuf_operation operation = WEIR_WRITEBUF_UPDATE;
    uint64_t bytes = below(world, 200);
    uint32_t key = (uint32_t)below(world, world->target.key_count);
    uint64_t sequence = world->sequences[id] + 1 + below(world, 3);
    int r;

    if (chance < 20)
        operation = WEIR_WRITEBUF_DELETE;
    else if (chance < 45 || id % 4 == 0) /* some tables see inserts only */
        operation = WEIR_WRITEBUF_INSERT;
    else if (chance < 46)
        operation = WEIR_WRITEBUF_BARRIER;
    if (below(world, 50) == 0)
        bytes = below(world, sizeof(value));
    memset(value, (int)sequence, bytes < 16 ? bytes : 16);
    if (bytes >= 16)
        memcpy(value + bytes - 8, &sequence, 8);
    r = target_append(&world->target, world->buffers[id], id, sequence, operation, key, value,
                      bytes);
    if (r == 0)
        world->sequences[id] = sequence;
    else
        assert_true(r == -EAGAIN || r == -EDQUOT || r == -ENOSPC);
    world->refused_count += r < 0;
}

static void step_flush(struct world *world, uint64_t id)
{
    struct demand *demand = &world->demands[below(world, TICKETS)];

    if (below(world, 3) == 0) {
        weir_writebuf_flush(world->buffers[id], NULL, UINT64_MAX);
        return;
    }
    if (demand->is_pending) {
        if (below(world, 2) == 0)
            return;
        assert_int_equal(weir_writebuf_cancel(demand->buffer, &demand->ticket), 0);
    }
    *demand = (struct demand){
        .ticket.done = on_done,
        .buffer = world->buffers[id],
        .world = world,
        .id = id,
        .sequence = world->sequences[id],
        .is_pending = true,
    };
    weir_writebuf_flush(world->buffers[id], &demand->ticket,
                        below(world, 2) == 0 ? UINT64_MAX : world->now_ns + below(world, SECOND));
}

/* What was appended and not committed is gone, and the model knows it. */
static void step_clear(struct world *world, uint64_t id)
{
    struct target_table *table = &world->target.tables[id];

    weir_writebuf_clear(world->buffers[id]);
    assert_int_equal(weir_writebuf_ensure(world->set, id, &world->buffers[id]), 0);
    world->is_paused[id] = false;
    memcpy(table->expected, table->rows, world->target.key_count * sizeof(*table->rows));
    table->last_sequence = table->position;
    table->barrier_expected = table->barrier_count;
    table->barrier_sum_expected = table->barrier_sum;
    world->sequences[id] = table->position;
}

static void step_trouble(struct world *world, uint64_t id)
{
    struct target_table *table = &world->target.tables[id];

    table->fail_ppm = below(world, 3) == 0 ? 3000 : 0;
    table->wait_ppm = below(world, 3) == 0 ? 20000 : 0;
    table->lie_ppm = below(world, 4) == 0 ? 300000 : 0;
    table->fails = below(world, 6) == 0 ? -EIO : 0;
    if (below(world, 10) == 0)
        table->fails = -EAGAIN;
    world_upset(world);
}

static void step(struct world *world)
{
    uint64_t id = below(world, TABLES);
    uint64_t chance = below(world, 1000);

    if (chance < 880) {
        step_append(world, id);
    } else if (chance < 890) {
        step_flush(world, id);
    } else if (chance < 893) {
        world->is_paused[id] = !world->is_paused[id];
        if (world->is_paused[id])
            weir_writebuf_pause(world->buffers[id]);
        else
            weir_writebuf_resume(world->buffers[id]);
    } else if (chance < 896) {
        step_trouble(world, id);
    } else if (chance < 899) {
        if (below(world, 2) == 0)
            weir_writebuf_spill(world->set, below(world, 512 * KIB));
        else
            world_ask(world);
    } else if (chance == 899 && below(world, 8) == 0) {
        step_clear(world, id);
    } else if (chance < 950) {
        weir_writebuf_poll(world->set, world->now_ns);
    } else if (chance < 990) {
        world_poll(world, false);
    } else {
        world->now_ns += below(world, SECOND / 20);
    }
}

static void heal(struct world *world)
{
    bool is_done = false;

    world_heal(world);
    for (uint64_t id = 0; id < TABLES; id++) {
        world->target.tables[id].fail_ppm = 0;
        world->target.tables[id].wait_ppm = 0;
        world->target.tables[id].lie_ppm = 0;
        world->target.tables[id].fails = 0;
        weir_writebuf_resume(world->buffers[id]);
        weir_writebuf_flush(world->buffers[id], NULL, UINT64_MAX);
    }
    for (int i = 0; !is_done; i++) {
        is_done = true;
        assert_true(i < 1000000);
        world->now_ns += SECOND / 100;
        world_poll(world, weir_writebuf_poll(world->set, world->now_ns) == 0);
        for (uint64_t id = 0; id < TABLES; id++)
            is_done &= target_is_equal(&world->target, id);
        for (uint32_t k = 0; k < TICKETS; k++)
            is_done &= !world->demands[k].is_pending;
    }
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static uint64_t seconds(void)
{
    const char *given = getenv("WEIR_STRESS_SECONDS");

    return given != NULL ? strtoull(given, NULL, 10) : 8;
}

/* One set from create to destroy. */
static void live(struct world *world, uint64_t step_count, struct weir_writebuf_stats *total)
{
    struct weir_writebuf_stats stats;
    struct weir_writebuf_config config = {
        .account = world->account,
        .region = world->region,
        .sink = target_sink(&world->target),
        .record_bytes_max = 64 * KIB + 4,
        .collect_bytes_max = (256 + below(world, 1024)) * KIB,
        .flush_bytes_max = (256 + below(world, 4096)) * KIB,
        .held_bytes_max = below(world, 2) == 0 ? 3 * MIB : 0,
        .backlog_bytes_max = below(world, 3) == 0 ? 8 * MIB : 0,
        .flushes_max = 1 + (uint32_t)below(world, 4),
        .owner = 77,
        .trigger_bytes = below(world, 2) == 0 ? UINT64_MAX : 0,
        .trigger_rows = below(world, 2) * 1000,
        .trigger_age_ns = SECOND / 2,
        .quiet_ns = SECOND / 1000,
        .retry_ns = SECOND / 100,
        .retry_ns_max = SECOND / 10,
        .stall_ns_max = SECOND,
    };

    assert_int_equal(weir_writebuf_create(&config, &world->set), 0);
    for (uint64_t id = 0; id < TABLES; id++) {
        assert_int_equal(weir_writebuf_ensure(world->set, id, &world->buffers[id]), 0);
        world->is_paused[id] = false;
    }
    for (uint64_t i = 0; i < step_count; i++) {
        step(world);
        if (i % 512 == 0)
            weir_writebuf_audit(world->set);
    }
    heal(world);
    weir_writebuf_audit(world->set);
    weir_writebuf_stats(world->set, &stats);
    assert_int_equal(stats.record_count, 0);
    assert_int_equal(stats.held_bytes, 0);
    assert_int_equal(stats.spilled_bytes, 0);
    assert_int_equal(stats.charged_bytes, stats.working_bytes);
    total->appended_count += stats.appended_count;
    total->put_count += stats.put_count;
    total->compacted_count += stats.compacted_count;
    total->duplicate_count += stats.duplicate_count;
    total->failed_count += stats.failed_count;
    total->block_count += stats.block_count;
    total->fetch_count += stats.fetch_count;
    total->replay_count += stats.replay_count;
    total->plain_count += stats.plain_count;
    weir_writebuf_destroy(world->set);
}

static void test_all_arrives_once(void **state)
{
    struct world world = {.random = harness_seed(), .now_ns = SECOND};
    struct weir_writebuf_stats total = {0};
    uint64_t end_ns = clock_ns() + seconds() * SECOND;
    uint64_t lives = 0;

    (void)state;
    if (!world_open(&world)) {
        print_message("# passed over: no directory on a disk\n");
        return;
    }
    target_init(&world.target, TABLES, 2000, world.random + 3);
    do {
        live(&world, 100000, &total);
        lives++;
    } while (clock_ns() < end_ns);
    print_message("# %lu lives, %lu changes: %lu put, %lu overtaken, %lu there already, "
                  "%lu refused\n",
                  lives, total.appended_count, total.put_count, total.compacted_count,
                  total.duplicate_count, world.refused_count);
    print_message("# %lu flushes failed, %lu replays, %lu batches of inserts only, %lu blocks "
                  "spilled, %lu fetched, %lu demands done, %lu too late\n",
                  total.failed_count, total.replay_count, total.plain_count, total.block_count,
                  total.fetch_count, world.done_count, world.timeout_count);
    /* A run that never saw one of these has proved less than it says. */
    assert_true(total.failed_count > 0);
    assert_true(total.block_count > 0);
    assert_true(total.fetch_count > 0);
    assert_true(total.compacted_count > 0);
    assert_true(total.duplicate_count > 0);
    assert_true(total.plain_count > 0);
    assert_true(world.done_count > 0);
    assert_true(world.timeout_count > 0);
    target_deinit(&world.target);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"all that was appended arrives once", test_all_arrives_once, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("writebuf", tests, NULL, NULL);
}

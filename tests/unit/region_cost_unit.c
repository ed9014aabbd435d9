/* SPDX-License-Identifier: MIT */
/*
 * region_cost_unit - what a call costs is counted, not timed
 *
 * Where region.h says of a call that it makes no system call, one, or allocates
 * nothing, the seam counts them. What it says only of the usual way is counted there:
 * a put that begins no chunk, memory and disk in plenty. And who allocates is refused.
 *
 *      region_cost_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

#include "seam.h"

#define PUT_BYTES 1000

static bool counts(const struct seam_use *use, void *context)
{
    /* To look at a ring of one's own is no system call while nothing has completed. */
    bool is_look = use->call == SEAM_ring_reap || use->call == SEAM_ring_reap_some;

    *(uint64_t *)context += !is_look;
    return false;
}

/* From now on, until the next seam_reset(). */
static void count(enum seam_call kind, uint64_t *ret_count)
{
    *ret_count = 0;
    seam_arm((struct seam_rule){
        .call = kind, .times = SEAM_FOR_GOOD, .matches = counts, .context = ret_count});
}

struct told {
    struct fixture *f;
    int count;
};

static void tell(void *context, struct weir_slot slot, int result)
{
    struct told *told = context;

    (void)slot;
    assert_int_equal(result, 0);
    told->count++;
}

struct cost {
    uint64_t calls;
    uint64_t operations;
    uint64_t allocations;
};

static void cost_begin(struct cost *cost)
{
    seam_reset();
    count(SEAM_ANY_CALL, &cost->calls);
    count(SEAM_ANY_OPERATION, &cost->operations);
    count(SEAM_ANY_HEAP, &cost->allocations);
}

static void cost_end(const struct cost *cost, uint64_t calls, uint64_t operations,
                     uint64_t allocations)
{
    assert_int_equal(cost->calls, calls);
    assert_int_equal(cost->operations, operations);
    assert_int_equal(cost->allocations, allocations);
    seam_reset();
}

/* An idle region in whose first chunk there is one item: the next puts begin no other. */
static void start_idle(struct fixture *f, struct weir_region_config config)
{
    start(f, config);
    put(f, 1, PUT_BYTES);
    become_idle(f);
    settle(f);
}

static void a_put_makes_no_system_call(void **state)
{
    static char data[PUT_BYTES];
    struct weir_slot slots[1000];
    struct fixture f;
    struct cost cost;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    cost_begin(&cost);
    for (uint64_t i = 0; i < 1000; i++)
        assert_int_equal(
            weir_region_put(f.region, data, PUT_BYTES, (struct weir_label){i, 1}, &slots[i]), 0);
    cost_end(&cost, 0, 0, 0);

    /* Into holes, too. */
    for (uint64_t i = 0; i < 1000; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    cost_begin(&cost);
    for (uint64_t i = 0; i < 1000; i += 2)
        assert_int_equal(
            weir_region_put(f.region, data, PUT_BYTES, (struct weir_label){i, 1}, &slots[i]), 0);
    cost_end(&cost, 0, 0, 0);
    finish(&f);
}

static void a_chunk_costs_a_submission(void **state)
{
    static char data[64 * 1024];
    struct weir_slot slot;
    struct fixture f;
    struct cost cost;

    (void)state;
    start_idle(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    cost_begin(&cost);
    for (uint64_t at = 0; at < 16 * MIB; at += sizeof(data))
        assert_int_equal(
            weir_region_put(f.region, data, sizeof(data), (struct weir_label){at, 1}, &slot), 0);
    assert_true(cost.operations <= 16 * MIB / CHUNK_BYTES + 1);
    cost_end(&cost, cost.calls, cost.operations, 0); /* and no put allocates */
    finish(&f);
}

static void a_placed_item_costs_no_more(void **state)
{
    struct weir_slot slots[100];
    struct fixture f;
    struct cost cost;
    void *data;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    cost_begin(&cost);
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(weir_region_alloc_in_place(f.region, PUT_BYTES, 64,
                                                    (struct weir_label){i, 1}, &slots[i], &data),
                         0);
        memset(data, 1, PUT_BYTES);
        assert_int_equal(weir_region_commit(f.region, slots[i]), 0);
    }
    cost_end(&cost, 0, 0, 0);
    finish(&f);
}

static void to_look_and_to_free_costs_nothing(void **state)
{
    struct weir_region_report report;
    struct weir_region_stats stats;
    struct weir_slot slots[100];
    struct weir_slot at = {0, 0};
    char buffer[PUT_BYTES];
    struct fixture f;
    struct cost cost;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 100; i++)
        slots[i] = put(&f, i, PUT_BYTES);

    cost_begin(&cost);
    weir_region_stats(f.region, &stats);
    cost_end(&cost, 1, 0, 0); /* one fstat(2) */

    cost_begin(&cost);
    weir_region_report(f.region, &report);
    assert_true(weir_region_fd(f.region) >= 0);
    while (weir_region_next(f.region, &at)) {
        struct weir_slot_info info;
        const void *data;
        size_t bytes;
        assert_int_equal(weir_region_slot(f.region, at, &info), 0);
        assert_int_equal(weir_region_at(f.region, at, &data, &bytes), 0);
        assert_int_equal(weir_region_read(f.region, at, 0, buffer, sizeof(buffer), &bytes), 0);
    }
    weir_region_audit(f.region);
    for (uint64_t i = 0; i < 50; i++)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    cost_end(&cost, 0, 0, 0);
    finish(&f);
}

static void less_memory_is_only_wished_for(void **state)
{
    struct fixture f;
    struct cost cost;

    (void)state;
    start_idle(&f, (struct weir_region_config){
                       .resident_bytes_max = 32 * MIB,
                       .resident_bytes_min = RESIDENT_MIN,
                   });
    for (uint64_t i = 0; i < 300; i++)
        put(&f, i, 64 * KIB);
    cost_begin(&cost);
    assert_int_equal(weir_region_set_resident(f.region, RESIDENT_MIN), 0);
    assert_int_equal(weir_region_set_resident(f.region, 16 * MIB), 0);
    assert_true(cost.calls <= 2);      /* of each, what fetch buffers no longer need */
    cost_end(&cost, cost.calls, 0, 0); /* nothing is written, read or waited for */
    assert_int_equal(seam_used(SEAM_ring_wait), 0);
    finish(&f);
}

/*
 * Half of what is for chunks with the least memory, and an item more than that is
 * refused at once: nobody but the owner can make room.
 */
static void too_much_in_place_is_told_at_once(void **state)
{
    struct weir_slot cold[4];
    struct weir_slot slots[64];
    struct weir_slot none = {4711, 4712};
    struct told told = {NULL, 0};
    struct fixture f;
    void *data;
    int count = 0;
    int r;

    (void)state;
    start_idle(&f, (struct weir_region_config){
                       .resident_bytes_max = 24 * MIB,
                       .resident_bytes_min = RESIDENT_MIN,
                   });
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, cold, 3, 3000);
    become_idle(&f);
    while ((r = weir_region_alloc_in_place(f.region, MIB, 0, (struct weir_label){1, 1},
                                           &slots[count], &data)) == 0)
        assert_true(++count < 64);
    assert_int_equal(r, -EAGAIN);
    assert_true(count >= 1);
    assert_in_range(figures(&f).pinned_bytes, MIB, RESIDENT_MIN / 2);

    /* Whatever the ring does. */
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_ring_read, .how = SEAM_HOLD});
    assert_int_equal(weir_region_fetch(f.region, cold, 1, tell, &told), 0);
    for (int i = 0; i < 10000 && seam_held() == 0; i++)
        assert_true(wait_once(&f) >= 0);
    assert_int_equal(seam_held(), 1);
    uint64_t wait_count = seam_used(SEAM_ring_wait);
    data = &f;
    assert_int_equal(
        weir_region_alloc_in_place(f.region, MIB, 0, (struct weir_label){1, 1}, &none, &data),
        -EAGAIN);
    assert_int_equal(seam_used(SEAM_ring_wait), wait_count);
    seam_reset();
    for (int i = 0; i < 10000 && told.count == 0; i++)
        assert_true(wait_once(&f) >= 0);
    assert_int_equal(told.count, 1);
    assert_int_equal(none.index, 4711);
    assert_ptr_equal(data, &f);
    while (count > 0)
        assert_int_equal(weir_region_free(f.region, slots[--count]), 0);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    finish(&f);
}

/* What is refused is refused before anything is asked of anybody. */
static void a_refusal_costs_nothing(void **state)
{
    struct weir_operation operation = {operation_never_completed};
    struct weir_slot slot = {0, 0};
    struct fixture f;
    struct cost cost;
    char byte = 'x';
    void *data;

    (void)state;
    start_idle(&f, (struct weir_region_config){.bytes_max = 64 * MIB});
    struct weir_region_stats stats = figures(&f);
    struct weir_slot mine = put(&f, 1, 100);
    cost_begin(&cost);
    assert_int_equal(
        weir_region_put(f.region, &byte, stats.put_bytes_max + 1, (struct weir_label){0}, &slot),
        -EFBIG);
    assert_int_equal(
        weir_region_alloc(f.region, stats.item_bytes_max + 1, (struct weir_label){0}, &slot),
        -EFBIG);
    assert_int_equal(weir_region_alloc_in_place(f.region, stats.put_bytes_max + 1, 0,
                                                (struct weir_label){0}, &slot, &data),
                     -EFBIG);
    assert_int_equal(weir_region_fetch(f.region, &mine, 0, never_called, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, NULL, 1, never_called, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, &mine, 1, NULL, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, mine, 0, &byte, 1, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, mine, 100, &byte, 1, &operation), -EINVAL);
    assert_int_equal(weir_region_set_resident(f.region, RESIDENT_MIN), -EINVAL);
    assert_int_equal(weir_region_sync(f.region), -EOPNOTSUPP);
    cost_end(&cost, 0, 0, 0);
    assert_true(weir_slot_is_none(slot));
    finish(&f);
}

/*
 * Each call is tried with one allocation more, until it has what it needs: before
 * that it says -ENOMEM, and nothing has changed.
 */
static int without_memory(struct fixture *f, uint64_t at, int (*call)(struct fixture *f))
{
    struct weir_region_stats before = figures(f);

    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_ANY_HEAP, .at = at});
    int r = call(f);
    bool is_refused = seam_fired() > 0;
    seam_reset();
    assert_int_equal(r, is_refused ? -ENOMEM : 0);
    if (!is_refused)
        return 0;
    weir_region_audit(f->region);
    struct weir_region_stats after = figures(f);
    assert_same_items(&before, &after);
    assert_int_equal(after.pinned_bytes, before.pinned_bytes);
    assert_int_equal(after.fetch_count, before.fetch_count);
    assert_int_equal(after.metadata_bytes, before.metadata_bytes);
    assert_int_equal(after.read_error_count, before.read_error_count);
    return r;
}

static struct weir_slot call_slots[11]; /* ten that are cold, and one that is not */
static struct weir_slot call_slot;
static struct piece call_piece;
static struct told call_told;
static const void *call_data;
static char call_byte;

static int call_pin(struct fixture *f)
{
    return weir_region_pin(f->region, call_slots[10], &call_data, NULL);
}

static int call_alloc(struct fixture *f)
{
    return weir_region_alloc(f->region, 100, (struct weir_label){1, 1}, &call_slot);
}

static int call_fetch(struct fixture *f)
{
    const struct weir_slot slots[3] = {call_slots[10], call_slots[10], call_slots[10]};

    return weir_region_fetch(f->region, slots, 3, tell, &call_told);
}

static int call_fetch_into(struct fixture *f)
{
    return weir_region_fetch_into(f->region, call_slots[3], 0, &call_byte, 1,
                                  &call_piece.operation);
}

static void without_memory_nothing_has_changed(void **state)
{
    static int (*const calls[])(struct fixture * f) = {call_pin, call_alloc, call_fetch,
                                                       call_fetch_into};
    struct fixture f;

    (void)state;
    start_idle(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, call_slots, 10, 3000);
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        uint64_t at = 1;
        call_slot = (struct weir_slot){4711, 4712};
        call_data = &f;
        call_told = (struct told){&f, 0};
        call_piece = (struct piece){.operation = {piece_done}, .f = &f};
        while (without_memory(&f, at, calls[i]) == -ENOMEM) {
            assert_int_equal(call_slot.index, 4711);
            assert_ptr_equal(call_data, &f);
            assert_true(poll_once(&f) >= 0);
            assert_int_equal(call_told.count, 0);
            assert_false(call_piece.done);
            at++;
            assert_true(at < 100);
        }
        assert_true(at > 1);
        assert_true(poll_once(&f) >= 0);
        assert_int_equal(call_told.count, calls[i] == call_fetch ? 3 : 0);
        if (calls[i] == call_alloc)
            assert_int_equal(weir_region_free(f.region, call_slot), 0);
    }
    piece_finish(&f, &call_piece);
    assert_int_equal(call_piece.result, 1);
    weir_region_unpin(f.region, call_slots[10]);
    finish(&f);
}

/* Blocks that are copied when they are written, or cannot be reserved: a store would need room. */
static void a_file_system_that_cannot_is_refused(void **state)
{
    static const struct seam_rule rules[] = {
        {.call = SEAM_sys_write_in_place, .error = EOPNOTSUPP},
        {.call = SEAM_sys_fallocate, .error = EOPNOTSUPP},
    };
    struct weir_region *const mark = (struct weir_region *)(void *)&harness_is_synchronous;
    struct fixture f;

    (void)state;
    begin(&f);
    for (size_t i = 0; i < 2 * sizeof(rules) / sizeof(rules[0]); i++) {
        f.region = mark;
        seam_reset();
        seam_arm(rules[i / 2]);
        assert_int_equal(
            open_as(&f, (struct weir_region_config){.name = i % 2 == 0 ? NULL : "refused"}),
            -EOPNOTSUPP);
        assert_true(seam_fired() > 0);
        seam_reset();
        assert_ptr_equal(f.region, mark);
        nothing_left(&f);
    }
}

/* ---- Placement -------------------------------------------------------------- */

static void placement_says_why_not(void **state)
{
    struct weir_placement placement;
    struct weir_placement before;
    struct fixture f;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    memset(&placement, 0xa5, sizeof(placement));
    memcpy(&before, &placement, sizeof(before));
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_page_nodes, .error = EPERM});
    assert_int_equal(weir_region_placement(f.region, &placement), -EPERM);
    seam_arm((struct seam_rule){.call = SEAM_sys_page_nodes, .at = 2, .error = ENOMEM});
    assert_int_equal(weir_region_placement(f.region, &placement), -ENOMEM);
    seam_arm((struct seam_rule){.call = SEAM_sys_page_nodes, .error = ENOSYS});
    assert_int_equal(weir_region_placement(f.region, &placement), -EOPNOTSUPP);
    assert_memory_equal(&placement, &before, sizeof(before));
    seam_reset();
    finish(&f);
}

/* Chunks in memory and the tables are asked for, and most of that is somewhere. */
static void placement_finds_what_is_in_memory(void **state)
{
    struct weir_placement placement;
    struct fixture f;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    seam_reset();
    for (uint64_t i = 0; i < 128; i++)
        put(&f, i, 64 * KIB);
    memset(&placement, 0xa5, sizeof(placement));
    int r = weir_region_placement(f.region, &placement);
    if (r == -EOPNOTSUPP || r == -EPERM) {
        pass_over("the kernel does not say where pages lie");
    } else {
        assert_int_equal(r, 0);
        uint64_t found = placement.beyond_bytes;
        for (int node = 0; node < WEIR_NODES_MAX; node++)
            found += placement.node_bytes[node];
        assert_true(placement.stride >= 1);
        assert_true(placement.asked_bytes >= figures(&f).resident_bytes);
        assert_true(found >= 8 * MIB); /* what was put */
        assert_true(found <= placement.asked_bytes);
        for (size_t i = 0; i < sizeof(placement.reserved) / sizeof(placement.reserved[0]); i++)
            assert_int_equal(placement.reserved[i], 0);
        assert_true(seam_used(SEAM_sys_page_nodes) > 0);
        assert_true(seam_used(SEAM_sys_page_nodes) * 512 * 4 * KIB * placement.stride <=
                    placement.asked_bytes + 512 * 4 * KIB * placement.stride * 16);
    }
    finish(&f);
}

/* ---- Polls ------------------------------------------------------------------ */

/* What is in memory needs no read: only the callbacks are to be handled. */
static void poll_says_how_many(void **state)
{
    struct weir_slot slots[50];
    struct fixture f;
    struct told told = {&f, 0};
    struct cost cost;

    (void)state;
    start_idle(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 50; i++)
        slots[i] = put(&f, i, 100);
    cost_begin(&cost);
    assert_int_equal(weir_region_fetch(f.region, slots, 50, tell, &told), 0);
    assert_int_equal(cost.operations, 0); /* nothing is read */
    assert_int_equal(told.count, 0);
    assert_int_equal(poll_once(&f), 50);
    assert_int_equal(told.count, 50);
    assert_int_equal(poll_once(&f), 0);
    seam_reset();

    /* To wait is to poll where something can be told at once. */
    told.count = 0;
    assert_int_equal(weir_region_fetch(f.region, slots, 7, tell, &told), 0);
    assert_int_equal(weir_region_wait(f.region, UINT64_C(100000000000)), 7);
    assert_int_equal(told.count, 7);
    finish(&f);
}

/* Also while something else is under way. */
static void what_is_known_is_told_without_sleep(void **state)
{
    struct weir_slot slots[11];
    struct told cold = {NULL, 0};
    struct told here = {NULL, 0};
    struct fixture f;
    char byte;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    become_idle(&f);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_ring_read, .how = SEAM_HOLD});
    assert_int_equal(weir_region_fetch(f.region, slots, 1, tell, &cold), 0);
    for (int i = 0; i < 10000 && seam_held() == 0; i++) /* its memory may be lent */
        assert_true(wait_once(&f) >= 0);
    assert_int_equal(seam_held(), 1);
    uint64_t wait_count = seam_used(SEAM_ring_wait);
    assert_int_equal(weir_region_fetch(f.region, slots + 10, 1, tell, &here), 0);
    assert_true(weir_region_wait(f.region, UINT64_C(100000000000)) >= 1);
    assert_int_equal(here.count, 1);

    struct piece piece = {.operation = {piece_done}, .f = &f};
    assert_int_equal(weir_region_fetch_into(f.region, slots[10], 0, &byte, 1, &piece.operation), 0);
    assert_true(weir_region_wait(f.region, UINT64_C(100000000000)) >= 1);
    assert_true(piece.done);
    assert_int_equal(seam_used(SEAM_ring_wait), wait_count);
    assert_int_equal(seam_held(), 1);
    assert_int_equal(cold.count, 0);

    seam_reset();
    for (int i = 0; i < 10000 && cold.count == 0; i++)
        assert_true(wait_once(&f) >= 0);
    assert_int_equal(cold.count, 1);
    finish(&f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("a put that begins no chunk makes no system call and allocates nothing",
                  a_put_makes_no_system_call),
        SEAM_TEST("a chunk costs a submission", a_chunk_costs_a_submission),
        SEAM_TEST("an item filled in place costs no more", a_placed_item_costs_no_more),
        SEAM_TEST("to look and to free costs nothing", to_look_and_to_free_costs_nothing),
        SEAM_TEST("less memory is only wished for", less_memory_is_only_wished_for),
        SEAM_TEST("too much in place is told at once", too_much_in_place_is_told_at_once),
        SEAM_TEST("a refusal costs nothing", a_refusal_costs_nothing),
        SEAM_TEST("without memory a call says so, and nothing has changed",
                  without_memory_nothing_has_changed),
        SEAM_TEST("a file system that cannot is refused", a_file_system_that_cannot_is_refused),
        SEAM_TEST("placement says why not", placement_says_why_not),
        SEAM_TEST("placement finds what is in memory", placement_finds_what_is_in_memory),
        SEAM_TEST("poll says how many completions there were", poll_says_how_many),
        SEAM_TEST("what is known is told without sleep", what_is_known_is_told_without_sleep),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_cost", cases, NULL, NULL);
}

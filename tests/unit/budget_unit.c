/* SPDX-License-Identifier: MIT */
/* budget: levels, thresholds and verdicts as arithmetic, against a model that knows no tricks */
#include <weir/governor.h>

#include "base/random.h"
#include "governor/budget.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "seed.h"

#define MIB (UINT64_C(1) << 20)

static struct weir__budget budget_of(uint64_t bytes_max)
{
    struct weir_governor_config config = {.bytes_max = bytes_max};
    struct weir__budget budget;

    assert_int_equal(weir__budget_init(&budget, &config, 0), 0);
    return budget;
}

/* ---- Configuration -------------------------------------------------------- */

static void test_defaults(void **state)
{
    struct weir__budget budget;

    (void)state;
    assert_int_equal(weir__budget_init(&budget, NULL, 1000), 0);
    assert_int_equal(budget.bytes_max, 600);
    assert_int_equal(budget.enter_bytes[WEIR_LEVEL_SOFT], 480);
    assert_int_equal(budget.leave_bytes[WEIR_LEVEL_SOFT], 420);
    assert_int_equal(budget.enter_bytes[WEIR_LEVEL_SPILL], 540);
    assert_int_equal(budget.leave_bytes[WEIR_LEVEL_SPILL], 510);
    assert_int_equal(budget.enter_bytes[WEIR_LEVEL_HARD], 600);
    assert_int_equal(budget.leave_bytes[WEIR_LEVEL_HARD], 582);
    assert_int_equal(budget.dwell_ns, 0);
}

static void test_bytes_win_over_percent(void **state)
{
    struct weir_governor_config config = {.bytes_max = 200, .percent = 10};
    struct weir__budget budget;

    (void)state;
    assert_int_equal(weir__budget_init(&budget, &config, 1000), 0);
    assert_int_equal(budget.bytes_max, 200);
    config.bytes_max = 0;
    assert_int_equal(weir__budget_init(&budget, &config, 1000), 0);
    assert_int_equal(budget.bytes_max, 100);
    config.percent = 100;
    assert_int_equal(weir__budget_init(&budget, &config, 1000), 0);
    assert_int_equal(budget.bytes_max, 1000);
}

static void refuse(struct weir_governor_config config)
{
    struct weir__budget budget = {.bytes_max = 77};

    assert_int_equal(weir__budget_init(&budget, &config, 1000), -EINVAL);
    assert_int_equal(budget.bytes_max, 77); /* a call that fails has changed nothing */
}

static void accept(struct weir_governor_config config)
{
    struct weir__budget budget;

    assert_int_equal(weir__budget_init(&budget, &config, 1000), 0);
}

static void test_bad_thresholds_are_refused(void **state)
{
    (void)state;
    refuse((struct weir_governor_config){.percent = 101});
    refuse((struct weir_governor_config){.soft_percent = 90}); /* as spill */
    refuse((struct weir_governor_config){.soft_percent = 89}); /* one point below */
    accept((struct weir_governor_config){.soft_percent = 88});
    refuse((struct weir_governor_config){.spill_percent = 99});
    accept((struct weir_governor_config){.spill_percent = 98});
    refuse((struct weir_governor_config){.spill_percent = 100});
    refuse((struct weir_governor_config){.spill_percent = 81, .spill_leave_percent = 75});
    refuse((struct weir_governor_config){.soft_percent = 95, .spill_percent = 90});
    refuse((struct weir_governor_config){.soft_leave_percent = 80});
    accept((struct weir_governor_config){.soft_leave_percent = 79});
    refuse((struct weir_governor_config){.soft_percent = 60}); /* the default leave is 70 */
    accept((struct weir_governor_config){.soft_percent = 60, .soft_leave_percent = 50});
    refuse((struct weir_governor_config){.spill_leave_percent = 90});
    accept((struct weir_governor_config){.spill_leave_percent = 89});
    accept((struct weir_governor_config){.spill_leave_percent = 40}); /* below soft's: allowed */
    refuse((struct weir_governor_config){.hard_leave_percent = 100});
    accept((struct weir_governor_config){.hard_leave_percent = 99});
    refuse((struct weir_governor_config){.soft_percent = UINT32_MAX});
    refuse((struct weir_governor_config){.spill_percent = UINT32_MAX});
    refuse((struct weir_governor_config){.soft_leave_percent = UINT32_MAX});
    for (int i = 0; i < 8; i++) {
        struct weir_governor_config config = {.bytes_max = 1000};
        config.reserved[i] = 1;
        refuse(config);
    }
}

static void test_bad_limits_are_refused(void **state)
{
    struct weir__budget budget;

    (void)state;
    assert_int_equal(weir__budget_init(&budget, NULL, 0), -EINVAL);
    refuse((struct weir_governor_config){.bytes_max = BUDGET_BYTES_LIMIT + 1});
    refuse((struct weir_governor_config){.bytes_max = UINT64_MAX});
    accept((struct weir_governor_config){.bytes_max = BUDGET_BYTES_LIMIT});
    accept((struct weir_governor_config){.bytes_max = 1});
}

static void test_percentages_of_huge_limits_are_exact(void **state)
{
    struct weir__budget budget = budget_of(BUDGET_BYTES_LIMIT);

    (void)state;
    assert_int_equal(budget.enter_bytes[WEIR_LEVEL_SOFT], BUDGET_BYTES_LIMIT / 10 * 8 + 3);
    budget = budget_of(199);
    assert_int_equal(budget.enter_bytes[WEIR_LEVEL_SOFT], 159);
    assert_int_equal(budget.leave_bytes[WEIR_LEVEL_HARD], 193);
}

/* ---- Levels --------------------------------------------------------------- */

static void test_levels_rise_by_use(void **state)
{
    struct weir__budget budget = budget_of(1000);

    (void)state;
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_CALM, 800), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_CALM, 801), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_CALM, 901), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_SOFT, 901), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_CALM, 1000), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_CALM, 1001), WEIR_LEVEL_HARD);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_HARD, 10), WEIR_LEVEL_HARD);
}

static void test_levels_end_at_their_leave_level(void **state)
{
    struct weir__budget budget = budget_of(1000);

    (void)state;
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 971, 0, 0), WEIR_LEVEL_HARD);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 970, 0, 0), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SPILL, 851, 0, 0), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SPILL, 850, 0, 0), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 701, 0, 0), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 700, 0, 0), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 0, 0, 0), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_CALM, 999, 0, 0), WEIR_LEVEL_CALM);
}

static void test_a_fall_leaves_room_for_the_rises_after_it(void **state)
{
    struct weir__budget budget = budget_of(1000);

    (void)state;
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 0, 0, 6), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 0, 0, 7), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 0, 0, 6), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 0, 0, 7), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 0, 0, 8), WEIR_LEVEL_SPILL);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_HARD, 0, 0, 9), WEIR_LEVEL_HARD);
}

static void test_a_level_lasts_its_dwell(void **state)
{
    struct weir_governor_config config = {.bytes_max = 1000, .dwell_ns = 50};
    struct weir__budget budget;

    (void)state;
    assert_int_equal(weir__budget_init(&budget, &config, 0), 0);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 0, 49, 0), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 0, 50, 0), WEIR_LEVEL_CALM);
    assert_int_equal(weir__budget_settle(&budget, WEIR_LEVEL_SOFT, 701, 99, 0), WEIR_LEVEL_SOFT);
    assert_int_equal(weir__budget_raise(&budget, WEIR_LEVEL_SOFT, 999), WEIR_LEVEL_SPILL);
}

static void expect_plan(uint64_t level, uint64_t use_bytes, uint64_t bytes, bool may_spill,
                        enum weir_verdict verdict, enum weir_level level_after)
{
    struct weir__budget budget = budget_of(1000);
    struct weir__plan plan =
        weir__budget_plan(&budget, (enum weir_level)level, use_bytes, bytes, may_spill);

    assert_int_equal(plan.verdict, verdict);
    assert_int_equal(plan.level, level_after);
}

static void test_verdicts(void **state)
{
    (void)state;
    expect_plan(WEIR_LEVEL_CALM, 0, 800, true, WEIR_ADMIT, WEIR_LEVEL_CALM);
    expect_plan(WEIR_LEVEL_CALM, 0, 801, true, WEIR_ADMIT, WEIR_LEVEL_SOFT);
    expect_plan(WEIR_LEVEL_SOFT, 850, 50, true, WEIR_ADMIT, WEIR_LEVEL_SOFT);

    /* What would pass spill begins it, although it is not used. */
    expect_plan(WEIR_LEVEL_SOFT, 890, 11, true, WEIR_SPILL, WEIR_LEVEL_SPILL);
    expect_plan(WEIR_LEVEL_SPILL, 860, 1, true, WEIR_SPILL, WEIR_LEVEL_SPILL);
    expect_plan(WEIR_LEVEL_SPILL, 860, 1, false, WEIR_ADMIT, WEIR_LEVEL_SPILL);
    expect_plan(WEIR_LEVEL_SOFT, 890, 110, false, WEIR_ADMIT, WEIR_LEVEL_SPILL);

    expect_plan(WEIR_LEVEL_SPILL, 980, 21, false, WEIR_WAIT, WEIR_LEVEL_HARD);
    expect_plan(WEIR_LEVEL_SPILL, 980, 21, true, WEIR_SPILL, WEIR_LEVEL_HARD);
    expect_plan(WEIR_LEVEL_HARD, 975, 1, false, WEIR_WAIT, WEIR_LEVEL_HARD);
    expect_plan(WEIR_LEVEL_HARD, 975, 1, true, WEIR_SPILL, WEIR_LEVEL_HARD);
    expect_plan(WEIR_LEVEL_SPILL, 1200, 1, false, WEIR_WAIT, WEIR_LEVEL_HARD); /* forced */
}

static void test_one_giant_changes_nothing_for_the_others(void **state)
{
    (void)state;
    expect_plan(WEIR_LEVEL_CALM, 500, 600, false, WEIR_WAIT, WEIR_LEVEL_CALM);
    expect_plan(WEIR_LEVEL_CALM, 500, 450, true, WEIR_SPILL, WEIR_LEVEL_CALM);
    expect_plan(WEIR_LEVEL_CALM, 790, 150, true, WEIR_SPILL, WEIR_LEVEL_CALM);
    expect_plan(WEIR_LEVEL_SOFT, 860, 600, false, WEIR_WAIT, WEIR_LEVEL_SPILL);
}

/* ---- Figures -------------------------------------------------------------- */

static void test_excess_is_down_to_soft_leave(void **state)
{
    struct weir__budget budget = budget_of(1000);

    (void)state;
    assert_int_equal(weir__budget_excess(&budget, WEIR_LEVEL_CALM, 790), 0);
    assert_int_equal(weir__budget_excess(&budget, WEIR_LEVEL_SOFT, 790), 90);
    assert_int_equal(weir__budget_excess(&budget, WEIR_LEVEL_HARD, 1100), 400);
    assert_int_equal(weir__budget_excess(&budget, WEIR_LEVEL_SOFT, 600), 0);
}

static void delay_rises(uint64_t bytes_max)
{
    struct weir__budget budget = budget_of(bytes_max);
    uint64_t soft_bytes = budget.enter_bytes[WEIR_LEVEL_SOFT];
    uint64_t way = bytes_max - soft_bytes;
    uint64_t before = 0;

    assert_int_equal(weir__budget_delay_ns(&budget, 0), 0);
    assert_int_equal(weir__budget_delay_ns(&budget, soft_bytes), 0);
    for (uint64_t i = 0; i <= 100; i++) {
        uint64_t delay_ns = weir__budget_delay_ns(&budget, soft_bytes + way / 100 * i);
        assert_true(delay_ns >= before);
        assert_true(delay_ns <= BUDGET_DELAY_MAX_NS);
        before = delay_ns;
    }
    uint64_t half_ns = weir__budget_delay_ns(&budget, soft_bytes + way / 2);
    assert_in_range(half_ns, BUDGET_DELAY_MAX_NS * 24 / 100, BUDGET_DELAY_MAX_NS * 26 / 100);
    assert_int_equal(weir__budget_delay_ns(&budget, bytes_max), BUDGET_DELAY_MAX_NS);
    assert_int_equal(weir__budget_delay_ns(&budget, UINT64_MAX), BUDGET_DELAY_MAX_NS);
}

static void test_delay_grows_from_soft_to_hard(void **state)
{
    (void)state;
    delay_rises(100000);
    delay_rises(64 * MIB);
    delay_rises(BUDGET_BYTES_LIMIT);
}

static void test_a_word_below_zero_is_empty(void **state)
{
    uint64_t word = weir__word_with_level(UINT64_C(100) << WORD_SHIFT, WEIR_LEVEL_SOFT);

    (void)state;
    assert_int_equal(weir__word_bytes(word), 100);
    word -= UINT64_C(300) << WORD_SHIFT;
    assert_int_equal(weir__word_bytes(word), 0);
    assert_int_equal(weir__word_level(word), WEIR_LEVEL_SOFT); /* bytes never touch the flags */
    word += UINT64_C(250) << WORD_SHIFT;
    assert_int_equal(weir__word_bytes(word), 50);
}

/* ---- Random walk ---------------------------------------------------------- */

/* What the header says, said once more in the plainest way. */
struct model {
    uint64_t use_bytes;
    uint64_t since_ns;
    uint32_t change_count; /* in the last ten dwells */
    int level;
};

static const uint64_t model_enter[4] = {0, 800, 900, 1000};
static const uint64_t model_leave[4] = {0, 700, 850, 970};

static void model_set_level(struct model *model, int level, uint64_t now_ns)
{
    if (level != model->level)
        model->since_ns = now_ns;
    model->level = level;
}

static void model_look_down(struct model *model, uint64_t now_ns, uint64_t dwell_ns)
{
    int level = model->level;

    if (now_ns - model->since_ns < dwell_ns)
        return;
    for (int above = level; above > 0 && model->use_bytes <= model_leave[above]; above--)
        level = above - 1;
    while (level < model->level && model->change_count + 1 + 3 - (uint32_t)level > 10)
        level++; /* room for this change and all rises after it */
    model_set_level(model, level, now_ns);
}

static void model_look_up(struct model *model, uint64_t wanted_bytes, uint64_t now_ns)
{
    int level = model->level;

    if (model->use_bytes > model_enter[1] && level < 1)
        level = 1;
    for (int above = 2; above <= 3; above++)
        if (wanted_bytes > model_enter[above] && model->use_bytes > model_leave[above] &&
            level < above)
            level = above;
    model_set_level(model, level, now_ns);
}

static enum weir_verdict model_charge(struct model *model, uint64_t bytes, bool may_spill,
                                      uint64_t now_ns, uint64_t dwell_ns)
{
    uint64_t wanted_bytes = model->use_bytes + bytes;
    enum weir_verdict verdict = WEIR_ADMIT;
    struct model before = *model;

    model_look_down(model, now_ns, dwell_ns);
    if (may_spill && (model->level >= 2 || wanted_bytes > 900))
        verdict = WEIR_SPILL;
    else if (model->level == 3 || wanted_bytes > 1000)
        verdict = WEIR_WAIT;
    if (verdict == WEIR_ADMIT)
        model->use_bytes = wanted_bytes;
    model_look_up(model, wanted_bytes, now_ns);
    if (model->level == before.level) /* down and up at once is no change */
        model->since_ns = before.since_ns;
    return verdict;
}

/* The times of all changes: how many lie in the ten dwells before @now_ns. */
struct changes {
    uint64_t at_ns[1 << 18];
    uint32_t count;
};

static uint32_t changes_in_ten_dwells(const struct changes *changes, uint64_t now_ns,
                                      uint64_t dwell_ns)
{
    uint32_t count = 0;

    for (uint32_t i = changes->count; i > 0; i--, count++)
        if (now_ns - changes->at_ns[i - 1] >= 10 * dwell_ns)
            break;
    return count;
}

static void walk(uint64_t seed, uint64_t dwell_ns)
{
    static struct changes changes;

    struct weir_governor_config config = {.bytes_max = 1000, .dwell_ns = dwell_ns};
    struct weir__budget budget;
    struct model model = {0};
    enum weir_level level = WEIR_LEVEL_CALM;
    uint64_t since_ns = 0;
    uint64_t use_bytes = 0;
    uint64_t now_ns = 0;
    int seen[4] = {0};

    changes.count = 0;
    assert_int_equal(weir__budget_init(&budget, &config, 0), 0);
    for (int step = 0; step < 300000; step++) {
        now_ns += weir__random_below(&seed, 40);
        uint64_t bytes = weir__random_below(&seed, 60);
        enum weir_level before = level;
        uint32_t recent = changes_in_ten_dwells(&changes, now_ns, dwell_ns);
        model.change_count = recent;
        if (weir__random_below(&seed, 100) < 52 + (uint64_t)(step / 1000 % 5)) {
            bool may_spill = weir__random_below(&seed, 3) == 0;
            level = weir__budget_settle(&budget, level, use_bytes, now_ns - since_ns, recent);
            struct weir__plan plan = weir__budget_plan(&budget, level, use_bytes, bytes, may_spill);
            if (plan.verdict == WEIR_ADMIT)
                use_bytes += bytes;
            level = plan.level;
            assert_int_equal(plan.verdict,
                             model_charge(&model, bytes, may_spill, now_ns, dwell_ns));
        } else {
            bytes = bytes < use_bytes ? bytes : use_bytes;
            use_bytes -= bytes;
            level = weir__budget_settle(&budget, level, use_bytes, now_ns - since_ns, recent);
            model.use_bytes -= bytes;
            model_look_down(&model, now_ns, dwell_ns);
        }
        if (level < before)
            assert_true(now_ns - since_ns >= dwell_ns); /* B1 */
        if (level != before) {
            since_ns = now_ns;
            changes.at_ns[changes.count++] = now_ns;
            assert_true(dwell_ns == 0 || recent + 1 <= 10); /* B4 */
        }
        assert_true(use_bytes <= budget.bytes_max); /* B2 */
        assert_int_equal(use_bytes, model.use_bytes);
        assert_int_equal(level, model.level);
        seen[level]++;
    }
    for (int i = 0; i < 4; i++)
        assert_true(seen[i] > 0);
}

static void test_random_walk(void **state)
{
    uint64_t seed = harness_seed();

    (void)state;
    walk(seed, 0);
    walk(seed, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"defaults are as the header says", test_defaults, NULL, NULL, NULL},
        {"bytes win over percent", test_bytes_win_over_percent, NULL, NULL, NULL},
        {"bad thresholds are refused", test_bad_thresholds_are_refused, NULL, NULL, NULL},
        {"bad limits are refused", test_bad_limits_are_refused, NULL, NULL, NULL},
        {"percentages of huge limits are exact", test_percentages_of_huge_limits_are_exact, NULL,
         NULL, NULL},
        {"levels rise by use", test_levels_rise_by_use, NULL, NULL, NULL},
        {"levels end at their leave level", test_levels_end_at_their_leave_level, NULL, NULL, NULL},
        {"a level lasts its dwell", test_a_level_lasts_its_dwell, NULL, NULL, NULL},
        {"a fall leaves room for the rises after it",
         test_a_fall_leaves_room_for_the_rises_after_it, NULL, NULL, NULL},
        {"verdicts follow level and sum", test_verdicts, NULL, NULL, NULL},
        {"one giant changes nothing for the others", test_one_giant_changes_nothing_for_the_others,
         NULL, NULL, NULL},
        {"excess reaches down to soft's leave level", test_excess_is_down_to_soft_leave, NULL, NULL,
         NULL},
        {"delay grows from soft to hard", test_delay_grows_from_soft_to_hard, NULL, NULL, NULL},
        {"a word below zero is empty", test_a_word_below_zero_is_empty, NULL, NULL, NULL},
        {"a random walk agrees with the model", test_random_walk, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}

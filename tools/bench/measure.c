/* SPDX-License-Identifier: MIT */
/*
 * measure - laps become samples, samples become medians
 *
 *      lap lap lap ... --sum--> one sample per side and run --median--> table
 *      latency ... ----histogram--> percentiles of the run ---median--> table
 *
 * A ratio is taken within a run, where both sides met the same machine, and then
 * the median of the ratios; it need not be the ratio of the medians.
 *
 * Latencies are kept in a histogram of 32 steps per power of two: a percentile is
 * right to 3 %, the largest is exact.
 */
#include "measure.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HISTOGRAM_STEP_BITS 5
#define HISTOGRAM_STEPS     (1u << HISTOGRAM_STEP_BITS)
#define HISTOGRAM_COUNT     ((64 - HISTOGRAM_STEP_BITS + 1) * HISTOGRAM_STEPS)
#define BENCH_QUICK_PART    64
#define BENCH_QUICK_MIN     2048

struct measure_histogram {
    uint64_t counts[HISTOGRAM_COUNT];
    uint64_t count;
    uint64_t max;
};

static void *bench_alloc(size_t bytes)
{
    void *data = calloc(1, bytes);

    if (data == NULL)
        bench_check(-ENOMEM, "calloc");
    return data;
}

/* ---- Clocks ----------------------------------------------------------------- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t bench_wall_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* ---- Histogram -------------------------------------------------------------- */

static uint32_t histogram_step(uint64_t value)
{
    if (value < HISTOGRAM_STEPS)
        return (uint32_t)value;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_STEP_BITS;
    return shift * HISTOGRAM_STEPS + (uint32_t)(value >> shift);
}

static double histogram_value(uint32_t step)
{
    if (step < 2 * HISTOGRAM_STEPS)
        return step;
    uint32_t shift = step / HISTOGRAM_STEPS - 1;
    return ((double)(step % HISTOGRAM_STEPS + HISTOGRAM_STEPS) + 0.5) *
           (double)(UINT64_C(1) << shift);
}

static double histogram_percentile(const struct measure_histogram *histogram, double part)
{
    double wanted = (double)histogram->count * part;
    uint64_t seen = 0;

    for (uint32_t step = 0; step < HISTOGRAM_COUNT; step++) {
        seen += histogram->counts[step];
        if (seen > 0 && (double)seen >= wanted)
            return histogram_value(step);
    }
    return (double)histogram->max;
}

/* ---- Rows ------------------------------------------------------------------- */

struct bench_row *bench_row(struct bench *bench, const char *format, ...)
{
    char name[MEASURE_NAME_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);

    for (uint32_t i = 0; i < bench->row_count; i++) {
        struct bench_row *row = &bench->rows[i];
        if (strcmp(row->name, name) == 0 && strcmp(row->module, bench->module) == 0)
            return row;
    }
    if (bench->row_count == MEASURE_ROWS_MAX)
        bench_check(-E2BIG, "more rows than MEASURE_ROWS_MAX");

    struct bench_row *row = &bench->rows[bench->row_count++];
    memcpy(row->name, name, sizeof(name));
    row->module = bench->module;
    row->case_name = bench->c->name;
    row->clock = bench->c->clock;
    row->side_count = 1;
    return row;
}

void bench_row_bytes(struct bench_row *row, uint64_t bytes)
{
    row->bytes = bytes;
}

/* BENCH_SELF has no name. */
bool measure_is_name(const char *name, const char *other)
{
    return name == other || (name != NULL && other != NULL && strcmp(name, other) == 0);
}

/* Which side has this name; side_count: none. */
static uint32_t row_find(const struct bench_row *row, const char *name)
{
    uint32_t i = 0;

    while (i < row->side_count && !measure_is_name(row->sides[i].name, name))
        i++;
    return i;
}

static struct measure_side *row_side(struct bench_row *row, const char *name)
{
    uint32_t i = row_find(row, name);

    if (i < row->side_count)
        return &row->sides[i];
    if (row->side_count == MEASURE_SIDES_MAX)
        bench_check(-E2BIG, "more sides than MEASURE_SIDES_MAX");
    row->sides[row->side_count].name = name;
    return &row->sides[row->side_count++];
}

void bench_start(struct bench *bench)
{
    bench->lap_ns = bench->c->clock == BENCH_CPU ? bench_cpu_ns() : bench_wall_ns();
}

void bench_lap(struct bench *bench, struct bench_row *row, const char *side, uint64_t operations)
{
    uint64_t now = bench->c->clock == BENCH_CPU ? bench_cpu_ns() : bench_wall_ns();

    bench_add(row, side, now - bench->lap_ns, operations);
    bench_start(bench);
}

void bench_add(struct bench_row *row, const char *side, uint64_t ns, uint64_t operations)
{
    struct measure_side *s = row_side(row, side);

    s->ns += ns;
    s->operations += operations;
}

void bench_latency(struct bench_row *row, const char *side, uint64_t ns)
{
    struct measure_side *s = row_side(row, side);

    if (s->histogram == NULL)
        s->histogram = bench_alloc(sizeof(*s->histogram));
    s->histogram->counts[histogram_step(ns)]++;
    s->histogram->count++;
    if (ns > s->histogram->max)
        s->histogram->max = ns;
}

void bench_figure(struct bench_row *row, const char *name, double value)
{
    for (uint32_t i = 0; i < row->figure_count; i++)
        if (strcmp(row->figures[i].name, name) == 0) {
            row->figures[i].value = value;
            return;
        }
    if (row->figure_count == MEASURE_FIGURES_MAX)
        bench_check(-E2BIG, "more figures than MEASURE_FIGURES_MAX");
    row->figures[row->figure_count].name = name;
    row->figures[row->figure_count++].value = value;
}

double bench_ns(const struct bench_row *row, const char *side)
{
    uint32_t i = row_find(row, side);

    if (i == row->side_count || row->sides[i].operations == 0)
        return 0;
    return (double)row->sides[i].ns / (double)row->sides[i].operations;
}

void bench_pass_over(struct bench_row *row, const char *reason)
{
    snprintf(row->passed_over, sizeof(row->passed_over), "%s", reason);
}

/* ---- Targets ---------------------------------------------------------------- */

static void row_target(struct bench_row *row, struct measure_target target)
{
    for (uint32_t i = 0; i < row->target_count; i++)
        if (row->targets[i].measure == target.measure &&
            measure_is_name(row->targets[i].name, target.name))
            return;
    if (row->target_count == MEASURE_TARGETS_MAX)
        bench_check(-E2BIG, "more targets than MEASURE_TARGETS_MAX");
    row->targets[row->target_count++] = target;
}

void bench_at_most(struct bench_row *row, enum bench_measure measure, const char *name,
                   double limit)
{
    row_target(row, (struct measure_target){.measure = measure, .name = name, .limit = limit});
}

void bench_at_least(struct bench_row *row, enum bench_measure measure, const char *name,
                    double limit)
{
    row_target(row, (struct measure_target){
                        .measure = measure, .name = name, .is_least = true, .limit = limit});
}

/* ---- Runs ------------------------------------------------------------------- */

static void side_end_run(struct measure_side *side, uint32_t run)
{
    side->ns_each[run] = side->operations > 0 ? (double)side->ns / (double)side->operations : 0;
    side->ns = 0;
    side->operations = 0;
    if (side->histogram == NULL)
        return;
    side->has_latency = true;
    side->latency[MEASURE_P50][run] = histogram_percentile(side->histogram, 0.5);
    side->latency[MEASURE_P99][run] = histogram_percentile(side->histogram, 0.99);
    side->latency[MEASURE_P999][run] = histogram_percentile(side->histogram, 0.999);
    side->latency[MEASURE_MAX][run] = (double)side->histogram->max;
    free(side->histogram);
    side->histogram = NULL;
}

static void row_end_run(struct bench_row *row, uint32_t run)
{
    for (uint32_t i = 0; i < row->side_count; i++)
        side_end_run(&row->sides[i], run);
    for (uint32_t i = 0; i < row->figure_count; i++)
        row->figures[i].values[run] = row->figures[i].value;
}

void bench_run(struct bench *bench, const char *module, const struct bench_case *c)
{
    uint32_t row_first = bench->row_count;

    bench->module = module;
    bench->c = c;
    for (bench->run = 0; bench->run < bench->run_count; bench->run++) {
        c->run(bench);
        for (uint32_t i = row_first; i < bench->row_count; i++)
            row_end_run(&bench->rows[i], bench->run);
    }
}

struct bench *bench_create(const char *directory, uint32_t run_count, bool is_quick)
{
    struct bench *bench = bench_alloc(sizeof(*bench));

    bench->directory = directory;
    bench->run_count = run_count;
    bench->is_quick = is_quick;
    bench->rows = bench_alloc(MEASURE_ROWS_MAX * sizeof(*bench->rows));
    return bench;
}

void bench_destroy(struct bench *bench)
{
    free(bench->rows);
    free(bench);
}

const char *bench_directory(const struct bench *bench)
{
    return bench->directory;
}

uint64_t bench_count(const struct bench *bench, uint64_t count)
{
    if (!bench->is_quick || count <= BENCH_QUICK_MIN)
        return count;
    count /= BENCH_QUICK_PART;
    return count < BENCH_QUICK_MIN ? BENCH_QUICK_MIN : count;
}

void bench_check(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "weir-bench: %s: %s\n", what, strerror(-result));
    exit(2);
}

/* ---- Medians ---------------------------------------------------------------- */

static int double_order(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;

    return (left > right) - (left < right);
}

double measure_median(const double *values, uint32_t count)
{
    double sorted[BENCH_RUNS_MAX];

    memcpy(sorted, values, count * sizeof(*values));
    qsort(sorted, count, sizeof(*sorted), double_order);
    return count % 2 == 1 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

double measure_ratio(const struct bench_row *row, uint32_t side, uint32_t run_count,
                     double *ret_min, double *ret_max)
{
    double ratios[BENCH_RUNS_MAX];

    for (uint32_t run = 0; run < run_count; run++) {
        double yardstick = row->sides[side].ns_each[run];
        ratios[run] = yardstick > 0 ? row->sides[0].ns_each[run] / yardstick : 0;
        *ret_min = run == 0 || ratios[run] < *ret_min ? ratios[run] : *ret_min;
        *ret_max = run == 0 || ratios[run] > *ret_max ? ratios[run] : *ret_max;
    }
    return measure_median(ratios, run_count);
}

/* A value for each run; NULL: the row has no such side or figure. */
static const double *target_values(const struct bench_row *row, const struct measure_target *target)
{
    if (target->measure == BENCH_FIGURE) {
        for (uint32_t i = 0; i < row->figure_count; i++)
            if (strcmp(row->figures[i].name, target->name) == 0)
                return row->figures[i].values;
        return NULL;
    }
    uint32_t side = row_find(row, target->name);
    if (side == row->side_count)
        return NULL;
    if (target->measure == BENCH_P999)
        return row->sides[side].latency[MEASURE_P999];
    if (target->measure == BENCH_MAX)
        return row->sides[side].latency[MEASURE_MAX];
    return row->sides[side].ns_each;
}

double measure_target(const struct bench_row *row, const struct measure_target *target,
                      uint32_t run_count, bool *ret_met)
{
    const double *values = target_values(row, target);

    bench_check(values == NULL ? -EINVAL : 0, "a target of nothing");
    double value = measure_median(values, run_count);
    if (target->measure == BENCH_RATIO || target->measure == BENCH_SPEED) {
        double min;
        double max;
        value = measure_ratio(row, row_find(row, target->name), run_count, &min, &max);
    }
    if (target->measure == BENCH_SPEED)
        value = value > 0 ? 1 / value : 0;
    *ret_met = target->is_least ? value >= target->limit : value <= target->limit;
    return value;
}

/* SPDX-License-Identifier: MIT */
#ifndef MEASURE_H
#define MEASURE_H

/* measure - what rows are made of, for the two files that know */

#include "bench.h"

#define MEASURE_ROWS_MAX     128
#define MEASURE_SIDES_MAX    4
#define MEASURE_FIGURES_MAX  12
#define MEASURE_TARGETS_MAX  6
#define MEASURE_NAME_BYTES   64
#define MEASURE_REASON_BYTES 128

enum measure_latency {
    MEASURE_P50,
    MEASURE_P99,
    MEASURE_P999,
    MEASURE_MAX,
    MEASURE_LATENCY_COUNT,
};

struct measure_histogram;

struct measure_side {
    const char *name; /* NULL: the case itself, always the first */
    uint64_t ns;      /* of this run */
    uint64_t operations;
    struct measure_histogram *histogram; /* of this run; NULL: none */
    bool has_latency;
    double ns_each[BENCH_RUNS_MAX];
    double latency[MEASURE_LATENCY_COUNT][BENCH_RUNS_MAX];
};

struct measure_figure {
    const char *name;
    double value; /* of this run */
    double values[BENCH_RUNS_MAX];
};

struct measure_target {
    enum bench_measure measure;
    const char *name; /* of a side or a figure */
    bool is_least;    /* else it is the most */
    double limit;
};

struct bench_row {
    const char *module;
    const char *case_name;
    char name[MEASURE_NAME_BYTES];
    enum bench_clock clock;
    uint64_t bytes; /* per operation; 0: not shown */
    struct measure_side sides[MEASURE_SIDES_MAX];
    uint32_t side_count;
    struct measure_figure figures[MEASURE_FIGURES_MAX];
    uint32_t figure_count;
    struct measure_target targets[MEASURE_TARGETS_MAX];
    uint32_t target_count;
    char passed_over[MEASURE_REASON_BYTES]; /* why; empty: it was measured */
};

struct bench {
    const char *directory;
    uint32_t run_count;
    bool is_quick;
    const char *module;         /* of the present case */
    const struct bench_case *c; /* the present case */
    uint32_t run;
    uint64_t lap_ns; /* when the present lap began */
    struct bench_row *rows;
    uint32_t row_count;
};

bool measure_is_name(const char *name, const char *other);

double measure_median(const double *values, uint32_t count);

/* The median over the runs of self / yardstick, each within its run. */
double measure_ratio(const struct bench_row *row, uint32_t side, uint32_t run_count,
                     double *ret_min, double *ret_max);

/* What @target is about, median of the runs, and whether that is enough. */
double measure_target(const struct bench_row *row, const struct measure_target *target,
                      uint32_t run_count, bool *ret_met);

#endif

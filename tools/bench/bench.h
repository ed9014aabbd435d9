/* SPDX-License-Identifier: MIT */
#ifndef BENCH_H
#define BENCH_H

/*
 * bench - cases, rows, and what is measured into them
 *
 * A case is a function that is called once per run. It names its rows and tells
 * the time of each of their sides, in laps:
 *
 *      struct bench_row *row = bench_row(bench, "put 1 KiB");
 *      bench_start(bench);
 *      ... 1000 puts ...
 *      bench_lap(bench, row, BENCH_SELF, 1000);
 *      ... the same bytes by memcpy() ...
 *      bench_lap(bench, row, "memcpy", 1000);
 *
 * Laps of one side add up over a run; short ones in turn let both sides meet the
 * same noise. What is shown is the median of the runs, and beside it what the row
 * should reach, where somebody said so:
 *
 *      bench_at_most(row, BENCH_RATIO, "memcpy", 1.5);
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BENCH_RUNS_MAX 99
#define BENCH_SELF     NULL /* as a side: what the case is about, not a yardstick */

struct bench;
struct bench_row;

/* What a lap measures. */
enum bench_clock {
    BENCH_CPU,  /* time of this thread on a core: others on the machine do not count */
    BENCH_WALL, /* for what waits */
};

/* What of a row a target is about. */
enum bench_measure {
    BENCH_RATIO,  /* to the yardstick of this name */
    BENCH_SPEED,  /* the same the other way round: 1 is as fast as the yardstick */
    BENCH_NS,     /* of an operation of the side of this name, as the next two */
    BENCH_P999,   /* latency, ns */
    BENCH_MAX,    /* latency, ns */
    BENCH_FIGURE, /* of this name */
};

struct bench_case {
    const char *name; /* for --case; rows have names of their own */
    enum bench_clock clock;
    void (*run)(struct bench *bench);
};

/* Ended by a case without a name. */
extern const struct bench_case region_cases[];
extern const struct bench_case governor_cases[];
extern const struct bench_case reorder_cases[];
extern const struct bench_case writebuf_cases[];

/* ---- For cases ------------------------------------------------------------ */

const char *bench_directory(const struct bench *bench);

/* @count, or with --quick a small part of it. */
uint64_t bench_count(const struct bench *bench, uint64_t count);

/* The row of this name in the present module; made when it is first asked for. */
struct bench_row *bench_row(struct bench *bench, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* An operation of @row moves @bytes: MiB/s are shown too. */
void bench_row_bytes(struct bench_row *row, uint64_t bytes);

void bench_start(struct bench *bench);

/* Since the last start or lap, @side of @row did so many operations. */
void bench_lap(struct bench *bench, struct bench_row *row, const char *side, uint64_t operations);

/* The same, measured elsewhere. */
void bench_add(struct bench_row *row, const char *side, uint64_t ns, uint64_t operations);

/* How long one operation of @side took. */
void bench_latency(struct bench_row *row, const char *side, uint64_t ns);

/* What has no side of its own; the last of a run counts. */
void bench_figure(struct bench_row *row, const char *name, double value);

/* So much of it, median of the runs, would do; once more is the same as once. */
void bench_at_most(struct bench_row *row, enum bench_measure measure, const char *name,
                   double limit);
void bench_at_least(struct bench_row *row, enum bench_measure measure, const char *name,
                    double limit);

/* This machine or user cannot have it: the row says why instead of figures. */
void bench_pass_over(struct bench_row *row, const char *reason);

/* What an operation of @side took in this run, as far as it has come. */
double bench_ns(const struct bench_row *row, const char *side);

uint64_t bench_cpu_ns(void);
uint64_t bench_wall_ns(void);

/* Ends the program where @result is a negative errno. */
void bench_check(int result, const char *what);

/* ---- For main ------------------------------------------------------------- */

struct bench *bench_create(const char *directory, uint32_t run_count, bool is_quick);
void bench_destroy(struct bench *bench);

/* All runs of one case. */
void bench_run(struct bench *bench, const char *module, const struct bench_case *c);

void bench_print_table(const struct bench *bench);
void bench_print_json(const struct bench *bench);

#endif

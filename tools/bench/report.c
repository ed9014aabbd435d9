/* SPDX-License-Identifier: MIT */
/*
 * report - the rows as a table for people, and as JSON for programs
 *
 * Both say the same. The table has a line per yardstick, and under it what a row
 * has besides: latencies of each side, bytes per second, figures.
 */
#include "measure.h"

#include <weir/base.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const report_latency_names[MEASURE_LATENCY_COUNT] = {"p50", "p99", "p99.9",
                                                                        "max"};

static const char *report_clock(const struct bench_row *row)
{
    return row->clock == BENCH_CPU ? "cpu" : "wall";
}

static const char *report_side(const struct measure_side *side)
{
    return side->name == BENCH_SELF ? "self" : side->name;
}

static double report_rate(const struct bench_row *row, double ns)
{
    return ns > 0 ? (double)row->bytes / ns * 1e9 / (1 << 20) : 0;
}

/* ---- Table ------------------------------------------------------------------ */

static void table_yardsticks(const struct bench_row *row, uint32_t run_count)
{
    double self = measure_median(row->sides[0].ns_each, run_count);

    if (row->side_count == 1)
        printf("  %-42s %-4s %9.1f\n", row->name, report_clock(row), self);
    for (uint32_t i = 1; i < row->side_count; i++) {
        double min;
        double max;
        double ratio = measure_ratio(row, i, run_count, &min, &max);
        if (i == 1)
            printf("  %-42s %-4s %9.1f", row->name, report_clock(row), self);
        else
            printf("  %-42s %-4s %9s", "", "", "");
        printf("  %-22s %9.1f %7.2f  (%.2f-%.2f)\n", row->sides[i].name,
               measure_median(row->sides[i].ns_each, run_count), ratio, min, max);
    }
}

static void table_latency(const struct measure_side *side, uint32_t run_count)
{
    if (!side->has_latency)
        return;
    printf("      %-22s us:", report_side(side));
    for (int i = 0; i < MEASURE_LATENCY_COUNT; i++)
        printf("  %s %.1f", report_latency_names[i],
               measure_median(side->latency[i], run_count) / 1000);
    printf("\n");
}

static void table_row(const struct bench_row *row, uint32_t run_count)
{
    table_yardsticks(row, run_count);
    for (uint32_t i = 0; i < row->side_count; i++)
        table_latency(&row->sides[i], run_count);
    for (uint32_t i = 0; i < row->side_count && row->bytes > 0; i++)
        printf("%s%s %.0f", i == 0 ? "      MiB/s: " : ", ", report_side(&row->sides[i]),
               report_rate(row, measure_median(row->sides[i].ns_each, run_count)));
    if (row->bytes > 0)
        printf("\n");
    for (uint32_t i = 0; i < row->figure_count; i++)
        printf("%s%s %.3f", i == 0 ? "      " : ", ", row->figures[i].name,
               measure_median(row->figures[i].values, run_count));
    if (row->figure_count > 0)
        printf("\n");
}

void bench_print_table(const struct bench *bench)
{
    const char *module = "";

    for (uint32_t i = 0; i < bench->row_count; i++) {
        const struct bench_row *row = &bench->rows[i];
        if (strcmp(row->module, module) != 0)
            printf("%s%s, median of %" PRIu32 " runs\n  %-42s %-4s %9s  %-22s %9s %7s  %s\n",
                   i > 0 ? "\n" : "", row->module, bench->run_count, "case", "time", "ns each",
                   "beside", "ns each", "ratio", "(min-max)");
        module = row->module;
        table_row(row, bench->run_count);
    }
}

/* ---- JSON ------------------------------------------------------------------- */

/* Names are ours: plain ASCII, without quotes. */
static void json_side(const struct bench_row *row, uint32_t index, uint32_t run_count)
{
    const struct measure_side *side = &row->sides[index];
    double ns = measure_median(side->ns_each, run_count);
    const char *comma = "";

    printf("{\"name\":\"%s\",\"ns\":%.3f", report_side(side), ns);
    if (index > 0) {
        double min;
        double max;
        double ratio = measure_ratio(row, index, run_count, &min, &max);
        printf(",\"ratio\":%.4f,\"ratio_min\":%.4f,\"ratio_max\":%.4f", ratio, min, max);
    }
    if (row->bytes > 0)
        printf(",\"mib_per_s\":%.3f", report_rate(row, ns));
    if (side->has_latency) {
        printf(",\"latency_ns\":{");
        for (int i = 0; i < MEASURE_LATENCY_COUNT; i++, comma = ",")
            printf("%s\"%s\":%.0f", comma, report_latency_names[i],
                   measure_median(side->latency[i], run_count));
        printf("}");
    }
    printf("}");
}

static void json_row(const struct bench_row *row, uint32_t run_count)
{
    printf("{\"module\":\"%s\",\"case\":\"%s\",\"row\":\"%s\",\"time\":\"%s\",\"sides\":[",
           row->module, row->case_name, row->name, report_clock(row));
    for (uint32_t i = 0; i < row->side_count; i++) {
        printf("%s", i > 0 ? "," : "");
        json_side(row, i, run_count);
    }
    printf("],\"figures\":{");
    for (uint32_t i = 0; i < row->figure_count; i++)
        printf("%s\"%s\":%.4f", i > 0 ? "," : "", row->figures[i].name,
               measure_median(row->figures[i].values, run_count));
    printf("}}");
}

void bench_print_json(const struct bench *bench)
{
    printf("{\"version\":\"%s\",\"runs\":%" PRIu32 ",\"rows\":[", weir_version(), bench->run_count);
    for (uint32_t i = 0; i < bench->row_count; i++) {
        printf("%s\n", i > 0 ? "," : "");
        json_row(&bench->rows[i], bench->run_count);
    }
    printf("\n]}\n");
}

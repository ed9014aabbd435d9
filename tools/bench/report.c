/* SPDX-License-Identifier: MIT */
/*
 * report - the rows as a table for people, and as JSON for programs
 *
 * Both say the same. The table has a line per yardstick, and under it what a row
 * has besides: latencies of each side, bytes per second, figures. In its last
 * column stands what should be reached, beside the value that it is about.
 */
#include "measure.h"

#include <weir/base.h>

#include <inttypes.h>
#include <stdarg.h>
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

#define TABLE_TARGET_COLUMN 122
#define TABLE_RANGE_WIDTH   15
#define TABLE_LINE_BYTES    256

/* A line under construction: targets begin in one column. */
struct table_line {
    char text[TABLE_LINE_BYTES];
    int length;
};

static void line_print(struct table_line *line, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void line_print(struct table_line *line, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line->text + line->length, (size_t)(TABLE_LINE_BYTES - line->length),
                           format, arguments);
    va_end(arguments);
    line->length += length;
    if (line->length > TABLE_LINE_BYTES - 1)
        line->length = TABLE_LINE_BYTES - 1;
}

static void line_end(struct table_line *line)
{
    printf("%s\n", line->text);
    *line = (struct table_line){.length = 0};
}

/* Latencies are ns inside and us for people. */
static double target_shown(const struct measure_target *target)
{
    bool is_latency = target->measure == BENCH_P999 || target->measure == BENCH_MAX;

    return is_latency ? target->limit / 1000 : target->limit;
}

static const char *target_prefix(const struct measure_target *target)
{
    switch (target->measure) {
    case BENCH_SPEED:
        return "speed ";
    case BENCH_NS:
        return "ns ";
    case BENCH_P999:
        return "p99.9 ";
    case BENCH_MAX:
        return "max ";
    case BENCH_RATIO:
    case BENCH_FIGURE:
        break;
    }
    return "";
}

/* The target of this kind and name, if the row has one. */
static void line_target(struct table_line *line, const struct bench_row *row, uint32_t run_count,
                        enum bench_measure measure, const char *name)
{
    for (uint32_t i = 0; i < row->target_count; i++) {
        const struct measure_target *target = &row->targets[i];
        bool is_met;
        if (target->measure != measure || !measure_is_name(target->name, name))
            continue;
        (void)measure_target(row, target, run_count, &is_met);
        if (line->length < TABLE_TARGET_COLUMN)
            line_print(line, "%*s", TABLE_TARGET_COLUMN - line->length, "");
        line_print(line, "  %s%s %g: %s", target_prefix(target),
                   target->is_least ? ">=" : "<=", target_shown(target),
                   is_met ? "met" : "NOT MET");
    }
}

static void table_yardsticks(const struct bench_row *row, uint32_t run_count)
{
    double self = measure_median(row->sides[0].ns_each, run_count);
    struct table_line line = {.length = 0};

    line_print(&line, "  %-42s %-4s %9.1f", row->name, report_clock(row), self);
    for (uint32_t i = 1; i < row->side_count; i++) {
        const char *name = row->sides[i].name;
        double min;
        double max;
        double ratio = measure_ratio(row, i, run_count, &min, &max);
        if (i > 1)
            line_print(&line, "  %-42s %-4s %9s", "", "", "");
        line_print(&line, "  %-24s %9.1f %7.2f  (%.2f-%.2f)", name,
                   measure_median(row->sides[i].ns_each, run_count), ratio, min, max);
        if (i == 1)
            line_target(&line, row, run_count, BENCH_NS, BENCH_SELF);
        line_target(&line, row, run_count, BENCH_RATIO, name);
        line_target(&line, row, run_count, BENCH_SPEED, name);
        line_end(&line);
    }
    if (row->side_count == 1) {
        line_target(&line, row, run_count, BENCH_NS, BENCH_SELF);
        line_end(&line);
    }
}

static void table_latency(const struct bench_row *row, uint32_t index, uint32_t run_count)
{
    const struct measure_side *side = &row->sides[index];
    struct table_line line = {.length = 0};

    if (!side->has_latency)
        return;
    line_print(&line, "      %-24s us:", report_side(side));
    for (int i = 0; i < MEASURE_LATENCY_COUNT; i++)
        line_print(&line, "  %s %.1f", report_latency_names[i],
                   measure_median(side->latency[i], run_count) / 1000);
    line_target(&line, row, run_count, BENCH_P999, side->name);
    line_target(&line, row, run_count, BENCH_MAX, side->name);
    line_end(&line);
}

static void table_rates(const struct bench_row *row, uint32_t run_count)
{
    if (row->bytes == 0)
        return;
    for (uint32_t i = 0; i < row->side_count; i++)
        printf("%s%s %.0f", i == 0 ? "      MiB/s: " : ", ", report_side(&row->sides[i]),
               report_rate(row, measure_median(row->sides[i].ns_each, run_count)));
    printf("\n");
}

static void table_figures(const struct bench_row *row, uint32_t run_count)
{
    for (uint32_t i = 0; i < row->figure_count; i++) {
        const struct measure_figure *figure = &row->figures[i];
        struct table_line line = {.length = 0};
        line_print(&line, "      %-44s %14.3f", figure->name,
                   measure_median(figure->values, run_count));
        line_target(&line, row, run_count, BENCH_FIGURE, figure->name);
        line_end(&line);
    }
}

static void table_row(const struct bench_row *row, uint32_t run_count)
{
    if (row->passed_over[0] != '\0') {
        printf("  %-42s passed over: %s\n", row->name, row->passed_over);
        return;
    }
    table_yardsticks(row, run_count);
    for (uint32_t i = 0; i < row->side_count; i++)
        table_latency(row, i, run_count);
    table_rates(row, run_count);
    table_figures(row, run_count);
}

void bench_print_table(const struct bench *bench)
{
    const char *module = "";

    for (uint32_t i = 0; i < bench->row_count; i++) {
        const struct bench_row *row = &bench->rows[i];
        if (strcmp(row->module, module) != 0)
            printf("%s%s, median of %" PRIu32 " runs\n  %-42s %-4s %9s  %-24s %9s %7s  %-*s  %s\n",
                   i > 0 ? "\n" : "", row->module, bench->run_count, "case", "time", "ns each",
                   "beside", "ns each", "ratio", TABLE_RANGE_WIDTH, "(min-max)", "target");
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

static void json_target(const struct bench_row *row, const struct measure_target *target,
                        uint32_t run_count)
{
    static const char *const measures[] = {
        [BENCH_RATIO] = "ratio", [BENCH_SPEED] = "speed", [BENCH_NS] = "ns",
        [BENCH_P999] = "p99.9",  [BENCH_MAX] = "max",     [BENCH_FIGURE] = "figure",
    };
    bool is_met;
    double value = measure_target(row, target, run_count, &is_met);

    printf("{\"of\":\"%s\"", measures[target->measure]);
    if (target->name != NULL)
        printf(",\"name\":\"%s\"", target->name);
    printf(",\"value\":%.4f,\"%s\":%.4f,\"met\":%s}", value,
           target->is_least ? "at_least" : "at_most", target->limit, is_met ? "true" : "false");
}

static void json_row(const struct bench_row *row, uint32_t run_count)
{
    printf("{\"module\":\"%s\",\"case\":\"%s\",\"row\":\"%s\",\"time\":\"%s\",", row->module,
           row->case_name, row->name, report_clock(row));
    if (row->passed_over[0] != '\0') {
        printf("\"passed_over\":\"%s\"}", row->passed_over);
        return;
    }
    printf("\"sides\":[");
    for (uint32_t i = 0; i < row->side_count; i++) {
        printf("%s", i > 0 ? "," : "");
        json_side(row, i, run_count);
    }
    printf("],\"figures\":{");
    for (uint32_t i = 0; i < row->figure_count; i++)
        printf("%s\"%s\":%.4f", i > 0 ? "," : "", row->figures[i].name,
               measure_median(row->figures[i].values, run_count));
    printf("},\"targets\":[");
    for (uint32_t i = 0; i < row->target_count; i++) {
        printf("%s", i > 0 ? "," : "");
        json_target(row, &row->targets[i], run_count);
    }
    printf("]}");
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

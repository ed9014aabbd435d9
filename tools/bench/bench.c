/* SPDX-License-Identifier: MIT */
/*
 * weir-bench - what each module costs, beside what cannot be avoided
 *
 * The cases are in a file per module; here are the options and the order. All
 * seeds are fixed: two runs of a case do the same operations.
 */
#include "bench.h"

#include <weir/base.h>

#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BENCH_RUNS_DEFAULT 5

struct bench_options {
    const char *module; /* NULL: all */
    const char *directory;
    const char *only;   /* the name of a case, or part of it; NULL: all */
    bool is_only_exact; /* some case has just that name */
    uint32_t run_count;
    bool json;
    bool quick;
    bool list;
};

static const struct bench_module {
    const char *name;
    const struct bench_case *cases;
} bench_modules[] = {
    {"region", region_cases},
    {"governor", governor_cases},
    {"reorder", reorder_cases},
    {"writebuf", writebuf_cases},
};

#define BENCH_MODULE_COUNT (sizeof(bench_modules) / sizeof(bench_modules[0]))

const char *argp_program_version = "weir-bench " WEIR_VERSION;

/* ---- Options ---------------------------------------------------------------- */

static bool bench_is_module(const char *name)
{
    for (size_t i = 0; i < BENCH_MODULE_COUNT; i++)
        if (strcmp(bench_modules[i].name, name) == 0)
            return true;
    return false;
}

static uint32_t bench_number(struct argp_state *state, const char *text)
{
    char *end;

    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > BENCH_RUNS_MAX)
        argp_error(state, "not a number from 1 to %d: %s", BENCH_RUNS_MAX, text);
    return (uint32_t)value;
}

static error_t bench_parse(int key, char *argument, struct argp_state *state)
{
    struct bench_options *options = state->input;

    switch (key) {
    case 'j':
        options->json = true;
        return 0;
    case 'n':
        options->run_count = bench_number(state, argument);
        return 0;
    case 'd':
        options->directory = argument;
        return 0;
    case 'c':
        options->only = argument;
        return 0;
    case 'q':
        options->quick = true;
        return 0;
    case 'l':
        options->list = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one module, or all");
        if (strcmp(argument, "all") == 0)
            return 0;
        if (!bench_is_module(argument))
            argp_error(state, "no module %s", argument);
        options->module = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option bench_option_list[] = {
    {"runs", 'n', "N", 0, "Runs of each case, of which the median is shown (5)", 0},
    {"directory", 'd', "DIR", 0, "Where the files of regions lie ($TMPDIR, or /var/tmp)", 0},
    {"case", 'c', "TEXT", 0, "Only the case TEXT, or else those with TEXT in their name", 0},
    {"quick", 'q', NULL, 0, "Few operations: to see that it runs, not how fast", 0},
    {"json", 'j', NULL, 0, "Write JSON", 1},
    {"list", 'l', NULL, 0, "Name the cases and end", 1},
    {NULL, 0, NULL, 0, NULL, 0},
};

static const struct argp bench_argp = {
    .options = bench_option_list,
    .parser = bench_parse,
    .args_doc = "[region|governor|reorder|writebuf|all]",
    .doc = "Measure the modules of weir, each beside a plain memcpy of the same bytes or "
           "another yardstick, in turn in the same run.",
};

/* ---- The cases -------------------------------------------------------------- */

static bool bench_is_case(const char *name)
{
    for (size_t i = 0; i < BENCH_MODULE_COUNT; i++)
        for (const struct bench_case *c = bench_modules[i].cases; c->name != NULL; c++)
            if (strcmp(c->name, name) == 0)
                return true;
    return false;
}

static bool bench_is_wanted(const struct bench_options *options, const struct bench_case *c)
{
    if (options->only == NULL)
        return true;
    if (options->is_only_exact)
        return strcmp(c->name, options->only) == 0;
    return strstr(c->name, options->only) != NULL;
}

static void bench_case(const struct bench_options *options, struct bench *bench, const char *module,
                       const struct bench_case *c)
{
    if (!bench_is_wanted(options, c))
        return;
    if (options->list) {
        printf("%s: %s\n", module, c->name);
        return;
    }
    bench_run(bench, module, c);
}

int main(int argc, char **argv)
{
    const char *temporary = getenv("TMPDIR");
    struct bench_options options = {
        .directory = temporary != NULL ? temporary : "/var/tmp",
        .run_count = BENCH_RUNS_DEFAULT,
    };

    argp_err_exit_status = 2;
    argp_parse(&bench_argp, argc, argv, 0, NULL, &options);
    options.is_only_exact = options.only != NULL && bench_is_case(options.only);

    struct bench *bench = bench_create(options.directory, options.run_count, options.quick);
    for (size_t i = 0; i < BENCH_MODULE_COUNT; i++) {
        const struct bench_module *module = &bench_modules[i];
        if (options.module != NULL && strcmp(module->name, options.module) != 0)
            continue;
        for (const struct bench_case *c = module->cases; c->name != NULL; c++)
            bench_case(&options, bench, module->name, c);
    }
    if (options.list)
        ;
    else if (options.json)
        bench_print_json(bench);
    else
        bench_print_table(bench);
    bench_destroy(bench);

    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "weir-bench: standard output: %s\n", strerror(errno));
        return 2;
    }
    return 0;
}

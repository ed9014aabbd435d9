/* SPDX-License-Identifier: MIT */
/*
 * weir-dump - look into the live regions of a process, or into a named one
 *
 * All that is known comes through weir/view.h, read-only and without the help of
 * the owner, who is not stopped, not slowed and not told. Payload is shown only
 * on request (--slot), and read only for that and for --verify.
 */
#include "json.h"
#include "listing.h"
#include "picture.h"
#include "terminal.h"

#include <weir/view.h>

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DUMP_REGIONS_MAX  4096
#define DUMP_SCREEN_BYTES (1 << 16)

/* What the process ends with; a bad slot outweighs trouble elsewhere. */
enum dump_exit {
    DUMP_GOOD = 0,
    DUMP_BAD_SLOT = 1, /* --verify found one */
    DUMP_TROUBLE = 2,  /* it could not look: usage, no such process, no region */
};

struct dump_options {
    const char *file; /* NULL: those of pid */
    pid_t pid;
    long region; /* -1: all */
    long slot;   /* 0: none */
    long top;    /* seconds between two looks; 0: one look */
    bool slots;
    bool free;
    bool histogram;
    bool map;
    bool verify;
    bool json;
};

const char *argp_program_version = "weir-dump " WEIR_VERSION;

/* ---- Options ---------------------------------------------------------------- */

static long dump_number(struct argp_state *state, const char *text, long min, long max)
{
    char *end;

    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min || value > max)
        argp_error(state, "not a number from %ld to %ld: %s", min, max, text);
    return value;
}

static error_t dump_parse(int key, char *argument, struct argp_state *state)
{
    struct dump_options *options = state->input;

    switch (key) {
    case 'p':
        options->pid = (pid_t)dump_number(state, argument, 1, INT_MAX);
        return 0;
    case 'r':
        options->region = dump_number(state, argument, 0, DUMP_REGIONS_MAX - 1);
        return 0;
    case 'i':
        options->slot = dump_number(state, argument, 1, UINT32_MAX);
        return 0;
    case 's':
        options->slots = true;
        return 0;
    case 'f':
        options->free = true;
        return 0;
    case 'g':
        options->histogram = true;
        return 0;
    case 'm':
        options->map = true;
        return 0;
    case 'c':
        options->verify = true;
        return 0;
    case 'j':
        options->json = true;
        return 0;
    case 't':
        options->top = argument == NULL ? 1 : dump_number(state, argument, 1, 3600);
        options->map = true;
        return 0;
    case ARGP_KEY_ARG:
        if (options->file != NULL)
            argp_error(state, "one file at a time");
        options->file = argument;
        return 0;
    case ARGP_KEY_END:
        if ((options->pid == 0) == (options->file == NULL))
            argp_error(state, "either --pid or a file");
        if (options->json && (options->histogram || options->slot > 0))
            argp_error(state, "--json shows neither --histogram nor --slot");
        if (options->json && options->top > 0)
            argp_error(state, "--json is one look, --top is many");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option dump_option_list[] = {
    {"pid", 'p', "PID", 0, "The process to look into", 0},
    {"region", 'r', "N", 0, "Only its region N, counted from 0", 0},
    {"slots", 's', NULL, 0, "List the live slots", 1},
    {"free", 'f', NULL, 0, "List the free extents", 1},
    {"histogram", 'g', NULL, 0, "Count slots and free extents by length", 1},
    {"map", 'm', NULL, 0, "Draw the file, one cell per chunk or group of chunks", 1},
    {"slot", 'i', "INDEX", 0, "Show the bytes of one slot", 1},
    {"verify", 'c', NULL, 0, "Compare every slot with its checksum; exit 1 if one is bad", 2},
    {"json", 'j', NULL, 0, "Write JSON, with what --slots, --free, --map and --verify ask for", 3},
    {"top", 't', "SECONDS", OPTION_ARG_OPTIONAL,
     "Draw the map again every second, or every SECONDS, until the process ends or q is read", 3},
    {NULL, 0, NULL, 0, NULL, 0},
};

static const struct argp dump_argp = {
    .options = dump_option_list,
    .parser = dump_parse,
    .args_doc = "[NAME.weir]",
    .doc = "Look into the live weir regions of a process, without disturbing it, or into a "
           "named region, whether it has an owner or not.",
};

/* ---- Regions ---------------------------------------------------------------- */

static const char *dump_reason(int error)
{
    switch (error) {
    case -EBADMSG:
        return "these are no tables of a region";
    case -EPROTONOSUPPORT:
        return "tables of another version of weir";
    case -EAGAIN:
        return "it is just being made";
    default:
        return strerror(-error);
    }
}

static enum dump_exit dump_region(const struct dump_options *options,
                                  const struct terminal *terminal, const struct weir_view *view,
                                  size_t region)
{
    struct verdict verdict = {0};

    if (options->json) {
        struct json_wanted wanted = {
            .slots = options->slots,
            .free = options->free,
            .chunks = options->map,
            .verify = options->verify,
        };
        json_region(view, region, &wanted, &verdict);
        return verdict.bad > 0 ? DUMP_BAD_SLOT : DUMP_GOOD;
    }

    listing_summary(view, region);
    if (options->map) {
        putchar('\n');
        picture_draw(view, terminal);
    }
    if (options->slots) {
        putchar('\n');
        listing_slots(view);
    }
    if (options->free) {
        putchar('\n');
        listing_free(view);
    }
    if (options->histogram) {
        putchar('\n');
        listing_histogram(view);
    }
    if (options->slot > 0) {
        putchar('\n');
        int r = listing_hex(view, (uint32_t)options->slot);
        if (r < 0) {
            fprintf(stderr, "weir-dump: region %zu slot %ld: %s\n", region, options->slot,
                    r == -EINVAL || r == -ENOENT ? "there is no such slot" : strerror(-r));
            return DUMP_TROUBLE;
        }
    }
    if (options->verify) {
        putchar('\n');
        listing_verdict(view, region, &verdict);
    }
    return verdict.bad > 0 ? DUMP_BAD_SLOT : DUMP_GOOD;
}

static enum dump_exit dump_all(const struct dump_options *options, const struct terminal *terminal,
                               const int *fds, size_t fd_count)
{
    enum dump_exit worst = DUMP_GOOD;
    bool first = true;

    for (size_t region = 0; region < fd_count; region++) {
        struct weir_view *view;
        if (options->region >= 0 && (size_t)options->region != region)
            continue;
        int r = weir_view_open(options->pid, fds[region], &view);
        if (r < 0) {
            if (options->file != NULL)
                fprintf(stderr, "weir-dump: %s: %s\n", options->file, dump_reason(r));
            else
                fprintf(stderr, "weir-dump: region %zu of process %ld: %s\n", region,
                        (long)options->pid, dump_reason(r));
            if (worst == DUMP_GOOD)
                worst = DUMP_TROUBLE;
            continue;
        }
        if (!first)
            printf(options->json ? ",\n" : "\n");
        first = false;
        enum dump_exit result = dump_region(options, terminal, view, region);
        if (result != DUMP_GOOD && worst != DUMP_BAD_SLOT)
            worst = result;
        weir_view_close(view);
    }
    return worst;
}

/* ---- Looks ------------------------------------------------------------------ */

static enum dump_exit dump_found(const struct dump_options *options,
                                 const struct terminal *terminal, const int *fds, size_t count)
{
    if (options->json)
        printf("{\"pid\":%ld,\"regions\":[\n", (long)options->pid);
    enum dump_exit result = dump_all(options, terminal, fds, count);
    if (options->json)
        printf("\n]}\n");
    return result;
}

/* A named region: the file of its tables. A pipe is not waited for. */
static enum dump_exit dump_file(const struct dump_options *options, const struct terminal *terminal)
{
    int fd = open(options->file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0) {
        fprintf(stderr, "weir-dump: %s: %s\n", options->file, strerror(errno));
        return DUMP_TROUBLE;
    }
    enum dump_exit result = dump_found(options, terminal, &fd, 1);
    close(fd);
    return result;
}

/* One look at all of it. */
static enum dump_exit dump_process(const struct dump_options *options,
                                   const struct terminal *terminal)
{
    static int fds[DUMP_REGIONS_MAX];

    if (options->file != NULL)
        return dump_file(options, terminal);
    int found = weir_view_scan(options->pid, fds, DUMP_REGIONS_MAX);
    if (found < 0) {
        fprintf(stderr, "weir-dump: process %ld: %s\n", (long)options->pid,
                found == -ENOENT ? "there is no such process" : strerror(-found));
        return DUMP_TROUBLE;
    }
    if (found > DUMP_REGIONS_MAX)
        found = DUMP_REGIONS_MAX;
    if (options->region >= found || found == 0) {
        fprintf(stderr, "weir-dump: process %ld has %d regions\n", (long)options->pid, found);
        return DUMP_TROUBLE;
    }

    return dump_found(options, terminal, fds, (size_t)found);
}

/* Whether the reader said q, or went away, before the next look is due. */
static bool dump_is_quit(long seconds)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char byte;

    if (poll(&input, 1, (int)seconds * 1000) <= 0)
        return false;
    return read(STDIN_FILENO, &byte, 1) <= 0 || byte == 'q';
}

static bool dump_is_there(pid_t pid)
{
    return weir_view_scan(pid, NULL, 0) >= 0;
}

/* The end of the process is no trouble: what counts is what was seen last. */
static enum dump_exit dump_again_and_again(const struct dump_options *options,
                                           const struct terminal *terminal)
{
    setvbuf(stdout, NULL, _IOFBF, DUMP_SCREEN_BYTES); /* a screen at once does not flicker */
    for (;;) {
        if (terminal->coloured)
            printf("\033[H\033[J");
        enum dump_exit result = dump_process(options, terminal);
        if (fflush(stdout) != 0 || !dump_is_there(options->pid) || dump_is_quit(options->top) ||
            !dump_is_there(options->pid))
            return result;
    }
}

int main(int argc, char **argv)
{
    struct dump_options options = {.region = -1};
    struct terminal terminal;

    argp_err_exit_status = DUMP_TROUBLE;
    argp_parse(&dump_argp, argc, argv, 0, NULL, &options);
    terminal_init(&terminal);

    enum dump_exit result = options.top > 0 ? dump_again_and_again(&options, &terminal)
                                            : dump_process(&options, &terminal);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "weir-dump: standard output: %s\n", strerror(errno));
        return DUMP_TROUBLE;
    }
    return result;
}

/* SPDX-License-Identifier: MIT */
/*
 * terminal - colour only where a person looks
 *
 * A pipe, a file, TERM=dumb and NO_COLOR (https://no-color.org) get plain ASCII
 * in 80 columns, so that what a script reads does not depend on who started it.
 */
#include "terminal.h"

#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TERMINAL_WIDTH_DEFAULT 80
#define TERMINAL_WIDTH_MIN     40
#define TERMINAL_WIDTH_MAX     240

static bool terminal_is_set(const char *name)
{
    const char *value = getenv(name);

    return value != NULL && *value != '\0';
}

void terminal_init(struct terminal *terminal)
{
    struct winsize window;
    bool is_terminal = isatty(STDOUT_FILENO) == 1;

    *terminal = (struct terminal){.width = TERMINAL_WIDTH_DEFAULT};
    if (is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0)
        terminal->width = window.ws_col;
    if (terminal->width < TERMINAL_WIDTH_MIN)
        terminal->width = TERMINAL_WIDTH_MIN;
    if (terminal->width > TERMINAL_WIDTH_MAX)
        terminal->width = TERMINAL_WIDTH_MAX;

    const char *name = getenv("TERM");
    terminal->coloured =
        is_terminal && !terminal_is_set("NO_COLOR") && name != NULL && strcmp(name, "dumb") != 0;
    setlocale(LC_CTYPE, "");
    terminal->unicode = terminal->coloured && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

const char *terminal_bytes(uint64_t bytes, char text[TERMINAL_BYTES_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(text, TERMINAL_BYTES_MAX, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

const char *terminal_chunk_state(enum weir_chunk_state state)
{
    switch (state) {
    case WEIR_CHUNK_NONE:
        return "none";
    case WEIR_CHUNK_FRESH:
        return "fresh";
    case WEIR_CHUNK_DIRTY:
        return "dirty";
    case WEIR_CHUNK_WRITING:
        return "writing";
    case WEIR_CHUNK_CLEAN:
        return "clean";
    case WEIR_CHUNK_COLD:
        return "cold";
    case WEIR_CHUNK_FILLING:
        return "filling";
    case WEIR_CHUNK_HOLE:
        return "hole";
    }
    return "?";
}

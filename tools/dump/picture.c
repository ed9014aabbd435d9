/* SPDX-License-Identifier: MIT */
/*
 * picture - where the file is hot, where it is empty
 *
 *      0 B      |DDDDWWCCCCooooooooOOOOOOoooo|
 *      56.0 MiB |OOOOOOOOOO....              |
 *
 * The state of a cell is its colour, the share of it that is live its height
 * (eighths of a block). Without colour the state is a letter, a capital if half
 * or more is live. A cell of many chunks shows the state that most of them have;
 * among equals the one that costs more.
 */
#include "picture.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PICTURE_LABEL_WIDTH 11
#define PICTURE_ROWS_MAX    24
#define PICTURE_STATES      (WEIR_CHUNK_HOLE + 1)
#define PICTURE_GRADES      9 /* nothing live, and eight eighths */

/* In the order in which a cell shows one rather than another, and of the legend. */
static const struct picture_style {
    enum weir_chunk_state state;
    char letter;
    int foreground; /* of the 256 colours */
    int background;
} picture_styles[] = {
    {WEIR_CHUNK_DIRTY, 'D', 209, 52},   {WEIR_CHUNK_WRITING, 'W', 221, 58},
    {WEIR_CHUNK_FILLING, 'F', 177, 53}, {WEIR_CHUNK_CLEAN, 'C', 114, 22},
    {WEIR_CHUNK_COLD, 'O', 75, 17},     {WEIR_CHUNK_FRESH, '.', 242, 233},
    {WEIR_CHUNK_HOLE, '_', 242, 16},
};
#define PICTURE_STYLES (sizeof(picture_styles) / sizeof(picture_styles[0]))

static const char *const picture_blocks[PICTURE_GRADES] = {
    " ", "\u2581", "\u2582", "\u2583", "\u2584", "\u2585", "\u2586", "\u2587", "\u2588"};

/* One cell: how many chunks of each state, and their live bytes. */
struct picture_cell {
    uint64_t counts[PICTURE_STATES];
    uint64_t chunk_count;
    uint64_t live_bytes;
};

static void picture_look(const struct weir_view *view, uint64_t first, uint64_t count,
                         struct picture_cell *ret_cell)
{
    *ret_cell = (struct picture_cell){0};
    for (uint64_t index = first; index < first + count; index++) {
        struct weir_view_chunk chunk;
        if (weir_view_chunk(view, index, &chunk) < 0 || chunk.state == WEIR_CHUNK_NONE)
            continue;
        ret_cell->counts[chunk.state]++;
        ret_cell->chunk_count++;
        ret_cell->live_bytes += chunk.live_bytes;
    }
}

static const struct picture_style *picture_style_of(const struct picture_cell *cell)
{
    const struct picture_style *best = &picture_styles[0];

    for (size_t i = 1; i < PICTURE_STYLES; i++)
        if (cell->counts[picture_styles[i].state] > cell->counts[best->state])
            best = &picture_styles[i];
    return best;
}

/* 0: nothing is live; 8: all of it. */
static int picture_grade(const struct picture_cell *cell)
{
    uint64_t bytes = cell->chunk_count * WEIR_CHUNK_BYTES;

    if (cell->live_bytes == 0 || bytes == 0)
        return 0;
    uint64_t grade = (cell->live_bytes * (PICTURE_GRADES - 1) + bytes / 2) / bytes;
    if (grade == 0)
        return 1;
    return grade < PICTURE_GRADES ? (int)grade : PICTURE_GRADES - 1;
}

static void picture_paint(const struct picture_style *style)
{
    printf("\033[38;5;%d;48;5;%dm", style->foreground, style->background);
}

/* @last: the style that the terminal is in; NULL: none */
static void picture_cell(const struct terminal *terminal, const struct picture_cell *cell,
                         const struct picture_style **last)
{
    if (cell->chunk_count == 0) {
        if (terminal->coloured && *last != NULL)
            printf("\033[0m");
        *last = NULL;
        putchar(' ');
        return;
    }

    const struct picture_style *style = picture_style_of(cell);
    int grade = picture_grade(cell);
    if (terminal->coloured && style != *last)
        picture_paint(style);
    *last = style;

    if (terminal->unicode && style->state == WEIR_CHUNK_FRESH)
        printf("\u00b7");
    else if (terminal->unicode)
        printf("%s", picture_blocks[grade]);
    else
        putchar(grade >= PICTURE_GRADES / 2 ? style->letter : tolower(style->letter));
}

static void picture_memory(const struct weir_view_summary *summary, const struct terminal *terminal,
                           size_t width)
{
    char now[TERMINAL_BYTES_MAX];
    char most[TERMINAL_BYTES_MAX];
    uint64_t max = summary->resident_bytes_max;

    if (max == 0 || max == UINT64_MAX)
        return;

    uint64_t cells =
        summary->resident_bytes >= max
            ? width
            : (uint64_t)((double)summary->resident_bytes / (double)max * (double)width);
    printf("%-*s", PICTURE_LABEL_WIDTH, "memory");
    if (terminal->coloured)
        printf("\033[38;5;%dm", summary->resident_bytes > max ? 203 : 114);
    for (size_t i = 0; i < width; i++)
        if (terminal->unicode)
            printf("%s", i < cells ? "\u2588" : "\u2591");
        else
            putchar(i < cells ? '#' : '-');
    if (terminal->coloured)
        printf("\033[0m");
    printf(" %s of %s\n", terminal_bytes(summary->resident_bytes, now), terminal_bytes(max, most));
}

static void picture_legend(const struct terminal *terminal, const struct picture_cell *all,
                           uint64_t group)
{
    size_t column = PICTURE_LABEL_WIDTH;
    char text[64];

    printf("%-*s", PICTURE_LABEL_WIDTH, "");
    for (size_t i = 0; i < PICTURE_STYLES; i++) {
        const struct picture_style *style = &picture_styles[i];
        if (all->counts[style->state] == 0)
            continue;
        snprintf(text, sizeof(text), "%s %" PRIu64, terminal_chunk_state(style->state),
                 all->counts[style->state]);
        if (column + strlen("   # ") + strlen(text) > terminal->width) {
            printf("\n%-*s", PICTURE_LABEL_WIDTH, "");
            column = PICTURE_LABEL_WIDTH;
        } else if (column > PICTURE_LABEL_WIDTH) {
            printf("   ");
            column += strlen("   ");
        }
        if (terminal->coloured)
            picture_paint(style);
        if (terminal->unicode)
            printf("%s", style->state == WEIR_CHUNK_FRESH ? "\u00b7" : "\u2585");
        else
            putchar(style->letter);
        printf("%s %s", terminal->coloured ? "\033[0m" : "", text);
        column += strlen("# ") + strlen(text);
    }
    printf("\n%-*sa cell is %s; %s\n", PICTURE_LABEL_WIDTH, "",
           terminal_bytes(group * WEIR_CHUNK_BYTES, text),
           terminal->unicode ? "its height is what is live" : "a capital is half live, or more");
}

void picture_draw(const struct weir_view *view, const struct terminal *terminal)
{
    struct weir_view_summary summary;
    struct picture_cell all;
    size_t width = terminal->width - PICTURE_LABEL_WIDTH - 1;
    uint64_t group = 1;

    weir_view_summary(view, &summary);
    while (summary.chunk_count > group * width * PICTURE_ROWS_MAX)
        group *= 2;
    if (width > 8 && group * (width - width % 8) * PICTURE_ROWS_MAX >= summary.chunk_count)
        width -= width % 8; /* so that rows begin at round offsets */

    picture_memory(&summary, terminal, width > 64 ? 32 : width / 2);
    for (uint64_t row = 0; row < summary.chunk_count; row += group * width) {
        const struct picture_style *last = NULL;
        char label[TERMINAL_BYTES_MAX];
        printf("%-*s", PICTURE_LABEL_WIDTH, terminal_bytes(row * WEIR_CHUNK_BYTES, label));
        for (size_t i = 0; i < width && row + i * group < summary.chunk_count; i++) {
            struct picture_cell cell;
            picture_look(view, row + i * group, group, &cell);
            picture_cell(terminal, &cell, &last);
        }
        printf("%s\n", terminal->coloured ? "\033[0m" : "");
    }
    picture_look(view, 0, summary.chunk_count, &all);
    picture_legend(terminal, &all, group);
}

/* SPDX-License-Identifier: MIT */
/*
 * limits - the walk from our cgroup to the root
 *
 *      /proc/self/cgroup       which group we are in:    4:memory:/app/one
 *      /proc/self/mountinfo    where that tree is seen:  /  /sys/fs/cgroup/memory
 *      <mount>/app/one, <mount>/app, <mount>             a limit in each, or none
 *
 * A limit holds for all that is below it, so the smallest on the way counts.
 * Inside a container the mount may show only our own part of the tree, and
 * inside a cgroup namespace our path may begin above it: what is not visible
 * cannot be read. v1 tells of it nevertheless, as hierarchical_memory_limit.
 *
 * v2's memory.high counts as a limit too: above it the kernel makes the process
 * sleep in every allocation, which is what weir is to prevent.
 *
 * A file that is not there is no limit: RAM remains. One that is there and cannot be
 * read, or holds something else than it should, is none either, but it is told: the
 * first such error, -EBADMSG for what is not understood. A number that is larger than
 * any limit of ours may be is understood: there is none, as v1 says with 2^63 less a
 * page.
 */
#include "governor/limits.h"

#include "base/bits.h"
#include "base/heap.h"
#include "base/sys.h"
#include "governor/budget.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMITS_TEXT_BYTES (UINT64_C(1) << 20) /* mountinfo of a host with thousands of mounts */
#define LIMITS_FILE_BYTES 8192
#define LIMITS_DEPTH_MAX  128

/* What is wrong with a file that should be there; the first is kept. */
static void limits_note(struct weir__outside *outside, int error)
{
    if (outside->error == 0)
        outside->error = error;
}

/* Whether @text was read. A file that is not there says nothing; PSI may be switched off. */
static bool limits_read_text(const char *path, char *text, size_t text_bytes,
                             struct weir__outside *outside)
{
    int r = weir__sys_read_text(path, text, text_bytes);

    if (r < 0 && r != -ENOENT && r != -ENOTDIR && r != -EOPNOTSUPP)
        limits_note(outside, r);
    if (r == 0 && strlen(text) == text_bytes - 1)
        limits_note(outside, -EFBIG);
    return r == 0;
}

/* One of the two trees: where it is mounted, what of it, and where in it we are. */
struct limits_tree {
    struct weir__outside *outside;
    bool is_v2;
    bool has_group;
    bool has_mount;
    char group[PATH_MAX];
    char mount[PATH_MAX];
    char mount_root[PATH_MAX];
};

/* Whether @word is one of the comma-separated words of @list. */
static bool limits_has_word(const char *list, const char *word)
{
    size_t length = strlen(word);

    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',')
            at++;
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return true;
    }
    return false;
}

static bool limits_copy(struct limits_tree *tree, char *to, size_t to_bytes, const char *from)
{
    size_t length = strlen(from);

    if (length >= to_bytes) {
        limits_note(tree->outside, -EFBIG);
        return false;
    }
    memcpy(to, from, length + 1);
    return true;
}

/* mountinfo writes blanks, tabs, newlines and backslashes as \ooo. */
static void limits_unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from != '\0'; from++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
            from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
            *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 3;
            continue;
        }
        *to++ = *from;
    }
    *to = '\0';
}

/* A line of /proc/self/cgroup: hierarchy:controllers:path, with 0:: for v2. */
static void limits_take_group(struct limits_tree *tree, char *line)
{
    char *controllers = strchr(line, ':');
    char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;

    if (path == NULL)
        return;
    *controllers++ = '\0';
    *path++ = '\0';

    bool is_ours = tree->is_v2 ? strcmp(line, "0") == 0 && *controllers == '\0'
                               : limits_has_word(controllers, "memory");
    if (is_ours)
        tree->has_group = limits_copy(tree, tree->group, sizeof(tree->group), path);
}

/* A line of mountinfo: id parent device root mount options [tags] - type source super */
static void limits_take_mount(struct limits_tree *tree, char *line)
{
    char *rest = strstr(line, " - ");
    char *save = NULL;
    char *fields[5];

    if (rest == NULL || tree->has_mount)
        return;
    *rest = '\0';
    rest += 3;
    for (int i = 0; i < 5; i++) {
        fields[i] = strtok_r(i == 0 ? line : NULL, " ", &save);
        if (fields[i] == NULL)
            return;
    }

    char *type = strtok_r(rest, " ", &save);
    char *source = strtok_r(NULL, " ", &save);
    char *super = strtok_r(NULL, " ", &save);

    if (type == NULL || source == NULL || super == NULL)
        return;
    if (tree->is_v2 ? strcmp(type, "cgroup2") != 0
                    : strcmp(type, "cgroup") != 0 || !limits_has_word(super, "memory"))
        return;

    limits_unescape(fields[3]);
    limits_unescape(fields[4]);
    tree->has_mount = limits_copy(tree, tree->mount_root, sizeof(tree->mount_root), fields[3]) &&
                      limits_copy(tree, tree->mount, sizeof(tree->mount), fields[4]);
}

static void limits_each_line(struct limits_tree *tree, char *text,
                             void (*take)(struct limits_tree *tree, char *line))
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save))
        take(tree, line);
}

/* Digits up to the end of the line. strtoull alone takes blanks, signs and nothing at all. */
static int limits_parse(const char *text, uint64_t *ret_number)
{
    char *end = NULL;

    if (text[0] < '0' || text[0] > '9')
        return -EBADMSG;
    *ret_number = strtoull(text, &end, 10); /* UINT64_MAX: too large for it */
    return *end == '\n' || *end == '\0' ? 0 : -EBADMSG;
}

static bool limits_is_max(const char *text)
{
    return strcmp(text, "max\n") == 0 || strcmp(text, "max") == 0;
}

/* The number in a file, alone or behind @key; UINT64_MAX: "max", or it does not say. */
static uint64_t limits_read_file(const struct limits_tree *tree, const char *directory,
                                 const char *name, const char *key)
{
    char path[PATH_MAX];
    char text[LIMITS_FILE_BYTES];
    const char *found = text;
    uint64_t number = UINT64_MAX;
    int length = snprintf(path, sizeof(path), "%s/%s", directory, name);

    if (length < 0 || (size_t)length >= sizeof(path)) {
        limits_note(tree->outside, -EFBIG);
        return UINT64_MAX;
    }
    if (!limits_read_text(path, text, sizeof(text), tree->outside))
        return UINT64_MAX;
    if (key != NULL)
        found = strstr(text, key);
    if (found == NULL || limits_is_max(text))
        return UINT64_MAX;
    int r = limits_parse(found + (key != NULL ? strlen(key) : 0), &number);
    if (r < 0) {
        limits_note(tree->outside, r);
        return UINT64_MAX;
    }
    return number;
}

static uint64_t limits_of_directory(const struct limits_tree *tree, const char *directory)
{
    if (tree->is_v2)
        return weir__min(limits_read_file(tree, directory, "memory.max", NULL),
                         limits_read_file(tree, directory, "memory.high", NULL));
    return weir__min(
        limits_read_file(tree, directory, "memory.limit_in_bytes", NULL),
        limits_read_file(tree, directory, "memory.stat", "hierarchical_memory_limit "));
}

/* Where our group lies below the mount; the mount itself when it is not to be seen. */
static const char *limits_below_mount(const struct limits_tree *tree)
{
    size_t length = strlen(tree->mount_root);

    if (strncmp(tree->group, "/..", 3) == 0)
        return "";
    if (strcmp(tree->mount_root, "/") == 0)
        return tree->group;
    if (strncmp(tree->group, tree->mount_root, length) == 0 &&
        (tree->group[length] == '/' || tree->group[length] == '\0'))
        return tree->group + length;
    return "";
}

/* "some avg10=1.23 avg60=..." and the same for full: hundredths of a per cent. */
static int limits_pressure(const char *text, const char *kind, uint32_t *ret_hundredths)
{
    const char *line = strstr(text, kind);
    const char *number = line != NULL ? strstr(line, "avg10=") : NULL;
    char *end = NULL;

    number = number != NULL ? number + strlen("avg10=") : "";
    if (number[0] < '0' || number[0] > '9')
        return -EBADMSG;

    uint64_t hundredths = weir__min(strtoull(number, &end, 10), 100) * 100;

    if (end[0] == '.' && end[1] >= '0' && end[1] <= '9' && end[2] >= '0' && end[2] <= '9')
        hundredths += (uint64_t)(end[1] - '0') * 10 + (uint64_t)(end[2] - '0');
    *ret_hundredths = (uint32_t)weir__min(hundredths, 10000);
    return 0;
}

static void limits_take_pressure(const char *path, struct weir__outside *outside)
{
    char text[LIMITS_FILE_BYTES];

    if (!limits_read_text(path, text, sizeof(text), outside))
        return;
    outside->pressure_full = 0;
    if (limits_pressure(text, "some ", &outside->pressure_some) < 0)
        limits_note(outside, -EBADMSG);
    (void)limits_pressure(text, "full ", &outside->pressure_full); /* not everywhere */
}

/* Of our own group: what it uses, and how much it suffers. */
static void limits_take_usage(const struct limits_tree *tree, const char *directory)
{
    struct weir__outside *outside = tree->outside;
    const char *name = tree->is_v2 ? "memory.current" : "memory.usage_in_bytes";
    uint64_t usage = limits_read_file(tree, directory, name, NULL);
    char path[PATH_MAX];

    if (usage != UINT64_MAX)
        outside->usage_bytes = usage;
    int length = snprintf(path, sizeof(path), "%s/memory.pressure", directory);
    if (tree->is_v2 && length > 0 && (size_t)length < sizeof(path))
        limits_take_pressure(path, outside);
}

static uint64_t limits_of_tree(const struct limits_tree *tree, const char *root)
{
    char directory[PATH_MAX];
    uint64_t bytes = UINT64_MAX;

    if (!tree->has_group || !tree->has_mount)
        return bytes;

    int length = snprintf(directory, sizeof(directory), "%s%s", root, tree->mount);
    if (length < 0 || (size_t)length >= sizeof(directory)) {
        limits_note(tree->outside, -EFBIG);
        return bytes;
    }

    size_t top = (size_t)length;
    length = snprintf(directory + top, sizeof(directory) - top, "%s", limits_below_mount(tree));
    if (length < 0 || (size_t)length >= sizeof(directory) - top) {
        limits_note(tree->outside, -EFBIG);
        directory[top] = '\0';
    }

    limits_take_usage(tree, directory);
    for (int depth = 0; depth < LIMITS_DEPTH_MAX; depth++) {
        bytes = weir__min(bytes, limits_of_directory(tree, directory));

        char *last = strrchr(directory + top, '/');
        if (last == NULL)
            break;
        *last = '\0';
    }
    return bytes;
}

static bool limits_read_list(const char *root, const char *name, char *text, size_t text_bytes,
                             struct weir__outside *outside)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s%s", root, name);

    return length > 0 && (size_t)length < sizeof(path) &&
           limits_read_text(path, text, text_bytes, outside);
}

static uint64_t limits_walk(const char *root, uint64_t ram_bytes, struct weir__outside *outside)
{
    struct weir__heap heap = {0};
    uint64_t bytes = ram_bytes != 0 ? ram_bytes : UINT64_MAX;
    char *text = weir__heap_alloc(&heap, LIMITS_TEXT_BYTES);
    struct limits_tree *tree = weir__heap_alloc(&heap, sizeof(*tree));

    if (text == NULL || tree == NULL)
        limits_note(outside, -ENOMEM);
    for (int version = 1; text != NULL && tree != NULL && version <= 2; version++) {
        *tree = (struct limits_tree){.outside = outside, .is_v2 = version == 2};
        if (limits_read_list(root, "/proc/self/cgroup", text, LIMITS_TEXT_BYTES, outside))
            limits_each_line(tree, text, limits_take_group);
        if (limits_read_list(root, "/proc/self/mountinfo", text, LIMITS_TEXT_BYTES, outside))
            limits_each_line(tree, text, limits_take_mount);
        bytes = weir__min(bytes, limits_of_tree(tree, root));
    }
    weir__heap_free(&heap, tree, sizeof(*tree));
    weir__heap_free(&heap, text, LIMITS_TEXT_BYTES);
    return bytes <= BUDGET_BYTES_LIMIT ? bytes : 0;
}

uint64_t weir__limits_bytes(const char *root, uint64_t ram_bytes, int *ret_error)
{
    struct weir__outside outside = {0};
    uint64_t bytes = limits_walk(root, ram_bytes, &outside);

    *ret_error = outside.error;
    return bytes;
}

/* Pages: of the address space, then those in memory. */
static uint64_t limits_rss(const char *text, struct weir__outside *outside)
{
    const char *second = strchr(text, ' ');
    char *end = NULL;
    uint64_t pages = second != NULL ? strtoull(second, &end, 10) : 0;

    if (pages == 0 || pages > UINT64_MAX / weir__sys_page_bytes()) {
        limits_note(outside, -EBADMSG);
        return 0;
    }
    return pages * weir__sys_page_bytes();
}

void weir__limits_look(const char *root, uint64_t ram_bytes, struct weir__outside *ret_outside)
{
    struct weir__outside outside = {0};
    char text[LIMITS_FILE_BYTES];
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/proc/pressure/memory", root);

    /* The machine's pressure first: a group of its own replaces it. */
    if (length > 0 && (size_t)length < sizeof(path))
        limits_take_pressure(path, &outside);
    outside.limit_bytes = limits_walk(root, ram_bytes, &outside);
    if (limits_read_list(root, "/proc/self/statm", text, sizeof(text), &outside))
        outside.rss_bytes = limits_rss(text, &outside);
    *ret_outside = outside;
}

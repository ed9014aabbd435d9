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
 * Whatever cannot be read or parsed is no limit: RAM remains.
 */
#include "governor/limits.h"

#include "base/bits.h"
#include "base/heap.h"
#include "base/sys.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMITS_TEXT_BYTES (UINT64_C(1) << 20) /* mountinfo of a host with thousands of mounts */
#define LIMITS_FILE_BYTES 8192
#define LIMITS_DEPTH_MAX  128

/* One of the two trees: where it is mounted, what of it, and where in it we are. */
struct limits_tree {
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

static bool limits_copy(char *to, size_t to_bytes, const char *from)
{
    size_t length = strlen(from);

    if (length >= to_bytes)
        return false;
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
        tree->has_group = limits_copy(tree->group, sizeof(tree->group), path);
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
    tree->has_mount = limits_copy(tree->mount_root, sizeof(tree->mount_root), fields[3]) &&
                      limits_copy(tree->mount, sizeof(tree->mount), fields[4]);
}

static void limits_each_line(struct limits_tree *tree, char *text,
                             void (*take)(struct limits_tree *tree, char *line))
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save))
        take(tree, line);
}

/* A number alone in its file; "max" and what is no number are no limit. */
static uint64_t limits_read_number(const char *text)
{
    if (text[0] < '0' || text[0] > '9')
        return UINT64_MAX;
    return strtoull(text, NULL, 10);
}

static uint64_t limits_read_file(const char *directory, const char *name, const char *key)
{
    char path[PATH_MAX];
    char text[LIMITS_FILE_BYTES];
    int length = snprintf(path, sizeof(path), "%s/%s", directory, name);

    if (length < 0 || (size_t)length >= sizeof(path) ||
        weir__sys_read_text(path, text, sizeof(text)) < 0)
        return UINT64_MAX;
    if (key == NULL)
        return limits_read_number(text);

    const char *found = strstr(text, key);

    return found != NULL ? limits_read_number(found + strlen(key)) : UINT64_MAX;
}

static uint64_t limits_of_directory(const struct limits_tree *tree, const char *directory)
{
    if (tree->is_v2)
        return weir__min(limits_read_file(directory, "memory.max", NULL),
                         limits_read_file(directory, "memory.high", NULL));
    return weir__min(limits_read_file(directory, "memory.limit_in_bytes", NULL),
                     limits_read_file(directory, "memory.stat", "hierarchical_memory_limit "));
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
static uint32_t limits_pressure(const char *text, const char *kind)
{
    const char *line = strstr(text, kind);
    const char *number = line != NULL ? strstr(line, "avg10=") : NULL;

    if (number == NULL)
        return 0;

    char *end = NULL;
    uint64_t hundredths = strtoull(number + strlen("avg10="), &end, 10) * 100;

    if (end[0] == '.' && end[1] >= '0' && end[1] <= '9' && end[2] >= '0' && end[2] <= '9')
        hundredths += (uint64_t)(end[1] - '0') * 10 + (uint64_t)(end[2] - '0');
    return (uint32_t)weir__min(hundredths, 10000);
}

static void limits_take_pressure(const char *path, struct weir__outside *outside)
{
    char text[LIMITS_FILE_BYTES];

    if (weir__sys_read_text(path, text, sizeof(text)) < 0)
        return;
    outside->pressure_some = limits_pressure(text, "some ");
    outside->pressure_full = limits_pressure(text, "full ");
}

/* Of our own group: what it uses, and how much it suffers. */
static void limits_take_usage(const struct limits_tree *tree, const char *directory,
                              struct weir__outside *outside)
{
    const char *name = tree->is_v2 ? "memory.current" : "memory.usage_in_bytes";
    uint64_t usage = limits_read_file(directory, name, NULL);
    char path[PATH_MAX];

    if (usage != UINT64_MAX)
        outside->usage_bytes = usage;
    int length = snprintf(path, sizeof(path), "%s/memory.pressure", directory);
    if (tree->is_v2 && length > 0 && (size_t)length < sizeof(path))
        limits_take_pressure(path, outside);
}

static uint64_t limits_of_tree(const struct limits_tree *tree, const char *root,
                               struct weir__outside *outside)
{
    char directory[PATH_MAX];
    uint64_t bytes = UINT64_MAX;

    if (!tree->has_group || !tree->has_mount)
        return bytes;

    int length = snprintf(directory, sizeof(directory), "%s%s", root, tree->mount);
    if (length < 0 || (size_t)length >= sizeof(directory))
        return bytes;

    size_t top = (size_t)length;
    length = snprintf(directory + top, sizeof(directory) - top, "%s", limits_below_mount(tree));
    if (length < 0 || (size_t)length >= sizeof(directory) - top)
        directory[top] = '\0';

    limits_take_usage(tree, directory, outside);
    for (int depth = 0; depth < LIMITS_DEPTH_MAX; depth++) {
        bytes = weir__min(bytes, limits_of_directory(tree, directory));

        char *last = strrchr(directory + top, '/');
        if (last == NULL)
            break;
        *last = '\0';
    }
    return bytes;
}

static bool limits_read_list(const char *root, const char *name, char *text, size_t text_bytes)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s%s", root, name);

    return length > 0 && (size_t)length < sizeof(path) &&
           weir__sys_read_text(path, text, text_bytes) == 0;
}

static uint64_t limits_walk(const char *root, uint64_t ram_bytes, struct weir__outside *outside)
{
    struct weir__heap heap = {0};
    uint64_t bytes = ram_bytes != 0 ? ram_bytes : UINT64_MAX;
    char *text = weir__heap_alloc(&heap, LIMITS_TEXT_BYTES);
    struct limits_tree *tree = weir__heap_alloc(&heap, sizeof(*tree));

    for (int version = 1; text != NULL && tree != NULL && version <= 2; version++) {
        *tree = (struct limits_tree){.is_v2 = version == 2};
        if (limits_read_list(root, "/proc/self/cgroup", text, LIMITS_TEXT_BYTES))
            limits_each_line(tree, text, limits_take_group);
        if (limits_read_list(root, "/proc/self/mountinfo", text, LIMITS_TEXT_BYTES))
            limits_each_line(tree, text, limits_take_mount);
        bytes = weir__min(bytes, limits_of_tree(tree, root, outside));
    }
    weir__heap_free(&heap, tree, sizeof(*tree));
    weir__heap_free(&heap, text, LIMITS_TEXT_BYTES);
    return bytes;
}

uint64_t weir__limits_bytes(const char *root, uint64_t ram_bytes)
{
    struct weir__outside outside = {0};

    return limits_walk(root, ram_bytes, &outside);
}

void weir__limits_look(const char *root, uint64_t ram_bytes, struct weir__outside *ret_outside)
{
    struct weir__outside outside = {0};
    char text[LIMITS_FILE_BYTES];

    /* The machine's pressure first: a group of its own replaces it. */
    if (limits_read_list(root, "/proc/pressure/memory", text, sizeof(text))) {
        outside.pressure_some = limits_pressure(text, "some ");
        outside.pressure_full = limits_pressure(text, "full ");
    }
    outside.limit_bytes = limits_walk(root, ram_bytes, &outside);
    if (limits_read_list(root, "/proc/self/statm", text, sizeof(text))) {
        char *end = NULL;
        (void)strtoull(text, &end, 10);
        outside.rss_bytes = strtoull(end, NULL, 10) * weir__sys_page_bytes();
    }
    *ret_outside = outside;
}

/* SPDX-License-Identifier: MIT */
/*
 * named - the files of a region that outlives its owner
 *
 *      .weir-PID-RANDOM   being made          NAME.weir        tables; the lock
 *      .weir-PID-RANDOM        ---------->    NAME.weir-data   payload
 *
 * Whoever holds the lock on the tables owns both files; the kernel lets go of it
 * when the owner ends, however it ends. A new region is made whole under
 * temporary names, and only then gets its own, the tables first. Between the two
 * steps the header says that it is not born, and who finds it so begins anew:
 * nothing was ever put there.
 *
 * What is left under a temporary name and locked by nobody was made by a process
 * that died making it. It is removed at the next open of a named region in that
 * directory. Nothing else is ever removed: a file is ours by its name, by being a
 * regular file of our user, and by its free lock.
 *
 *   N1  a file under a temporary name is locked from its first moment, or new
 *       (then whoever finds it may sweep it, and its maker tries again)
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/cleanup.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define NAMED_LENGTH_MAX 200
#define NAMED_TRIES      8
#define NAMED_PATH_BYTES (NAMED_LENGTH_MAX + 16)
#define NAMED_RANDOM_MIN 6 /* characters behind the process id: of mkostemp(3), or of ours */
#define NAMED_RANDOM_MAX 16
#define NAMED_BOOT_ID    "/proc/sys/kernel/random/boot_id"

enum named_file {
    NAMED_TABLES,
    NAMED_DATA,
};

_Static_assert(NAMED_PATH_BYTES <= 255, "a file name has room for the suffix");

/* ---- Names -------------------------------------------------------------- */

static int named_check_name(const char *name)
{
    if (name[0] == '\0' || strchr(name, '/') != NULL)
        return -EINVAL;
    return strlen(name) > NAMED_LENGTH_MAX ? -ENAMETOOLONG : 0;
}

static void named_path(const char *name, enum named_file file, char path[NAMED_PATH_BYTES])
{
    snprintf(path, NAMED_PATH_BYTES, "%s%s", name,
             file == NAMED_TABLES ? LAYOUT_TABLE_SUFFIX : LAYOUT_DATA_SUFFIX);
}

/* .weir-, digits, -, some letters and digits: what we and base/sys make up. */
static bool named_is_temporary(const char *name)
{
    size_t prefix = strlen(LAYOUT_TEMPORARY);

    if (strncmp(name, LAYOUT_TEMPORARY, prefix) != 0)
        return false;
    size_t digits = strspn(name + prefix, "0123456789");
    const char *rest = name + prefix + digits;
    if (digits == 0 || *rest != '-')
        return false;
    size_t length = strspn(rest + 1, "abcdefghijklmnopqrstuvwxyz"
                                     "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789");
    return length >= NAMED_RANDOM_MIN && length <= NAMED_RANDOM_MAX && rest[1 + length] == '\0';
}

static uint64_t named_boot(void)
{
    char text[64];

    if (weir__sys_read_text(NAMED_BOOT_ID, text, sizeof(text)) < 0)
        return 0;
    return XXH3_64bits(text, strlen(text));
}

/* ---- Files -------------------------------------------------------------- */

/*
 * A regular file that is there, and no link to one. It is looked at before it is
 * opened: opening a device or a pipe would have effects.
 */
static int named_open_file(int directory_fd, const char *path, int *ret_fd)
{
    WEIR_CLEANUP_CLOSE int name_fd = -1;
    struct stat info;
    int r = weir__sys_open_at(directory_fd, path, O_PATH | O_NOFOLLOW, &name_fd);

    if (r < 0)
        return r;
    r = weir__sys_fstat(name_fd, &info);
    if (r < 0)
        return r;
    if (S_ISLNK(info.st_mode))
        return -ELOOP;
    if (!S_ISREG(info.st_mode))
        return -EBADMSG;
    return weir__sys_reopen(name_fd, O_RDWR, ret_fd);
}

/* Locked, and still there: who had the lock before us may have removed it. */
static int named_lock(int fd, bool *ret_is_gone)
{
    struct stat info;
    int r = weir__sys_lock(fd);

    if (r == 0)
        r = weir__sys_fstat(fd, &info);
    *ret_is_gone = r == 0 && info.st_nlink == 0;
    return r;
}

static int named_sweep_one(void *context, const char *name)
{
    const struct weir__named *named = context;
    WEIR_CLEANUP_CLOSE int fd = -1;
    struct stat info;

    if (!named_is_temporary(name))
        return 0;
    if (named_open_file(named->directory_fd, name, &fd) < 0)
        return 0;
    if (weir__sys_fstat(fd, &info) < 0 || info.st_uid != geteuid())
        return 0;
    if (weir__sys_lock(fd) == 0)
        (void)weir__sys_unlink_at(named->directory_fd, name); /* or somebody else did */
    return 0;
}

/* A new file under a temporary name, locked (N1). */
static int named_create(struct weir__named *named, enum named_file file, int *ret_fd)
{
    char *name = named->temporary[file];

    for (int tries = 0; tries < NAMED_TRIES; tries++) {
        bool is_gone = false;
        int fd;

        snprintf(name, sizeof(named->temporary[file]), LAYOUT_TEMPORARY "%ld-%012llx",
                 (long)getpid(), (unsigned long long)(weir__sys_entropy() >> 16));
        int r = weir__sys_open_at(named->directory_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW,
                                  &fd);
        if (r < 0) {
            name[0] = '\0';
            if (r == -EEXIST)
                continue;
            return r;
        }
        r = named_lock(fd, &is_gone);
        if (r == 0 && !is_gone)
            r = weir__sys_write_in_place(fd);
        if (r == 0 && !is_gone) {
            *ret_fd = fd;
            return 0;
        }
        weir__sys_close(fd);
        if (r < 0 && r != -EBUSY)
            return r;   /* its name is taken back by close */
        name[0] = '\0'; /* swept in its first moment */
    }
    return -EAGAIN;
}

/* ---- The header --------------------------------------------------------- */

static int named_read_header(int fd, struct weir__header *ret_header)
{
    struct stat info;
    int r = weir__sys_fstat(fd, &info);

    if (r == 0 && (uint64_t)info.st_size < sizeof(*ret_header))
        return -EBADMSG;
    if (r == 0)
        r = weir__sys_pread_all(fd, ret_header, sizeof(*ret_header), 0);
    if (r < 0)
        return r;
    if (ret_header->magic != LAYOUT_MAGIC)
        return -EBADMSG;
    if (ret_header->version != LAYOUT_VERSION)
        return -EPROTONOSUPPORT;
    if (ret_header->fixed_sum != weir__header_sum(ret_header))
        return -EBADMSG;
    if (!weir__table_is_ours(ret_header) || ret_header->named != 1)
        return -EBADMSG;
    if (ret_header->bytes_max == 0 || ret_header->bytes_max > LAYOUT_BYTES_LIMIT ||
        ret_header->bytes_max % LAYOUT_CHUNK_BYTES != 0 || ret_header->generation % 2 != 0)
        return -EBADMSG;
    return 0;
}

/* It died between its two names: nothing was ever put there. */
static int named_bury(struct weir__named *named, const struct weir__header *header)
{
    WEIR_CLEANUP_CLOSE int data_fd = -1;
    char path[NAMED_PATH_BYTES];
    struct stat info;

    named_path(named->name, NAMED_DATA, path);
    int r = named_open_file(named->directory_fd, path, &data_fd);
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) {
        r = weir__sys_fstat(data_fd, &info);
        if (r == 0 && ((uint64_t)info.st_dev != header->data_device ||
                       (uint64_t)info.st_ino != header->data_inode))
            r = -EEXIST; /* somebody else's */
        if (r == 0)
            r = weir__sys_unlink_at(named->directory_fd, path);
        if (r < 0)
            return r;
    }
    named_path(named->name, NAMED_TABLES, path);
    return weir__sys_unlink_at(named->directory_fd, path);
}

/* ---- Opening ------------------------------------------------------------ */

/* The data file of a region whose tables are ours. */
static int named_open_data(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    char path[NAMED_PATH_BYTES];
    struct stat info;

    named_path(named->name, NAMED_DATA, path);
    int r = named_open_file(named->directory_fd, path, &named->found_data_fd);
    if (r == 0)
        r = weir__sys_fstat(named->found_data_fd, &info);
    if (r < 0)
        return r;

    named->report = (struct weir_region_report){
        .existed = true,
        .clean_shutdown = named->found.closed == 1,
        .after_power_loss = named->boot == 0 || named->found.boot != named->boot ||
                            (uint64_t)info.st_dev != named->found.data_device ||
                            (uint64_t)info.st_ino != named->found.data_inode,
    };
    named->sync_count = named->found.sync_count;
    return 0;
}

/* -ENOENT: there is none, or there is none any more. */
static int named_find(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    char path[NAMED_PATH_BYTES];
    bool is_gone;

    named_path(named->name, NAMED_TABLES, path);
    int r = named_open_file(named->directory_fd, path, &region->table_fd);
    if (r < 0)
        return r;
    r = named_lock(region->table_fd, &is_gone);
    if (r == 0 && !is_gone)
        r = named_read_header(region->table_fd, &named->found);
    if (r == 0 && !is_gone && named->found.born == 1)
        return weir__sys_write_in_place(region->table_fd);
    if (r == 0 && !is_gone)
        r = named_bury(named, &named->found);
    named->found = (struct weir__header){0};
    weir__sys_close(region->table_fd);
    region->table_fd = -1;
    return r < 0 ? r : -ENOENT;
}

int weir__named_open(struct weir_region *region, const struct weir_region_config *config)
{
    struct weir__named *named = &region->named;
    uint64_t free_bytes;
    bool memory_backed = false;
    int r = named_check_name(config->name);

    if (r < 0)
        return r;
    named->name = config->name;
    named->boot = named_boot();
    r = weir__sys_open(config->directory, O_RDONLY | O_DIRECTORY, &named->directory_fd);
    if (r == 0)
        r = weir__sys_fstatfs(named->directory_fd, &free_bytes, &memory_backed);
    if (r == 0 && memory_backed && !config->memory_backed)
        r = -EOPNOTSUPP;
    if (r < 0)
        return r;
    (void)weir__sys_list(config->directory, named_sweep_one, named);

    r = named_find(region);
    if (r == 0)
        r = named_open_data(region);
    else if (r == -ENOENT)
        r = named_create(named, NAMED_TABLES, &region->table_fd);
    if (r == 0 && !named->report.existed)
        r = named_create(named, NAMED_DATA, &named->found_data_fd);
    if (r < 0)
        return r;
    region->store.data_fd = named->found_data_fd;
    named->found_data_fd = -1;
    return weir__sys_reopen(region->store.data_fd, O_RDWR, &named->sync_fd);
}

/* From its temporary name to its own. */
static int named_rename(struct weir__named *named, enum named_file file)
{
    char path[NAMED_PATH_BYTES];

    named_path(named->name, file, path);
    int r = weir__sys_rename_at(named->directory_fd, named->temporary[file], path);
    if (r == 0)
        named->temporary[file][0] = '\0';
    return r;
}

/*
 * The header is on disk before it has a name, and both names before the caller
 * hears of it; a name that is not is taken back. Somebody who was faster has the
 * name now, and is its owner.
 */
static int named_bear(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    char path[NAMED_PATH_BYTES];
    int r = weir__sys_fdatasync(region->table_fd);

    if (r == 0)
        r = named_rename(named, NAMED_TABLES);
    if (r < 0)
        return r == -EEXIST ? -EBUSY : r;
    r = named_rename(named, NAMED_DATA);
    if (r == 0) {
        r = weir__sys_fsync(named->directory_fd);
        named_path(named->name, NAMED_DATA, path);
        if (r < 0)
            (void)weir__sys_unlink_at(named->directory_fd, path);
    }
    if (r < 0) {
        named_path(named->name, NAMED_TABLES, path);
        (void)weir__sys_unlink_at(named->directory_fd, path);
        return r;
    }
    weir__word_store(&region->header->born, 1);
    return 0;
}

int weir__named_publish(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    int r = named->report.existed ? 0 : named_bear(region);

    if (r < 0)
        return r;
    weir__sys_close(named->directory_fd);
    named->directory_fd = -1;
    named->found = (struct weir__header){0};
    named->name = NULL;
    named->has_name = true;
    return 0;
}

void weir__named_close(struct weir_region *region)
{
    struct weir__named *named = &region->named;

    if (named->has_name) {
        weir__table_publish_figures(region);
        weir__word_store(&region->header->closed, 1);
    }
    for (int file = NAMED_TABLES; file <= NAMED_DATA; file++)
        if (named->temporary[file][0] != '\0')
            (void)weir__sys_unlink_at(named->directory_fd, named->temporary[file]);
    weir__heap_free(&region->heap, named->items, named->item_max * sizeof(*named->items));
    weir__heap_free(&region->heap, named->marks, named->mark_count / 64 * sizeof(*named->marks));
    weir__sys_close(named->found_data_fd);
    weir__sys_close(named->sync_fd);
    weir__sys_close(named->directory_fd);
}

/* ---- Removing ----------------------------------------------------------- */

/*
 * The payload first: who is interrupted leaves tables that can be removed again,
 * and never payload that nobody describes.
 */
static int named_remove(const struct weir__named *named)
{
    WEIR_CLEANUP_CLOSE int table_fd = -1;
    WEIR_CLEANUP_CLOSE int data_fd = -1;
    char path[NAMED_PATH_BYTES];
    struct weir__header header;
    bool is_gone;

    named_path(named->name, NAMED_TABLES, path);
    int r = named_open_file(named->directory_fd, path, &table_fd);
    if (r == 0)
        r = named_lock(table_fd, &is_gone);
    if (r == 0)
        r = is_gone ? -ENOENT : named_read_header(table_fd, &header);
    if (r < 0)
        return r;

    named_path(named->name, NAMED_DATA, path);
    r = named_open_file(named->directory_fd, path, &data_fd);
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) {
        r = weir__sys_unlink_at(named->directory_fd, path);
        if (r < 0)
            return r;
    }
    named_path(named->name, NAMED_TABLES, path);
    return weir__sys_unlink_at(named->directory_fd, path);
}

int weir_region_remove(const char *directory, const char *name)
{
    struct weir__named named = {.name = name, .directory_fd = -1};

    if (directory == NULL || name == NULL)
        return -EINVAL;
    int r = named_check_name(name);
    if (r == 0)
        r = weir__sys_open(directory, O_RDONLY | O_DIRECTORY, &named.directory_fd);
    if (r < 0)
        return r;
    r = named_remove(&named);
    weir__sys_close(named.directory_fd);
    return r;
}

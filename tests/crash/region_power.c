/* SPDX-License-Identifier: MIT */
/*
 * region_power - a named region after the power went
 *
 *      flush          moments that are remembered          the power goes
 *      | pages of then | pages | pages | pages            | pages of now |
 *        \______________ each page is of one of these _______________/
 *
 * The kernel writes a page when it likes, so after a power loss each page of each
 * file is as it was at some moment since that file was last flushed. Here both
 * files are copied at each flush and now and then between; a power loss is a
 * third pair of files, put together page by page (or sector by sector) at random
 * from the copies, and opened. The power goes between any two calls, and inside
 * sync() before each of its flushes. Before each of them an owner is also killed:
 * the next goes on from what the kernel has, and then the power goes. And any of
 * them may fail, having written some of the pages: those of who opens after a kill, too.
 *
 * What the last sync() that returned 0 had confirmed must be there byte for byte,
 * under the handle of then, those freed since included (but of what was freed before
 * a sync that failed nobody knows). What else is there must be an item that once was,
 * whole. Every other time the region goes on from what was found.
 *
 *      region_power [--losses COUNT]
 */
#include <weir/region.h>

#include "base/region_layout.h"
#include "base/sys.h"

#include "named.h"
#include "pattern.h"
#include "seed.h"
#include "tmpdir.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define POWER_ITEMS      500
#define POWER_BYTES_MAX  (32 * MIB)
#define POWER_LIVE_BYTES (11 * MIB)
#define POWER_MOMENTS    6
#define POWER_PAGE       UINT64_C(4096)
#define POWER_ROWS       UINT64_C(8192) /* of the tables; more entries are never in use here */
#define POWER_OWNER      5
#define POWER_NAME       "power"

#define CHECK(condition) power_check((condition), #condition, __LINE__)

struct power_item {
    struct weir_slot slot;
    uint64_t key; /* the seed of its bytes and of their number; 0: none */
};

/* One file at one moment, of the parts that are used. */
struct power_copy {
    char *data;
    uint64_t bytes;
};

struct power_moment {
    struct power_copy files[2]; /* tables, payload */
};

struct power {
    char directory[2][PATH_MAX]; /* the region, and the one that the power left */
    int home;                    /* which is which */
    struct weir_region *region;
    uint64_t random;
    uint64_t key_last;
    struct power_item items[POWER_ITEMS];
    struct power_item confirmed[POWER_ITEMS];
    struct power_item attempted[POWER_ITEMS]; /* when the last flush of a sync failed */
    bool is_attempted;                        /* since the last sync that returned 0 */
    struct power_moment moments[POWER_MOMENTS];
    int moment_count;
    int floor[2]; /* the first moment that counts, of each file */
    bool in_sync;
    bool in_loss; /* the flushes are not those of the region */
    int flush_count;
    int flush_dies;  /* in this sync the power goes before this flush; 0: it does not */
    int flush_kills; /* and its owner is killed before this one */
    int flush_fails; /* and this one fails */
    bool is_killed;  /* the owner is, and its files are not at home any more */
    bool is_opening; /* the next owner is: its flushes count */
    int open_fails;  /* this one of them fails; -1: one has, and those behind it flush nothing */
    struct weir_region *next;
    uint64_t kills;
    uint64_t opens_failed;
    uint64_t sync_count;
    uint64_t losses;
    uint64_t losses_in_sync;
    uint64_t restored;
    uint64_t lost;
    uint64_t kept;
    uint64_t moved;
    uint64_t losses_moving;   /* while confirmed items had a copy that they were to become */
    uint64_t losses_switched; /* or had become it, and no flush has told the tables' disk */
    uint64_t syncs_failed;
    bool is_doubted; /* the last sync has failed */
    uint64_t losses_attempted;
};

static struct power power;

static void power_check(bool condition, const char *text, int line)
{
    if (condition)
        return;
    printf("# line %d: %s\n", line, text);
    fflush(stdout);
    abort();
}

static uint64_t power_below(uint64_t bound)
{
    return weir__random_below(&power.random, bound);
}

static const char *const power_files[2] = {POWER_NAME ".weir", POWER_NAME ".weir-data"};

/* ---- Moments --------------------------------------------------------------- */

/* The tables are long and mostly holes: three pieces of them, one behind the other. */
struct power_piece {
    uint64_t offset;
    uint64_t bytes;
};

static void power_pieces(const struct weir__header *header, struct power_piece pieces[3])
{
    CHECK(header->figures.entry_count < POWER_ROWS);
    pieces[0] = (struct power_piece){0, 2 * POWER_PAGE};
    pieces[1] = (struct power_piece){header->entry_offset, POWER_ROWS * sizeof(struct weir__entry)};
    pieces[2] = (struct power_piece){header->sum_offset, POWER_ROWS * sizeof(uint64_t)};
}

static struct power_copy power_copy_tables(void)
{
    struct weir__header header;
    struct power_piece pieces[3];
    struct power_copy copy = {0};

    harness_named_header(power.directory[power.home], POWER_NAME, &header);
    power_pieces(&header, pieces);
    for (int i = 0; i < 3; i++) {
        copy.data = realloc(copy.data, copy.bytes + pieces[i].bytes);
        harness_named_read(power.directory[power.home], power_files[0], pieces[i].offset,
                           copy.data + copy.bytes, pieces[i].bytes);
        copy.bytes += pieces[i].bytes;
    }
    return copy;
}

static struct power_copy power_copy_data(void)
{
    struct stat info;
    struct power_copy copy = {0};
    int fd = harness_named_open(power.directory[power.home], power_files[1]);

    CHECK(fstat(fd, &info) == 0);
    copy.bytes = (uint64_t)info.st_size;
    copy.data = malloc(copy.bytes + 1);
    CHECK(pread(fd, copy.data, copy.bytes, 0) == (ssize_t)copy.bytes);
    close(fd);
    return copy;
}

static void power_forget(int from)
{
    for (int i = from; i < power.moment_count; i++)
        for (int file = 0; file < 2; file++)
            free(power.moments[i].files[file].data);
    power.moment_count = from;
}

/* Moments that neither file can fall back to any more. */
static void power_forget_old(void)
{
    int first = power.floor[0] < power.floor[1] ? power.floor[0] : power.floor[1];

    for (int i = 0; i < first; i++)
        for (int file = 0; file < 2; file++)
            free(power.moments[i].files[file].data);
    for (int i = first; i < power.moment_count; i++)
        power.moments[i - first] = power.moments[i];
    power.moment_count -= first;
    power.floor[0] -= first;
    power.floor[1] -= first;
}

static void power_remember(void)
{
    power_forget_old();
    if (power.moment_count == POWER_MOMENTS)
        power_forget(POWER_MOMENTS - 1); /* the youngest; what is older may be a floor */
    power.moments[power.moment_count++] =
        (struct power_moment){{power_copy_tables(), power_copy_data()}};
}

/* ---- The loss -------------------------------------------------------------- */

/* One file put together from its moments since the floor. */
static struct power_copy power_mix(int file)
{
    int count = power.moment_count - power.floor[file];
    const struct power_moment *moments = &power.moments[power.floor[file]];
    uint64_t step = power_below(2) == 0 ? POWER_PAGE : 512;
    /* Sometimes nearly all of it is old, sometimes nearly all is new. */
    uint64_t bias = power_below(3);
    struct power_copy mix = {0};

    CHECK(count > 0);
    mix.bytes = moments[power_below((uint64_t)count)].files[file].bytes;
    mix.data = calloc(1, mix.bytes + 1);
    for (uint64_t at = 0; at < mix.bytes; at += step) {
        uint64_t which = power_below((uint64_t)count);
        if (bias != 1 && power_below(8) != 0)
            which = bias == 0 ? 0 : (uint64_t)count - 1;
        const struct power_copy *from = &moments[which].files[file];
        if (at < from->bytes)
            memcpy(mix.data + at, from->data + at, weir__min(step, from->bytes - at));
    }
    return mix;
}

static void power_find_data(const char *directory, struct weir__header *header)
{
    struct stat info;
    int fd = harness_named_open(directory, power_files[1]);

    CHECK(fstat(fd, &info) == 0);
    close(fd);
    header->data_device = (uint64_t)info.st_dev;
    header->data_inode = (uint64_t)info.st_ino;
}

static void power_create(const char *directory, const char *name, uint64_t bytes)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.4000s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(ftruncate(fd, (off_t)bytes) == 0);
    close(fd);
}

/* They are those of another boot, or (the owner was killed) of this one. */
static void power_make_files(const char *directory, const struct power_moment *mix,
                             bool is_power_lost)
{
    const struct power_copy *tables = &mix->files[0];
    const struct power_copy *data = &mix->files[1];
    struct weir__header header;
    struct power_piece pieces[3];
    uint64_t at = 0;

    memcpy(&header, tables->data, sizeof(header));
    power_pieces(&header, pieces);
    power_create(directory, power_files[0], header.vacant_offset);
    power_create(directory, power_files[1], data->bytes);
    for (int i = 0; i < 3; i++) {
        harness_named_write(directory, power_files[0], pieces[i].offset, tables->data + at,
                            pieces[i].bytes);
        at += pieces[i].bytes;
    }
    CHECK(at == tables->bytes);
    if (data->bytes > 0)
        harness_named_write(directory, power_files[1], 0, data->data, data->bytes);
    harness_named_header(directory, POWER_NAME, &header);
    header.boot += is_power_lost;
    if (!is_power_lost)
        power_find_data(directory, &header);
    harness_named_set_header(directory, POWER_NAME, &header);
}

static int power_try_open(const char *directory, struct weir_region **ret_region)
{
    struct weir_region_config config = {
        .directory = directory,
        .name = POWER_NAME,
        .bytes_initial = 2 * MIB,
        .bytes_max = POWER_BYTES_MAX,
        .resident_bytes_max = 8 * MIB,
    };

    return weir_region_open(&config, ret_region);
}

static struct weir_region *power_open(const char *directory)
{
    struct weir_region *region;

    CHECK(power_try_open(directory, &region) == 0);
    return region;
}

static uint64_t power_size(uint64_t key)
{
    uint64_t random = key;
    uint64_t kind = weir__random_below(&random, 16);

    if (kind == 0)
        return 0;
    return weir__random_below(&random, kind == 1 ? 900 * KIB : kind < 9 ? 3000 : 90000);
}

/* Whose bytes these are, if they are anybody's. */
static void power_tell(const char *data, size_t bytes, uint64_t found, uint64_t expected)
{
    printf("# key %" PRIu64 " (expected %" PRIu64 "), %zu bytes\n", found, expected, bytes);
    for (uint64_t key = 1; key <= power.key_last; key++)
        if (power_size(key) == bytes && harness_differs_at(data, bytes, key, 0) == bytes)
            printf("# has the bytes of key %" PRIu64 "\n", key);
}

/* The item under @slot is the one of its key, whole. */
static void power_compare(struct weir_region *region, struct weir_slot slot, uint64_t key)
{
    struct weir_slot_info info;
    size_t count = 0;

    CHECK(weir_region_slot(region, slot, &info) == 0);
    CHECK(info.committed);
    CHECK(info.label.owner == POWER_OWNER);
    CHECK(key == 0 || info.label.key == key);
    CHECK(info.label.key > 0 && info.label.key <= power.key_last);
    CHECK(info.bytes == power_size(info.label.key));
    char *data = malloc(info.bytes + 1);
    CHECK(weir_region_read(region, slot, 0, data, info.bytes, &count) == 0);
    CHECK(count == info.bytes);
    if (harness_differs_at(data, count, info.label.key, 0) != count)
        power_tell(data, count, info.label.key, key);
    CHECK(harness_differs_at(data, count, info.label.key, 0) == count);
    free(data);
}

/* A sync is done when its count is on disk, a moment before it returns. */
static bool power_is_counted(void)
{
    struct weir__header header;

    harness_named_header(power.directory[power.is_killed ? !power.home : power.home], POWER_NAME,
                         &header);
    return header.sync_count == power.sync_count + 1;
}

/* What must be there at @i, where the count is that of the last sync, or (@is_later) one more. */
static const struct power_item *power_expected(size_t i, bool is_later)
{
    static const struct power_item none;
    const struct power_item *confirmed = &power.confirmed[i];

    if (!is_later)
        return confirmed;
    if (power_is_counted())
        return &power.items[i];
    return power.attempted[i].key == confirmed->key ? confirmed : &none;
}

static void power_compare_all(struct weir_region *region)
{
    struct weir_region_report report;
    struct weir_slot slot = {0};
    uint64_t found = 0;

    weir_region_report(region, &report);
    weir_region_audit(region);
    CHECK(report.existed);
    CHECK(report.after_power_loss);
    bool is_later = report.sync_count == power.sync_count + 1;
    CHECK(report.sync_count == power.sync_count ||
          ((power.is_attempted || power_is_counted()) && is_later));
    for (size_t i = 0; i < POWER_ITEMS; i++)
        if (power_expected(i, is_later)->key != 0)
            power_compare(region, power_expected(i, is_later)->slot,
                          power_expected(i, is_later)->key);
    for (; weir_region_next(region, &slot); found++)
        power_compare(region, slot, 0);
    CHECK(found == report.kept_slot_count);
    power.restored += report.restored_slot_count;
    power.lost += report.lost_slot_count;
    power.kept += report.kept_slot_count;
}

/* What @region found is what we know, and the disk has @mix. */
static void power_know(struct weir_region *region, const struct power_moment *mix)
{
    struct weir_region_report report;
    struct weir_slot slot = {0};
    size_t count = 0;

    weir_region_report(region, &report);
    for (size_t i = 0; i < POWER_ITEMS; i++)
        power.confirmed[i] = *power_expected(i, report.sync_count > power.sync_count);
    power.sync_count = report.sync_count;
    power.is_attempted = false;
    memset(power.items, 0, sizeof(power.items));
    while (weir_region_next(region, &slot)) {
        struct weir_slot_info info;
        CHECK(weir_region_slot(region, slot, &info) == 0);
        if (count < POWER_ITEMS)
            power.items[count++] = (struct power_item){slot, info.label.key};
        else
            CHECK(weir_region_free(region, slot) == 0);
    }
    /* The disk holds what was found, and not yet what was made of it. */
    power_forget(0);
    power.floor[0] = 0;
    power.floor[1] = 0;
    power.moments[power.moment_count++] = *mix;
}

/* The region that was found is the one that goes on. */
static void power_go_on(struct weir_region *region, const struct power_moment *mix)
{
    power_know(region, mix);
    weir_region_close(power.region);
    CHECK(weir_region_remove(power.directory[power.home], POWER_NAME) == 0);
    power.home = !power.home;
    power.region = region;
}

static void power_lose(bool may_go_on)
{
    const char *directory = power.directory[!power.home];
    struct weir_region *region;

    struct weir_region_stats stats;
    weir_region_stats(power.region, &stats);
    power.losses_moving += stats.moving_bytes > 0;
    power.losses_attempted += power.is_attempted;
    power.losses_switched += stats.moving_bytes > 0 && power_is_counted();
    power.in_loss = true;
    power.losses++;
    power_remember();
    struct power_moment mix = {{power_mix(0), power_mix(1)}};
    power_make_files(directory, &mix, true);
    region = power_open(directory);
    power_compare_all(region);
    if (may_go_on && power_below(2) == 0) {
        power_go_on(region, &mix);
    } else {
        weir_region_close(region);
        CHECK(weir_region_remove(directory, POWER_NAME) == 0);
        free(mix.files[0].data);
        free(mix.files[1].data);
    }
    power.in_loss = false;
}

/* ---- Flushes --------------------------------------------------------------- */

int __real_weir__sys_fdatasync(int fd);
int __wrap_weir__sys_fdatasync(int fd);

static bool power_is_file(int fd, int file)
{
    struct stat one;
    struct stat two;
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.4000s/%s", power.directory[power.home], power_files[file]);
    return fstat(fd, &one) == 0 && stat(path, &two) == 0 && one.st_ino == two.st_ino &&
           one.st_dev == two.st_dev;
}

/* What the owner that was killed thought of it. */
static void power_tell_lost(const struct weir_region_report *report)
{
    struct weir_region_stats stats;
    struct weir_slot_info info = {0};

    weir_region_stats(power.region, &stats);
    int r = weir_region_slot(power.region, report->first_lost, &info);
    printf("# lost %" PRIu64 " slots, the first %" PRIu32 " (%d): %" PRIu64
           " bytes, committed %d, damaged %d, resident %d\n",
           report->lost_slot_count, report->first_lost.index, r, info.bytes, info.committed,
           info.damaged, info.resident);
    printf("# error %d; damaged %" PRIu64 ", read errors %" PRIu64 ", write errors %" PRIu64 "\n",
           report->first_error, stats.damaged_count, stats.read_error_count,
           stats.write_error_count);
}

/* All that was committed is there; what was confirmed is what the header says, and on disk. */
static void power_find(void)
{
    struct weir_region_report report;

    power.is_opening = true;
    power.next = power_open(power.directory[power.home]);
    power.is_opening = false;
    power.is_attempted = false;
    weir_region_audit(power.next);
    weir_region_report(power.next, &report);
    CHECK(report.existed && !report.after_power_loss);
    if (report.lost_slot_count > 0)
        power_tell_lost(&report);
    CHECK(report.lost_slot_count == 0);
    for (size_t i = 0; i < POWER_ITEMS; i++)
        if (power.items[i].key != 0)
            power_compare(power.next, power.items[i].slot, power.items[i].key);
    if (report.sync_count == power.sync_count)
        return;
    CHECK(report.sync_count == power.sync_count + 1);
    power.sync_count++;
    memcpy(power.confirmed, power.items, sizeof(power.items));
}

/*
 * A flush of the next owner fails, and the kernel, to whom all pages are clean now,
 * drops some: who opens then is as after a power loss.
 */
static void power_find_late(void)
{
    const char *directory = power.directory[power.home];
    struct weir__header left;
    struct weir__header header;

    power.open_fails = 1 + (int)power_below(2);
    power.is_opening = true;
    CHECK(power_try_open(directory, &power.next) == -EIO);
    power.is_opening = false;
    power.open_fails = 0;
    power.opens_failed++;

    struct power_moment mix = {{power_mix(0), power_mix(1)}};
    harness_named_header(directory, POWER_NAME, &left);
    power_make_files(directory, &mix, false);
    harness_named_header(directory, POWER_NAME, &header);
    header.boot = left.boot;
    harness_named_set_header(directory, POWER_NAME, &header);
    power.in_loss = true;
    power.next = power_open(directory);
    power_compare_all(power.next);
    power_know(power.next, &mix);
    power.in_loss = false;
}

/*
 * The owner is killed here, and the next one finds what the kernel has. The call
 * that we are in goes on, and nobody looks at its files any more.
 */
static void power_kill(void)
{
    power_remember();
    power_make_files(power.directory[!power.home], &power.moments[power.moment_count - 1], false);
    power.home = !power.home;
    power.is_killed = true;
    power.kills++;
    if (power_below(3) == 0)
        power_find_late();
    else
        power_find();
    power.is_killed = false;
}

/* What is on disk of this file is then no older than this moment. */
static int power_flush(int fd)
{
    CHECK(power_is_file(fd, 0) || power_is_file(fd, 1));
    power_remember();
    int r = __real_weir__sys_fdatasync(fd);
    power.floor[power_is_file(fd, 1)] = power.moment_count - 1;
    return r;
}

/* Some of it may be there now: the count, too. */
static void power_fail(void)
{
    power_remember();
    if (!power_is_counted())
        return;
    power.is_attempted = true;
    memcpy(power.attempted, power.items, sizeof(power.items));
}

static int power_flush_opening(int fd)
{
    if (power.open_fails > 0 && --power.open_fails == 0) {
        power_remember();
        power.open_fails = -1;
        return -EIO;
    }
    return power.open_fails < 0 ? __real_weir__sys_fdatasync(fd) : power_flush(fd);
}

int __wrap_weir__sys_fdatasync(int fd)
{
    if (power.is_opening)
        return power_flush_opening(fd);
    if (!power.in_sync || power.in_loss || power.next != NULL)
        return __real_weir__sys_fdatasync(fd);

    if (++power.flush_count == power.flush_dies) {
        power.losses_in_sync++;
        power_lose(false);
    }
    if (power.flush_count == power.flush_kills) {
        power_kill();
        return __real_weir__sys_fdatasync(fd);
    }
    if (power.flush_count == power.flush_fails) {
        power_fail();
        return -EIO;
    }
    return power_flush(fd);
}

static void power_sync(void)
{
    power.flush_count = 0;
    power.flush_dies = (int)power_below(7);
    if (power.flush_dies > 4)
        power.flush_dies = 3; /* where what is moved is half way */
    power.flush_kills = (int)power_below(9);
    power.flush_fails = (int)power_below(24);
    if (power.flush_fails > 21)
        power.flush_fails = 3;
    power.in_sync = true;
    int r = weir_region_sync(power.region);
    power.in_sync = false;
    if (power.next != NULL) {
        weir_region_close(power.region);
        CHECK(weir_region_remove(power.directory[!power.home], POWER_NAME) == 0);
        power.region = power.next;
        power.next = NULL;
        return;
    }
    bool has_failed = power.flush_fails > 0 && power.flush_fails <= power.flush_count;
    bool is_refused = power.is_doubted && power.flush_count == 0; /* not all is stored anew yet */
    CHECK(r == (has_failed || is_refused ? -EIO : 0));
    power.is_doubted = r < 0;
    power.syncs_failed += r < 0;
    if (r < 0)
        return;
    power.is_attempted = false;
    power.sync_count++;
    memcpy(power.confirmed, power.items, sizeof(power.items));
}

/* ---- Steps ----------------------------------------------------------------- */

static void power_change(void)
{
    struct power_item *item = &power.items[power_below(POWER_ITEMS)];
    struct weir_region_stats stats;

    if (item->key != 0) {
        CHECK(weir_region_free(power.region, item->slot) == 0);
        item->key = 0;
        return;
    }
    weir_region_stats(power.region, &stats);
    if (stats.live_bytes + stats.freed_bytes > POWER_LIVE_BYTES)
        return;
    uint64_t key = ++power.key_last;
    uint64_t bytes = power_size(key);
    char *data = malloc(bytes + 1);
    harness_fill(data, bytes, key, 0);
    int r = weir_region_put(power.region, data, bytes, (struct weir_label){key, POWER_OWNER},
                            &item->slot);
    free(data);
    /* Degraded after a flush that failed. */
    CHECK(r == 0 || r == -EAGAIN || r == -EDQUOT || r == -ENOSPC || r == -EIO);
    item->key = r == 0 ? key : 0;
}

static void power_turn(void)
{
    struct weir_region_stats stats;
    uint64_t steps = power_below(600);

    for (uint64_t i = 0; i < steps; i++) {
        power_change();
        if (power_below(4) == 0)
            CHECK(weir_region_poll(power.region) >= 0);
        if (power_below(200) == 0)
            power_remember();
        if (power_below(300) == 0)
            power_sync();
    }
    weir_region_audit(power.region);
    weir_region_stats(power.region, &stats);
    power.moved = weir__max(power.moved, stats.moved_bytes);
    power_lose(true);
}

int main(int argc, char **argv)
{
    uint64_t losses = 40;

    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--losses") == 0)
            losses = strtoull(argv[i + 1], NULL, 0);
    if (harness_tmpdir() == NULL) {
        printf("there is no disk to write to\n");
        return 77;
    }
    power.random = harness_seed();
    for (int i = 0; i < 2; i++) {
        snprintf(power.directory[i], sizeof(power.directory[i]), "%s/power-%d", harness_tmpdir(),
                 i);
        CHECK(mkdir(power.directory[i], 0700) == 0);
    }
    power.region = power_open(power.directory[0]);
    power_remember();
    while (power.losses < losses)
        power_turn();
    power_forget(0);
    weir_region_close(power.region);
    CHECK(weir_region_remove(power.directory[power.home], POWER_NAME) == 0);
    printf("# %" PRIu64 " losses, %" PRIu64 " of them inside sync; %" PRIu64 " items put\n",
           power.losses, power.losses_in_sync, power.key_last);
    printf("# %" PRIu64 " owners killed inside sync, %" PRIu64 " times the next could not flush\n",
           power.kills, power.opens_failed);
    printf("# %" PRIu64 " while items were moved, %" PRIu64 " of them half way\n",
           power.losses_moving, power.losses_switched);
    printf("# %" PRIu64 " syncs failed, %" PRIu64 " losses when nobody knew of their counts\n",
           power.syncs_failed, power.losses_attempted);
    printf("# found: %" PRIu64 " kept, %" PRIu64 " of them freed since, %" PRIu64
           " not whole; %" PRIu64 " bytes moved\n",
           power.kept, power.restored, power.lost, power.moved);
    CHECK(losses < 40 || (power.losses_in_sync > 0 && power.restored > 0 && power.lost > 0 &&
                          power.losses_moving > 0));
    CHECK(losses < 200 ||
          (power.losses_switched > 0 && power.opens_failed > 0 && power.losses_attempted > 0));
    printf("ok\n");
    return 0;
}

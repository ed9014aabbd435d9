/* SPDX-License-Identifier: MIT */
/*
 * view_fault - a look to which the kernel says no
 *
 * Regions that have an owner, anonymous and named, and the files of one that has
 * none. All that can be seen of them is looked at while calls and allocations go
 * wrong: an answer is then exact or the error of that call, never -ESTALE or
 * -ENOENT of an item that is there. Afterwards the same view, if it could be opened,
 * sees everything, and its owner has noticed nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "base/bits.h"

#include "named.h"
#include "pattern.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MIB        (UINT64_C(1) << 20)
#define ITEM_COUNT 160u
#define ITEM_STEP  53u /* of these are looked at */
#define TRIES_MAX  2
#define NAME       "seen"

/* What is looked into. */
struct sight {
    struct weir_region *region; /* NULL: only files are left */
    int fd;                     /* of the tables */
    struct weir_slot slots[ITEM_COUNT];
    bool is_summed[ITEM_COUNT];
    uint64_t chunk_count;
    uint64_t cold_chunk_count;
    struct weir_region_stats before;
};

/* Of the kernel: whatever we say of tables and items ourselves is wrong here. */
static bool is_fault(int r)
{
    return r == -EIO || r == -EMFILE || r == -ENFILE || r == -EACCES || r == -ENOMEM;
}

static size_t item_bytes(uint32_t i)
{
    return i % 7 == 0 ? 300000 + i : 100000 + i;
}

/* ---- What is seen --------------------------------------------------------- */

static unsigned char buffer[400000];

/* Each answer is a fault, or what the owner knows. */
static bool look_at_item(const struct sight *sight, const struct weir_view *view, uint32_t i)
{
    struct weir_view_extent extent = {.bytes = 4711};
    size_t bytes = 4711;
    int r = weir_view_extent(view, sight->slots[i].index, &extent);
    bool is_whole = r == 0;

    if (r == 0) {
        assert_int_equal(extent.slot.generation, sight->slots[i].generation);
        assert_int_equal(extent.label.key, i);
        assert_int_equal(extent.bytes, item_bytes(i));
        assert_true(extent.committed);
        assert_int_equal(extent.summed, sight->is_summed[i]);
    } else {
        assert_true(is_fault(r));
        assert_int_equal(extent.bytes, 4711);
    }
    r = weir_view_read(view, sight->slots[i], 0, buffer, sizeof(buffer), &bytes);
    is_whole &= r == 0;
    if (r == 0) {
        assert_int_equal(bytes, item_bytes(i));
        assert_int_equal(harness_differs_at(buffer, bytes, i, 0), bytes);
    } else {
        assert_true(is_fault(r));
        assert_int_equal(bytes, 4711);
    }
    r = weir_view_verify(view, sight->slots[i]);
    is_whole &= !is_fault(r);
    assert_true(is_fault(r) || r == (sight->is_summed[i] ? 0 : -ENOENT));
    return is_whole;
}

static bool look(const struct sight *sight, const struct weir_view *view)
{
    uint64_t cold_chunk_count = 0;
    bool is_whole = true;

    for (uint64_t i = 0; i < sight->chunk_count; i++) {
        struct weir_view_chunk chunk = {.state = WEIR_CHUNK_NONE};
        int r = weir_view_chunk(view, i, &chunk);
        assert_true(r == 0 || is_fault(r));
        is_whole &= r == 0;
        cold_chunk_count += chunk.state == WEIR_CHUNK_COLD;
    }
    if (is_whole)
        assert_int_equal(cold_chunk_count, sight->cold_chunk_count);
    for (uint32_t i = 0; i < ITEM_COUNT; i += ITEM_STEP)
        is_whole &= look_at_item(sight, view, i);
    return is_whole;
}

static void scan(const struct sight *sight)
{
    int fds[8];
    int r = weir_view_scan(0, fds, 8);

    if (r == 1)
        assert_int_equal(fds[0], sight->fd);
    else
        assert_true(is_fault(r));
}

static void run(void *context)
{
    const struct sight *sight = context;
    struct weir_view *view = NULL;
    int r = -EIO;

    scan(sight);
    for (int i = 0; i < TRIES_MAX && r < 0; i++) {
        r = weir_view_open(0, sight->fd, &view);
        assert_true(r == 0 || is_fault(r));
    }
    if (r == 0 && !look(sight, view))
        assert_true(seam_fired() > 0);
    if (r == 0) {
        seam_lift();
        assert_true(look(sight, view));
        struct weir_view_summary summary;
        weir_view_summary(view, &summary);
        assert_int_equal(summary.slot_count, ITEM_COUNT);
    }
    weir_view_close(view);

    seam_lift();
    if (sight->region != NULL) {
        struct weir_region_stats after;
        weir_region_stats(sight->region, &after);
        assert_int_equal(after.slot_count, sight->before.slot_count);
        assert_int_equal(after.live_bytes, sight->before.live_bytes);
        assert_int_equal(after.file_bytes, sight->before.file_bytes);
        assert_int_equal(after.resident_bytes, sight->before.resident_bytes);
        assert_int_equal(after.read_bytes, sight->before.read_bytes);
        assert_int_equal(after.written_bytes, sight->before.written_bytes);
        assert_int_equal(after.metadata_bytes, sight->before.metadata_bytes);
    }
}

/* ---- What is there to be seen --------------------------------------------- */

static void settle(struct weir_region *region)
{
    for (int idle = 0; idle < 3;) {
        int count = weir_region_wait(region, UINT64_C(1000000000));
        assert_true(count >= 0);
        idle = count > 0 ? 0 : idle + 1;
    }
}

/* Some of it is cold. */
static void sight_open(struct sight *sight, const char *name)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .name = name,
        .bytes_max = 64 * MIB,
        .resident_bytes_max = 8 * MIB,
    };

    *sight = (struct sight){0};
    assert_int_equal(weir_region_open(&config, &sight->region), 0);
    for (uint32_t i = 0; i < ITEM_COUNT; i++) {
        int r = -EAGAIN;
        harness_fill(buffer, item_bytes(i), i, 0);
        while (r == -EAGAIN) {
            r = weir_region_put(sight->region, buffer, item_bytes(i), (struct weir_label){i, 3},
                                &sight->slots[i]);
            assert_true(weir_region_wait(sight->region, r == -EAGAIN ? 1000000 : 0) >= 0);
        }
        assert_int_equal(r, 0);
    }
    if (name != NULL)
        assert_int_equal(weir_region_sync(sight->region), 0);
    settle(sight->region);
    sight->fd = weir_region_fd(sight->region);
    weir_region_stats(sight->region, &sight->before);
}

/* What is not known otherwise, while nothing goes wrong. */
static void sight_learn(struct sight *sight)
{
    struct weir_view *view = NULL;
    struct weir_view_summary summary;

    assert_int_equal(weir_view_open(0, sight->fd, &view), 0);
    weir_view_summary(view, &summary);
    sight->chunk_count = summary.chunk_count;
    for (uint64_t i = 0; i < summary.chunk_count; i++) {
        struct weir_view_chunk chunk;
        assert_int_equal(weir_view_chunk(view, i, &chunk), 0);
        sight->cold_chunk_count += chunk.state == WEIR_CHUNK_COLD;
    }
    for (uint32_t i = 0; i < ITEM_COUNT; i++) {
        struct weir_view_extent extent;
        assert_int_equal(weir_view_extent(view, sight->slots[i].index, &extent), 0);
        sight->is_summed[i] = extent.summed;
    }
    weir_view_close(view);
}

/* ---- Cases ---------------------------------------------------------------------- */

/* What a memfd says of its seals: that cannot fail. */
static bool can_fail(const struct seam_use *use, void *context)
{
    (void)context;
    return use->call != SEAM_sys_length_is_sealed;
}

static void each_use(struct sight *sight, bool is_heap)
{
    static const struct each {
        struct seam_rule rule;
        uint64_t stride;
        uint64_t count_min;
    } each[] = {
        {{.call = SEAM_ANY_CALL, .matches = can_fail}, 1, 20},
        {{.call = SEAM_ANY_CALL, .times = SEAM_FOR_GOOD, .matches = can_fail}, 3, 7},
        {{.call = SEAM_sys_pread_all, .how = SEAM_CUT}, 3, 3},
        {{.call = SEAM_ANY_HEAP}, 1, 2},
        {{.call = SEAM_ANY_HEAP, .times = SEAM_FOR_GOOD}, 1, 2},
    };

    sight_learn(sight);
    for (size_t i = is_heap ? 3 : 0; i < (is_heap ? 5 : 3); i++) {
        uint64_t count = seam_each(each[i].rule, each[i].stride, run, sight);
        print_message("# %" PRIu64 " runs\n", count);
        assert_true(count >= each[i].count_min);
    }
}

static void anonymous(void **state)
{
    struct sight sight;

    sight_open(&sight, NULL);
    each_use(&sight, *state != NULL);
    weir_region_close(sight.region);
}

static void named(void **state)
{
    struct sight sight;

    sight_open(&sight, NAME);
    each_use(&sight, *state != NULL);
    weir_region_close(sight.region);
    assert_int_equal(weir_region_remove(harness_tmpdir(), NAME), 0);
}

static void without_owner(void **state)
{
    struct sight sight;

    sight_open(&sight, NAME);
    weir_region_close(sight.region);
    sight.region = NULL;
    sight.fd = harness_named_open(harness_tmpdir(), NAME LAYOUT_TABLE_SUFFIX);
    each_use(&sight, *state != NULL);
    close(sight.fd);
    assert_int_equal(weir_region_remove(harness_tmpdir(), NAME), 0);
}

/* A header that is being replaced: until it is read again some of it is still the old one's. */
struct replaced {
    struct weir__header header;
    int fd;
    uint64_t reads;
};

static bool sees_header(const struct seam_use *use, void *context)
{
    struct replaced *replaced = context;
    size_t bytes = sizeof(replaced->header);

    if (use->offset == 0 && use->bytes == bytes && replaced->reads++ == 1)
        assert_int_equal(pwrite(replaced->fd, &replaced->header, bytes, 0), bytes);
    return false;
}

static void replaced_meanwhile(void **state)
{
    struct sight sight;
    struct replaced replaced = {0};
    struct weir_view *view = NULL;

    (void)state;
    sight_open(&sight, NAME);
    weir_region_close(sight.region);
    replaced.fd = harness_named_open(harness_tmpdir(), NAME LAYOUT_TABLE_SUFFIX);
    harness_named_header(harness_tmpdir(), NAME, &replaced.header);
    struct weir__header torn = replaced.header;
    torn.resident_bytes_max += MIB;
    assert_int_equal(pwrite(replaced.fd, &torn, sizeof(torn), 0), sizeof(torn));

    seam_arm((struct seam_rule){
        .call = SEAM_sys_pread_all, .matches = sees_header, .context = &replaced});
    assert_int_equal(weir_view_open(0, replaced.fd, &view), 0);
    seam_lift();
    assert_int_equal(replaced.reads, 2);
    weir_view_close(view);
    close(replaced.fd);
    assert_int_equal(weir_region_remove(harness_tmpdir(), NAME), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest cases[] = {
        SEAM_TEST("a region is seen exactly or an error is told", anonymous),
        SEAM_TEST("a named region is seen exactly or an error is told", named),
        SEAM_TEST("files without an owner are seen exactly or an error is told", without_owner),
        SEAM_TEST("a header that is being replaced is read again", replaced_meanwhile),
        SEAM_TEST_OF("a look without memory leaves nothing", anonymous, "heap"),
        SEAM_TEST_OF("a look at files without memory leaves nothing", without_owner, "heap"),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("view", cases, NULL, NULL);
}

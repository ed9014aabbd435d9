/* SPDX-License-Identifier: MIT */
/*
 * region_secret_unit - who does not see what lies in a region
 *
 * Not a core dump, not a child; and where config.wipes was said, not whoever
 * reads memory, file or an old descriptor after an item was freed. The kernel is
 * asked by smaps and mincore(2), the file by searching it for a word that only
 * the item held. Each case that finds nothing has one beside it that finds it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "base/random.h"
#include "region/arena.h"

#include "process.h"
#include "program.h"

#include <errno.h>
#include <sys/wait.h>

#define KIB          UINT64_C(1024)
#define MIB          (KIB << 10)
#define CHUNK_BYTES  (2 * MIB)
#define RESIDENT_MIN (8 * MIB)
#define SECRET_BYTES 32

struct fixture {
    struct weir_region *region;
    int data_fd; /* ours: it outlives the region */
    bool marks[HARNESS_FD_MAX];
    uint32_t secret_count;
};

/* ---- Steps ---------------------------------------------------------------- */

static void start(struct fixture *f, struct weir_region_config config)
{
    memset(f, 0, sizeof(*f));
    harness_mark_fds(f->marks);
    config.directory = harness_tmpdir();
    assert_int_equal(weir_region_open(&config, &f->region), 0);
    f->data_fd = dup(harness_data_fd(harness_tmpdir(), f->marks));
    assert_true(f->data_fd >= 0);
}

static void finish(struct fixture *f)
{
    if (f->region != NULL)
        weir_region_audit(f->region);
    weir_region_close(f->region);
    close(f->data_fd);
}

static bool is_bounded(struct fixture *f)
{
    struct weir_region_stats stats;

    weir_region_stats(f->region, &stats);
    if (stats.bounded)
        return true;
    printf("# passed over: this file system keeps pages in memory\n");
    finish(f);
    return false;
}

/* Bytes that stand nowhere else; kept scrambled, so that this program's own copy is not found. */
static void secret_bytes(uint64_t secret, unsigned char *bytes)
{
    for (size_t i = 0; i < SECRET_BYTES; i++)
        bytes[i] = (unsigned char)weir__mix(secret * 1000 + i);
}

static struct weir_slot put_secret(struct fixture *f, uint64_t secret, size_t bytes)
{
    unsigned char *data = test_calloc(1, bytes);
    struct weir_slot slot;

    secret_bytes(secret, data + bytes / 2);
    assert_int_equal(weir_region_put(f->region, data, bytes, (struct weir_label){secret, 1}, &slot),
                     0);
    test_free(data);
    return slot;
}

static bool is_in_file(const struct fixture *f, uint64_t secret)
{
    unsigned char bytes[SECRET_BYTES];

    secret_bytes(secret, bytes);
    return harness_find(f->data_fd, bytes, sizeof(bytes)) >= 0;
}

static bool is_resident(const struct fixture *f, struct weir_slot slot)
{
    struct weir_slot_info info;

    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    return info.resident;
}

static void make_cold(struct fixture *f, struct weir_slot slot)
{
    static char filler[64 * 1024];
    struct weir_slot other;

    for (int i = 0; is_resident(f, slot); i++) {
        assert_true(i < 10000);
        assert_int_equal(
            weir_region_put(f->region, filler, sizeof(filler), (struct weir_label){0, 2}, &other),
            0);
    }
}

static void fetch_done(void *context, struct weir_slot slot, int result)
{
    (void)slot;
    assert_int_equal(result, 0);
    ++*(int *)context;
}

static const void *fetch(struct fixture *f, struct weir_slot slot)
{
    const void *data;
    int called = 0;

    assert_int_equal(weir_region_fetch(f->region, &slot, 1, fetch_done, &called), 0);
    while (called == 0)
        assert_true(weir_region_wait(f->region, UINT64_C(1000000000)) >= 0);
    assert_int_equal(weir_region_pin(f->region, slot, &data, NULL), 0);
    return data;
}

/* ---- Dumps and children -------------------------------------------------------- */

static void *table_address(void)
{
    char line[4096];
    unsigned long low = 0;
    FILE *maps = fopen("/proc/self/maps", "re");

    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "memfd:weir.region") != NULL && sscanf(line, "%lx-", &low) == 1)
            break;
    fclose(maps);
    return (void *)(uintptr_t)low;
}

static bool is_mapped(const void *address)
{
    uintptr_t page = (uintptr_t)address & ~(uintptr_t)4095;
    unsigned char present;

    return mincore((void *)page, 4096, &present) == 0;
}

/* An item in memory, the tables, and an item in a fetch buffer. */
static bool three_places(struct fixture *f, const void *places[3])
{
    start(f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(f))
        return false;
    struct weir_slot cold = put_secret(f, 1, 10000);
    make_cold(f, cold);
    struct weir_slot hot = put_secret(f, 2, 10000);
    assert_int_equal(weir_region_at(f->region, hot, &places[0], NULL), 0);
    places[1] = table_address();
    assert_non_null(places[1]);
    places[2] = fetch(f, cold);
    weir_region_unpin(f->region, cold);
    return true;
}

static void nothing_is_in_dumps(void **state)
{
    struct fixture f;
    const void *places[3];

    assert_false(harness_is_hidden(state)); /* what is like any other memory is seen as such */
    if (!three_places(&f, places))
        return;
    for (int i = 0; i < 3; i++)
        assert_true(harness_is_hidden(places[i]));
    finish(&f);
}

static void nothing_is_in_children(void **state)
{
    struct fixture f;
    const void *places[3];
    int status;

    (void)state;
    if (!three_places(&f, places))
        return;
    for (int i = 0; i < 3; i++)
        assert_true(is_mapped(places[i]));
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int seen = !is_mapped(&f);
        for (int i = 0; i < 3; i++)
            seen |= is_mapped(places[i]) << (i + 1);
        _exit(seen);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    finish(&f);
}

/* ---- Wiping --------------------------------------------------------------------- */

static void what_is_freed_is_wiped_at_once(void **state)
{
    struct fixture f;

    (void)state;
    for (int wipes = 0; wipes < 2; wipes++) {
        start(&f, (struct weir_region_config){.wipes = wipes});
        put_secret(&f, 1, 100); /* so that the mark stays */
        struct weir_slot small = put_secret(&f, 2, 100);
        struct weir_slot large = put_secret(&f, 3, 3 * MIB); /* in two chunks at least */
        struct weir_slot last = put_secret(&f, 4, 5000);
        const void *data;
        assert_true(is_in_file(&f, 2) && is_in_file(&f, 3));
        assert_int_equal(weir_region_pin(f.region, small, &data, NULL), 0);
        assert_int_equal(weir_region_free(f.region, small), 0);
        assert_true(is_in_file(&f, 2)); /* with the last unpin */
        weir_region_unpin(f.region, small);
        assert_int_equal(weir_region_free(f.region, large), 0);
        assert_int_equal(is_in_file(&f, 2), !wipes);
        assert_int_equal(is_in_file(&f, 3), !wipes);
        assert_true(is_in_file(&f, 1) && is_in_file(&f, 4));
        assert_int_equal(weir_region_free(f.region, last), 0);
        assert_int_equal(is_in_file(&f, 4), !wipes);
        assert_true(is_in_file(&f, 1));
        finish(&f);
    }
}

static void nothing_is_left_in_the_file_after_close(void **state)
{
    struct fixture f;

    (void)state;
    for (int wipes = 0; wipes < 2; wipes++) {
        start(&f, (struct weir_region_config){.wipes = wipes});
        put_secret(&f, 1, 100);
        put_secret(&f, 2, 5 * MIB);
        weir_region_close(f.region);
        f.region = NULL;
        assert_int_equal(is_in_file(&f, 1), !wipes);
        assert_int_equal(is_in_file(&f, 2), !wipes);
        finish(&f);
    }
}

/* On the disk it stays until its chunk is given up or brought back: as the header says. */
static void what_is_cold_is_wiped_with_its_chunk(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.wipes = true, .resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot first = put_secret(&f, 1, CHUNK_BYTES / 2);
    struct weir_slot second = put_secret(&f, 2, CHUNK_BYTES / 2);
    make_cold(&f, second);
    assert_false(is_resident(&f, first));
    assert_int_equal(weir_region_free(f.region, first), 0);
    assert_int_equal(weir_region_free(f.region, second), 0);
    assert_false(is_in_file(&f, 1));
    assert_false(is_in_file(&f, 2));
    finish(&f);
}

static bool put_filler(struct fixture *f, size_t bytes, struct weir_slot *ret_slot)
{
    static char filler[100 * 1024];
    int r;

    for (int tries = 0; tries < 1000; tries++) {
        r = weir_region_put(f->region, filler, bytes, (struct weir_label){0, 2}, ret_slot);
        if (r != -EAGAIN)
            break;
        assert_true(weir_region_wait(f->region, 100000000) >= 0);
    }
    assert_true(r == 0 || r == -EDQUOT);
    return r == 0;
}

static uint64_t offset_of(const struct weir_view *view, struct weir_slot slot)
{
    struct weir_view_extent extent;

    assert_int_equal(weir_view_extent(view, slot.index, &extent), 0);
    return extent.offset;
}

/* A full region brings chunks back to fill their holes: they come back empty. */
static void what_is_brought_back_is_wiped(void **state)
{
    struct fixture f;
    struct weir_slot slots[100];
    struct weir_slot other;

    (void)state;
    for (int wipes = 0; wipes < 2; wipes++) {
        struct weir_view *view = NULL;
        uint64_t offsets[100];
        size_t beside = 0;
        size_t left = 0;
        start(&f, (struct weir_region_config){
                      .wipes = wipes, .resident_bytes_max = RESIDENT_MIN, .bytes_max = 12 * MIB});
        if (!is_bounded(&f))
            return;
        assert_int_equal(weir_view_open(0, weir_region_fd(f.region), &view), 0);
        for (size_t i = 0; i < 100; i++) {
            assert_true(put_filler(&f, 100 * KIB, &other));
            slots[i] = put_secret(&f, i, 8000);
        }
        while (put_filler(&f, 50 * KIB, &other))
            ;
        while (put_filler(&f, 8016, &other)) /* no hole that is in memory is large enough */
            ;
        assert_false(is_resident(&f, slots[0]));
        for (size_t i = 0; i < 100; i++) {
            offsets[i] = UINT64_MAX;
            if (is_resident(&f, slots[i]))
                continue;
            offsets[i] = offset_of(view, slots[i]);
            assert_int_equal(weir_region_free(f.region, slots[i]), 0);
        }
        assert_true(is_in_file(&f, 0));
        assert_true(put_filler(&f, 8000, &other)); /* a chunk came back for it, with its holes */
        uint64_t place = offset_of(view, other);
        for (size_t i = 0; i < 100; i++) {
            if (offsets[i] == UINT64_MAX) {
                assert_true(is_in_file(&f, i));
            } else if ((offsets[i] + 4000) / CHUNK_BYTES == place / CHUNK_BYTES) { /* its bytes */
                beside++;
                left += is_in_file(&f, i);
            }
        }
        assert_true(beside > 10);
        if (wipes)
            assert_int_equal(left, 0);
        else
            assert_true(left + 1 >= beside); /* it took the place of one */
        weir_view_close(view);
        finish(&f);
    }
}

static void a_fetch_buffer_is_wiped(void **state)
{
    struct weir__arena arena;
    unsigned char *data;

    (void)state;
    for (int wipes = 0; wipes < 2; wipes++) {
        weir__arena_open(&arena, 64 * KIB, wipes);
        data = weir__arena_alloc(&arena, 5000);
        memset(data, 0x77, 5000);
        weir__arena_free(&arena, data, 5000);
        assert_ptr_equal(weir__arena_alloc(&arena, 5000), data);
        assert_int_equal(data[4999], wipes ? 0 : 0x77);
        weir__arena_free(&arena, data, 5000);
        weir__arena_close(&arena);
    }
}

/* ---- The arena ---------------------------------------------------------------------- */

static void buffers_do_not_overlap(void **state)
{
    struct weir__arena arena;
    struct {
        unsigned char *data;
        uint64_t bytes;
        unsigned char mark;
    } buffers[100] = {{NULL, 0, 0}};
    uint64_t random = 7;
    uint64_t own_peak = 0;

    (void)state;
    weir__arena_open(&arena, 4 * MIB, true);
    for (int step = 0; step < 20000; step++) {
        size_t i = weir__random_below(&random, 100);
        unsigned char *data = buffers[i].data;
        if (data != NULL) {
            for (uint64_t at = 0; at < buffers[i].bytes; at += 1000)
                assert_int_equal(data[at], buffers[i].mark);
            weir__arena_free(&arena, data, buffers[i].bytes);
            buffers[i].data = NULL;
            continue;
        }
        buffers[i].bytes = 1 + weir__random_below(&random, 200000) / (1 + step % 50);
        buffers[i].mark = (unsigned char)weir__random(&random);
        data = weir__arena_alloc(&arena, buffers[i].bytes);
        assert_non_null(data);
        assert_int_equal((uintptr_t)data % 4096, 0);
        assert_true(step % 1000 != 0 || harness_is_hidden(data));
        memset(data, buffers[i].mark, buffers[i].bytes);
        buffers[i].data = data;
        own_peak = arena.own_count > own_peak ? arena.own_count : own_peak;
    }
    for (size_t i = 0; i < 100; i++)
        if (buffers[i].data != NULL)
            weir__arena_free(&arena, buffers[i].data, buffers[i].bytes);
    assert_int_equal(arena.own_count, 0);
    weir__arena_close(&arena);
    assert_int_equal(own_peak, 0); /* there was room */
}

/* One that no gap holds has a mapping of its own, and what is free meanwhile has no memory. */
static void a_buffer_finds_its_place_whatever_is_pinned(void **state)
{
    struct weir__arena arena;
    unsigned char *pages[64];
    unsigned char present[16];

    (void)state;
    weir__arena_open(&arena, 256 * KIB, false);
    for (size_t i = 0; i < 64; i++) {
        pages[i] = weir__arena_alloc(&arena, 4096);
        memset(pages[i], 1, 4096);
    }
    for (size_t i = 0; i < 64; i += 2)
        weir__arena_free(&arena, pages[i], 4096);
    unsigned char *large = weir__arena_alloc(&arena, 8192);
    assert_non_null(large);
    assert_int_equal(arena.own_count, 1);
    assert_true(harness_is_hidden(large));
    memset(large, 2, 8192);
    assert_int_equal(mincore(pages[0], 16 * 4096, present), 0);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(present[i] & 1, i % 2);
    weir__arena_free(&arena, pages[1], 4096);
    assert_int_equal(mincore(pages[1], 4096, present), 0);
    assert_int_equal(present[0] & 1, 0);
    weir__arena_free(&arena, large, 8192);
    assert_int_equal(arena.own_count, 0);
    assert_ptr_equal(weir__arena_alloc(&arena, 3 * 4096), pages[0]);
    weir__arena_free(&arena, pages[0], 3 * 4096);
    for (size_t i = 3; i < 64; i += 2)
        weir__arena_free(&arena, pages[i], 4096);
    weir__arena_close(&arena);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("items, tables and fetched items stay out of core dumps", nothing_is_in_dumps),
        CASE("items, tables and fetched items stay out of children", nothing_is_in_children),
        CASE("what is freed in memory is wiped at once", what_is_freed_is_wiped_at_once),
        CASE("nothing is left in the file after close", nothing_is_left_in_the_file_after_close),
        CASE("what is cold is wiped with its chunk", what_is_cold_is_wiped_with_its_chunk),
        CASE("what is brought back is wiped", what_is_brought_back_is_wiped),
        CASE("a fetch buffer is wiped", a_fetch_buffer_is_wiped),
        CASE("buffers do not overlap", buffers_do_not_overlap),
        CASE("a buffer finds its place whatever is pinned",
             a_buffer_finds_its_place_whatever_is_pinned),
    };

    if (!harness_begin(argc, argv))
        return 0;
#ifdef __SANITIZE_THREAD__
    /* One thread is nothing to this sanitizer, and it maps its own memory where we look. */
    printf("1..0 # SKIP one thread\n");
    return 0;
#endif
    return cmocka_run_group_tests_name("region_secret", cases, NULL, NULL);
}

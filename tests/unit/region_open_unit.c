/* SPDX-License-Identifier: MIT */
/*
 * region_open_unit - opening and closing: arguments, limits, and that nothing is left
 *
 * region.h on weir_region_open() and weir_region_close(): what a configuration
 * may say, what the process and the directory may lack, and what remains in the
 * end, also after a crash.
 *
 *      region_open_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

static void closing_leaves_nothing(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(harness_name_count(f.directory), 0); /* not even while it is open */
    finish(&f);
    weir_region_close(NULL);
}

static void defaults_are_the_headers(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.bytes_max, GIB);
    assert_int_equal(stats.resident_bytes_max, 64 * MIB);
    assert_int_equal(stats.file_bytes, 64 * MIB);
    assert_true(stats.disk_bytes >= 64 * MIB); /* a reservation: the blocks are there */
    assert_int_equal(stats.live_bytes, 0);
    assert_int_equal(stats.live_bytes_peak, 0);
    assert_int_equal(stats.slot_count, 0);
    assert_int_equal(stats.put_count, 0);
    assert_int_equal(stats.put_bytes, 0);
    assert_int_equal(stats.pinned_bytes, 0);
    assert_int_equal(stats.fetched_bytes, 0);
    assert_int_equal(stats.write_error_count, 0);
    assert_int_equal(stats.read_error_count, 0);
    assert_int_equal(stats.growth_error_count, 0);
    assert_true(stats.resident_bytes <= CHUNK_BYTES); /* the chunk of the probe was dropped */
    assert_true(stats.put_bytes_max >= 4 * KIB);
    assert_true(stats.fetch_bytes_max >= 4 * KIB);
    assert_false(stats.degraded);
    assert_false(stats.movable);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f.data_fd);
    int direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    assert_int_equal(stats.direct, direct_fd >= 0);
    close(direct_fd);
    finish(&f);
}

static void initial_is_cut_to_max(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 16 * MIB});
    assert_int_equal(figures(&f).bytes_max, 16 * MIB);
    assert_int_equal(figures(&f).file_bytes, 16 * MIB);
    finish(&f);

    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 16 * MIB});
    assert_int_equal(figures(&f).file_bytes, 4 * MIB);
    finish(&f);
}

static void assert_open_fails(const struct weir_region_config *config, int error)
{
    struct weir_region *const mark = (struct weir_region *)(void *)&harness_is_synchronous;
    struct weir_region *region = mark;
    int fd_count = harness_fd_count();
    int map_count = harness_map_count(harness_tmpdir());

    assert_int_equal(weir_region_open(config, &region), error);
    assert_ptr_equal(region, mark);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_map_count(harness_tmpdir()), map_count);
    assert_int_equal(harness_name_count(harness_tmpdir()), 0);
}

static void reserved_words_are_zero(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct weir_region_config config = {.directory = harness_tmpdir()};
        config.reserved[i] = UINT64_C(1) << (i * 8);
        assert_open_fails(&config, -EINVAL);
    }
}

static void a_directory_is_required(void **state)
{
    struct weir_region_config config = {0};

    (void)state;
    assert_open_fails(&config, -EINVAL);
}

static void a_bad_directory_says_what_open_says(void **state)
{
    struct weir_region_config config = {.directory = ""};
    char path[PATH_MAX + 16];

    (void)state;
    assert_open_fails(&config, -ENOENT);
    snprintf(path, sizeof(path), "%s/missing", harness_tmpdir());
    config.directory = path;
    assert_open_fails(&config, -ENOENT);
    config.directory = "/proc/self/status";
    assert_open_fails(&config, -ENOTDIR);
}

static int open_where_nobody_may(const char *directory)
{
    struct weir_region *region = NULL;
    struct weir_region_config config = {.directory = directory};

    if (geteuid() == 0)
        CHILD_CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    else
        CHILD_CHECK(chmod(directory, 0500) == 0);
    int r = weir_region_open(&config, &region);
    if (geteuid() != 65534)
        CHILD_CHECK(chmod(directory, 0700) == 0);
    CHILD_CHECK(r == -EACCES);
    CHILD_CHECK(region == NULL);
    return 0;
}

static void a_directory_not_ours_is_refused(void **state)
{
    (void)state;
    assert_child_passes(open_where_nobody_may);
}

static void a_long_directory_name_is_fine(void **state)
{
    char path[1024];
    struct fixture f;
    size_t length = (size_t)snprintf(path, sizeof(path), "%s", harness_tmpdir());

    (void)state;
    begin(&f);
    for (int i = 0; i < 4; i++) {
        path[length++] = '/';
        memset(path + length, 'a' + i, 120);
        length += 120;
        path[length] = '\0';
        assert_int_equal(mkdir(path, 0700), 0);
    }
    int r = open_as(&f, (struct weir_region_config){.directory = path});
    if (r == 0) {
        assert_here(&f, put(&f, 1, 100), 100);
        weir_region_close(f.region);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(rmdir(path), 0);
        *strrchr(path, '/') = '\0';
    }
    assert_int_equal(r, 0);
    nothing_left(&f);
}

/* A directory of which only a descriptor is known: /proc has a name for it. */
static void a_descriptor_of_a_directory_will_do(void **state)
{
    struct fixture f;
    char name[64];
    int fd = open(harness_tmpdir(), O_PATH | O_DIRECTORY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    start(&f, (struct weir_region_config){.directory = name});
    assert_whole(&f, put(&f, 1, 100000));
    finish(&f);
    close(fd);
}

static void the_largest_region_is_a_tebibyte(void **state)
{
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_max = TIB + 1};
    struct fixture f;

    (void)state;
    assert_open_fails(&config, -EINVAL);
    config.bytes_max = UINT64_MAX;
    assert_open_fails(&config, -EINVAL);

    uint64_t address_bytes = harness_address_bytes();
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = TIB});
    assert_int_equal(figures(&f).bytes_max, TIB);
    assert_in_range(figures(&f).item_bytes_max, 32 * GIB, 64 * GIB - 1);
    assert_in_range(figures(&f).metadata_bytes, 1, 2 * MIB); /* it costs what is in use */
    assert_here(&f, put(&f, 1, 1000), 1000);
    finish(&f);
    assert_true(harness_address_bytes() < address_bytes + GIB); /* the reservation is gone too */
}

/* Tables for chunks come with the file: an item of nothing but space makes it longer. */
static void the_tables_grow_with_the_file(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = TIB});
    uint64_t before = figures(&f).metadata_bytes;
    assert_int_equal(weir_region_alloc(f.region, 600 * MIB, (struct weir_label){1, 1}, &slot), 0);
    struct weir_slot behind = put(&f, 2, 100000);
    weir_region_audit(f.region);
    assert_true(figures(&f).file_bytes > 600 * MIB);
    assert_in_range(figures(&f).metadata_bytes, before + 600 / 2 * 56, before + MIB);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_here(&f, behind, 100000);
    settle(&f);
    weir_region_audit(f.region);
    finish(&f);
}

static void resident_has_a_least_value(void **state)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .resident_bytes_max = RESIDENT_MIN - 1,
    };
    struct fixture f;

    (void)state;
    assert_open_fails(&config, -EINVAL);
    config.resident_bytes_max = 1;
    assert_open_fails(&config, -EINVAL);
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    assert_int_equal(figures(&f).resident_bytes_max, RESIDENT_MIN);
    finish(&f);
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    finish(&f);
}

static void small_regions_work_or_are_refused(void **state)
{
    static const uint64_t sizes[] = {
        1, 4096, 65536, MIB, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB + 5, 4 * MIB, 8 * MIB - 4096};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct fixture f;
        begin(&f);
        int r = open_as(&f, (struct weir_region_config){.bytes_max = sizes[i]});
        assert_true(r == 0 || r == -EINVAL);
        if (r == 0) {
            struct weir_slot slot;
            f.data_fd = harness_data_fd(f.directory, f.marks);
            assert_true(figures(&f).bytes_max <= sizes[i]);
            r = try_put(&f, 1, 16, 0, &slot);
            assert_true(r == 0 || r == -EDQUOT || r == -EFBIG);
            weir_region_audit(f.region);
            weir_region_close(f.region);
        }
        nothing_left(&f);
    }
}

static void memory_is_no_place_for_overflow(void **state)
{
    struct weir_region_config config = {.directory = "/dev/shm"};
    struct weir_region *region = NULL;
    struct weir_region_stats stats;
    struct weir_slot slot;
    const void *data;
    size_t bytes;

    (void)state;
    if (!harness_is_memory("/dev/shm") || access("/dev/shm", W_OK) < 0) {
        pass_over("/dev/shm is no memory that we may write to");
        return;
    }
    assert_open_fails(&config, -EOPNOTSUPP);

    int fd_count = harness_fd_count();
    int name_count = harness_name_count("/dev/shm");
    config.memory_backed = true;
    config.bytes_initial = 4 * MIB;
    config.bytes_max = 64 * MIB;
    assert_int_equal(weir_region_open(&config, &region), 0);
    for (uint32_t i = 0; i < 200; i++) {
        char item[64 * 1024];
        harness_fill(item, sizeof(item), i, 0);
        assert_int_equal(
            weir_region_put(region, item, sizeof(item), (struct weir_label){i, 1}, &slot), 0);
    }
    assert_int_equal(weir_region_at(region, slot, &data, &bytes),
                     0); /* no item is ever cold there */
    assert_pattern(data, bytes, 199, 0);
    weir_region_stats(region, &stats);
    assert_true(stats.resident_bytes >= stats.live_bytes); /* and every byte counts */
    weir_region_audit(region);
    weir_region_close(region);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_name_count("/dev/shm"), name_count);
}

static void the_books_end_at_zero(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 256 * MIB});
    uint64_t before = figures(&f).metadata_bytes;
    assert_true(before > 0);
    for (uint64_t i = 0; i < 100000; i++) {
        put(&f, i, 16);
        if (i % 1000 == 0) {
            assert_true(poll_once(&f) >= 0);
            figures(&f);
        }
    }
    assert_true(figures(&f).metadata_bytes > before);
    /* At most 48 bytes for each extent, and 2 MiB. */
    assert_in_range(figures(&f).metadata_bytes, 0, 100000 * 48 + 2 * MIB);
    finish(&f);
}

/* Before the next entry needs it, and without a put that made it. */
static void tables_grow_ahead_of_need(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 256 * MIB});
    uint64_t before = figures(&f).metadata_bytes;
    for (uint64_t i = 0; i < 2600; i++) /* of 4096 at least */
        put(&f, i, 16);
    assert_int_equal(figures(&f).metadata_bytes, before);
    for (int i = 0; i < 1000 && figures(&f).metadata_bytes == before; i++)
        assert_true(wait_once(&f) >= 0);
    assert_true(figures(&f).metadata_bytes > before);
    finish(&f);
}

/* So many that their tables come by large pages, where the kernel has them. */
static void many_small_items_are_whole(void **state)
{
    const uint32_t count = 600000;
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 64 * MIB});
    struct weir_slot *slots = test_calloc(count, sizeof(*slots));
    for (uint64_t i = 0; i < count; i++) {
        assert_int_equal(
            weir_region_put(f.region, &i, sizeof(i), (struct weir_label){.key = i}, &slots[i]), 0);
        if (i % 1000 == 0)
            assert_true(wait_once(&f) >= 0);
    }
    assert_in_range(figures(&f).metadata_bytes, 0, count * 48 + 2 * MIB);
    weir_region_audit(f.region);
    for (uint64_t i = 0; i < count; i++) {
        const void *data;
        size_t bytes;
        assert_int_equal(weir_region_at(f.region, slots[i], &data, &bytes), 0);
        assert_int_equal(bytes, sizeof(i));
        assert_memory_equal(data, &i, sizeof(i));
        assert_int_equal(info_of(&f, slots[i]).label.key, i);
    }
    test_free(slots);
    finish(&f);
}

static int open_under_file_limits(const char *directory)
{
    static const uint64_t hopeless[] = {0, 1, 4096, 65536};
    struct weir_region_config config = {.directory = directory, .bytes_initial = 2 * MIB};
    struct weir_region_stats stats;
    struct weir_region *region = NULL;
    struct rlimit limit;

    /* SIGXFSZ is not handled here: whoever passes the limit dies. */
    CHILD_CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (size_t i = 0; i < sizeof(hopeless) / sizeof(hopeless[0]); i++) {
        limit.rlim_cur = hopeless[i];
        CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        CHILD_CHECK(weir_region_open(&config, &region) == -EDQUOT);
        CHILD_CHECK(region == NULL);
    }

    limit.rlim_cur = 32 * MIB;
    CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    CHILD_CHECK(stats.bytes_max <= 32 * MIB);

    static char item[65536];
    struct weir_slot slot;
    uint64_t put_bytes = 0;
    int r;
    while ((r = weir_region_put(region, item, sizeof(item), (struct weir_label){0}, &slot)) == 0) {
        put_bytes += sizeof(item);
        CHILD_CHECK(put_bytes < GIB);
    }
    CHILD_CHECK(r == -EDQUOT);
    CHILD_CHECK(put_bytes >= 8 * MIB);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void the_largest_file_allowed_is_a_limit(void **state)
{
    (void)state;
    assert_child_passes(open_under_file_limits);
}

/* With a GiB of address space: what may become larger than that has to move as it grows. */
static struct weir_region *open_without_address_space(const char *directory,
                                                      uint64_t resident_bytes_max)
{
    struct weir_region_config config = {
        .directory = directory,
        .bytes_initial = 4 * MIB,
        .bytes_max = TIB,
        .resident_bytes_max = resident_bytes_max,
    };
    struct weir_region_stats stats;
    struct weir_region *region;
    struct rlimit limit;

    if (getrlimit(RLIMIT_AS, &limit) != 0)
        return NULL;
    limit.rlim_cur = harness_address_bytes() + GIB;
    if (setrlimit(RLIMIT_AS, &limit) != 0 || weir_region_open(&config, &region) != 0)
        return NULL;
    weir_region_stats(region, &stats);
    return stats.movable ? region : NULL;
}

static int move_without_address_space(const char *directory)
{
    struct weir_region *region = open_without_address_space(directory, 0);
    static char item[65536];
    static struct weir_slot slots[1024];

    CHILD_CHECK(region != NULL);
    for (uint64_t i = 0; i < 1024; i++) {
        harness_fill(item, sizeof(item), i, 0);
        CHILD_CHECK(
            weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slots[i]) == 0);
    }
    for (uint64_t i = 0; i < 1024; i++) {
        size_t bytes = 0;
        CHILD_CHECK(weir_region_read(region, slots[i], 0, item, sizeof(item), &bytes) == 0);
        CHILD_CHECK(bytes == sizeof(item) && harness_differs_at(item, bytes, i, 0) == bytes);
    }
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

/* The tables leave room for all the rest, however little address space there is. */
static int open_with_any_address_space(const char *directory)
{
    struct weir_region_config config = {.directory = directory, .resident_bytes_max = 8 * MIB};
    struct weir_region *region = NULL;
    struct rlimit limit;
    static char item[65536];
    struct weir_slot slot;

    CHILD_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    uint64_t used_bytes = harness_address_bytes();
    for (uint64_t bytes = 32 * MIB; bytes < 6 * GIB; bytes += bytes / 8) {
        limit.rlim_cur = used_bytes + bytes;
        CHILD_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        CHILD_CHECK(weir_region_open(&config, &region) == 0);
        for (uint64_t i = 0; i < 32; i++)
            CHILD_CHECK(
                weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slot) == 0);
        weir_region_close(region);
    }
    return 0;
}

static void any_address_space_will_do(void **state)
{
    (void)state;
    assert_child_passes(open_with_any_address_space);
}

/* A pin keeps the address, also where growth would move it. */
static int pin_without_address_space(const char *directory)
{
    struct weir_region *region = open_without_address_space(directory, UINT64_MAX);
    static char item[65536];
    struct weir_slot first;
    struct weir_slot slot;
    const void *data;
    int r = 0;

    CHILD_CHECK(region != NULL);
    harness_fill(item, sizeof(item), 1, 0);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){1, 0}, &first) ==
                0);
    CHILD_CHECK(weir_region_pin(region, first, &data, NULL) == 0);
    for (uint64_t i = 0; i < 2048 && r == 0; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slot);
        CHILD_CHECK(r == 0 || r == -ENOMEM || r == -EAGAIN);
        CHILD_CHECK(weir_region_poll(region) >= 0);
        CHILD_CHECK(harness_differs_at(data, sizeof(item), 1, 0) == sizeof(item));
    }
    weir_region_unpin(region, first);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){1, 0}, &slot) == 0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

/* And so does what is filled in place. */
static int place_without_address_space(const char *directory)
{
    struct weir_region *region = open_without_address_space(directory, UINT64_MAX);
    static char item[65536];
    struct weir_slot first;
    struct weir_slot slot;
    void *data;
    int r = 0;

    CHILD_CHECK(region != NULL);
    CHILD_CHECK(weir_region_alloc_in_place(region, sizeof(item), 0, (struct weir_label){1, 0},
                                           &first, &data) == 0);
    harness_fill(data, sizeof(item) / 2, 1, 0);
    for (uint64_t i = 0; i < 2048 && r == 0; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slot);
        CHILD_CHECK(r == 0 || r == -EAGAIN);
        CHILD_CHECK(weir_region_poll(region) >= 0);
    }
    CHILD_CHECK(r == -EAGAIN); /* the mapping would have to move */
    harness_fill((char *)data + sizeof(item) / 2, sizeof(item) / 2, 1, sizeof(item) / 2);
    CHILD_CHECK(weir_region_commit(region, first) == 0);
    for (uint64_t i = 0; i < 1024; i++)
        CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slot) ==
                    0);
    const void *now;
    CHILD_CHECK(weir_region_at(region, first, &now, NULL) == 0);
    CHILD_CHECK(harness_differs_at(now, sizeof(item), 1, 0) == sizeof(item));
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void a_place_holds_without_address_space(void **state)
{
    (void)state;
    assert_child_passes(place_without_address_space);
}

static void a_pin_holds_without_address_space(void **state)
{
    (void)state;
    assert_child_passes(pin_without_address_space);
}

static void without_address_space_the_mapping_moves(void **state)
{
    (void)state;
    assert_child_passes(move_without_address_space);
}

static void a_floor_above_free_space_is_enospc(void **state)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .disk_floor_bytes = UINT64_MAX,
    };

    (void)state;
    assert_open_fails(&config, -ENOSPC);
    config.disk_floor_bytes = UINT64_MAX / 2;
    assert_open_fails(&config, -ENOSPC);
}

static void a_failed_open_leaks_no_descriptor(void **state)
{
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_initial = 4 * MIB};
    struct weir_region *region = NULL;
    struct rlimit limit;
    struct rlimit before;
    int fd_count = harness_fd_count();
    int failures = 0;
    int r = -EMFILE;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (rlim_t fds = 1; fds < 64 && r != 0; fds++) {
        limit = before;
        limit.rlim_cur = fds;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        r = weir_region_open(&config, &region);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_true(r == 0 || r == -EMFILE);
        if (r == 0)
            weir_region_close(region);
        failures += r < 0;
        assert_int_equal(harness_fd_count(), fd_count);
        assert_int_equal(harness_name_count(harness_tmpdir()), 0);
    }
    assert_int_equal(r, 0);
    assert_true(failures >= 3);
}

static int put_and_die(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    for (int i = 0; i < 100; i++)
        CHILD_CHECK(weir_region_put(region, config.directory, 10, (struct weir_label){0}, &slot) ==
                    0);
    kill(getpid(), SIGKILL);
    return __LINE__;
}

static void nothing_is_left_after_a_crash(void **state)
{
    (void)state;
    int status = child_status(put_and_die, false);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(harness_name_count(harness_tmpdir()), 0);
}

static void payload_stays_out_of_dumps_and_children(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_true(harness_is_hidden(assert_here(&f, put(&f, 1, 100), 100)));
    finish(&f);
}

static void no_descriptor_survives_exec(void **state)
{
    struct fixture f;
    int count = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int fd = 0; fd < HARNESS_FD_MAX; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0 || f.marks[fd])
            continue;
        assert_true((flags & FD_CLOEXEC) != 0);
        count++;
    }
    assert_int_equal(count, harness_fd_count() - f.fd_count);
    assert_true(count >= 2); /* data and tables, at least */
    finish(&f);
}

static void close_with_work_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[256];
    struct piece piece = {.operation = {operation_never_completed}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    char *buffer = test_malloc(4 * KIB);
    for (uint64_t i = 0; i < 256; i++)
        slots[i] = put(&f, i, 4 * KIB);
    make_cold(&f, slots[255]);
    assert_int_equal(weir_region_fetch(f.region, slots, 200, never_called, NULL), 0);
    assert_int_equal(
        weir_region_fetch_into(f.region, slots[201], 0, buffer, 4 * KIB, &piece.operation), 0);
    weir_region_close(f.region); /* calls back nothing */
    test_free(buffer);
    nothing_left(&f);
}

static int open_here_and_leave(const char *directory)
{
    struct weir_region_config config = {.directory = ".", .bytes_initial = 2 * MIB};
    struct weir_region *region;
    static char item[65536];
    char path[PATH_MAX + 16];
    struct weir_slot slot;

    snprintf(path, sizeof(path), "%s/gone", directory);
    CHILD_CHECK(mkdir(path, 0700) == 0);
    CHILD_CHECK(chdir(path) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(chdir("/") == 0);
    CHILD_CHECK(rmdir(path) == 0);
    for (int i = 0; i < 1000; i++)
        CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){0, 0}, &slot) ==
                    0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void the_directory_may_go_away(void **state)
{
    (void)state;
    assert_child_passes(open_here_and_leave);
}

static void a_first_reservation_beyond_the_largest_file(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    int r = open_as(&f, (struct weir_region_config){.bytes_initial = GIB, .bytes_max = 16 * MIB});
    assert_true(r == 0 || r == -EINVAL);
    if (r == 0) {
        f.data_fd = harness_data_fd(f.directory, f.marks);
        assert_int_equal(figures(&f).file_bytes, 16 * MIB);
        weir_region_close(f.region);
    }
    nothing_left(&f);
}

static void many_regions_at_once(void **state)
{
    struct weir_region *regions[64];
    struct weir_slot slots[64];
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_initial = 2 * MIB};
    int fd_count = harness_fd_count();
    int map_count = harness_map_count(config.directory);

    (void)state;
    for (uint64_t i = 0; i < 64; i++) {
        assert_int_equal(weir_region_open(&config, &regions[i]), 0);
        assert_int_equal(
            weir_region_put(regions[i], &i, sizeof(i), (struct weir_label){i, 1}, &slots[i]), 0);
    }
    for (uint64_t i = 0; i < 64; i++) {
        const void *data;
        size_t bytes;
        assert_int_equal(weir_region_at(regions[i], slots[i], &data, &bytes), 0);
        assert_int_equal(bytes, sizeof(i));
        assert_memory_equal(data, &i, sizeof(i));
        assert_int_equal(weir_region_at(regions[(i + 1) % 64], slots[i], &data, &bytes), -ESTALE);
    }
    for (int i = 0; i < 64; i++)
        weir_region_close(regions[(i * 37) % 64]);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_map_count(config.directory), map_count);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("closing a region leaves no descriptor, mapping, name or charge",
             closing_leaves_nothing),
        CASE("the defaults are those of the header", defaults_are_the_headers),
        CASE("the first reservation is cut to bytes_max", initial_is_cut_to_max),
        CASE("reserved words that are not zero are refused", reserved_words_are_zero),
        CASE("a directory is required", a_directory_is_required),
        CASE("a bad directory answers what open(2) says", a_bad_directory_says_what_open_says),
        CASE("a directory we may not write to is refused", a_directory_not_ours_is_refused),
        CASE("a directory may have a long name", a_long_directory_name_is_fine),
        CASE("a descriptor of a directory will do", a_descriptor_of_a_directory_will_do),
        CASE("the largest region is one tebibyte", the_largest_region_is_a_tebibyte),
        CASE("the tables grow with the file", the_tables_grow_with_the_file),
        CASE("resident_bytes_max has a least value", resident_has_a_least_value),
        CASE("very small regions work or are refused", small_regions_work_or_are_refused),
        CASE("tmpfs is refused unless asked for, and then every byte counts",
             memory_is_no_place_for_overflow),
        CASE("the books are told what the stats say, and end at zero", the_books_end_at_zero),
        CASE("tables grow ahead of need", tables_grow_ahead_of_need),
        CASE("many small items are whole", many_small_items_are_whole),
        CASE("a small RLIMIT_FSIZE is -EDQUOT, never a signal",
             the_largest_file_allowed_is_a_limit),
        CASE("without address space to reserve the mapping may move",
             without_address_space_the_mapping_moves),
        CASE("any address space will do that holds a region", any_address_space_will_do),
        CASE("a pin holds its address, also where the mapping may move",
             a_pin_holds_without_address_space),
        CASE("so does what is filled in place", a_place_holds_without_address_space),
        CASE("a floor above the free space is -ENOSPC", a_floor_above_free_space_is_enospc),
        CASE("an open that fails at any descriptor leaks none", a_failed_open_leaks_no_descriptor),
        CASE("nothing is left after a crash", nothing_is_left_after_a_crash),
        CASE("payload stays out of core dumps and out of children",
             payload_stays_out_of_dumps_and_children),
        CASE("no descriptor survives an exec", no_descriptor_survives_exec),
        CASE("the directory may go away", the_directory_may_go_away),
        CASE("a first reservation beyond the largest file is cut or refused",
             a_first_reservation_beyond_the_largest_file),
        CASE("many regions live side by side", many_regions_at_once),
        CASE("close forgets fetches that are under way", close_with_work_under_way),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_open", cases, NULL, NULL);
}

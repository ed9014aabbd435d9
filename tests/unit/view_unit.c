/* SPDX-License-Identifier: MIT */
/*
 * The view against tables that are written here, by hand, from
 * base/region_layout.h: what the owner promises is what this file does, so a
 * region that breaks the protocol fails elsewhere and a view that does fails
 * here. Damaged tables come from the same hand.
 *
 * An item's bytes follow from its key and its length, so that a torn or a
 * foreign one is seen.
 */
#include <weir/view.h>

#include "base/bits.h"
#include "base/fence.h"
#include "base/random.h"
#include "base/region_layout.h"
#include "base/sys.h"

#include "pattern.h"
#include "program.h"

#include <xxhash.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK_COUNT UINT64_C(4)
#define ENTRY_COUNT UINT64_C(200) /* rows, entry 0 included */
#define DATA_BYTES  (CHUNK_COUNT * LAYOUT_CHUNK_BYTES)

/* ---- A region by hand ----------------------------------------------------- */

struct made {
    int table_fd;
    int data_fd;
    uint64_t table_bytes;
    struct weir__header *header;
    struct weir__chunk *chunks;
    struct weir__entry *entries;
    uint64_t *sums;
    unsigned char *data;
};

static void made_sign(struct weir__header *header)
{
    size_t from = offsetof(struct weir__header, version);
    size_t to = offsetof(struct weir__header, fixed_sum);

    header->fixed_sum = XXH3_64bits((const char *)header + from, to - from);
}

/* Everything but the magic, which made_publish() stores. */
static void made_open(struct made *made)
{
    struct stat info;
    void *address;

    assert_int_equal(weir__sys_memfd(LAYOUT_NAME, &made->table_fd), 0);
    assert_int_equal(weir__sys_open_unnamed(harness_tmpdir(), &made->data_fd), 0);
    assert_int_equal(weir__sys_fallocate(made->data_fd, 0, 0, DATA_BYTES), 0);
    assert_int_equal(weir__sys_fstat(made->data_fd, &info), 0);
    assert_int_equal(weir__sys_mmap(NULL, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                                    made->data_fd, 0, &address),
                     0);
    made->data = address;

    uint64_t entry_offset = LAYOUT_HEADER_BYTES + CHUNK_COUNT * sizeof(struct weir__chunk);
    uint64_t sum_offset = entry_offset + ENTRY_COUNT * sizeof(struct weir__entry);
    uint64_t vacant_offset = sum_offset + ENTRY_COUNT * sizeof(uint64_t);
    made->table_bytes = vacant_offset + ENTRY_COUNT * sizeof(uint32_t);
    assert_int_equal(weir__sys_ftruncate(made->table_fd, made->table_bytes), 0);
    assert_int_equal(weir__sys_mmap(NULL, made->table_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                    made->table_fd, 0, &address),
                     0);
    made->header = address;
    made->chunks = (void *)((char *)address + LAYOUT_HEADER_BYTES);
    made->entries = (void *)((char *)address + entry_offset);
    made->sums = (void *)((char *)address + sum_offset);

    *made->header = (struct weir__header){
        .version = LAYOUT_VERSION,
        .header_bytes = LAYOUT_HEADER_BYTES,
        .bytes_max = DATA_BYTES,
        .resident_bytes_max = DATA_BYTES,
        .chunk_count_max = CHUNK_COUNT,
        .entry_count_max = ENTRY_COUNT - 1,
        .chunk_offset = LAYOUT_HEADER_BYTES,
        .entry_offset = entry_offset,
        .sum_offset = sum_offset,
        .vacant_offset = vacant_offset,
        .data_device = info.st_dev,
        .data_inode = info.st_ino,
        .pid = getpid(),
        .table_fd = made->table_fd,
        .data_fd = made->data_fd,
        .figures = {.file_bytes = DATA_BYTES, .entry_count = ENTRY_COUNT - 1, .bounded = 1},
    };
    snprintf(made->header->directory, sizeof(made->header->directory), "%s", harness_tmpdir());
    for (uint64_t i = 0; i < CHUNK_COUNT; i++)
        made->chunks[i].word = weir__chunk_word(0, 0, WEIR_CHUNK_DIRTY);
    made_sign(made->header);
}

static void made_publish(struct made *made)
{
    assert_int_equal(weir__sys_seal_length(made->table_fd), 0);
    __atomic_store_n(&made->header->magic, LAYOUT_MAGIC, __ATOMIC_RELEASE);
}

static void made_close(struct made *made)
{
    weir__sys_munmap(made->header, made->table_bytes);
    weir__sys_munmap(made->data, DATA_BYTES);
    weir__sys_close(made->table_fd);
    weir__sys_close(made->data_fd);
}

/* What an item holds: no other key and no other length gives the same bytes. */
static uint64_t item_seed(uint64_t key, uint64_t bytes)
{
    return key ^ bytes << 40;
}

/* Whether @data is the piece of the item from @offset on. */
static bool item_is(const unsigned char *data, uint64_t key, uint64_t bytes, uint64_t offset,
                    uint64_t count)
{
    return harness_differs_at(data, count, item_seed(key, bytes), offset) == count;
}

/* As the owner does it: payload, place, key, fence, tag with an odd generation. */
static struct weir_slot made_put(struct made *made, uint32_t index, uint64_t offset, uint64_t bytes,
                                 uint64_t key)
{
    struct weir__entry *entry = &made->entries[index];
    uint32_t generation = weir__tag_generation(weir__word_load(&entry->tag)) + 1;

    assert_int_equal(generation % 2, 1);
    harness_fill(made->data + offset, bytes, item_seed(key, bytes), 0);
    weir__word_store(&made->sums[index], 0);
    weir__word_store(&entry->place, weir__entry_place(offset, bytes));
    weir__word_store(&entry->key, key);
    weir__fence_release();
    weir__word_store(&entry->tag,
                     weir__entry_tag(generation, (uint16_t)(key % 1000), EXTENT_LIVE, bytes));
    return (struct weir_slot){.index = index, .generation = generation};
}

static void made_free(struct made *made, uint32_t index)
{
    struct weir__entry *entry = &made->entries[index];
    uint32_t generation = weir__tag_generation(weir__word_load(&entry->tag)) + 1;

    weir__word_store(&entry->tag, weir__entry_tag(generation, 0, EXTENT_FREE, 0));
    weir__fence();
}

static void made_sum(struct made *made, uint32_t index)
{
    struct weir__entry entry = made->entries[index];
    uint64_t bytes = weir__entry_bytes_of(entry.place, entry.tag);
    uint64_t sum = XXH3_64bits(made->data + weir__place_offset(entry.place), bytes);

    weir__word_store(&made->sums[index], weir__sum_of(entry.key, entry.tag, sum));
}

static void made_chunk_state(struct made *made, uint64_t index, enum weir_chunk_state state)
{
    weir__word_store(&made->chunks[index].word, weir__chunk_word(1000, 2, state));
}

static struct weir_view *view_of(const struct made *made)
{
    struct weir_view *view = NULL;

    assert_int_equal(weir_view_open(0, made->table_fd, &view), 0);
    return view;
}

/* ---- Finding and opening -------------------------------------------------- */

static int fd_count_open(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void test_scan(void **state)
{
    struct made first;
    struct made second;
    int fds[8];

    (void)state;
    assert_int_equal(weir_view_scan(0, fds, 8), 0);
    made_open(&first);
    made_publish(&first);
    made_open(&second);
    made_publish(&second);

    assert_int_equal(weir_view_scan(0, fds, 8), 2);
    assert_int_equal(fds[0], first.table_fd);
    assert_int_equal(fds[1], second.table_fd);
    fds[1] = -1;
    assert_int_equal(weir_view_scan(getpid(), fds, 1), 2);
    assert_int_equal(fds[0], first.table_fd);
    assert_int_equal(fds[1], -1);
    assert_int_equal(weir_view_scan(0, NULL, 0), 2);
    assert_int_equal(weir_view_scan(-1, fds, 8), -EINVAL);
    assert_int_equal(weir_view_scan(INT32_MAX, fds, 8), -ENOENT);

    /* A view is no region: it does not find itself. */
    struct weir_view *view = view_of(&first);
    assert_int_equal(weir_view_scan(0, fds, 8), 2);
    weir_view_close(view);

    made_close(&first);
    assert_int_equal(weir_view_scan(0, fds, 8), 1);
    made_close(&second);
}

static void test_open_foreign(void **state)
{
    struct weir_view *view = NULL;
    int before = fd_count_open();
    int pipes[2];
    int fd;

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(weir_view_open(0, pipes[0], &view), -EBADMSG);
    close(pipes[0]);
    close(pipes[1]);

    assert_int_equal(weir__sys_open("/dev/null", O_RDONLY, &fd), 0);
    assert_int_equal(weir_view_open(0, fd, &view), -EBADMSG);
    close(fd);

    assert_int_equal(weir__sys_open_unnamed(harness_tmpdir(), &fd), 0);
    assert_int_equal(weir_view_open(0, fd, &view), -EBADMSG);
    close(fd);

    assert_int_equal(weir_view_open(0, 999, &view), -ENOENT);
    assert_int_equal(weir_view_open(0, -1, &view), -EINVAL);
    assert_int_equal(weir_view_open(-2, 0, &view), -EINVAL);
    assert_null(view);
    weir_view_close(NULL);
    assert_int_equal(fd_count_open(), before);
}

static void test_open_unfinished(void **state)
{
    struct weir_view *view = NULL;
    struct made made;
    int fd;

    (void)state;
    assert_int_equal(weir__sys_memfd(LAYOUT_NAME, &fd), 0);
    assert_int_equal(weir_view_open(0, fd, &view), -EAGAIN);
    close(fd);

    int before = fd_count_open();
    made_open(&made);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), -EAGAIN);

    /* A length that may change is not mapped, whatever the header says. */
    weir__word_store(&made.header->magic, LAYOUT_MAGIC);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), -EBADMSG);
    made_publish(&made);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), 0);
    weir_view_close(view);
    made_close(&made);
    assert_int_equal(fd_count_open(), before);
}

static void test_open_other_data(void **state)
{
    struct weir_view *view = NULL;
    struct made made;

    (void)state;
    made_open(&made);
    made.header->data_inode++;
    made_sign(made.header);
    made_publish(&made);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), -EBADMSG);
    made.header->data_inode--;
    made.header->data_fd = 999;
    made_sign(made.header);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), -EBADMSG);
    made_close(&made);
}

static void test_version(void **state)
{
    struct weir_view *view = NULL;
    struct made made;

    (void)state;
    made_open(&made);
    made.header->version = LAYOUT_VERSION + 1;
    made_sign(made.header);
    made_publish(&made);
    assert_int_equal(weir_view_open(0, made.table_fd, &view), -EPROTONOSUPPORT);
    made_close(&made);
}

/* ---- What is shown -------------------------------------------------------- */

static void test_summary(void **state)
{
    struct weir_view_summary summary;
    struct made made;

    (void)state;
    made_open(&made);
    made.header->figures = (struct weir__figures){
        .file_bytes = DATA_BYTES - 5,
        .disk_bytes = 2,
        .mark_bytes = 3,
        .live_bytes = 4,
        .free_bytes = 5,
        .resident_bytes = 6,
        .dirty_bytes = 7,
        .fetched_bytes = 8,
        .pinned_bytes = 9,
        .metadata_bytes = 10,
        .put_bytes = 11,
        .written_bytes = 12,
        .read_bytes = 13,
        .slot_count = 14,
        .free_extent_count = 15,
        .entry_count = 16,
        .bounded = 1,
        .degraded = 0,
    };
    made_publish(&made);

    struct weir_view *view = view_of(&made);
    weir_view_summary(view, &summary);
    assert_int_equal(summary.pid, getpid());
    assert_int_equal(summary.table_fd, made.table_fd);
    assert_int_equal(summary.data_fd, made.data_fd);
    assert_string_equal(summary.directory, harness_tmpdir());
    assert_int_equal(summary.bytes_max, DATA_BYTES);
    assert_int_equal(summary.resident_bytes_max, DATA_BYTES);
    assert_int_equal(summary.file_bytes, DATA_BYTES - 5);
    assert_int_equal(summary.disk_bytes, 2);
    assert_int_equal(summary.mark_bytes, 3);
    assert_int_equal(summary.live_bytes, 4);
    assert_int_equal(summary.free_bytes, 5);
    assert_int_equal(summary.resident_bytes, 6);
    assert_int_equal(summary.dirty_bytes, 7);
    assert_int_equal(summary.fetched_bytes, 8);
    assert_int_equal(summary.pinned_bytes, 9);
    assert_int_equal(summary.metadata_bytes, 10);
    assert_int_equal(summary.put_bytes, 11);
    assert_int_equal(summary.written_bytes, 12);
    assert_int_equal(summary.read_bytes, 13);
    assert_int_equal(summary.slot_count, 14);
    assert_int_equal(summary.free_extent_count, 15);
    assert_int_equal(summary.entry_count, 16);
    assert_int_equal(summary.chunk_count, CHUNK_COUNT);
    assert_true(summary.bounded);
    assert_false(summary.degraded);

    /* Figures that exceed the tables do not lead outside. */
    weir__word_store(&made.header->figures.entry_count, UINT64_MAX);
    weir__word_store(&made.header->figures.file_bytes, UINT64_MAX);
    weir_view_summary(view, &summary);
    assert_int_equal(summary.entry_count, ENTRY_COUNT - 1);
    assert_int_equal(summary.chunk_count, CHUNK_COUNT);
    weir_view_close(view);
    made_close(&made);
}

static void test_extents(void **state)
{
    struct weir_view_extent extent;
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_slot item = made_put(&made, 1, 4096, 1001, 77);
    made.entries[2] = (struct weir__entry){
        .place = weir__entry_place(8192, UINT64_C(300) << 10),
        .tag = weir__entry_tag(4, 0, EXTENT_RESTING, UINT64_C(300) << 10),
    };
    made.entries[3] = (struct weir__entry){.place = weir__entry_place(1 << 20, 0),
                                           .tag = weir__entry_tag(9, 5, EXTENT_BUILT, 0)};
    made.entries[4] = (struct weir__entry){.place = weir__entry_place(1 << 19, 33),
                                           .tag = weir__entry_tag(10, 5, EXTENT_ZOMBIE, 33)};

    struct weir_view *view = view_of(&made);
    assert_int_equal(weir_view_extent(view, 1, &extent), 0);
    assert_memory_equal(&extent.slot, &item, sizeof(item));
    assert_int_equal(extent.label.key, 77);
    assert_int_equal(extent.label.owner, 77);
    assert_int_equal(extent.offset, 4096);
    assert_int_equal(extent.bytes, 1001);
    assert_int_equal(extent.extent_bytes, 1008);
    assert_true(extent.committed);
    assert_false(extent.summed);
    assert_false(extent.held);

    made_sum(&made, 1);
    assert_int_equal(weir_view_extent(view, 1, &extent), 0);
    assert_true(extent.summed);

    assert_int_equal(weir_view_extent(view, 2, &extent), 0);
    assert_true(weir_slot_is_none(extent.slot));
    assert_int_equal(extent.bytes, 300 << 10);
    assert_false(extent.committed);

    assert_int_equal(weir_view_extent(view, 3, &extent), 0);
    assert_int_equal(extent.slot.generation, 9);
    assert_int_equal(extent.extent_bytes, LAYOUT_GRANULE);
    assert_false(extent.committed);

    assert_int_equal(weir_view_extent(view, 4, &extent), 0);
    assert_true(weir_slot_is_none(extent.slot));
    assert_true(extent.held);

    assert_int_equal(weir_view_extent(view, 5, &extent), -ENOENT);
    assert_int_equal(weir_view_extent(view, 0, &extent), -EINVAL);
    assert_int_equal(weir_view_extent(view, ENTRY_COUNT - 1, &extent), -ENOENT);
    assert_int_equal(weir_view_extent(view, ENTRY_COUNT, &extent), -EINVAL);
    assert_int_equal(weir_view_extent(view, UINT32_MAX, &extent), -EINVAL);

    /* Taken by a put that is still copying: an item in a moment. */
    made.entries[5] = (struct weir__entry){.place = weir__entry_place(0, 16),
                                           .tag = weir__entry_tag(2, 0, EXTENT_BUILT, 16)};
    assert_int_equal(weir_view_extent(view, 5, &extent), -EAGAIN);

    /* Its owner found it damaged: what it is can be seen, its bytes cannot. */
    struct weir_slot damaged = {7, 3};
    unsigned char byte;
    size_t count;
    made.entries[7] = (struct weir__entry){.place = weir__entry_place(0, 16),
                                           .tag = weir__entry_tag(3, 5, EXTENT_DAMAGED, 16)};
    assert_int_equal(weir_view_extent(view, 7, &extent), 0);
    assert_true(extent.damaged && extent.committed && extent.slot.index == 7);
    assert_int_equal(weir_view_read(view, damaged, 0, &byte, 1, &count), -EBADMSG);
    assert_int_equal(weir_view_verify(view, damaged), -EBADMSG);

    /* While bytes of its chunk are put back in place, nobody is told what is there. */
    made.entries[7].tag = weir__entry_tag(3, 5, EXTENT_LIVE, 16);
    assert_int_equal(weir_view_read(view, damaged, 0, &byte, 1, &count), 0);
    weir__word_store(&made.header->figures.renewing, 1);
    assert_int_equal(weir_view_read(view, damaged, 0, &byte, 1, &count), -EAGAIN);
    weir__word_store(&made.header->figures.renewing, 2); /* of another: its owner died there */
    assert_int_equal(weir_view_read(view, damaged, 0, &byte, 1, &count), 0);
    weir__word_store(&made.header->figures.renewing, 0);

    /* Past the last chunk; a live item with an even generation; no such state. */
    made.entries[6] = (struct weir__entry){.place = weir__entry_place(DATA_BYTES - 16, 17),
                                           .tag = weir__entry_tag(1, 0, EXTENT_LIVE, 17)};
    assert_int_equal(weir_view_extent(view, 6, &extent), -EBADMSG);
    made.entries[6].place = weir__entry_place(DATA_BYTES - 16, 16);
    assert_int_equal(weir_view_extent(view, 6, &extent), 0);
    made.entries[6].tag = weir__entry_tag(2, 0, EXTENT_LIVE, 16);
    assert_int_equal(weir_view_extent(view, 6, &extent), -EBADMSG);
    made.entries[6].tag = UINT64_C(15) << 48;
    assert_int_equal(weir_view_extent(view, 6, &extent), -EBADMSG);
    weir_view_close(view);
    made_close(&made);
}

static void test_chunks(void **state)
{
    struct weir_view_chunk chunk;
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    for (int i = WEIR_CHUNK_NONE; i <= WEIR_CHUNK_HOLE; i++) {
        made_chunk_state(&made, 3, (enum weir_chunk_state)i);
        assert_int_equal(weir_view_chunk(view, 3, &chunk), 0);
        assert_int_equal(chunk.state, i);
        assert_int_equal(chunk.live_bytes, 1000);
        assert_int_equal(chunk.pinned_count, 2);
    }
    weir__word_store(&made.chunks[3].word, weir__chunk_word(0, 0, WEIR_CHUNK_HOLE + 1));
    assert_int_equal(weir_view_chunk(view, 3, &chunk), -EBADMSG);
    assert_int_equal(weir_view_chunk(view, CHUNK_COUNT, &chunk), -EINVAL);
    weir__word_store(&made.header->figures.file_bytes, LAYOUT_CHUNK_BYTES + 1);
    assert_int_equal(weir_view_chunk(view, 1, &chunk), 0);
    assert_int_equal(weir_view_chunk(view, 2, &chunk), -EINVAL);
    weir_view_close(view);
    made_close(&made);
}

/* ---- Payload -------------------------------------------------------------- */

static void check_reads(const struct weir_view *view, struct weir_slot slot, uint64_t bytes,
                        uint64_t key)
{
    static const uint64_t offsets[] = {0, 1, 15, 4095, 4096, 500000};
    unsigned char *buffer = malloc(bytes + 64);
    size_t count = 99;

    assert_non_null(buffer);
    assert_int_equal(weir_view_read(view, slot, 0, buffer, bytes + 64, &count), 0);
    assert_int_equal(count, bytes);
    assert_true(item_is(buffer, key, bytes, 0, bytes));
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        uint64_t offset = offsets[i];
        uint64_t expected = offset < bytes ? weir__min(7001, bytes - offset) : 0;
        assert_int_equal(
            weir_view_read(view, slot, offset, buffer, weir__min(7001, bytes + 64), &count), 0);
        assert_int_equal(count, weir__min(expected, bytes + 64));
        assert_true(item_is(buffer, key, bytes, offset, count));
    }
    assert_int_equal(weir_view_read(view, slot, UINT64_MAX, buffer, 64, &count), 0);
    assert_int_equal(count, 0);
    assert_int_equal(weir_view_read(view, slot, 0, NULL, 0, &count), 0);
    assert_int_equal(count, 0);
    free(buffer);
}

/* Items of all sizes, over chunk borders, at every mix of resident and cold. */
static void test_read(void **state)
{
    static const uint64_t places[] = {0,
                                      48,
                                      LAYOUT_CHUNK_BYTES - 4096,
                                      LAYOUT_CHUNK_BYTES - 16,
                                      LAYOUT_CHUNK_BYTES * 3 / 2,
                                      DATA_BYTES - LAYOUT_CHUNK_BYTES};
    static const uint64_t lengths[] = {0, 1, 16, 4095, 4097, 262144, 262145, 2097152};
    static const enum weir_chunk_state states[] = {WEIR_CHUNK_DIRTY, WEIR_CHUNK_COLD,
                                                   WEIR_CHUNK_CLEAN, WEIR_CHUNK_FILLING};
    struct made made;
    uint64_t key = 1;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    for (size_t turn = 0; turn < 4; turn++) {
        for (uint64_t chunk = 0; chunk < CHUNK_COUNT; chunk++)
            made_chunk_state(&made, chunk, states[(chunk + turn) % 4]);
        for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
            for (size_t j = 0; j < sizeof(lengths) / sizeof(lengths[0]); j++) {
                struct weir_slot slot = made_put(&made, 3, places[i], lengths[j], ++key);
                check_reads(view, slot, lengths[j], key);
                assert_int_equal(weir_view_verify(view, slot), -ENOENT);
                made_sum(&made, 3);
                assert_int_equal(weir_view_verify(view, slot), 0);
                made_free(&made, 3);
                size_t count = 99;
                unsigned char byte;
                assert_int_equal(weir_view_read(view, slot, 0, &byte, 1, &count), -ESTALE);
                assert_int_equal(weir_view_verify(view, slot), -ESTALE);
                assert_int_equal(count, 99);
            }
        }
    }
    weir_view_close(view);
    made_close(&made);
}

static void test_handles(void **state)
{
    struct weir_slot none = {0, 0};
    unsigned char buffer[64];
    size_t count = 99;
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    struct weir_slot slot = made_put(&made, 7, 64, 64, 5);
    assert_int_equal(weir_view_read(view, none, 0, buffer, 64, &count), -ESTALE);
    slot.generation += 2;
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, &count), -ESTALE);
    slot.generation--;
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, &count), -ESTALE);
    slot.generation--;
    slot.index = ENTRY_COUNT;
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, &count), -ESTALE);
    slot.index = UINT32_MAX;
    assert_int_equal(weir_view_verify(view, slot), -ESTALE);
    slot.index = 7;
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, NULL), -EINVAL);
    assert_int_equal(weir_view_read(view, slot, 0, NULL, 64, &count), -EINVAL);

    /* Under construction: not yet. */
    weir__word_store(&made.entries[7].tag, weir__entry_tag(slot.generation, 0, EXTENT_BUILT, 64));
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, &count), -EAGAIN);
    assert_int_equal(weir_view_verify(view, slot), -EAGAIN);
    assert_int_equal(count, 99);
    weir_view_close(view);
    made_close(&made);
}

static void test_verify_bad(void **state)
{
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    struct weir_slot slot = made_put(&made, 9, LAYOUT_CHUNK_BYTES - 5008, 600001, 5);
    made_sum(&made, 9);
    assert_int_equal(weir_view_verify(view, slot), 0);
    made.data[LAYOUT_CHUNK_BYTES - 5008 + 600000] ^= 1;
    assert_int_equal(weir_view_verify(view, slot), -EBADMSG);
    made.data[LAYOUT_CHUNK_BYTES - 5008 + 600001] ^= 1;
    made.data[LAYOUT_CHUNK_BYTES - 5008 + 600000] ^= 1;
    assert_int_equal(weir_view_verify(view, slot), 0);
    weir_view_close(view);
    made_close(&made);
}

/* The data file is shorter than an entry says, or its owner let it shrink. */
static void test_short_data(void **state)
{
    unsigned char buffer[64];
    size_t count = 99;
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    struct weir_slot slot = made_put(&made, 9, 3 * LAYOUT_CHUNK_BYTES, 64, 5);
    assert_int_equal(weir__sys_ftruncate(made.data_fd, 3 * LAYOUT_CHUNK_BYTES + 63), 0);
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 64, &count), -EBADMSG);
    made_chunk_state(&made, 3, WEIR_CHUNK_COLD);
    assert_int_equal(weir_view_read(view, slot, 0, buffer, 63, &count), 0);
    assert_int_equal(count, 63);
    assert_true(item_is(buffer, 5, 64, 0, 63));
    weir_view_close(view);
    made_close(&made);
}

static void test_after_owner(void **state)
{
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    struct weir_slot slot = made_put(&made, 9, 4096, 5000, 5);
    made_close(&made);
    check_reads(view, slot, 5000, 5);
    weir_view_close(view);
}

static uint64_t resident_pages(const struct made *made)
{
    uint64_t pages;

    assert_int_equal(weir__sys_resident(made->data, DATA_BYTES, &pages), 0);
    return pages;
}

static void test_cold_stays_cold(void **state)
{
    unsigned char *buffer = malloc(LAYOUT_CHUNK_BYTES);
    struct made made;
    uint64_t free_bytes;
    bool memory_backed;
    size_t count;

    (void)state;
    assert_non_null(buffer);
    made_open(&made);
    made_publish(&made);
    assert_int_equal(weir__sys_fstatfs(made.data_fd, &free_bytes, &memory_backed), 0);
    struct weir_view *view = view_of(&made);
    struct weir_slot slot = made_put(&made, 1, 4096 + 16, LAYOUT_CHUNK_BYTES, 5);
    made_sum(&made, 1);
    assert_int_equal(weir__sys_fdatasync(made.data_fd), 0);
    assert_int_equal(weir__sys_madvise(made.data, DATA_BYTES, MADV_DONTNEED), 0);
    assert_int_equal(weir__sys_fadvise(made.data_fd, 0, DATA_BYTES, POSIX_FADV_DONTNEED), 0);
    if (memory_backed || resident_pages(&made) > 0) {
        print_message("# the file system keeps its pages: nothing to see here\n");
    } else {
        made_chunk_state(&made, 0, WEIR_CHUNK_COLD);
        made_chunk_state(&made, 1, WEIR_CHUNK_COLD);
        assert_int_equal(weir_view_read(view, slot, 0, buffer, LAYOUT_CHUNK_BYTES, &count), 0);
        assert_true(item_is(buffer, 5, LAYOUT_CHUNK_BYTES, 0, count));
        assert_int_equal(weir_view_verify(view, slot), 0);
        assert_int_equal(resident_pages(&made), 0);

        /* And the test can fail: what is called clean goes through the page cache. */
        made_chunk_state(&made, 0, WEIR_CHUNK_CLEAN);
        assert_int_equal(weir_view_read(view, slot, 0, buffer, 4096, &count), 0);
        assert_true(resident_pages(&made) > 0);
    }
    weir_view_close(view);
    made_close(&made);
    free(buffer);
}

/* ---- Damage --------------------------------------------------------------- */

/* Everything that a view can be asked; any answer will do, if it is an answer. */
static void walk(const struct weir_view *view, unsigned char *buffer, size_t buffer_bytes)
{
    struct weir_view_summary summary;
    struct weir_view_extent extent;
    struct weir_view_chunk chunk;
    size_t count;

    weir_view_summary(view, &summary);
    assert_true(summary.chunk_count <= CHUNK_COUNT);
    assert_true(summary.entry_count < ENTRY_COUNT);
    for (uint64_t i = 0; i <= summary.chunk_count; i++) {
        int r = weir_view_chunk(view, i, &chunk);
        assert_true(r == 0 || r == -EBADMSG || (r == -EINVAL && i == summary.chunk_count));
    }
    for (uint32_t i = 0; i <= summary.entry_count + 1; i++) {
        int r = weir_view_extent(view, i, &extent);
        if (i == 0 || i > summary.entry_count)
            assert_int_equal(r, -EINVAL);
        if (r < 0)
            continue;
        assert_true(extent.offset + extent.extent_bytes <= DATA_BYTES);
        if (weir_slot_is_none(extent.slot))
            continue;
        r = weir_view_read(view, extent.slot, 0, buffer, buffer_bytes, &count);
        if (extent.damaged) {
            assert_int_equal(r, -EBADMSG);
        } else if (extent.committed) {
            assert_int_equal(r, 0);
            assert_int_equal(count, weir__min(extent.bytes, buffer_bytes));
            assert_true(weir_view_verify(view, extent.slot) <= 0);
        }
    }
}

static void made_fill(struct made *made)
{
    for (uint32_t i = 1; i < 20; i++)
        made_put(made, i, i * UINT64_C(65536), i * UINT64_C(1000), i);
    for (uint32_t i = 1; i < 20; i += 3)
        made_sum(made, i);
    for (uint32_t i = 2; i < 20; i += 5)
        made_free(made, i);
}

/* A byte of the fixed part is wrong and its sum is not right again: no view. */
static void test_header_flips(void **state)
{
    struct weir_view *view = NULL;
    struct made made;

    (void)state;
    made_open(&made);
    made_fill(&made);
    made_publish(&made);
    unsigned char *bytes = (void *)made.header;
    for (size_t i = 0; i < offsetof(struct weir__header, figures); i++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (unsigned char)(1 << bit);
            int r = weir_view_open(0, made.table_fd, &view);
            assert_true(r == -EBADMSG || r == -EPROTONOSUPPORT);
            bytes[i] ^= (unsigned char)(1 << bit);
        }
    }
    view = view_of(&made);
    weir_view_close(view);
    made_close(&made);
}

/* Whoever wrote the tables meant it: the sum is right, the content is not. */
static void test_header_forged(void **state)
{
    static const unsigned char values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    unsigned char buffer[4096];
    struct made made;
    int opened = 0;
    int refused = 0;

    (void)state;
    made_open(&made);
    made_fill(&made);
    made_publish(&made);
    unsigned char *bytes = (void *)made.header;
    for (size_t i = sizeof(uint64_t); i < offsetof(struct weir__header, fixed_sum); i++) {
        for (size_t j = 0; j < sizeof(values); j++) {
            struct weir_view *view = NULL;
            unsigned char saved = bytes[i];
            bytes[i] = values[j];
            made_sign(made.header);
            int r = weir_view_open(0, made.table_fd, &view);
            if (r == 0 && made.header->chunk_count_max <= CHUNK_COUNT &&
                made.header->entry_count_max < ENTRY_COUNT)
                walk(view, buffer, sizeof(buffer));
            opened += r == 0;
            refused += r < 0;
            weir_view_close(view);
            bytes[i] = saved;
        }
    }
    assert_true(opened > 0);
    assert_true(refused > 0);
    made_sign(made.header);
    weir_view_close(view_of(&made));
    made_close(&made);
}

static int open_cut(const struct made *made, uint64_t bytes, bool sealed, struct weir_view **view)
{
    int fd;

    assert_int_equal(weir__sys_memfd(LAYOUT_NAME, &fd), 0);
    assert_int_equal(weir__sys_pwrite_all(fd, made->header, weir__min(bytes, made->table_bytes), 0),
                     0);
    if (sealed)
        assert_int_equal(weir__sys_seal_length(fd), 0);
    int r = weir_view_open(0, fd, view);
    weir__sys_close(fd);
    return r;
}

static void test_cut_short(void **state)
{
    struct weir_view *view = NULL;
    struct made made;

    (void)state;
    made_open(&made);
    made_fill(&made);
    made_publish(&made);
    assert_int_equal(open_cut(&made, 0, true, &view), -EAGAIN);
    for (uint64_t bytes = 1; bytes < made.table_bytes; bytes += bytes % 8 == 1 ? 6 : 1)
        assert_int_equal(open_cut(&made, bytes, true, &view), -EBADMSG);
    assert_int_equal(open_cut(&made, made.table_bytes, false, &view), -EBADMSG);
    assert_int_equal(open_cut(&made, made.table_bytes, true, &view), 0);
    weir_view_close(view);
    made_close(&made);
}

/* Tables, figures and sums of noise, some of it close to the truth. */
static void test_noise(void **state)
{
    uint64_t seed = UINT64_C(20240607);
    unsigned char buffer[4096];
    struct made made;

    (void)state;
    made_open(&made);
    made_publish(&made);
    struct weir_view *view = view_of(&made);
    for (int turn = 0; turn < 2000; turn++) {
        made_fill(&made);
        if (turn % 3 == 0) {
            size_t figure = weir__random_below(&seed, sizeof(struct weir__figures) / 8);
            weir__word_store((uint64_t *)&made.header->figures + figure, weir__random(&seed));
        }
        for (int i = 0; i < 50; i++) {
            uint64_t bytes = made.table_bytes - LAYOUT_HEADER_BYTES;
            unsigned char *at = (unsigned char *)made.chunks + weir__random_below(&seed, bytes);
            *at ^= (unsigned char)(1u << weir__random_below(&seed, 8));
        }
        weir__word_store(&made.header->figures.renewing,
                         0); /* else all of it is to be read later */
        walk(view, buffer, sizeof(buffer));
        memset(made.chunks, 0, made.table_bytes - LAYOUT_HEADER_BYTES);
        weir__word_store(&made.header->figures.entry_count, ENTRY_COUNT - 1);
        weir__word_store(&made.header->figures.file_bytes, DATA_BYTES);
    }
    weir_view_close(view);
    made_close(&made);
}

/* ---- While it changes ----------------------------------------------------- */

#define RACE_ITEMS       UINT32_C(24)
#define RACE_PLACE_BYTES (UINT64_C(256) << 10) /* of a place; there are more places than items */
#define RACE_PLACES      (DATA_BYTES / RACE_PLACE_BYTES)

struct race {
    struct made *made;
    bool stop;
    uint64_t move_count;
};

/* Puts, frees and moves as fast as it can; vacant places are reused oldest first. */
static void *race_owner(void *context)
{
    struct race *race = context;
    struct made *made = race->made;
    uint64_t vacant[RACE_PLACES];
    uint64_t place_of[RACE_ITEMS + 1];
    uint64_t seed = 1;
    size_t first = 0;
    size_t count = 0;

    for (uint64_t i = 0; i < RACE_PLACES; i++)
        vacant[count++] = i * RACE_PLACE_BYTES;
    while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
        uint32_t index = 1 + (uint32_t)weir__random_below(&seed, RACE_ITEMS);
        struct weir__entry *entry = &made->entries[index];
        bool live = weir__tag_state(entry->tag) == EXTENT_LIVE;
        if (!live) {
            uint64_t bytes = weir__random_below(&seed, 4) == 0
                                 ? weir__random_below(&seed, RACE_PLACE_BYTES)
                                 : weir__random_below(&seed, 3000);
            place_of[index] = vacant[first];
            made_put(made, index, vacant[first], bytes, weir__random(&seed));
            made_sum(made, index);
            first = (first + 1) % RACE_PLACES;
            count--;
            continue;
        }
        uint64_t bytes = weir__entry_bytes_of(entry->place, entry->tag);
        uint64_t old = place_of[index];
        if (weir__random_below(&seed, 2) == 0) {
            made_free(made, index);
        } else {
            uint64_t place = vacant[first];
            first = (first + 1) % RACE_PLACES;
            count--;
            memcpy(made->data + place, made->data + old, bytes);
            weir__word_add(&made->header->figures.move_count, 1);
            weir__fence_release();
            weir__word_store(&entry->place, weir__entry_place(place, bytes));
            weir__fence();
            place_of[index] = place;
            race->move_count++;
        }
        memset(made->data + old, 0xee, bytes);
        vacant[(first + count++) % RACE_PLACES] = old;
    }
    return NULL;
}

static void test_race(void **state)
{
    unsigned char *buffer = malloc(RACE_PLACE_BYTES);
    struct made made;
    pthread_t thread;
    uint64_t exact = 0;
    uint64_t stale = 0;
    uint64_t verified = 0;
    uint64_t seed = 2;

    (void)state;
    assert_non_null(buffer);
    made_open(&made);
    made_chunk_state(&made, 1, WEIR_CHUNK_COLD);
    made_publish(&made);
    struct race race = {.made = &made};
    struct weir_view *view = view_of(&made);
    assert_int_equal(pthread_create(&thread, NULL, race_owner, &race), 0);
    while (exact < 5000 || verified < 500 || stale < 20) {
        uint32_t index = 1 + (uint32_t)weir__random_below(&seed, RACE_ITEMS);
        struct weir_view_extent extent;
        size_t count;
        int r = weir_view_extent(view, index, &extent);
        if (r == -EAGAIN || r == -ENOENT)
            continue;
        assert_int_equal(r, 0);
        if (!extent.committed)
            continue;
        if (exact % 8 == 0) {
            r = weir_view_verify(view, extent.slot);
            assert_true(r == 0 || r == -ESTALE || r == -EAGAIN || r == -ENOENT);
            verified += r == 0;
        }
        r = weir_view_read(view, extent.slot, 0, buffer, RACE_PLACE_BYTES, &count);
        assert_true(r == 0 || r == -ESTALE || r == -EAGAIN);
        stale += r == -ESTALE;
        if (r < 0)
            continue;
        assert_int_equal(count, extent.bytes);
        assert_int_equal(extent.label.owner, extent.label.key % 1000);
        assert_true(item_is(buffer, extent.label.key, extent.bytes, 0, count));
        exact++;
    }
    __atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(race.move_count > 0);
    print_message("# exact %lu, stale %lu, verified %lu, moved %lu\n", exact, stale, verified,
                  race.move_count);
    weir_view_close(view);
    made_close(&made);
    free(buffer);
}

/* ---- Another process ------------------------------------------------------ */

static void test_other_process(void **state)
{
    int to_child[2];
    int to_parent[2];
    struct weir_slot slots[20];
    int fds[4];

    (void)state;
    assert_int_equal(pipe(to_child), 0);
    assert_int_equal(pipe(to_parent), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct made made;
        char byte;
        close(to_child[1]); /* so that it ends with its parent, however that ends */
        made_open(&made);
        for (uint32_t i = 0; i < 20; i++)
            slots[i] = made_put(&made, i + 1, i * UINT64_C(65536), i * UINT64_C(1000), i);
        made_publish(&made);
        if (write(to_parent[1], slots, sizeof(slots)) != (ssize_t)sizeof(slots))
            _exit(1);
        _exit(read(to_child[0], &byte, 1) == 1 ? 0 : 1);
    }

    assert_int_equal(read(to_parent[0], slots, sizeof(slots)), sizeof(slots));
    assert_int_equal(weir_view_scan(child, fds, 4), 1);
    assert_int_equal(weir_view_scan(0, NULL, 0), 0);
    struct weir_view *view = NULL;
    struct weir_view_summary summary;
    assert_int_equal(weir_view_open(child, fds[0], &view), 0);
    weir_view_summary(view, &summary);
    assert_int_equal(summary.pid, child);
    for (uint32_t i = 0; i < 20; i++)
        check_reads(view, slots[i], i * UINT64_C(1000), i);

    int status;
    assert_int_equal(write(to_child[1], "x", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);

    /* It is gone; what was looked at is not. */
    for (uint32_t i = 0; i < 20; i++)
        check_reads(view, slots[i], i * UINT64_C(1000), i);
    weir_view_close(view);
    assert_int_equal(weir_view_scan(child, fds, 4), -ENOENT);
    for (int i = 0; i < 2; i++) {
        close(to_child[i]);
        close(to_parent[i]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"tables are found by their name", test_scan, NULL, NULL, NULL},
        {"what is no region is refused", test_open_foreign, NULL, NULL, NULL},
        {"a region that is being made says later", test_open_unfinished, NULL, NULL, NULL},
        {"a data file that is another one is refused", test_open_other_data, NULL, NULL, NULL},
        {"a later version is refused", test_version, NULL, NULL, NULL},
        {"a summary shows each figure", test_summary, NULL, NULL, NULL},
        {"an extent is shown as it is", test_extents, NULL, NULL, NULL},
        {"a chunk is shown as it is", test_chunks, NULL, NULL, NULL},
        {"an item is read exactly, cold or not", test_read, NULL, NULL, NULL},
        {"a handle of nothing is stale", test_handles, NULL, NULL, NULL},
        {"one wrong bit is found", test_verify_bad, NULL, NULL, NULL},
        {"a data file that is too short is an error", test_short_data, NULL, NULL, NULL},
        {"what was opened outlives its owner", test_after_owner, NULL, NULL, NULL},
        {"a cold chunk stays cold", test_cold_stays_cold, NULL, NULL, NULL},
        {"every flipped bit of the header is found", test_header_flips, NULL, NULL, NULL},
        {"a forged header leads nowhere", test_header_forged, NULL, NULL, NULL},
        {"tables cut short are refused", test_cut_short, NULL, NULL, NULL},
        {"noise in the tables is never followed", test_noise, NULL, NULL, NULL},
        {"an item is exact while all changes", test_race, NULL, NULL, NULL},
        {"another process is looked into", test_other_process, NULL, NULL, NULL},
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("view", tests, NULL, NULL);
}

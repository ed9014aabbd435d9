/* SPDX-License-Identifier: MIT */
/*
 * view - how to look at a region that is not ours
 *
 *      /proc/PID/fd/T   the tables, a memfd     mapped, read word by word
 *      /proc/PID/fd/D   the payload             copied: pread, or O_DIRECT
 *
 * What we read belongs to somebody else. It may be wrong, and it changes while
 * we look. Against the first: the fixed part of the header is copied, then
 * checked, and from then on only the copy is believed; an index, an offset or a
 * length from anywhere else is compared with it before it is used. Against the
 * second: a word is loaded once, and an answer is given only if the words that
 * name the item are the same before and after.
 *
 * The tables of a named region are a file, whose length nobody can seal: it is
 * not mapped but read, word by word as well. That is slower and never a signal.
 *
 *   I1  the mapping cannot end early: the length of the memfd is sealed
 *   I2  the tables lie inside the mapping and do not overlap
 *   I3  an index reaches a table only after view_index_is_valid()
 *   I4  an answer is given only between two equal loads of tag and place, with
 *       a fence on either side; the payload is read in between, and the owner
 *       has not moved two items meanwhile: one may be ours, away and back
 *   I5  reading a cold chunk leaves no page of it behind
 *   I6  an answer that rests on a word which could not be read is that error, and
 *       never says that an item is gone
 *
 * The data file is found by number in the owner's table of descriptors, so its
 * device and inode are compared before it is opened for reading: opening a
 * device or a pipe that happens to have the number would have effects.
 */
#include <weir/view.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/cleanup.h"
#include "base/fence.h"
#include "base/heap.h"
#include "base/region_layout.h"
#include "base/sys.h"

#include <xxhash.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define VIEW_TRIES        16 /* of an entry that changes, of an item that moves */
#define VIEW_PAGE_BYTES   UINT64_C(4096)
#define VIEW_PIECE_BYTES  (UINT64_C(256) << 10)
#define VIEW_BOUNCE_BYTES (VIEW_PIECE_BYTES + 2 * VIEW_PAGE_BYTES)

_Static_assert(LAYOUT_CHUNK_BYTES == WEIR_CHUNK_BYTES, "one chunk, inside and outside");
_Static_assert(VIEW_PIECE_BYTES % VIEW_PAGE_BYTES == 0, "a piece is whole pages");
_Static_assert(sizeof(((struct weir_view_summary *)0)->directory) ==
                   sizeof(((struct weir__header *)0)->directory),
               "the directory fits");

struct weir_view {
    struct weir__heap heap;    /* of this struct and the bounce buffer */
    struct weir__header fixed; /* checked copy; its figures are not used */
    int table_fd;              /* of a named region; -1: the tables are mapped */
    void *tables;              /* I1; NULL: not mapped */
    size_t tables_bytes;       /* I2 */
    char *bounce;              /* page aligned */
    int data_fd;               /* through the page cache */
    int direct_fd;             /* past it; -1: this file system cannot */
    int error;                 /* of a load since the call began (I6); 0: none */
    int *trouble;              /* that: it befalls a const view too */
};

/* What an entry said at one moment; see I4. */
struct view_entry {
    uint64_t tag;
    uint64_t place;
    uint64_t key;
};

/* ---- The header ----------------------------------------------------------- */

static uint64_t view_fixed_sum(const struct weir__header *header)
{
    size_t from = offsetof(struct weir__header, version);
    size_t to = offsetof(struct weir__header, fixed_sum);

    return XXH3_64bits((const char *)header + from, to - from);
}

/* Whether @count rows at *@offset lie between *@end and @bytes; moves *@end behind them. */
static bool view_table_fits(uint64_t offset, uint64_t count, size_t row_bytes, uint64_t bytes,
                            uint64_t *end)
{
    if (offset % sizeof(uint64_t) != 0 || offset < *end || offset > bytes)
        return false;
    if (count > (bytes - offset) / row_bytes)
        return false;
    *end = offset + count * row_bytes;
    return true;
}

/* @table_bytes: length of the table file; @ret_end: how much of it the tables take */
static int view_check_header(const struct weir__header *header, uint64_t table_bytes,
                             uint64_t *ret_end)
{
    uint64_t chunks_bytes = header->chunk_count_max * LAYOUT_CHUNK_BYTES;
    uint64_t row_count = header->entry_count_max + 1; /* row 0 is never an entry */
    uint64_t end = LAYOUT_HEADER_BYTES;

    if (header->version != LAYOUT_VERSION)
        return -EPROTONOSUPPORT;
    if (header->fixed_sum != view_fixed_sum(header))
        return -EBADMSG;
    if (header->header_bytes != LAYOUT_HEADER_BYTES)
        return -EBADMSG;
    if (header->chunk_count_max > LAYOUT_BYTES_LIMIT / LAYOUT_CHUNK_BYTES)
        return -EBADMSG;
    if (header->bytes_max == 0 || header->bytes_max > chunks_bytes)
        return -EBADMSG;
    if (header->entry_count_max == 0 || header->entry_count_max > UINT32_MAX)
        return -EBADMSG;
    if (header->pid <= 0 || header->pid > INT_MAX || header->data_fd < 0)
        return -EBADMSG;
    if (memchr(header->directory, '\0', sizeof(header->directory)) == NULL)
        return -EBADMSG;
    if (!view_table_fits(header->chunk_offset, header->chunk_count_max, sizeof(struct weir__chunk),
                         table_bytes, &end) ||
        !view_table_fits(header->entry_offset, row_count, sizeof(struct weir__entry), table_bytes,
                         &end) ||
        !view_table_fits(header->sum_offset, row_count, sizeof(uint64_t), table_bytes, &end))
        return -EBADMSG;
    *ret_end = end; /* the vacant stack is the owner's: neither mapped nor looked at */
    if (!view_table_fits(header->vacant_offset, row_count, sizeof(uint32_t), table_bytes, &end))
        return -EBADMSG;
    return 0;
}

/*
 * 0: whole, and sealed unless it is a named file; fails softly while the owner is
 * still between memfd_create() and magic.
 */
static int view_check_file(int fd, uint64_t *ret_bytes, bool *ret_named)
{
    struct stat info;
    uint64_t magic;

    int sealed = weir__sys_length_is_sealed(fd);
    *ret_named = sealed < 0; /* what cannot be sealed is a file on a disk */
    int r = weir__sys_fstat(fd, &info);
    if (r < 0)
        return r;
    if (info.st_size == 0)
        return *ret_named ? -EBADMSG : -EAGAIN;
    if ((uint64_t)info.st_size < LAYOUT_HEADER_BYTES)
        return -EBADMSG;
    r = weir__sys_pread_all(fd, &magic, sizeof(magic), 0);
    if (r < 0)
        return r;
    if (magic == 0 && !*ret_named)
        return -EAGAIN;
    if (magic != LAYOUT_MAGIC || sealed == 0)
        return -EBADMSG;
    *ret_bytes = (uint64_t)info.st_size;
    return 0;
}

/*
 * Its fixed part is replaced by one write, which may be under way: what makes no sense
 * is looked at again.
 */
static int view_open_named(struct weir_view *view, int *fd, uint64_t bytes)
{
    uint64_t end;
    int r = -EBADMSG;

    for (int i = 0; i < VIEW_TRIES && r == -EBADMSG; i++) {
        r = weir__sys_pread_all(*fd, &view->fixed, sizeof(view->fixed), 0);
        if (r == 0)
            r = view_check_header(&view->fixed, bytes, &end);
    }
    if (r < 0)
        return r;
    if (view->fixed.named != 1)
        return -EBADMSG; /* a memfd that somebody copied */
    view->table_fd = *fd;
    *fd = -1;
    return 0;
}

/* Takes *@fd where it is needed longer. */
static int view_open_tables(struct weir_view *view, int *fd)
{
    uint64_t bytes;
    uint64_t end;
    void *address;
    bool named;

    int r = view_check_file(*fd, &bytes, &named);
    if (r < 0)
        return r;
    if (named)
        return view_open_named(view, fd, bytes);
    r = weir__sys_mmap(NULL, LAYOUT_HEADER_BYTES, PROT_READ, MAP_SHARED, *fd, 0, &address);
    if (r < 0)
        return r;

    struct weir__header *header = address;
    bool made = __atomic_load_n(&header->magic, __ATOMIC_ACQUIRE) == LAYOUT_MAGIC;
    view->fixed = *header;
    weir__sys_munmap(address, LAYOUT_HEADER_BYTES);
    if (!made)
        return -EAGAIN;

    r = view_check_header(&view->fixed, bytes, &end);
    if (r < 0)
        return r;
    r = weir__sys_mmap(NULL, end, PROT_READ, MAP_SHARED, *fd, 0, &view->tables);
    if (r < 0)
        return r;
    view->tables_bytes = end;
    return 0;
}

/* The words at @offset of the tables, each loaded once; 0, or what pread(2) says, and zeroes. */
static int view_load(const struct weir_view *view, uint64_t offset, uint64_t *words, size_t count)
{
    if (view->tables == NULL) {
        int r = weir__sys_pread_all(view->table_fd, words, count * sizeof(*words), offset);
        if (r < 0)
            memset(words, 0, count * sizeof(*words));
        return r;
    }

    const uint64_t *from = (const void *)((const char *)view->tables + offset);
    for (size_t i = 0; i < count; i++)
        words[i] = weir__word_load(&from[i]);
    return 0;
}

/* 0 where it cannot be had: whoever is asked looks at the trouble before he answers (I6). */
static uint64_t view_word(const struct weir_view *view, uint64_t offset)
{
    uint64_t word;
    int r = view_load(view, offset, &word, 1);

    if (r < 0)
        *view->trouble = r;
    return word;
}

/* ---- Finding and opening -------------------------------------------------- */

static void view_fd_path(pid_t pid, int fd, char path[64])
{
    if (pid == 0)
        snprintf(path, 64, "/proc/self/fd/%d", fd);
    else
        snprintf(path, 64, "/proc/%ld/fd/%d", (long)pid, fd);
}

struct view_scan {
    const char *directory;
    int *ret_fds;
    size_t fd_count;
    int found;
};

/* A memfd of ours, or a file that is called as if it held the tables of a named region. */
static bool view_is_table(const char *target)
{
    size_t length = strlen(target);
    size_t suffix = strlen(LAYOUT_TABLE_SUFFIX);

    if (strcmp(target, "/memfd:" LAYOUT_NAME " (deleted)") == 0)
        return true;
    return target[0] == '/' && length > suffix &&
           strcmp(target + length - suffix, LAYOUT_TABLE_SUFFIX) == 0;
}

static int view_scan_one(void *context, const char *name)
{
    struct view_scan *scan = context;
    char path[64];
    char target[PATH_MAX];
    int fd = 0;

    for (const char *digit = name; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9' || fd > (INT_MAX - 9) / 10)
            return 0;
        fd = fd * 10 + (*digit - '0');
    }
    snprintf(path, sizeof(path), "%s/%d", scan->directory, fd);
    int r = weir__sys_readlink(path, target, sizeof(target));
    if (r == -ENOENT || r == -ENAMETOOLONG)
        return 0; /* closed meanwhile, or no name that we would give */
    if (r < 0)
        return r;
    if (!view_is_table(target))
        return 0;
    if ((size_t)scan->found < scan->fd_count)
        scan->ret_fds[scan->found] = fd;
    scan->found++;
    return 0;
}

int weir_view_scan(pid_t pid, int *ret_fds, size_t fd_count)
{
    char directory[40] = "/proc/self/fd";

    if (pid < 0 || (ret_fds == NULL && fd_count > 0))
        return -EINVAL;

    if (pid > 0)
        snprintf(directory, sizeof(directory), "/proc/%ld/fd", (long)pid);

    struct view_scan scan = {.directory = directory, .ret_fds = ret_fds, .fd_count = fd_count};
    int r = weir__sys_list(directory, view_scan_one, &scan);
    return r < 0 ? r : scan.found;
}

static int view_open_payload(struct weir_view *view, int name_fd)
{
    int r = weir__sys_reopen(name_fd, O_RDONLY | O_NOCTTY, &view->data_fd);

    if (r < 0)
        return r;
    /* What is read ahead of an item nobody asked for. Only advice: a refusal costs memory. */
    (void)weir__sys_fadvise(view->data_fd, 0, 0, POSIX_FADV_RANDOM);
    if (weir__sys_reopen(name_fd, O_RDONLY | O_NOCTTY | O_DIRECT, &view->direct_fd) < 0)
        view->direct_fd = -1;
    return 0;
}

/* Beside the tables, by its name; its owner may be long gone, and both files have been moved. */
static int view_open_data_beside(struct weir_view *view)
{
    WEIR_CLEANUP_CLOSE int name_fd = -1;
    char self[64];
    char path[PATH_MAX + sizeof(LAYOUT_DATA_SUFFIX)];
    struct stat info;

    view_fd_path(0, view->table_fd, self);
    int r = weir__sys_readlink(self, path, PATH_MAX);
    if (r < 0)
        return r;
    size_t length = strlen(path);
    size_t suffix = strlen(LAYOUT_TABLE_SUFFIX);
    if (length < suffix || strcmp(path + length - suffix, LAYOUT_TABLE_SUFFIX) != 0)
        return -EBADMSG; /* removed, or renamed by somebody */
    memcpy(path + length - suffix, LAYOUT_DATA_SUFFIX, sizeof(LAYOUT_DATA_SUFFIX));
    r = weir__sys_open(path, O_PATH | O_NOFOLLOW, &name_fd);
    if (r < 0)
        return r == -ENOENT ? -EBADMSG : r;
    r = weir__sys_fstat(name_fd, &info);
    if (r < 0)
        return r;
    return S_ISREG(info.st_mode) ? view_open_payload(view, name_fd) : -EBADMSG;
}

/* The data file as descriptor number fixed.data_fd of @pid, if that is really it. */
static int view_open_data_of(struct weir_view *view, pid_t pid)
{
    WEIR_CLEANUP_CLOSE int name_fd = -1;
    char path[64];
    struct stat info;

    view_fd_path(pid, view->fixed.data_fd, path);
    int r = weir__sys_open(path, O_PATH, &name_fd);
    if (r < 0)
        return r == -ENOENT ? -EBADMSG : r;
    r = weir__sys_fstat(name_fd, &info);
    if (r < 0)
        return r;
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_dev != view->fixed.data_device ||
        (uint64_t)info.st_ino != view->fixed.data_inode)
        return -EBADMSG;
    return view_open_payload(view, name_fd);
}

static int view_open_data(struct weir_view *view, pid_t pid)
{
    int r = view_open_data_of(view, pid);

    if (r < 0 && view->table_fd >= 0)
        return view_open_data_beside(view);
    /* The tables may have come to us as a descriptor of our own; the data file did not. */
    if (r == -EBADMSG && view->fixed.pid != pid)
        r = view_open_data_of(view, (pid_t)view->fixed.pid);
    return r;
}

int weir_view_open(pid_t pid, int fd, struct weir_view **ret_view)
{
    WEIR_CLEANUP_CLOSE int name_fd = -1;
    WEIR_CLEANUP_CLOSE int table_fd = -1;
    char path[64];
    struct stat info;

    if (pid < 0 || fd < 0 || ret_view == NULL)
        return -EINVAL;

    view_fd_path(pid, fd, path);
    int r = weir__sys_open(path, O_PATH, &name_fd);
    if (r < 0)
        return r;
    r = weir__sys_fstat(name_fd, &info);
    if (r < 0)
        return r;
    if (!S_ISREG(info.st_mode))
        return -EBADMSG;
    r = weir__sys_reopen(name_fd, O_RDONLY | O_NOCTTY, &table_fd);
    if (r < 0)
        return r;

    struct weir__heap heap = {0};
    struct weir_view *view = weir__heap_alloc(&heap, sizeof(*view));
    if (view == NULL)
        return -ENOMEM;
    view->heap = heap;
    view->trouble = &view->error;
    view->data_fd = -1;
    view->direct_fd = -1;

    view->table_fd = -1;
    r = view_open_tables(view, &table_fd);
    if (r == 0)
        r = view_open_data(view, pid);
    if (r == 0) {
        view->bounce = weir__heap_alloc_aligned(&view->heap, VIEW_BOUNCE_BYTES, VIEW_PAGE_BYTES);
        if (view->bounce == NULL)
            r = -ENOMEM;
    }
    if (r < 0) {
        weir_view_close(view);
        return r;
    }
    *ret_view = view;
    return 0;
}

void weir_view_close(struct weir_view *view)
{
    if (view == NULL)
        return;

    weir__sys_munmap(view->tables, view->tables_bytes);
    weir__sys_close(view->table_fd);
    weir__sys_close(view->data_fd);
    weir__sys_close(view->direct_fd);

    struct weir__heap heap = view->heap;
    weir__heap_free(&heap, view->bounce, VIEW_BOUNCE_BYTES);
    weir__heap_free(&heap, view, sizeof(*view));
}

/* ---- Figures, entries, chunks --------------------------------------------- */

static uint64_t view_chunk_count(const struct weir_view *view)
{
    uint64_t file_bytes = view_word(view, offsetof(struct weir__header, figures.file_bytes));
    uint64_t chunk_count =
        file_bytes / LAYOUT_CHUNK_BYTES + (file_bytes % LAYOUT_CHUNK_BYTES != 0 ? 1 : 0);

    return weir__min(chunk_count, view->fixed.chunk_count_max);
}

static uint64_t view_entry_count(const struct weir_view *view)
{
    return weir__min(view_word(view, offsetof(struct weir__header, figures.entry_count)),
                     view->fixed.entry_count_max);
}

static bool view_index_is_valid(const struct weir_view *view, uint32_t index)
{
    return index > 0 && index <= view_entry_count(view);
}

void weir_view_summary(const struct weir_view *view, struct weir_view_summary *ret_summary)
{
    struct weir__figures figures;

    (void)view_load(view, offsetof(struct weir__header, figures), (uint64_t *)(void *)&figures,
                    sizeof(figures) / sizeof(uint64_t));
    *ret_summary = (struct weir_view_summary){
        .pid = (pid_t)view->fixed.pid,
        .table_fd = view->fixed.table_fd,
        .data_fd = view->fixed.data_fd,
        .bytes_max = view->fixed.bytes_max,
        .resident_bytes_max = view->fixed.resident_bytes_max,
        .file_bytes = figures.file_bytes,
        .disk_bytes = figures.disk_bytes,
        .mark_bytes = figures.mark_bytes,
        .live_bytes = figures.live_bytes,
        .free_bytes = figures.free_bytes,
        .resident_bytes = figures.resident_bytes,
        .dirty_bytes = figures.dirty_bytes,
        .fetched_bytes = figures.fetched_bytes,
        .pinned_bytes = figures.pinned_bytes,
        .metadata_bytes = figures.metadata_bytes,
        .put_bytes = figures.put_bytes,
        .written_bytes = figures.written_bytes,
        .read_bytes = figures.read_bytes,
        .slot_count = figures.slot_count,
        .free_extent_count = figures.free_extent_count,
        .entry_count = view_entry_count(view),
        .chunk_count = view_chunk_count(view),
        .bounded = figures.bounded != 0,
        .degraded = figures.degraded != 0,
    };
    memcpy(ret_summary->directory, view->fixed.directory, sizeof(ret_summary->directory));
}

/* I4: false while the owner is changing the entry. */
static bool view_entry_load(const struct weir_view *view, uint32_t index,
                            struct view_entry *ret_entry)
{
    uint64_t at = view->fixed.entry_offset + index * sizeof(struct weir__entry);
    uint64_t tag = view_word(view, at + offsetof(struct weir__entry, tag));

    weir__fence_acquire();
    ret_entry->tag = tag;
    ret_entry->place = view_word(view, at + offsetof(struct weir__entry, place));
    ret_entry->key = view_word(view, at + offsetof(struct weir__entry, key));
    weir__fence_acquire();
    return view_word(view, at + offsetof(struct weir__entry, tag)) == ret_entry->tag &&
           view_word(view, at + offsetof(struct weir__entry, place)) == ret_entry->place;
}

static uint64_t view_sum(const struct weir_view *view, uint32_t index)
{
    return view_word(view, view->fixed.sum_offset + index * sizeof(uint64_t));
}

static uint64_t view_chunk_word(const struct weir_view *view, uint64_t index)
{
    return view_word(view, view->fixed.chunk_offset + index * sizeof(struct weir__chunk) +
                               offsetof(struct weir__chunk, word));
}

static bool view_extent_is_inside(const struct weir_view *view, uint64_t offset, uint64_t bytes)
{
    return bytes <= LAYOUT_BYTES_LIMIT &&
           offset + weir__extent_space(bytes) <= view->fixed.chunk_count_max * LAYOUT_CHUNK_BYTES;
}

/* 0, -ENOENT, -EBADMSG, or -EAGAIN: the owner has taken it and not yet named it */
static int view_extent_of(const struct weir_view *view, uint32_t index,
                          const struct view_entry *entry, struct weir_view_extent *ret_extent)
{
    enum weir__extent_state state = weir__tag_state(entry->tag);
    uint32_t generation = weir__tag_generation(entry->tag);
    uint64_t offset = weir__place_offset(entry->place);
    uint64_t bytes = weir__entry_bytes_of(entry->place, entry->tag);
    bool named = weir__state_is_item(state);

    if (state == EXTENT_VACANT)
        return -ENOENT;
    if (state == EXTENT_BUILT && generation % 2 == 0)
        return -EAGAIN;
    bool freed = weir__state_is_freed(state);
    if (state > EXTENT_FREED_DOUBTED || (named || freed) != (generation % 2 == 1))
        return -EBADMSG;
    if (!view_extent_is_inside(view, offset, bytes))
        return -EBADMSG;
    uint64_t alignment = named ? weir__tag_alignment(entry->tag) : LAYOUT_GRANULE;
    if (alignment > LAYOUT_ALIGN_LIMIT || offset % alignment != 0)
        return -EBADMSG;

    *ret_extent = (struct weir_view_extent){
        .offset = offset,
        .bytes = bytes,
        .extent_bytes = weir__extent_space(bytes),
        .alignment = named ? alignment : 0,
        .committed = state == EXTENT_LIVE || state == EXTENT_DAMAGED,
        .held = state == EXTENT_ZOMBIE || freed,
        .damaged = state == EXTENT_DAMAGED,
    };
    if (named) {
        ret_extent->slot = (struct weir_slot){.index = index, .generation = generation};
        ret_extent->label =
            (struct weir_label){.key = entry->key, .owner = weir__tag_owner(entry->tag)};
        ret_extent->summed = state != EXTENT_STAGED && view_sum(view, index) != 0;
    }
    return 0;
}

int weir_view_extent(const struct weir_view *view, uint32_t index,
                     struct weir_view_extent *ret_extent)
{
    int r = -EAGAIN;

    *view->trouble = 0;
    if (!view_index_is_valid(view, index))
        return *view->trouble < 0 ? *view->trouble : -EINVAL;

    /*
     * A free extent has one even generation while its place and length change,
     * in two words: nonsense may be half of such a change, and is looked at again.
     */
    struct weir_view_extent extent;
    for (int i = 0; i < VIEW_TRIES && (r == -EAGAIN || r == -EBADMSG); i++) {
        struct view_entry entry;
        r = -EAGAIN;
        if (view_entry_load(view, index, &entry))
            r = view_extent_of(view, index, &entry, &extent);
        if (*view->trouble < 0)
            return *view->trouble;
    }
    if (r == 0)
        *ret_extent = extent;
    return r;
}

int weir_view_chunk(const struct weir_view *view, uint64_t index, struct weir_view_chunk *ret_chunk)
{
    *view->trouble = 0;
    if (index >= view_chunk_count(view))
        return *view->trouble < 0 ? *view->trouble : -EINVAL;

    uint64_t word = view_chunk_word(view, index);
    if (*view->trouble < 0)
        return *view->trouble;
    uint32_t state = weir__chunk_word_state(word);
    if (state > WEIR_CHUNK_HOLE)
        return -EBADMSG;
    *ret_chunk = (struct weir_view_chunk){
        .state = (enum weir_chunk_state)state,
        .live_bytes = weir__chunk_word_live(word),
        .pinned_count = weir__chunk_word_pins(word),
    };
    return 0;
}

/* ---- Payload -------------------------------------------------------------- */

static uint32_t view_chunk_state_at(const struct weir_view *view, uint64_t offset)
{
    uint64_t index = offset / LAYOUT_CHUNK_BYTES;

    WEIR_ASSERT(index < view->fixed.chunk_count_max);
    return weir__chunk_word_state(view_chunk_word(view, index));
}

static bool view_chunk_is_resident(uint32_t state)
{
    return state == WEIR_CHUNK_DIRTY || state == WEIR_CHUNK_WRITING || state == WEIR_CHUNK_CLEAN;
}

/* @bytes of one chunk, at most a piece; they lie at *@ret_data, in the bounce buffer. */
static int view_read_piece(const struct weir_view *view, uint64_t offset, uint64_t bytes,
                           uint64_t file_bytes, const char **ret_data)
{
    uint64_t from = weir__round_down(offset, VIEW_PAGE_BYTES);
    uint64_t to = weir__round_up(offset + bytes, VIEW_PAGE_BYTES);

    WEIR_ASSERT(to - from <= VIEW_BOUNCE_BYTES);

    if (view->direct_fd >= 0 && to <= file_bytes &&
        !view_chunk_is_resident(view_chunk_state_at(view, offset))) {
        int r = weir__sys_pread_all(view->direct_fd, view->bounce, to - from, from);
        *ret_data = view->bounce + (offset - from);
        if (r != -EINVAL)
            return r; /* -EINVAL: this disk wants a larger alignment than pages */
    }

    int r = weir__sys_pread_all(view->data_fd, view->bounce, bytes, offset);
    /* I5: it went cold while we read, or there is no other way to read it. */
    if (view_chunk_state_at(view, offset) == WEIR_CHUNK_COLD)
        (void)weir__sys_fadvise(view->data_fd, from, to - from, POSIX_FADV_DONTNEED);
    *ret_data = view->bounce;
    return r;
}

/* What is done with each piece in turn. */
typedef void view_take_fn(void *context, const char *data, size_t bytes);

static int view_read_place(const struct weir_view *view, uint64_t offset, uint64_t bytes,
                           view_take_fn *take, void *context)
{
    struct stat info;

    int r = weir__sys_fstat(view->data_fd, &info);
    if (r < 0)
        return r;
    if (offset + bytes > (uint64_t)info.st_size)
        return -EBADMSG;

    while (bytes > 0) {
        uint64_t chunk_rest = LAYOUT_CHUNK_BYTES - offset % LAYOUT_CHUNK_BYTES;
        uint64_t step = weir__min(weir__min(bytes, chunk_rest), VIEW_PIECE_BYTES);
        const char *data;

        r = view_read_piece(view, offset, step, (uint64_t)info.st_size, &data);
        if (r < 0)
            return r;
        take(context, data, step);
        offset += step;
        bytes -= step;
    }
    return 0;
}

/* Before all that follows it, and after all that came before. */
static uint64_t view_move_count(const struct weir_view *view)
{
    weir__fence_acquire();
    uint64_t count = view_word(view, offsetof(struct weir__header, figures.move_count));
    weir__fence_acquire();
    return count;
}

/* Whether bytes of its are being put back, or were when the owner died: others are whole. */
static bool view_is_renewed(const struct weir_view *view, const struct weir_view_extent *extent)
{
    uint64_t renewing = view_word(view, offsetof(struct weir__header, figures.renewing));
    uint64_t first = extent->offset / LAYOUT_CHUNK_BYTES;
    uint64_t last = (extent->offset + extent->extent_bytes - 1) / LAYOUT_CHUNK_BYTES;

    return renewing > first && renewing <= last + 1;
}

/* One try; -EAGAIN with *@ret_moved: it was somewhere else afterwards. */
static int view_read_once(const struct weir_view *view, struct weir_slot slot, uint64_t offset,
                          uint64_t bytes_max, view_take_fn *take, void *context,
                          uint64_t *ret_bytes, bool *ret_moved)
{
    struct weir_view_extent extent;
    struct view_entry before;
    struct view_entry after;
    uint64_t move_count = view_move_count(view);

    *ret_moved = !view_entry_load(view, slot.index, &before);
    if (weir__tag_generation(before.tag) != slot.generation)
        return -ESTALE;
    if (*ret_moved)
        return -EAGAIN;
    if (weir__state_is_freed(weir__tag_state(before.tag)))
        return -ESTALE;
    int r = view_extent_of(view, slot.index, &before, &extent);
    if (r < 0)
        return r == -ENOENT ? -EBADMSG : r; /* vacant, with an odd generation */
    if (!extent.committed)
        return -EAGAIN;
    if (extent.damaged)
        return -EBADMSG;

    offset = weir__min(offset, extent.bytes);
    *ret_bytes = weir__min(bytes_max, extent.bytes - offset);
    r = view_read_place(view, extent.offset + offset, *ret_bytes, take, context);

    /* I4: what failed may have failed because it is gone, or no longer there. */
    weir__fence_acquire();
    bool whole = view_entry_load(view, slot.index, &after);
    if (weir__tag_generation(after.tag) != slot.generation)
        return -ESTALE;
    *ret_moved = !whole || after.place != before.place || after.tag != before.tag ||
                 view_is_renewed(view, &extent) || view_move_count(view) - move_count > 1;
    return *ret_moved ? -EAGAIN : r;
}

struct view_copy {
    char *to;
};

static void view_copy_take(void *context, const char *data, size_t bytes)
{
    struct view_copy *copy = context;

    memcpy(copy->to, data, bytes);
    copy->to += bytes;
}

int weir_view_read(const struct weir_view *view, struct weir_slot slot, uint64_t offset,
                   void *buffer, size_t buffer_bytes, size_t *ret_bytes)
{
    uint64_t bytes = 0;
    bool moved = true;
    int r = -EAGAIN;

    if (ret_bytes == NULL || (buffer == NULL && buffer_bytes > 0))
        return -EINVAL;
    *view->trouble = 0;
    if (!view_index_is_valid(view, slot.index) || slot.generation % 2 == 0)
        return *view->trouble < 0 ? *view->trouble : -ESTALE;

    for (int i = 0; i < VIEW_TRIES && moved; i++) {
        struct view_copy copy = {.to = buffer};
        r = view_read_once(view, slot, offset, buffer_bytes, view_copy_take, &copy, &bytes, &moved);
        if (*view->trouble < 0)
            r = *view->trouble;
        if (r != -EAGAIN)
            break;
    }
    if (r == 0)
        *ret_bytes = bytes;
    return r;
}

static void view_sum_take(void *context, const char *data, size_t bytes)
{
    XXH3_64bits_update(context, data, bytes);
}

int weir_view_verify(const struct weir_view *view, struct weir_slot slot)
{
    XXH3_state_t state;
    bool moved = true;
    int r = -EAGAIN;

    *view->trouble = 0;
    if (!view_index_is_valid(view, slot.index) || slot.generation % 2 == 0)
        return *view->trouble < 0 ? *view->trouble : -ESTALE;

    for (int i = 0; i < VIEW_TRIES && moved; i++) {
        struct view_entry entry;
        uint64_t bytes;
        uint64_t expected = view_sum(view, slot.index);

        XXH3_64bits_reset(&state);
        r = view_read_once(view, slot, 0, expected == 0 ? 0 : UINT64_MAX, view_sum_take, &state,
                           &bytes, &moved);
        if (*view->trouble < 0)
            r = *view->trouble;
        if (r < 0 && r != -EAGAIN)
            break;
        if (r < 0)
            continue;
        if (expected == 0)
            return -ENOENT;

        moved = !view_entry_load(view, slot.index, &entry);
        r = -EAGAIN;
        if (*view->trouble < 0)
            return *view->trouble;
        if (weir__tag_generation(entry.tag) != slot.generation)
            return -ESTALE;
        if (moved)
            continue;
        uint64_t sum = weir__sum_of(entry.key, entry.tag, XXH3_64bits_digest(&state));
        return sum == expected ? 0 : -EBADMSG;
    }
    return r;
}

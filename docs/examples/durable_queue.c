/* SPDX-License-Identifier: MIT */
#include <weir/region.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Items in the order in which they came. The number of an item is the key of its slot, so that the
 * order is in the file, and this index can be made again by a walk.
 */
struct queue {
    struct weir_region *region;
    struct weir_slot *slots; /* of number n at n % count_max; none: there is no such item */
    uint64_t count_max, sync_every;
    uint64_t first, end;               /* what is here: [first, end) */
    uint64_t synced_first, synced_end; /* what was, when it was last made to survive a power loss */
};

static struct weir_slot *queue_slot(struct queue *queue, uint64_t number)
{
    return &queue->slots[number % queue->count_max];
}

/* Now the items [synced_first, synced_end) survive a power loss, and what was dropped is room. */
static int queue_sync(struct queue *queue)
{
    int r = weir_region_sync(queue->region);
    if (r < 0)
        return r; /* nothing is confirmed, nothing is lost: try again, or stop */
    queue->synced_first = queue->first;
    queue->synced_end = queue->end;
    return 0;
}

/*
 * The index of what the file holds. After a power loss there may be gaps among what was never
 * confirmed, and items that were dropped since the last sync are there again.
 */
static int queue_rebuild(struct queue *queue)
{
    struct weir_slot slot = {0, 0};
    struct weir_slot_info info;

    queue->first = UINT64_MAX;
    while (weir_region_next(queue->region, &slot)) { /* in no useful order: the keys have it */
        int r = weir_region_slot(queue->region, slot, &info);
        if (r < 0)
            return r;
        *queue_slot(queue, info.label.key) = slot;
        if (info.label.key < queue->first)
            queue->first = info.label.key;
        if (info.label.key >= queue->end)
            queue->end = info.label.key + 1;
    }
    if (queue->end == 0)
        queue->first = 0;
    return queue->end - queue->first <= queue->count_max ? 0 : -EINVAL; /* it was longer before */
}

static void queue_close(struct queue *queue)
{
    weir_region_close(queue->region); /* confirms nothing: queue_sync() first */
    free(queue->slots);
}

/*
 * Whatever it returns, close it. @count_max: items that may be here, with those that a power loss
 * brings back; @sync_every: items that it may cost.
 */
static int queue_open(struct queue *queue, const struct weir_region_config *file,
                      uint32_t count_max, uint32_t sync_every)
{
    struct weir_region_report report;

    *queue = (struct queue){.count_max = count_max, .sync_every = sync_every};
    if (count_max == 0 || sync_every == 0)
        return -EINVAL;
    queue->slots = calloc(count_max, sizeof(*queue->slots));
    if (queue->slots == NULL)
        return -ENOMEM;
    int r = weir_region_open(file, &queue->region);
    r = r < 0 ? r : queue_rebuild(queue);
    if (r < 0)
        return r;

    /*
     * No number is given twice, so that a consumer knows what it has seen. Where no item is left to
     * say how far they had come, the syncs do: fewer than 2^32 numbers were given for each of them.
     */
    weir_region_report(queue->region, &report);
    if (queue->first == queue->end)
        queue->first = queue->end = (report.sync_count + 1) << 32;
    return queue_sync(queue);
}

/*
 * After 0 the item survives a kill, and once synced_end is above its number a power loss. -EDQUOT:
 * full until the consumer has come further; all that is here is for it to see.
 */
static int queue_append(struct queue *queue, const void *data, size_t bytes)
{
    struct weir_label label = {.key = queue->end};
    struct weir_slot slot;
    int r = 0;

    if (queue->end - queue->synced_end >= queue->sync_every)
        r = queue_sync(queue); /* first: what is refused is then refused as a whole */
    while (r >= 0) {
        r = -EDQUOT;
        if (queue->end - queue->synced_first < queue->count_max)
            r = weir_region_put(queue->region, data, bytes, label, &slot);
        if (r == 0) {
            *queue_slot(queue, queue->end++) = slot;
            return 0;
        }
        if (r == -EAGAIN) /* the disk is behind */
            r = weir_region_wait(queue->region, 1000000);
        else if (r == -EDQUOT &&
                 (queue->first > queue->synced_first || queue->end > queue->synced_end))
            r = queue_sync(queue); /* what was dropped since the last one is room after this one */
    }
    return r;
}

/*
 * The first item; -ENOENT: none. What a power loss can take back is not shown: its number would be
 * given again. A producer with nothing more to append calls queue_sync().
 */
static int queue_peek(struct queue *queue, void *buffer, size_t buffer_bytes, size_t *ret_bytes)
{
    struct weir_slot_info info;

    while (queue->first < queue->synced_end && weir_slot_is_none(*queue_slot(queue, queue->first)))
        queue->first++;
    if (queue->first >= queue->synced_end)
        return -ENOENT;

    struct weir_slot slot = *queue_slot(queue, queue->first);
    int r = weir_region_slot(queue->region, slot, &info);
    if (r == 0 && info.bytes > buffer_bytes)
        r = -EFBIG;
    if (r < 0)
        return r;
    return weir_region_read(queue->region, slot, 0, buffer, buffer_bytes, ret_bytes);
}

/* The first item is done with, or damaged: -EBADMSG. A power loss may show it again. */
static int queue_drop(struct queue *queue)
{
    struct weir_slot *slot = queue_slot(queue, queue->first);

    int r = weir_region_free(queue->region, *slot);
    if (r < 0)
        return r;
    *slot = (struct weir_slot){0, 0};
    queue->first++;
    return 0;
}

/* ---- A program that uses it, and dies of it --------------------------------- */

#define ITEM_BYTES_MAX 32768
#define COUNT_MAX      1000 /* with the bytes: whichever is full first */
#define SYNC_EVERY     25

/* What the child has said last: all items [first, synced_end) must be found. */
struct told {
    uint64_t first, synced_end;
};

static int tell(int pipe_end, uint64_t first, uint64_t synced_end)
{
    struct told told = {first, synced_end};

    return write(pipe_end, &told, sizeof(told)) == sizeof(told) ? 0 : -EPIPE;
}

static size_t make_item(uint64_t number, unsigned char *item)
{
    size_t bytes = number * 7919 % (ITEM_BYTES_MAX + 1);

    for (size_t i = 0; i < bytes; i++)
        item[i] = (unsigned char)(number + i / 8);
    return bytes;
}

/* One item, as it was appended; told before it is gone. */
static int consume(struct queue *queue, int pipe_end)
{
    unsigned char item[ITEM_BYTES_MAX], right[ITEM_BYTES_MAX];
    size_t bytes;

    int r = queue_peek(queue, item, sizeof(item), &bytes);
    if (r < 0)
        return r;
    if (bytes != make_item(queue->first, right) || memcmp(item, right, bytes) != 0)
        return -EBADMSG;
    if (pipe_end >= 0)
        r = tell(pipe_end, queue->first + 1, queue->synced_end);
    return r < 0 ? r : queue_drop(queue);
}

/* Producer and consumer, until killed. */
static int work(const struct weir_region_config *file, int pipe_end)
{
    unsigned char item[ITEM_BYTES_MAX];
    struct queue queue;

    int r = queue_open(&queue, file, COUNT_MAX, SYNC_EVERY);
    while (r == 0) {
        uint64_t synced_end = queue.synced_end;
        r = queue_append(&queue, item, make_item(queue.end, item));
        if (r == 0 && queue.synced_end > synced_end)
            r = tell(pipe_end, queue.first, queue.synced_end);
        if (r == -EDQUOT) { /* full: the producer waits for the consumer */
            int count = 0;
            while (count < 80 && (r = consume(&queue, pipe_end)) == 0)
                count++;
            if (r == -ENOENT && count > 0)
                r = 0;
        }
    }
    queue_close(&queue);
    return r;
}

/* What is found after the kill: each confirmed item, in order, and none that was gone before. */
static int check(const struct weir_region_config *file, const struct told *told, bool all)
{
    struct weir_region_report report;
    struct queue queue;

    int r = queue_open(&queue, file, COUNT_MAX, SYNC_EVERY);
    if (r == 0) {
        weir_region_report(queue.region, &report);
        if (!report.existed || report.lost_slot_count > 0 || report.first_error < 0 ||
            (told->first < told->synced_end && queue.first > told->first) ||
            queue.first + 1 < told->first)
            r = -EBADMSG;
    }
    while (r == 0 && (all || queue.first < told->synced_end)) {
        uint64_t number = queue.first;
        r = consume(&queue, -1);
        if (r == 0 && queue.first != number + 1)
            r = -EBADMSG; /* one was missing */
    }
    r = r == -ENOENT && all && queue.first == queue.end ? 0 : r;
    queue_close(&queue);
    return r;
}

/* A child fills and drains a queue of 4 MiB until it is killed, wherever it is then. */
int main(int argc, char **argv)
{
    struct weir_region_config file = {.directory = argc > 1 ? argv[1] : "/var/tmp",
                                      .name = "durable_queue",
                                      .bytes_max = 4 << 20,
                                      .resident_bytes_max = 8 << 20};

    uint64_t seen = 0;

    int r = weir_region_remove(file.directory, file.name); /* of a run that was stopped */
    r = r == -ENOENT ? 0 : r;
    for (int round = 0; r == 0 && round < 3; round++) {
        struct told told = {0, 0};
        int ends[2], status = 0, told_count = 0;
        if (pipe(ends) < 0)
            return 1;
        pid_t child = fork(); /* with no region open: none is inherited */
        if (child == 0) {
            close(ends[0]);
            r = work(&file, ends[1]);
            fprintf(stderr, "durable_queue: %s\n", strerror(-r));
            _exit(1);
        }
        close(ends[1]);
        while (read(ends[0], &told, sizeof(told)) == sizeof(told))
            if (++told_count == 50 + 200 * round)
                kill(child, SIGKILL);
        close(ends[0]);
        if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFSIGNALED(status))
            r = -ECHILD;
        if (r == 0)
            r = told.first >= seen ? check(&file, &told, round == 1) : -EEXIST;
        seen = told.synced_end; /* the next round has other numbers, also after an empty queue */
    }
    if (r == 0)
        r = weir_region_remove(file.directory, file.name);
    if (r < 0)
        fprintf(stderr, "durable_queue: %s\n", strerror(-r));
    return r == 0 ? 0 : 1;
}

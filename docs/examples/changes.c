/* SPDX-License-Identifier: MIT */
#include <weir.h>

#include <errno.h>
#include <string.h>

/* The target: a table of eight rows. A batch is staged in a copy, which commit takes. */
struct table {
    uint64_t rows[8], staged[8];
    uint64_t position;
    int refusals_left; /* the disk is full for so many batches */
};

static int begin(void *context, uint64_t id, void **ret_batch)
{
    struct table *table = (struct table *)context + id;

    memcpy(table->staged, table->rows, sizeof(table->rows));
    *ret_batch = table;
    return 0;
}

static int put(void *context, void *batch, const struct weir_writebuf_record *record)
{
    uint64_t key;

    (void)context;
    memcpy(&key, record->key, sizeof(key));
    memcpy(&((struct table *)batch)->staged[key], record->value, sizeof(uint64_t));
    return 0;
}

static int drop(void *context, void *batch, const struct weir_writebuf_record *record)
{
    uint64_t key;

    (void)context;
    memcpy(&key, record->key, sizeof(key));
    ((struct table *)batch)->staged[key] = 0;
    return 0;
}

static int commit(void *context, void *batch, uint64_t sequence)
{
    struct table *table = batch;

    (void)context;
    if (table->refusals_left > 0)
        return table->refusals_left--, -ENOSPC;
    memcpy(table->rows, table->staged, sizeof(table->rows));
    table->position = sequence;
    return 0;
}

static void give_up(void *context, void *batch)
{
    (void)context, (void)batch; /* the staged copy is forgotten */
}

/* Half a million changes of two tables; the disk of one of them is full at first. */
int main(int argc, char **argv)
{
    struct table tables[2] = {{.refusals_left = 2}};
    struct weir_governor_config limit = {.bytes_max = 16 << 20};
    struct weir_account_config holder = {.reserve_bytes = 8 << 20, .spillable = true};
    struct weir_region_config file = {.directory = argc > 1 ? argv[1] : "/var/tmp",
                                      .resident_bytes_max = 8 << 20}; /* it is the reserve */
    struct weir_writebuf_config buffers = {
        .sink = {NULL, begin, put, drop, NULL, commit, give_up, tables}};
    struct weir_governor *governor = NULL;
    struct weir_writebuf_set *set = NULL;
    struct weir_writebuf *buffer;
    uint64_t now_ns = 1;

    int r = weir_governor_create(&limit, &governor);
    r = r < 0 ? r : weir_account_open(governor, &holder, &buffers.account);
    r = r < 0 ? r : weir_region_open(&file, &buffers.region);
    r = r < 0 ? r : weir_writebuf_create(&buffers, &set);

    for (uint64_t i = 1; r == 0 && i <= 500000; i++) {
        uint64_t key = i % 7;
        struct weir_writebuf_record change = {i,           &key,      &i,
                                              sizeof(key), sizeof(i), WEIR_WRITEBUF_UPDATE};
        r = weir_writebuf_ensure(set, i % 2, &buffer);
        while (r == 0 && (r = weir_writebuf_append(buffer, &change)) == -EAGAIN)
            r = weir_writebuf_poll(set, ++now_ns) < 0 ? -EIO : 0; /* full: have it flushed */
        if (i % 1000 == 0)
            weir_writebuf_poll(set, ++now_ns);
    }
    for (buffer = NULL; r == 0 && (buffer = weir_writebuf_next(set, buffer)) != NULL;)
        weir_writebuf_flush(buffer, NULL, UINT64_MAX);
    while (r == 0 && (tables[0].position < 500000 || tables[1].position < 499999)) {
        now_ns += 100000000; /* a clock of ours: back-offs pass at once */
        if (weir_writebuf_poll(set, now_ns) == 0)
            r = weir_region_wait(buffers.region, 1000000) < 0 ? -EIO : 0;
    }
    for (uint64_t i = 0; r == 0 && i < 14; i++) /* the last 14 changes have won */
        r = tables[(500000 - i) % 2].rows[(500000 - i) % 7] == 500000 - i ? 0 : -EBADMSG;

    weir_writebuf_destroy(set);
    weir_region_close(buffers.region);
    weir_account_close(buffers.account);
    weir_governor_destroy(governor);
    return r == 0 ? 0 : 1;
}

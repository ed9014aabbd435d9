/* SPDX-License-Identifier: MIT */
#include <weir.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int must(int r)
{
    if (r < 0 && r != -EAGAIN) {
        fprintf(stderr, "overflow: %s\n", strerror(-r));
        exit(1);
    }
    return r;
}

/* 64 MiB of items arrive last first, and leave in order, under a limit of 32 MiB. */
int main(int argc, char **argv)
{
    struct weir_governor_config limit = {.bytes_max = 32 << 20};
    struct weir_account_config holder = {.reserve_bytes = 8 << 20, .spillable = true};
    struct weir_region_config file = {.resident_bytes_max = 8 << 20}; /* = the reserve */
    struct weir_reorder_config order = {0};
    struct weir_reorder_stats stats;
    struct weir_governor *governor;
    struct weir_region *region;
    struct weir_reorder *reorder;
    struct weir_item item;
    uint64_t payload[512] = {0};

    file.directory = argc > 1 ? argv[1] : "/var/tmp";
    must(weir_governor_create(&limit, &governor));
    must(weir_account_open(governor, &holder, &order.account));
    must(weir_region_open(&file, &region));
    order.region = region;
    must(weir_reorder_create(&order, &reorder));

    for (uint64_t left = 16384; left > 0;) {
        payload[0] = left - 1;
        if (must(weir_reorder_push(reorder, left - 1, payload, sizeof(payload))) == 0)
            left--;
        else
            must(weir_region_wait(region, 1000000)); /* the disk is behind */
    }

    for (uint64_t next = 0; next < 16384;) {
        if (must(weir_reorder_pop(reorder, &item)) == -EAGAIN) {
            must(weir_region_wait(region, 1000000)); /* on its way back from the file */
            continue;
        }
        if (item.bytes != sizeof(payload) || memcmp(item.data, &next, sizeof(next)) != 0)
            return 1;
        weir_reorder_release(reorder, &item);
        next++;
    }

    weir_reorder_stats(reorder, &stats);
    printf("16384 items in order, %" PRIu64 " of them through the file\n", stats.spill_count);
    weir_reorder_destroy(reorder);
    weir_region_close(region);
    weir_account_close(order.account);
    weir_governor_destroy(governor);
    return stats.spill_count > 0 ? 0 : 1;
}

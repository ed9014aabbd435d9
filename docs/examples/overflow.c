/* SPDX-License-Identifier: MIT */
#include <weir.h>

#include <errno.h>
#include <string.h>

/* 64 MiB of items arrive last first and leave in order, under a limit of 32 MiB. */
int main(int argc, char **argv)
{
    struct weir_governor_config limit = {.bytes_max = 32 << 20};
    struct weir_account_config holder = {.reserve_bytes = 8 << 20, .spillable = true};
    struct weir_region_config file = {.directory = argc > 1 ? argv[1] : "/var/tmp",
                                      .resident_bytes_max = 8 << 20}; /* it is the reserve */
    struct weir_reorder_config order = {.window_items_max = 16384};
    struct weir_governor *governor = NULL;
    struct weir_reorder *reorder = NULL;
    struct weir_item item;
    uint64_t payload[512] = {0};

    int r = weir_governor_create(&limit, &governor);
    r = r < 0 ? r : weir_account_open(governor, &holder, &order.account);
    r = r < 0 ? r : weir_region_open(&file, &order.region);
    r = r < 0 ? r : weir_reorder_create(&order, &reorder);

    for (uint64_t i = 16384; r == 0 && i > 0; i--) {
        payload[0] = i - 1;
        while ((r = weir_reorder_push(reorder, i - 1, payload, sizeof(payload))) == -EAGAIN)
            weir_region_wait(order.region, 1000000); /* the disk is behind */
    }
    for (uint64_t i = 0; r == 0 && i < 16384; i++) {
        while ((r = weir_reorder_pop(reorder, &item)) == -EAGAIN)
            weir_region_wait(order.region, 1000000); /* it is on its way back */
        if (r == 0 && memcmp(item.data, &i, sizeof(i)) != 0)
            return 1;
        if (r == 0)
            weir_reorder_release(reorder, &item);
    }

    weir_reorder_destroy(reorder);
    weir_region_close(order.region);
    weir_account_close(order.account);
    weir_governor_destroy(governor);
    return r == 0 ? 0 : 1;
}

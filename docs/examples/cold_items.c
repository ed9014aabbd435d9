/* SPDX-License-Identifier: MIT */
#include <weir/region.h>

#include <errno.h>
#include <string.h>

#define ITEM_COUNT 8192

static struct weir_slot slots[ITEM_COUNT];

static void arrived(void *context, struct weir_slot slot, int result)
{
    int *answer = context;

    (void)slot;
    *answer = result;
}

/* 32 MiB in a region of which 8 MiB stay in memory: most of it has to be fetched back. */
int main(int argc, char **argv)
{
    struct weir_region_config config = {.directory = argc > 1 ? argv[1] : "/var/tmp",
                                        .resident_bytes_max = 8 << 20};
    struct weir_region *region = NULL;
    uint64_t item[512] = {0};
    uint64_t cold_count = 0;
    const void *data;
    size_t bytes;

    int r = weir_region_open(&config, &region);
    for (uint64_t i = 0; r == 0 && i < ITEM_COUNT; i++) {
        item[0] = i;
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){.key = i}, &slots[i]);
    }

    for (uint64_t i = 0; r == 0 && i < ITEM_COUNT; i++) {
        r = weir_region_at(region, slots[i], &data, &bytes);
        if (r == -EAGAIN) { /* cold: ask for it, and serve others until it is there */
            int answer = 1;
            r = weir_region_fetch(region, &slots[i], 1, arrived, &answer);
            while (r >= 0 && answer > 0)
                r = weir_region_wait(region, 1000000000);
            r = r < 0 ? r : answer < 0 ? answer : weir_region_at(region, slots[i], &data, &bytes);
            cold_count++;
        }
        if (r == 0 && (bytes != sizeof(item) || memcmp(data, &i, sizeof(i)) != 0))
            return 1;
    }

    weir_region_close(region);
    return r == 0 && cold_count > 0 ? 0 : 1;
}

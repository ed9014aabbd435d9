/* SPDX-License-Identifier: MIT */
/*
 * A process with regions, for dump_e2e.py to look into. Obeys lines on standard
 * input, answers each with one line, and does nothing in between: what is seen
 * of it is seen without its help.
 *
 *      open DIRECTORY              -> REGION
 *      put REGION KEY OWNER BYTES  -> INDEX GENERATION
 *      build REGION KEY BYTES      -> INDEX GENERATION   allocated, half written
 *      free REGION INDEX GENERATION
 *      poll REGION                 one tick: figures are published
 *      churn REGION SEED COUNT     random puts and frees, keys from 1000000 on
 *
 * Byte i of an item is (key + 7 i) mod 251.
 */
#include <weir/region.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OWNER_REGIONS    4
#define OWNER_ITEM_BYTES (1 << 20)
#define OWNER_CHURN      512

static struct weir_region *regions[OWNER_REGIONS];
static unsigned char item[OWNER_ITEM_BYTES];

static _Noreturn void give_up(const char *what, int error)
{
    fprintf(stderr, "dump_owner: %s: %s\n", what, strerror(-error));
    exit(1);
}

static void fill(uint64_t key, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        item[i] = (unsigned char)((key + 7 * i) % 251);
}

static struct weir_slot put(struct weir_region *region, struct weir_label label, uint64_t bytes)
{
    struct weir_slot slot;
    int r;

    fill(label.key, bytes);
    while ((r = weir_region_put(region, item, bytes, label, &slot)) == -EAGAIN)
        weir_region_wait(region, 1000000);
    if (r < 0)
        give_up("put", r);
    return slot;
}

static struct weir_slot build(struct weir_region *region, struct weir_label label, uint64_t bytes)
{
    struct weir_slot slot;
    int r;

    fill(label.key, bytes);
    while ((r = weir_region_alloc(region, bytes, label, &slot)) == -EAGAIN)
        weir_region_wait(region, 1000000);
    if (r < 0)
        give_up("alloc", r);
    while ((r = weir_region_write(region, slot, 0, item, bytes / 2)) == -EAGAIN)
        weir_region_wait(region, 1000000);
    if (r < 0)
        give_up("write", r);
    return slot;
}

/* A generator of its own: only include/ is seen here. */
static uint64_t random_next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

static void churn(struct weir_region *region, uint64_t seed, uint64_t count)
{
    struct weir_slot slots[OWNER_CHURN] = {{0, 0}};

    for (uint64_t i = 0; i < count; i++) {
        struct weir_slot *slot = &slots[random_next(&seed) % OWNER_CHURN];
        if (weir_slot_is_none(*slot)) {
            struct weir_label label = {.key = 1000000 + i, .owner = 9};
            *slot = put(region, label, random_next(&seed) % 100000);
        } else {
            int r = weir_region_free(region, *slot);
            if (r < 0)
                give_up("free", r);
            *slot = (struct weir_slot){0, 0};
        }
        int r = weir_region_poll(region);
        if (r < 0)
            give_up("poll", r);
    }
    for (size_t i = 0; i < OWNER_CHURN; i++)
        if (!weir_slot_is_none(slots[i]))
            weir_region_free(region, slots[i]);
}

/* @name: "" for none */
static struct weir_region *open_region(const char *directory, const char *name)
{
    struct weir_region_config config = {
        .directory = directory,
        .name = *name != '\0' ? name : NULL,
        .bytes_initial = 8 << 20,
        .bytes_max = 256 << 20,
        .resident_bytes_max = 8 << 20,
    };
    struct weir_region *region;

    int r = weir_region_open(&config, &region);
    if (r < 0)
        give_up(directory, r);
    return region;
}

static struct weir_region *region_of(uint64_t number)
{
    if (number >= OWNER_REGIONS || regions[number] == NULL)
        give_up("no such region", -EINVAL);
    return regions[number];
}

static void obey(const char *line)
{
    char directory[4096];
    char name[64] = "";
    uint64_t number;
    uint64_t a;
    uint64_t b;
    uint64_t c;

    if (sscanf(line, "open %4095s %63s", directory, name) >= 1) {
        size_t free_number = 0;
        while (free_number < OWNER_REGIONS && regions[free_number] != NULL)
            free_number++;
        if (free_number == OWNER_REGIONS)
            give_up("too many regions", -EINVAL);
        regions[free_number] = open_region(directory, name);
        printf("%zu\n", free_number);
    } else if (sscanf(line, "put %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &number, &a, &b,
                      &c) == 4 &&
               c <= OWNER_ITEM_BYTES) {
        struct weir_label label = {.key = a, .owner = (uint16_t)b};
        struct weir_slot slot = put(region_of(number), label, c);
        printf("%" PRIu32 " %" PRIu32 "\n", slot.index, slot.generation);
    } else if (sscanf(line, "build %" SCNu64 " %" SCNu64 " %" SCNu64, &number, &a, &b) == 3 &&
               b <= OWNER_ITEM_BYTES) {
        struct weir_label label = {.key = a};
        struct weir_slot slot = build(region_of(number), label, b);
        printf("%" PRIu32 " %" PRIu32 "\n", slot.index, slot.generation);
    } else if (sscanf(line, "free %" SCNu64 " %" SCNu64 " %" SCNu64, &number, &a, &b) == 3) {
        struct weir_slot slot = {.index = (uint32_t)a, .generation = (uint32_t)b};
        printf("%d\n", weir_region_free(region_of(number), slot));
    } else if (sscanf(line, "poll %" SCNu64, &number) == 1) {
        int r = weir_region_poll(region_of(number));
        if (r < 0)
            give_up("poll", r);
        printf("done\n");
    } else if (sscanf(line, "churn %" SCNu64 " %" SCNu64 " %" SCNu64, &number, &a, &b) == 3) {
        churn(region_of(number), a, b);
        printf("done\n");
    } else {
        give_up(line, -EINVAL);
    }
    fflush(stdout);
}

int main(void)
{
    char line[8192];

    while (fgets(line, sizeof(line), stdin) != NULL)
        obey(line);
    for (size_t i = 0; i < OWNER_REGIONS; i++)
        weir_region_close(regions[i]);
    return 0;
}

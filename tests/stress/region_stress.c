/* SPDX-License-Identifier: MIT */
/*
 * region_stress - random steps on a region and on its model, in several kinds of weather
 *
 * Each weather is a configuration with a weight for every step: much churn in
 * memory, sizes that shift, a region filled to its cap, overflow with little
 * memory, storms of fetches, many pins, large items in pieces, memory that comes
 * and goes, a ring that is not the region's own. The model compares
 * (harness/model.h); at the end of a long turn each event that a user can meet
 * must have been seen.
 *
 *      region_stress [--long] [--operations N] [--weather NAME] [--synchronous]
 *
 * A short turn takes some seconds under the address sanitizer, --long is ten
 * million steps. WEIR_SEED= repeats a run.
 */
#include <weir/region.h>

#include "forbid.h"
#include "model.h"
#include "seed.h"
#include "tmpdir.h"

#include <string.h>
#include <time.h>

#define MIB (UINT64_C(1) << 20)

#define STRESS_STEPS_SHORT UINT64_C(60000)
#define STRESS_STEPS_LONG  UINT64_C(10000000)
#define STRESS_EBB_POLLS   200

struct weather {
    const char *name;
    struct weir_region_config config;
    uint64_t size_max;
    uint64_t size_max_later; /* sizes shift to this; 0: they stay */
    uint64_t live_max;
    uint64_t build_max;
    bool ring_is_shared;
    uint32_t share; /* of all steps */
    uint8_t weights[MODEL_CHOICE_COUNT];
};

static const struct weather stress_weathers[] = {
    {
        .name = "churn",
        .config = {.bytes_initial = 2 * MIB, .resident_bytes_max = UINT64_MAX},
        .size_max = 8192,
        .live_max = 12 * MIB,
        .build_max = MIB,
        .share = 20,
        .weights = {[MODEL_PUT] = 90,
                    [MODEL_PUT_TOO_LARGE] = 1,
                    [MODEL_FREE] = 70,
                    [MODEL_AT] = 60,
                    [MODEL_READ] = 8,
                    [MODEL_STALE] = 5,
                    [MODEL_PIN] = 3,
                    [MODEL_UNPIN] = 4,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 8,
                    [MODEL_WRITE_WRONG] = 1,
                    [MODEL_COMMIT] = 8,
                    [MODEL_PLACE] = 8,
                    [MODEL_FETCH] = 1,
                    [MODEL_POLL] = 10},
    },
    {
        .name = "shift",
        .config = {.bytes_initial = 2 * MIB, .resident_bytes_max = UINT64_MAX},
        .size_max = 1024,
        .size_max_later = 16384,
        .live_max = 8 * MIB,
        .build_max = MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 40,
                    [MODEL_AT] = 20,
                    [MODEL_PIN] = 5,
                    [MODEL_UNPIN] = 6,
                    [MODEL_BUILD] = 1,
                    [MODEL_WRITE] = 4,
                    [MODEL_COMMIT] = 1,
                    [MODEL_POLL] = 5,
                    [MODEL_WALK] = 1},
    },
    {
        .name = "full",
        .config = {.bytes_initial = 2 * MIB,
                   .bytes_max = 16 * MIB,
                   .resident_bytes_max = UINT64_MAX},
        .size_max = 70000,
        .live_max = UINT64_MAX,
        .build_max = 4 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 40,
                    [MODEL_FREE_MANY] = 2,
                    [MODEL_AT] = 30,
                    [MODEL_READ] = 5,
                    [MODEL_PIN] = 2,
                    [MODEL_UNPIN] = 3,
                    [MODEL_BUILD] = 3,
                    [MODEL_WRITE] = 12,
                    [MODEL_COMMIT] = 9,
                    [MODEL_PLACE] = 8,
                    [MODEL_POLL] = 20,
                    [MODEL_FREE_OWNER] = 1},
    },
    {
        .name = "cold",
        .config = {.bytes_initial = 4 * MIB, .bytes_max = 256 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 40000,
        .live_max = 40 * MIB,
        .build_max = 4 * MIB,
        .share = 15,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 60,
                    [MODEL_FREE_MANY] = 1,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 30,
                    [MODEL_READ] = 10,
                    [MODEL_STALE] = 3,
                    [MODEL_PIN] = 2,
                    [MODEL_UNPIN] = 3,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 12,
                    [MODEL_WRITE_WRONG] = 1,
                    [MODEL_COMMIT] = 20,
                    [MODEL_PLACE] = 20,
                    [MODEL_FETCH] = 8,
                    [MODEL_FETCH_INTO] = 8,
                    [MODEL_POLL] = 40,
                    [MODEL_WAIT] = 5,
                    [MODEL_FLOOD] = 1},
    },
    {
        .name = "cold and full",
        .config = {.bytes_initial = 4 * MIB, .bytes_max = 24 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 50000,
        .live_max = UINT64_MAX,
        .build_max = 4 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 50,
                    [MODEL_FREE_MANY] = 2,
                    [MODEL_AT] = 20,
                    [MODEL_READ] = 5,
                    [MODEL_FETCH] = 5,
                    [MODEL_FETCH_INTO] = 2,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 8,
                    [MODEL_COMMIT] = 12,
                    [MODEL_PLACE] = 10,
                    [MODEL_POLL] = 60,
                    [MODEL_WAIT] = 10},
    },
    {
        .name = "large and full", /* some of these go into holes on disk */
        .config = {.bytes_initial = 4 * MIB, .bytes_max = 34 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 100000,
        .live_max = 28 * MIB,
        .build_max = 4 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 240,
                    [MODEL_FREE] = 40,
                    [MODEL_FREE_MANY] = 1,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 60,
                    [MODEL_READ] = 20,
                    [MODEL_STALE] = 6,
                    [MODEL_PIN] = 8,
                    [MODEL_UNPIN] = 12,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 12,
                    [MODEL_COMMIT] = 20,
                    [MODEL_FETCH] = 20,
                    [MODEL_FETCH_INTO] = 20,
                    [MODEL_POLL] = 80,
                    [MODEL_WAIT] = 10},
    },
    {
        .name = "storms",
        .config = {.bytes_initial = 4 * MIB, .resident_bytes_max = 10 * MIB},
        .size_max = 9000,
        .live_max = 30 * MIB,
        .build_max = 2 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 60,
                    [MODEL_FREE] = 25,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 10,
                    [MODEL_READ] = 3,
                    [MODEL_PLACE] = 25,
                    [MODEL_COMMIT] = 40,
                    [MODEL_PIN] = 1,
                    [MODEL_UNPIN] = 1,
                    [MODEL_FETCH] = 60,
                    [MODEL_FETCH_INTO] = 20,
                    [MODEL_POLL] = 30,
                    [MODEL_FLOOD] = 2},
    },
    {
        .name = "pins",
        .config = {.bytes_initial = 4 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 20000,
        .live_max = 30 * MIB,
        .build_max = 2 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 60,
                    [MODEL_FREE] = 40,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 20,
                    [MODEL_PLACE] = 25,
                    [MODEL_COMMIT] = 40,
                    [MODEL_PIN] = 30,
                    [MODEL_UNPIN] = 60,
                    [MODEL_FETCH] = 20,
                    [MODEL_POLL] = 30,
                    [MODEL_FLOOD] = 1},
    },
    {
        .name = "pieces",
        .config = {.bytes_initial = 4 * MIB, .bytes_max = 128 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 400000,
        .live_max = 40 * MIB,
        .build_max = 40 * MIB,
        .share = 5,
        .weights = {[MODEL_PUT] = 20,
                    [MODEL_FREE] = 15,
                    [MODEL_BUILD] = 15,
                    [MODEL_WRITE] = 100,
                    [MODEL_WRITE_WRONG] = 5,
                    [MODEL_COMMIT] = 25,
                    [MODEL_PLACE] = 15,
                    [MODEL_AT] = 10,
                    [MODEL_READ] = 3,
                    [MODEL_FETCH] = 30,
                    [MODEL_FETCH_INTO] = 20,
                    [MODEL_POLL] = 20},
    },
    {
        .name = "tides",
        .config = {.bytes_initial = 4 * MIB,
                   .bytes_max = 128 * MIB,
                   .resident_bytes_max = 40 * MIB,
                   .resident_bytes_min = 8 * MIB},
        .size_max = 40000,
        .live_max = 48 * MIB,
        .build_max = 4 * MIB,
        .share = 10,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 40,
                    [MODEL_FREE_MANY] = 2,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 20,
                    [MODEL_READ] = 5,
                    [MODEL_PIN] = 3,
                    [MODEL_UNPIN] = 5,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 12,
                    [MODEL_COMMIT] = 20,
                    [MODEL_PLACE] = 10,
                    [MODEL_FETCH] = 10,
                    [MODEL_FETCH_INTO] = 8,
                    [MODEL_POLL] = 60,
                    [MODEL_WAIT] = 10,
                    [MODEL_FLOOD] = 1,
                    [MODEL_RESIDENT] = 2},
    },
    {
        .name = "shared tides",
        .config = {.bytes_initial = 4 * MIB,
                   .resident_bytes_max = 24 * MIB,
                   .resident_bytes_min = 8 * MIB},
        .size_max = 20000,
        .live_max = 32 * MIB,
        .build_max = 4 * MIB,
        .ring_is_shared = true,
        .share = 5,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 60,
                    [MODEL_AT] = 20,
                    [MODEL_PIN] = 5,
                    [MODEL_UNPIN] = 8,
                    [MODEL_PLACE] = 10,
                    [MODEL_COMMIT] = 20,
                    [MODEL_FETCH] = 10,
                    [MODEL_FETCH_INTO] = 8,
                    [MODEL_POLL] = 60,
                    [MODEL_WAIT] = 10,
                    [MODEL_RESIDENT] = 4},
    },
    {
        .name = "shared ring",
        .config = {.bytes_initial = 4 * MIB, .resident_bytes_max = 8 * MIB},
        .size_max = 40000,
        .live_max = 32 * MIB,
        .build_max = 4 * MIB,
        .ring_is_shared = true,
        .share = 10,
        .weights = {[MODEL_PUT] = 100,
                    [MODEL_FREE] = 60,
                    [MODEL_FREE_OWNER] = 1,
                    [MODEL_AT] = 30,
                    [MODEL_READ] = 5,
                    [MODEL_STALE] = 3,
                    [MODEL_PIN] = 2,
                    [MODEL_UNPIN] = 3,
                    [MODEL_BUILD] = 2,
                    [MODEL_WRITE] = 12,
                    [MODEL_COMMIT] = 20,
                    [MODEL_PLACE] = 20,
                    [MODEL_FETCH] = 8,
                    [MODEL_FETCH_INTO] = 8,
                    [MODEL_POLL] = 40,
                    [MODEL_WAIT] = 10,
                    [MODEL_FLOOD] = 1},
    },
};

#define STRESS_WEATHER_COUNT (sizeof(stress_weathers) / sizeof(stress_weathers[0]))

static enum model_choice stress_choose(const struct weather *weather, uint64_t *random)
{
    uint64_t sum = 0;

    for (int i = 0; i < MODEL_CHOICE_COUNT; i++)
        sum += weather->weights[i];

    uint64_t at = weir__random_below(random, sum);
    for (int i = 0; i < MODEL_CHOICE_COUNT; i++) {
        if (at < weather->weights[i])
            return (enum model_choice)i;
        at -= weather->weights[i];
    }
    return MODEL_AT;
}

/* Low tide: all goes, the file shrinks in polls, and all comes again. */
static void stress_ebb(struct model *model)
{
    model_unpin_all(model);
    model_settle(model);
    model_unpin_all(model);
    while (model->item_count > 0)
        model_free_item(model, model_pick(model, weir__random(&model->random)));
    model_check_all(model);
    for (int i = 0; i < STRESS_EBB_POLLS; i++) {
        model_wait(model);
        model_check_figures(model);
    }
    model_check_all(model);
    model_fill(model);
}

static bool may_stage; /* here, at all: what needs the ring and O_DIRECT */

static int stress_run(const struct weather *weather, uint64_t steps, uint64_t seed,
                      uint64_t *events)
{
    struct weir_region_config config = weather->config;
    struct timespec start;
    struct timespec end;
    struct model model = {
        .random = seed + 1,
        .seed = seed,
        .size_max = weather->size_max,
        .live_max = weather->live_max,
        .build_max = weather->build_max,
    };
    uint64_t random = seed;

    config.directory = harness_tmpdir();
    clock_gettime(CLOCK_MONOTONIC, &start);
    int r = model_open(&model, config, weather->ring_is_shared);
    if (r < 0) {
        fprintf(stderr, "%s: open: %s\n", weather->name, strerror(-r));
        return r;
    }
    model_fill(&model);
    for (uint64_t i = 0; i < steps; i++) {
        uint64_t a = weir__random(&random);
        uint64_t b = weir__random(&random);
        if (weather->size_max_later > 0)
            model.size_max = weather->size_max +
                             (weather->size_max_later - weather->size_max) * (i * 64 / steps) / 63;
        if (i == steps / 2)
            stress_ebb(&model);
        model_step(&model, stress_choose(weather, &random), a, b);
        if (weir__random_below(&random, 64 + model.item_count / 8) == 0) {
            weir_region_audit(model.region);
            model_check_figures(&model);
            model_check_pins(&model);
        }
        if (weir__random_below(&random, 4096 + model.item_count * 4) == 0)
            model_check_all(&model);
    }

    struct weir_region_stats stats;
    weir_region_stats(model.region, &stats);
    may_stage |= stats.bounded && stats.direct && !stats.synchronous;
    for (int i = 0; i < MODEL_EVENT_COUNT; i++)
        events[i] += model.events[i];
    model_close(&model, seed % 4 != 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("# %-14s %8" PRIu64 " steps %6.2f s  put %" PRIu64 " MiB written %" PRIu64
           " read %" PRIu64 " MiB, live peak %" PRIu64 " mark %" PRIu64 " file %" PRIu64
           " MiB, moved %" PRIu64 " staged %" PRIu64 " KiB\n",
           weather->name, steps,
           (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9,
           stats.put_bytes >> 20, stats.written_bytes >> 20, stats.read_bytes >> 20,
           stats.live_bytes_peak >> 20, stats.mark_bytes >> 20, stats.file_bytes >> 20,
           stats.moved_bytes >> 10, stats.staged_bytes >> 10);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t steps = STRESS_STEPS_SHORT;
    const char *only = NULL;
    uint64_t events[MODEL_EVENT_COUNT] = {0};
    uint64_t share_sum = 0;
    int missing = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--long") == 0) {
            steps = STRESS_STEPS_LONG;
        } else if (strcmp(argv[i], "--operations") == 0 && i + 1 < argc) {
            steps = strtoull(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--weather") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else if (strcmp(argv[i], "--synchronous") == 0) {
            if (harness_forbid_io_uring() < 0)
                return 77;
        } else {
            fprintf(stderr, "usage: region_stress [--long] [--operations N] [--weather NAME] "
                            "[--synchronous]\n");
            return 2;
        }
    }
    if (harness_tmpdir() == NULL) {
        printf("there is no disk to write to\n");
        return 77;
    }

    uint64_t seed = harness_seed();
    for (size_t i = 0; i < STRESS_WEATHER_COUNT; i++)
        share_sum += stress_weathers[i].share;
    for (size_t i = 0; i < STRESS_WEATHER_COUNT; i++) {
        const struct weather *weather = &stress_weathers[i];
        if (only != NULL && strcmp(only, weather->name) != 0)
            continue;
        uint64_t mine = only != NULL ? steps : steps * weather->share / share_sum;
        if (stress_run(weather, mine, seed, events) < 0)
            return 1;
    }
    for (int i = 0; i < MODEL_EVENT_COUNT; i++) {
        if (only == NULL && events[i] == 0 && (i != MODEL_SAW_STAGED || may_stage)) {
            printf("# never seen: %s\n", model_event_names[i]);
            missing++;
        }
    }
    /* Nearly each weather with cold chunks does that, also in a short turn. */
    if (only == NULL && may_stage && events[MODEL_SAW_STAGED] == 0)
        return 1;
    /* A short turn may miss what is rare: only a long one must have seen it all. */
    return missing > 0 && steps >= STRESS_STEPS_LONG;
}

/* SPDX-License-Identifier: MIT */
/*
 * region_fuzz - bytes become steps on a region and on its model
 *
 *      | weather | step a a b b | step a a b b | ...
 *
 * The first byte chooses the configuration, then five bytes are one step. The
 * model (harness/model.h) is the judge. Built with FUZZ_CANARY the model is
 * wrong on purpose about some lengths: a run over the corpus that finds nothing
 * then has not looked.
 */
#include <weir/region.h>

#include "model.h"
#include "tmpdir.h"

#define MIB (UINT64_C(1) << 20)

#define FUZZ_STEP_BYTES  5
#define FUZZ_STEPS_MAX   600
#define FUZZ_FLOODS_MAX  12
#define FUZZ_AUDIT_STEPS 16
#define FUZZ_PLACE_FROM  (256 / MODEL_PLACE * MODEL_PLACE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct model model = {
        .size_max = 70000,
        .live_max = UINT64_MAX,
        .build_max = 12 * MIB,
        .random = 1,
        .seed = 1,
    };
    int floods = 0;

    if (bytes < 1 + FUZZ_STEP_BYTES || harness_tmpdir() == NULL)
        return 0;
#ifdef FUZZ_CANARY
    model.canary = true;
#endif

    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_initial = data[0] & 1 ? 2 * MIB : 4 * MIB,
        .bytes_max = data[0] & 2 ? 12 * MIB : 64 * MIB,
        .resident_bytes_max = data[0] & 4 ? UINT64_MAX : 8 * MIB,
    };
    if (data[0] & 8)
        model.size_max = 500;
    if (model_open(&model, config, (data[0] & 16) != 0) < 0)
        abort();

    size_t at = 1;
    for (int i = 0; i < FUZZ_STEPS_MAX && at + FUZZ_STEP_BYTES <= bytes; i++) {
        /* The last choice came later: what the corpus says means what it meant. */
        enum model_choice choice =
            data[at] < FUZZ_PLACE_FROM ? (enum model_choice)(data[at] % MODEL_PLACE) : MODEL_PLACE;
        uint64_t a = (uint64_t)data[at + 1] | (uint64_t)data[at + 2] << 8;
        uint64_t b = (uint64_t)data[at + 3] | (uint64_t)data[at + 4] << 8;
        at += FUZZ_STEP_BYTES;
        if (choice == MODEL_FLOOD && ++floods > FUZZ_FLOODS_MAX)
            choice = MODEL_POLL;
        if (choice == MODEL_FETCH_INTO || choice == MODEL_FETCH)
            b |= (uint64_t)a << 32;
        if (choice == MODEL_PLACE)
            b |= b << 16 | a << 32;
        if (choice == MODEL_BUILD || choice == MODEL_PUT_TOO_LARGE)
            a |= a << 11;
        model_step(&model, choice, a, b);
        if (i % FUZZ_AUDIT_STEPS == 0) {
            weir_region_audit(model.region);
            model_check_figures(&model);
        }
    }
    weir_region_audit(model.region);
    model_close(&model, (data[0] & 32) == 0);
    return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * replay_main - a fuzz target run by any compiler
 *
 *      <module>_replay [--random COUNT] FILE|DIRECTORY ...
 *
 * Each file is one input. With --random, COUNT inputs follow that are made up
 * from a seed: no match for a fuzzer that sees the branches, but always there.
 */
#include "seed.h"

#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPLAY_BYTES_MAX (UINT64_C(1) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static size_t replay_count;

static int replay_file(const char *path, const struct stat *stat, int type, struct FTW *walk)
{
    (void)stat;
    (void)walk;
    if (type != FTW_F)
        return 0;

    FILE *file = fopen(path, "rbe");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    uint8_t *data = malloc(REPLAY_BYTES_MAX);
    if (data == NULL)
        return 1;
    size_t bytes = fread(data, 1, REPLAY_BYTES_MAX, file);
    fclose(file);
    /* A copy of the exact length, so that a sanitizer sees a read beyond it. */
    uint8_t *exact = malloc(bytes > 0 ? bytes : 1);
    if (exact == NULL)
        return 1;
    memcpy(exact, data, bytes);
    free(data);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
    replay_count++;
    return 0;
}

static void replay_random(uint64_t count)
{
    uint64_t random = harness_seed();

    for (uint64_t i = 0; i < count; i++) {
        size_t bytes = weir__random_below(&random, 2048);
        uint8_t *data = malloc(bytes > 0 ? bytes : 1);
        if (data == NULL)
            exit(1);
        for (size_t k = 0; k < bytes; k++)
            data[k] = (uint8_t)weir__random(&random);
        LLVMFuzzerTestOneInput(data, bytes);
        free(data);
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--random") == 0 && i + 1 < argc)
            replay_random(strtoull(argv[++i], NULL, 0));
        else if (nftw(argv[i], replay_file, 16, FTW_PHYS) != 0)
            return 1;
    }
    printf("%zu inputs replayed\n", replay_count);
    return 0;
}

/* SPDX-License-Identifier: MIT */
#include <weir/scratch.h>

#include <errno.h>
#include <stdlib.h>

#define RUN_COUNT   8
#define RUN_NUMBERS 262144 /* as many as memory has room for */
#define PIECE       4096

/* A sorted run in a file, and the piece of it that is looked at. */
struct run {
    struct weir_scratch_reader *reader;
    uint64_t offset;
    size_t at, count;
    uint64_t numbers[PIECE];
};

static struct run runs[RUN_COUNT];
static uint64_t numbers[RUN_NUMBERS];

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

static int write_run(struct weir_scratch *scratch, struct run *run)
{
    struct weir_scratch_writer *writer = NULL;
    struct weir_scratch_file *file = NULL;

    int r = weir_scratch_create(scratch, &writer);
    r = r < 0 ? r : weir_scratch_append(writer, numbers, sizeof(numbers));
    r = r < 0 ? r : weir_scratch_seal(writer, &file);
    if (r < 0) {
        weir_scratch_abort(writer); /* the cap has all of it back */
        return r;
    }
    r = weir_scratch_reader_open(file, &run->reader);
    weir_scratch_drop(file); /* the reader keeps it as long as it is open */
    return r;
}

/* The smallest number that is left of the run; -ENOENT: none is. */
static int look(struct run *run, uint64_t *ret_number)
{
    if (run->at == run->count) {
        size_t bytes = 0;
        int r =
            weir_scratch_read(run->reader, run->offset, run->numbers, sizeof(run->numbers), &bytes);
        if (r < 0)
            return r;
        run->offset += bytes;
        run->count = bytes / sizeof(uint64_t);
        run->at = 0;
    }
    *ret_number = run->count > 0 ? run->numbers[run->at] : 0;
    return run->count > 0 ? 0 : -ENOENT;
}

/* The next of all runs in order. */
static int merge(uint64_t *ret_number)
{
    struct run *least = NULL;
    uint64_t number;

    for (struct run *run = runs; run < runs + RUN_COUNT; run++) {
        int r = look(run, &number);
        if (r < 0 && r != -ENOENT)
            return r;
        if (r == 0 && (least == NULL || number < *ret_number)) {
            *ret_number = number;
            least = run;
        }
    }
    if (least == NULL)
        return -ENOENT;
    least->at++;
    return 0;
}

/* Two million numbers are sorted with room for an eighth of them. */
int main(int argc, char **argv)
{
    struct weir_scratch_config config = {.directory = argc > 1 ? argv[1] : "/var/tmp",
                                         .bytes_max = RUN_COUNT * sizeof(numbers)};
    struct weir_scratch *scratch = NULL;
    uint64_t random = 1, sum = 0, last = 0, number = 0;
    int r = weir_scratch_open(&config, &scratch);

    for (int i = 0; r == 0 && i < RUN_COUNT; i++) {
        for (size_t j = 0; j < RUN_NUMBERS; j++) {
            random = random * 6364136223846793005 + 1442695040888963407;
            numbers[j] = random >> 16;
            sum += numbers[j];
        }
        qsort(numbers, RUN_NUMBERS, sizeof(numbers[0]), compare);
        r = write_run(scratch, &runs[i]);
    }
    while (r == 0 && (r = merge(&number)) == 0) {
        if (number < last)
            return 1;
        last = number;
        sum -= number;
    }

    for (int i = 0; i < RUN_COUNT; i++)
        weir_scratch_reader_close(runs[i].reader); /* the last one is gone with it */
    weir_scratch_close(scratch);
    return r == -ENOENT && sum == 0 ? 0 : 1;
}

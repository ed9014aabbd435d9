/* SPDX-License-Identifier: MIT */
/*
 * direct - a yardstick: a file that is read past the page cache through a ring
 */
#include "direct.h"

#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int direct_fill(const struct bench *bench, uint64_t bytes)
{
    int fd = open(bench_directory(bench), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    size_t piece = WORKLOAD_SIZE_MAX;
    struct workload_source source;

    bench_check(fd < 0 ? -errno : 0, bench_directory(bench));
    workload_source_open(&source, 10);
    for (uint64_t at = 0; at < bytes; at += piece)
        if (pwrite(fd, workload_source_next(&source), piece, (off_t)at) != (ssize_t)piece)
            bench_check(-EIO, "pwrite");
    workload_source_close(&source);
    bench_check(fsync(fd) < 0 ? -errno : 0, "fsync");
    bench_check(-posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
    return fd;
}

void direct_open(struct direct *direct, const struct bench *bench, uint64_t block_count,
                 size_t block_bytes, uint32_t depth)
{
    int fd = direct_fill(bench, block_count * block_bytes);
    char path[64];

    *direct =
        (struct direct){.block_bytes = block_bytes, .depth = depth, .block_count = block_count};
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    direct->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    bench_check(direct->fd < 0 ? -errno : 0, "open O_DIRECT");
    close(fd);
    direct->buffers = aligned_alloc(4096, depth * block_bytes);
    if (direct->buffers == NULL)
        bench_check(-ENOMEM, "aligned_alloc");
    bench_check(io_uring_queue_init(DIRECT_DEPTH_MAX, &direct->ring, 0), "io_uring_queue_init");
}

void direct_close(struct direct *direct)
{
    workload_use(&direct->sum);
    io_uring_queue_exit(&direct->ring);
    free(direct->buffers);
    close(direct->fd);
}

static void direct_ask(struct direct *direct, uint64_t buffer, uint64_t block)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&direct->ring);

    io_uring_prep_read(sqe, direct->fd, direct->buffers + buffer * direct->block_bytes,
                       (unsigned)direct->block_bytes, block * direct->block_bytes);
    io_uring_sqe_set_data64(sqe, buffer);
    direct->asked_ns[buffer] = bench_wall_ns();
}

void direct_read(struct direct *direct, const uint64_t *blocks, uint64_t count,
                 struct bench_row *row, const char *side)
{
    uint64_t asked_count = 0;
    uint64_t done_count = 0;

    for (; asked_count < direct->depth && asked_count < count; asked_count++)
        direct_ask(direct, asked_count, blocks[asked_count]);
    while (done_count < count) {
        struct io_uring_cqe *cqe;
        unsigned head;
        unsigned seen = 0;
        bench_check(io_uring_submit_and_wait(&direct->ring, 1), "io_uring_submit_and_wait");
        io_uring_for_each_cqe(&direct->ring, head, cqe)
        {
            uint64_t buffer = io_uring_cqe_get_data64(cqe);
            bench_check(cqe->res == (int)direct->block_bytes ? 0 : -EIO, "read");
            if (row != NULL)
                bench_latency(row, side, bench_wall_ns() - direct->asked_ns[buffer]);
            direct->sum += (unsigned char)direct->buffers[buffer * direct->block_bytes];
            seen++;
            done_count++;
            if (asked_count < count) {
                direct_ask(direct, buffer, blocks[asked_count]);
                asked_count++;
            }
        }
        io_uring_cq_advance(&direct->ring, seen);
    }
}

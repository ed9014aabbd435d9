# SPDX-License-Identifier: MIT
"""producer - reads files and pushes them

Several of these run. They take blocks of neighbouring sequences from one shuffled
list, so that the stream fills in no order, and keep some commands in flight: a
batch of small files is one send, and its answers are read while the next batch
is on its way.

What the server answers with -OOM it has not taken; the file is read and pushed
again, until it is in.
"""

import collections
import hashlib
import os
import random
import time

import board as boards
import wire as wires

STREAM = b'files'

BLOCK_ITEMS = 16
WINDOW_BLOCKS = 64  # blocks are shuffled within this many: about a thousand files

BATCH_BYTES = 256 << 10
BATCH_ITEMS = 64
PAUSE_S = 0.02  # before what was refused is pushed again


def shuffled_blocks(item_count, seed):
    """Block numbers in the order in which producers take them."""
    blocks = list(range((item_count + BLOCK_ITEMS - 1) // BLOCK_ITEMS))
    shuffle = random.Random(seed).shuffle
    order = []
    for first in range(0, len(blocks), WINDOW_BLOCKS):
        window = blocks[first:first + WINDOW_BLOCKS]
        shuffle(window)
        order += window
    return order


def read_file(path, bytes_max):
    """What is in a file, up to one byte more than `bytes_max`, and its status from before."""
    # O_NONBLOCK: should it be a fifo by now, opening it does not wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        data = os.read(fd, min(status.st_size, bytes_max) + 1)
        while data and len(data) != status.st_size and len(data) <= bytes_max:
            # It grows or shrinks right now: take what is there in the end.
            more = os.read(fd, bytes_max + 1 - len(data))
            if not more:
                break
            data += more
        return data, status
    finally:
        os.close(fd)


class Producer:
    def __init__(self, job, row):
        self.job = job
        self.board = job.board
        self.row = row
        self.wire = wires.Wire(job.host, job.port, job.patience_s + 10)
        self.parts = []
        self.part_bytes = 0
        self.batch = []
        self.flying = collections.deque()
        self.again = collections.deque()
        self.half_told = False

    def add(self, item):
        """Put one file into the batch."""
        try:
            data, status = read_file(self.job.paths[item], self.job.item_bytes_max)
            if len(data) > self.job.item_bytes_max:
                raise OSError('it has grown too large')
            kind = boards.ITEM_FILE
            times = status.st_mtime_ns, status.st_ctime_ns
        except OSError:
            data, kind, times = b'', boards.ITEM_GONE, (0, 0)
        self.board.note(item, kind, len(data), *times, hashlib.sha256(data).digest())
        sequence = b'%d' % item
        self.parts += (b'*4\r\n$5\r\nWPUSH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n'
                       % (len(STREAM), STREAM, len(sequence), sequence, len(data)),
                       data, b'\r\n')
        self.part_bytes += len(data)
        self.batch.append(item)
        if self.part_bytes >= BATCH_BYTES or len(self.batch) >= BATCH_ITEMS:
            self.flush()

    def flush(self):
        """Send the batch, then read the answers to the one before it."""
        earlier = len(self.flying)
        if self.batch:
            self.wire.send(b''.join(self.parts))
            self.flying += self.batch
            self.parts.clear()
            self.batch.clear()
            self.part_bytes = 0
        else:
            earlier = len(self.flying)
        self.read_answers(earlier)

    def read_answers(self, count):
        row = self.row
        for _ in range(count):
            text = self.wire.line()
            item = self.flying.popleft()
            if text == b'+OK':
                row.accepted_count += 1
                row.accepted_bytes += self.board.lengths[item]
                if self.board.kinds[item] == boards.ITEM_GONE:
                    row.gone_count += 1
            elif text.startswith(b'-OOM'):
                row.again_count += 1
                self.again.append(item)
            else:
                raise wires.WireError(f'WPUSH of item {item} was answered '
                                      f'{text[:200].decode(errors="replace")!r}')
        self.tell_half()

    def tell_half(self):
        board = self.board
        if not self.half_told and (board.accepted_bytes() >= self.job.held_until_bytes
                                   or board.accepted_count() >= len(self.job.paths) - 1):
            board.tell_half()
            self.half_told = True

    def push_all(self, items):
        for item in items:
            self.add(item)
            while self.again:
                time.sleep(PAUSE_S)
                self.add(self.again.popleft())
        # The end: until nothing is in flight and nothing was refused.
        while self.batch or self.flying or self.again:
            self.flush()
            if self.again:
                time.sleep(PAUSE_S)
                for _ in range(len(self.again)):
                    self.add(self.again.popleft())


def _items(job):
    """What this producer takes, block by block, until none is left."""
    count = len(job.paths)
    while True:
        index = job.board.take_block()
        if index >= len(job.blocks):
            return
        first = job.blocks[index] * BLOCK_ITEMS
        for item in range(first, min(first + BLOCK_ITEMS, count)):
            if item != job.held_item:
                yield item


def run(job, index):
    """One of the producers."""
    Producer(job, job.board.producers[index]).push_all(_items(job))


def run_held(job):
    """The one that comes late: it has a single item, and the stream waits for it."""
    producer = Producer(job, job.board.producers[boards.HELD_PRODUCER])
    producer.tell_half()  # nothing to wait for, if there is nothing else
    job.board.wait_half()
    producer.push_all([job.held_item])

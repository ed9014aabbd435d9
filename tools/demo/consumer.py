# SPDX-License-Identifier: MIT
"""consumer - pops the stream and compares every file with its source

There is one. It asks for the next items before it looks at those that came, so
that the server is never idle because of it.

What is wrong is counted, never passed over:

    mismatched   the bytes are not those of the source; or the item came twice,
                 or after one that should follow it
    lost         a sequence was stepped over and did not come later, or never came

A file may change while it waits in the stream. Only if its status says so (size
or times are not those that the producer saw before it read) may delivered bytes
differ from the source; then they must have the SHA-256 of what was pushed.
"""

import hashlib
import os

import board as boards
import producer as producers
import wire as wires

REQUEST = wires.command(b'WPOP', producers.STREAM, b'COUNT', b'64', b'BLOCK', b'1000')
REQUESTS_AHEAD = 2


class Consumer:
    def __init__(self, job):
        self.job = job
        self.board = job.board
        self.row = job.board.consumer
        self.wire = wires.Wire(job.host, job.port, job.patience_s + 10)
        self.expected = 0
        self.has_come = bytearray(len(job.paths))

    def pop_all(self):
        item_count = len(self.job.paths)
        self.wire.send(REQUEST * REQUESTS_AHEAD)
        while self.expected < item_count:
            kind, count = self.wire.header()
            if kind != ord('*'):
                raise wires.WireError('WPOP was answered '
                                      f'{chr(kind)}{bytes(count)[:200].decode(errors="replace")}'
                                      if kind in b'+-' else 'WPOP was answered no array')
            self.wire.send(REQUEST)
            for _ in range(count):
                self.pop_one()

    def pop_one(self):
        if self.wire.header() != (ord('*'), 2):
            raise wires.WireError('an item is not a pair of sequence and payload')
        kind, sequence = self.wire.header()
        if kind == ord('$'):
            start = self.wire.bulk(sequence)
            sequence = int(self.wire.buffer[start:start + sequence])
        kind, length = self.wire.header()
        if kind != ord('$') or length < 0:
            raise wires.WireError(f'item {sequence} has no payload')
        start = self.wire.bulk(length)
        self.judge(sequence, start, length)

    def judge(self, item, start, length):
        row = self.row
        if item >= len(self.has_come) or self.has_come[item]:
            row.mismatched_count += 1
            return
        self.has_come[item] = 1
        in_order = item >= self.expected
        if in_order:
            row.lost_count += item - self.expected
            self.expected = item + 1
            row.place = self.expected
        else:
            row.lost_count -= 1

        if self.board.kinds[item] == boards.ITEM_GONE:
            row.mismatched_count += length != 0 or not in_order
            return
        row.delivered_count += 1
        row.delivered_bytes += length
        if not self.is_right(item, start, length) or not in_order:
            row.mismatched_count += 1

    def is_right(self, item, start, length):
        if self.same_as_source(item, start, length):
            return True
        if self.source_changed(item) and self.same_as_pushed(item, start, length):
            self.row.changed_count += 1
            return True
        return False

    def same_as_source(self, item, start, length):
        try:
            data, _ = producers.read_file(self.job.paths[item], length)
        except OSError:
            return False
        return len(data) == length and self.wire.buffer.startswith(data, start)

    def source_changed(self, item):
        try:
            status = os.stat(self.job.paths[item], follow_symlinks=False)
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != (
            self.board.lengths[item], self.board.modified_ns[item], self.board.changed_ns[item])

    def same_as_pushed(self, item, start, length):
        data = memoryview(self.wire.buffer)[start:start + length]
        return (length == self.board.lengths[item]
                and hashlib.sha256(data).digest() == self.board.digest(item))


def run(job):
    Consumer(job).pop_all()

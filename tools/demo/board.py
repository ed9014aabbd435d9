# SPDX-License-Identifier: MIT
"""board - what the processes of the job tell each other

Shared memory, made before the processes are. Each word has one writer, so that
nobody locks; only the next block to push is taken under a lock. (Record locks and
a pipe, not Python's: those need a /dev/shm that we may write to.)

Per item the producer notes what it pushed *before* it pushes it: length, times
and SHA-256. The consumer sees it complete, because the item itself came by.
"""

import fcntl
import mmap
import os

DIGEST_BYTES = 32
HELD_PRODUCER = -1  # the one that pushes the held item has the last row

ITEM_FILE = 0
ITEM_GONE = 1  # could not be read any more: an empty item keeps its place


class Row:
    """Named words of 8 bytes in shared memory."""

    def __init__(self, words, names):
        object.__setattr__(self, '_words', words)
        object.__setattr__(self, '_places', {name: i for i, name in enumerate(names)})

    def __getattr__(self, name):
        try:
            return self._words[self._places[name]]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self._words[self._places[name]] = value


PRODUCER_WORDS = ('accepted_count', 'accepted_bytes', 'again_count', 'gone_count')
CONSUMER_WORDS = ('delivered_count', 'delivered_bytes', 'mismatched_count', 'lost_count',
                  'changed_count', 'place')
SAMPLER_WORDS = ('now_bytes', 'peak_bytes', 'peak_anon_bytes', 'peak_shmem_bytes',
                 'peak_cache_bytes', 'sample_count', 'gap_ns', 'file_count')


def _words(count, kind):
    return memoryview(mmap.mmap(-1, max(8 * count, 8))).cast(kind)


class Board:
    def __init__(self, item_count, producer_count):
        self._lock = os.memfd_create('blocks')
        self._next_block = _words(1, 'Q')
        self._half = os.pipe()
        self.producers = [Row(_words(len(PRODUCER_WORDS), 'Q'), PRODUCER_WORDS)
                          for _ in range(producer_count + 1)]
        self.consumer = Row(_words(len(CONSUMER_WORDS), 'Q'), CONSUMER_WORDS)
        self.sampler = Row(_words(len(SAMPLER_WORDS), 'Q'), SAMPLER_WORDS)
        self.lengths = _words(item_count, 'Q')
        self.modified_ns = _words(item_count, 'q')
        self.changed_ns = _words(item_count, 'q')
        self.kinds = mmap.mmap(-1, max(item_count, 1))
        self._digests = mmap.mmap(-1, max(item_count * DIGEST_BYTES, 1))

    def take_block(self):
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        index = self._next_block[0]
        self._next_block[0] = index + 1
        fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return index

    def tell_half(self):
        """Half of all bytes are in: each producer says so once."""
        os.write(self._half[1], b'.')

    def wait_half(self):
        os.read(self._half[0], 1)

    def note(self, item, kind, length, modified_ns, changed_ns, digest):
        self.kinds[item] = kind
        self.lengths[item] = length
        self.modified_ns[item] = modified_ns
        self.changed_ns[item] = changed_ns
        self._digests[item * DIGEST_BYTES:(item + 1) * DIGEST_BYTES] = digest

    def digest(self, item):
        return self._digests[item * DIGEST_BYTES:(item + 1) * DIGEST_BYTES]

    def accepted_count(self):
        return sum(row.accepted_count for row in self.producers)

    def accepted_bytes(self):
        return sum(row.accepted_bytes for row in self.producers)

    def again_count(self):
        return sum(row.again_count for row in self.producers)

    def gone_count(self):
        return sum(row.gone_count for row in self.producers)

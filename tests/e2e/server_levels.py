#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""server_levels - a load that swings around each level of weir-server

    server_levels.py --server FILE [--seconds S]

Keys of 4 KiB, which cannot be spilled, are set and removed, so that memory swings
as fast as the server takes it: around where a level begins, and across the whole
way down to where it ends. Whatever the swing, there are at most ten changes of
level in a second (the dwell is 100 ms), as the server's own count says and as it is
told by its times; and a narrow swing changes next to nothing.
"""

import argparse
import os
import threading
import time

from server_harness import Server, check

DWELL_S = 0.1
CHANGES_MAX = 10  # in as many dwells
KEY_BYTES = 4000
BATCH = 16
CLIENTS = 12  # a pause is a connection's
PATIENCE_S = 20


class Swing:
    """Between two fills, in per cent."""

    def __init__(self, server, low, high):
        self.server = server
        self.low = low
        self.high = high
        self.turn_count = 0
        self.is_rising = True
        self.ended = threading.Event()
        self.fault = None
        self.threads = [threading.Thread(target=self.work, args=(which,), daemon=True)
                        for which in range(CLIENTS)]

    def work(self, which):
        mine = []
        number = 0
        try:
            with self.server.client() as c:
                while not self.ended.is_set():
                    if self.is_rising:
                        names = [b'%d:%d:' % (which, number + i) for i in range(BATCH)]
                        names = [name + b'x' * (KEY_BYTES - len(name)) for name in names]
                        number += BATCH
                        c.send_raw(b''.join(c.encode('SET', name, 'v') for name in names))
                        for name in names:
                            if c.receive() == 'OK':
                                mine.append(name)
                    elif mine:
                        names, mine = mine[-BATCH:], mine[:-BATCH]
                        c.send_raw(b''.join(c.encode('DEL', name) for name in names))
                        for _ in names:
                            check(c.receive() == 1, 'a key was lost')
                    else:
                        self.ended.wait(0.001)
                for name in mine:
                    c('DEL', name)
        except (OSError, AssertionError) as error:
            self.fault = repr(error)

    def steer(self, seconds):
        """Turn around at both ends; every INFO on the way."""
        rows = []
        for thread in self.threads:
            thread.start()
        with self.server.client() as c:
            end = time.monotonic() + seconds
            # As long as it takes to swing, where the machine is busy.
            while (now := time.monotonic()) < end or (self.turn_count < 2 and now < end + PATIENCE_S):
                info = c.info()
                rows.append((time.monotonic(), info))
                fill = 100 * int(info['used_memory']) / int(info['maxmemory'])
                if self.is_rising and fill >= self.high:
                    self.is_rising = False
                elif not self.is_rising and fill <= self.low:
                    self.is_rising = True
                    self.turn_count += 1
        self.ended.set()
        for thread in self.threads:
            thread.join()
        check(self.fault is None, self.fault)
        return rows


def changes(info):
    return int(info['memory_level_changes'])


def most_in_a_second(rows):
    """The most changes between two looks that are at most a second apart."""
    most = 0
    first = 0
    for when, info in rows:
        while rows[first][0] < when - CHANGES_MAX * DWELL_S:
            first += 1
        most = max(most, changes(info) - changes(rows[first][1]))
    return most


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--server', required=True)
    parser.add_argument('--seconds', type=float, default=2.0)
    arguments = parser.parse_args()
    # Around where a level begins; and from where it has ended to where it has begun.
    swings = [('soft', 79, 81), ('soft', 69, 82), ('spill', 89, 91), ('spill', 84, 92),
              ('hard', 99, 100), ('hard', 96, 100), ('all', 68, 100)]
    print('  level  swing      swings/s  changes/s  most in 1 s')
    for level, low, high in swings:
        with Server(os.path.abspath(arguments.server), '--memory', '24m', '--workers', '1',
                    '--wait-max', '20') as server:
            swing = Swing(server, low, high)
            rows = swing.steer(arguments.seconds)
        seconds = rows[-1][0] - rows[0][0]
        per_second = (changes(rows[-1][1]) - changes(rows[0][1])) / seconds
        most = most_in_a_second(rows)
        print(f'  {level:5s}  {low:3d}-{high:3d} % {swing.turn_count / seconds:10.1f} '
              f'{per_second:10.1f} {most:12d}', flush=True)
        last = rows[-1][1]
        check(swing.turn_count >= 2, 'it did not swing')
        check(most <= CHANGES_MAX, f'{most} changes of level in a second around {level}')
        if level != 'all':
            check(int(last[f'memory_level_{level}_count']) >= 1, f'{level} was never reached')


if __name__ == '__main__':
    main()

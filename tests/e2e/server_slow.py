#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""server_slow - weir-server whose spill disk becomes slow, then all but stops

    server_slow.py --server FILE [--long] [--sanitized]

The spill directory is on an ext4 image of its own, throttled by the block layer
(cgroup v1, blkio.throttle.*_bps_device of the loop device, in the root group, so
that nobody's writes pass by): 1 MiB/s, then 1 byte/s, then without a bound again.

Shown and checked: what a producer's write takes grows step by step with the fill
(printed as a curve); GET of what is in memory stays under 10 ms at p99.9; INFO and
-OOM name who holds the memory; afterwards everything goes on, and all that was
accepted is there, byte for byte.

Slow GETs are told apart: what the cores or the client waited in the run queue
(run_delay of /proc/PID/task/TID/schedstat) was somebody else's, what the cores
slept in the kernel in the middle of a turn was ours.

Whatever ends it lifts the throttle first, for nothing that writes there could end
before; after SIGKILL the next run does.

Status 77 and the reason where it takes root, a loop device or blkio.
"""

import argparse
import bisect
import ctypes
import fcntl
import glob
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time

from server_harness import Client, Server, check, mount_disk, pattern, run, skip

MEBIBYTE = 1 << 20
BLKIO = '/sys/fs/cgroup/blkio'
LOOP_MAJOR = 7
PR_SET_PDEATHSIG = 1
PLACE = '/var/tmp/weir-slow-'
VALUE_BYTES = 4096
PRODUCERS = 8
GET_LIMIT_S = 0.010
RESIDENT_KEYS = 500
STALLS_MAX = 3
CURVE_END = 95  # per cent
PATIENCE_S = 60  # a busy machine takes longer to come to what is to be seen

is_sanitized = False  # neither times nor memory are then the server's own


# ---- The disk ----------------------------------------------------------------


def set_throttle(number, bytes_per_second):
    """Of the device of this number; 0: no bound."""
    for direction in ('write', 'read'):
        with open(f'{BLKIO}/blkio.throttle.{direction}_bps_device', 'w', encoding='ascii') as file:
            file.write(f'{number} {bytes_per_second}')


def throttled():
    """{number of a loop device: its image, or nothing}"""
    found = {}
    with open(f'{BLKIO}/blkio.throttle.write_bps_device', encoding='ascii') as file:
        numbers = [line.split()[0] for line in file]
    for number in numbers:
        if not number.startswith(f'{LOOP_MAJOR}:'):
            continue
        try:
            with open(f'/sys/dev/block/{number}/loop/backing_file', encoding='utf-8') as file:
                found[number] = file.read().strip()
        except FileNotFoundError:
            found[number] = ''
    return found


def hold(directory):
    """As long as this process lives; -1: another one has it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except BlockingIOError:
        os.close(fd)
        return -1


def sweep():
    """What a run that was killed has left: a throttle stays with the number of the device."""
    left = {directory: fd for directory in glob.glob(PLACE + '*') if (fd := hold(directory)) >= 0}
    for number, image in throttled().items():
        if not image or os.path.dirname(image) in left:
            set_throttle(number, 0)
    for directory, fd in left.items():
        shutil.rmtree(directory, ignore_errors=True)
        os.close(fd)


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_by_signal(number, _frame):
    """Through all that is to be cleaned up, once."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


class SlowDisk:
    """An ext4 image on a loop device, seen by this process only, with a throttle."""

    def __init__(self, directory, mebibytes):
        self.path = mount_disk(directory, mebibytes)
        device = run('findmnt', '-n', '-o', 'SOURCE', self.path).strip()
        with open(f'/sys/block/{os.path.basename(device)}/dev', encoding='ascii') as file:
            self.number = file.read().strip()

    def throttle(self, bytes_per_second):
        set_throttle(self.number, bytes_per_second)

    def close(self):
        self.throttle(0)
        run('umount', self.path)


# ---- What the kernel says of threads -----------------------------------------


def core_threads(pid):
    """Of the cores, not of io-wq."""
    found = []
    for tid in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{tid}/comm', encoding='ascii') as file:
            if file.read().startswith('weir-core'):
                found.append(tid)
    return found


class Delays:
    """How long somebody who takes part in a GET stood in a run queue."""

    def __init__(self, pid):
        self.files = [open(f'/proc/{pid}/task/{tid}/schedstat', encoding='ascii')
                      for tid in core_threads(pid)]
        self.files.append(open('/proc/thread-self/schedstat', encoding='ascii'))

    def read_ns(self):
        total = 0
        for file in self.files:
            file.seek(0)
            total += int(file.read().split()[1])
        return total


# ---- Who takes part ----------------------------------------------------------


class Reader:
    """In a process of its own: GETs of keys in memory, one after the other."""

    def __init__(self, server):
        self.rows_fd, rows = os.pipe()
        stop, self.stop_fd = os.pipe()
        self.pid = os.fork()
        if self.pid > 0:
            os.close(rows)
            os.close(stop)
            return
        die_with_parent()
        os.close(self.rows_fd)
        os.close(self.stop_fd)
        status = 1
        try:
            with os.fdopen(rows, 'w') as file:
                self.read(server, stop, file)
            status = 0
        finally:
            os._exit(status)

    @staticmethod
    def read(server, stop, file):
        delays = Delays(server.pid)
        requests = [Client.encode('GET', f'r{i}') for i in range(RESIDENT_KEYS)]
        wanted = [b'$100\r\n' + pattern(i, 100) + b'\r\n' for i in range(RESIDENT_KEYS)]
        rows = []
        i = 0
        with server.client() as c:
            while not select.select([stop], [], [], 0.0005)[0]:
                i = (i + 1) % RESIDENT_KEYS
                before_ns = delays.read_ns()
                started = time.monotonic()
                c.socket.sendall(requests[i])
                got = c.socket.recv(4096)
                while len(got) < len(wanted[i]):
                    got += c.socket.recv(4096)
                took = time.monotonic() - started
                check(got == wanted[i], f'r{i} has other bytes')
                rows.append((started, took, (delays.read_ns() - before_ns) / 1e9))
        for row in rows:
            file.write('%.6f %.6f %.6f\n' % row)

    def end(self):
        """[(when, how long, of that in run queues)], in seconds."""
        os.close(self.stop_fd)
        with os.fdopen(self.rows_fd) as file:
            rows = [tuple(map(float, line.split())) for line in file]
        _, status = os.waitpid(self.pid, 0)
        check(status == 0, 'the reader failed')
        return rows


class Producer(threading.Thread):
    """SETs of values, each once the one before was answered."""

    def __init__(self, server, which, ended):
        super().__init__(daemon=True)
        self.server = server
        self.which = which
        self.ended = ended
        self.accepted = []
        self.refused = []  # when, begun when, what was said
        self.rows = []  # when, how long
        self.fault = None

    def run(self):
        try:
            with self.server.client(timeout_s=120) as c:
                number = self.which
                last = time.monotonic()
                while not self.ended.is_set():
                    c.send('SET', f'k{number}', pattern(number, VALUE_BYTES))
                    reply = c.receive()
                    now = time.monotonic()
                    self.rows.append((now, now - last))
                    begun, last = last, now
                    if reply == 'OK':
                        self.accepted.append(number)
                    elif str(reply).startswith('OOM'):
                        self.refused.append((now, begun, str(reply)))
                    else:
                        self.fault = str(reply)
                        return
                    number += PRODUCERS
        except (OSError, EOFError) as error:
            self.fault = repr(error)


class Watch(threading.Thread):
    """INFO all the while: how full it is, and when."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.ended = threading.Event()
        self.rows = []

    def run(self):
        with self.server.client(timeout_s=120) as c:
            while not self.ended.wait(0.02):
                info = c.info()
                self.rows.append((time.monotonic(),
                                  100 * int(info['used_memory']) / int(info['maxmemory']), info))

    def fill(self):
        return self.rows[-1][1] if self.rows else 0.0

    def fill_at(self, when):
        at = bisect.bisect_left(self.rows, when, key=lambda row: row[0])
        if at == 0 or at == len(self.rows):
            return self.rows[max(0, at - 1)][1]
        (before, low, _), (after, high, _) = self.rows[at - 1:at + 1]
        return low + (high - low) * (when - before) / (after - before)


def median(values):
    return sorted(values)[len(values) // 2]


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


# ---- The case ----------------------------------------------------------------


def expected_s(fill):
    """weir_account_delay_ns(): the square of the way from soft, 80 %, to the limit."""
    return 0.010 * (min(max(fill - 80, 0), 20) / 20) ** 2


def curve_of(producers, watch, begin, end):
    """[(fill, how long each write took)], in whole per cent."""
    bins = {}
    for producer in producers:
        for when, took in producer.rows:
            if begin <= when < end:
                bins.setdefault(int(watch.fill_at(when - took)), []).append(took)
    return [(fill, bins[fill]) for fill in sorted(bins) if fill >= 75 and len(bins[fill]) >= 20]


def check_curve(curve):
    print('   fill  writes  per second  mean ms  median ms  p99 ms')
    calm_s = 0.0
    for fill, took in curve:
        middle = median(took)
        mean = sum(took) / len(took)
        print(f'  {fill:3d} % {len(took):7d} {PRODUCERS / mean:11.0f} {1000 * mean:8.2f} '
              f'{1000 * middle:10.2f} {1000 * quantile(took, 0.99):7.1f}', flush=True)
        if fill < 80:
            calm_s = max(calm_s, middle)
        elif fill < 99:
            # Where it fills fast the fill is not known as well.
            check(fill < 90 or middle >= 0.7 * expected_s(fill - 1),
                  f'a write at {fill} % was not slowed down')
            check(is_sanitized or middle <= 2 * expected_s(fill + 2) + 3 * calm_s + 0.005,
                  f'a write at {fill} % took {1000 * middle:.1f} ms')
    steps = sum(1 for fill, _ in curve if 80 < fill < 99)
    check(steps >= 8, f'only {steps} steps between soft and hard were seen')


def check_gets(name, rows):
    raw = [took for _, took, _ in rows]
    own = [max(0.0, took - delay) for _, took, delay in rows]
    late = quantile(own, 0.999)
    print(f'{name}: {len(rows)} GETs of keys in memory, p50 {1000 * median(raw):.2f}, p99.9 '
          f'{1000 * quantile(raw, 0.999):.2f} ms, without run queues p99.9 {1000 * late:.2f}, '
          f'max {1000 * max(own):.2f} ms', flush=True)
    check(len(rows) > 200, 'hardly a GET was answered')
    check(is_sanitized or late < GET_LIMIT_S, f'p99.9 of GET at {name}: {1000 * late:.1f} ms')


def worker_figures(info, name):
    return sum(int(dict(pair.split('=') for pair in info[key].split(','))[name])
               for key in info if key.startswith('worker') and key[6:].isdigit())


def read_back(server, producers):
    count = 0
    with server.client() as c:
        for producer in producers:
            for start in range(0, len(producer.accepted), 32):
                part = producer.accepted[start:start + 32]
                c.send_raw(b''.join(c.encode('GET', f'k{number}') for number in part))
                for number in part:
                    check(c.receive() == pattern(number, VALUE_BYTES), f'k{number} was lost')
                count += len(part)
    return count


def in_time(producers, first, last):
    return (sum(1 for p in producers for when, _ in p.rows if first <= when < last),
            sum(1 for p in producers for when, _, _ in p.refused if first <= when < last))


def check_stopped(server, info, held_bytes):
    """At 1 byte/s: who holds the memory is told."""
    check(info['memory_level'] == 'hard', f'the level is {info["memory_level"]}')
    check(info['memory_wait_reason'] in ('limit', 'turn'), info['memory_wait_reason'])
    check(info['memory_oldest_waiter'], 'nobody waits')
    check(info['holder0'].startswith('name=weir-core-'), info['holder0'])
    # Not for the disk, at whose pace one turn would be all there is; but a thread that was
    # taken off its core may hold a lock of the kernel's that a core wants.
    stalls = worker_figures(info, 'stalls_blocked')
    print(f'turns in which a core slept in the kernel for 25 ms: {stalls}')
    check(is_sanitized or stalls <= STALLS_MAX, f'{stalls} turns slept in the kernel')
    check(is_sanitized or held_bytes <= server.limit + 16 * MEBIBYTE, f'{held_bytes} bytes are held')


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def slow_disk(program, disk, seconds):
    slow_s, stopped_s, lifted_s = seconds
    with Server(program, '--memory', '64m', '--workers', '2', '--spill-max', '512m', '--wait-max',
                '3000', spill_directory=disk.path,
                preexec=die_with_parent) as server, server.client() as c:
        for i in range(RESIDENT_KEYS):
            check(c('SET', f'r{i}', pattern(i, 100)) == 'OK', 'a resident key')
        reader = Reader(server)
        watch = Watch(server)
        ended = threading.Event()
        producers = [Producer(server, which, ended) for which in range(PRODUCERS)]
        try:
            disk.throttle(MEBIBYTE)
            begin = time.monotonic()
            for thread in [watch, *producers]:
                thread.start()
            ended.wait(slow_s)
            wait_until(lambda: watch.fill() >= CURVE_END)
            slow = time.monotonic()
            disk.throttle(1)
            ended.wait(stopped_s)
            wait_until(lambda: any(producer.refused for producer in producers))
            info = c.info()
            held_bytes = server.memory()
            stopped = time.monotonic()
            disk.throttle(0)
            ended.wait(lifted_s)
            lifted = time.monotonic()
        finally:
            disk.throttle(0)  # else the server could not end
            ended.set()
            for thread in producers:
                thread.join()
            watch.ended.set()
            watch.join()
            gets = reader.end()

        check_stopped(server, info, held_bytes)
        check_curve(curve_of(producers, watch, begin, slow))
        for name, first, last in (('1 MiB/s', begin, slow), ('1 byte/s', slow, stopped),
                                  ('lifted', stopped, lifted)):
            check_gets(name, [row for row in gets if first <= row[0] < last])
            accepted, refused = in_time(producers, first, last)
            print(f'  {(accepted - refused) / (last - first):.0f} writes accepted in a second, '
                  f'{refused} refused')
        faults = [producer.fault for producer in producers if producer.fault]
        check(not faults, faults)
        refusals = [text for producer in producers for _, _, text in producer.refused]
        check(refusals, 'nothing was refused at 1 byte/s')
        check(all('held by weir-core-' in text for text in refusals), refusals[0])
        print(refusals[0])
        # Each producer goes on once the throttle is lifted.
        for producer in producers:
            check(any(when > stopped + 0.1 for when, _ in producer.rows), 'a producer stands')
        check(not any(begun >= stopped for p in producers for _, begun, _ in p.refused),
              'a write that was begun afterwards was refused')
        print(f'{read_back(server, producers)} values read back')


def main():
    global is_sanitized
    parser = argparse.ArgumentParser()
    parser.add_argument('--server', required=True)
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--sanitized', action='store_true')
    arguments = parser.parse_args()
    is_sanitized = arguments.sanitized
    if not os.access(f'{BLKIO}/blkio.throttle.write_bps_device', os.W_OK):
        skip('no v1 blkio cgroups')
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    sweep()
    with tempfile.TemporaryDirectory(dir=os.path.dirname(PLACE),
                                     prefix=os.path.basename(PLACE)) as directory:
        hold(directory)
        disk = SlowDisk(directory, 1024)
        try:
            slow_disk(os.path.abspath(arguments.server), disk,
                      (60, 30, 10) if arguments.long else (5, 4, 4))
        finally:
            disk.close()


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""server_full - weir-server on a disk that fills up, and under a limit of the kernel's

    server_full.py --server FILE [disk | cgroup | truth]

    disk     --spill-dir on a 64 MiB ext4 image: writes wait, are refused, go on
             after deletes; nothing accepted is lost, nothing dies of SIGBUS
    cgroup   1 GiB of 4 KiB values in a v1 memory cgroup of 128 MiB, --memory 64m
    truth    1 GiB of values up to 8 MiB, --memory 64m, as the kernel counts

Status 77 and the reason where it takes root, a loop device or a v1 cgroup.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', '..', 'tools', 'demo'))

from server_harness import (ReplyError, Server, check, mount_disk, pattern, run,  # noqa: E402
                            skip, wait_for)
import sampler  # noqa: E402

MEBIBYTE = 1 << 20
CGROUPS = '/sys/fs/cgroup/memory'


class Peak(threading.Thread):
    """The most that the process held, by the kernel's figures, from outside."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.row = None
        self.ended = threading.Event()
        self.start()

    def run(self):
        row = types.SimpleNamespace(now_bytes=0, peak_bytes=0, sample_count=0, file_count=0)
        errors = os.fstat(self.server.errors.fileno())
        look = sampler.Sampler(self.server.pid, row, sampler.choose_measure(),
                               os.path.realpath(self.server.spill_directory),
                               (errors.st_dev, errors.st_ino))
        while not self.ended.wait(0.02):
            try:
                look.sample()
            except OSError:
                break
            self.row = row

    def end(self):
        self.ended.set()
        self.join()
        check(self.row is not None and self.row.sample_count > 0, 'nothing was sampled')
        return self.row.peak_bytes


def set_all(server, sizes, base, client_count=4):
    """Pipelined, from several connections; how many were refused."""
    refused = [0] * client_count

    def work(which):
        with server.client() as c:
            mine = range(which, len(sizes), client_count)
            for start in range(0, len(mine), 64):
                part = mine[start:start + 64]
                left = sum(sizes[i] for i in part)
                step = part if left > 4 * MEBIBYTE else [part]
                for chunk in step:
                    chunk = [chunk] if isinstance(chunk, int) else chunk
                    c.send_raw(b''.join(c.encode('SET', f'k{i}', pattern(base + i, sizes[i]))
                                        for i in chunk))
                    for _ in chunk:
                        reply = c.receive()
                        if reply != 'OK':
                            check(str(reply).startswith('OOM'), reply)
                            refused[which] += 1

    threads = [threading.Thread(target=work, args=(which,)) for which in range(client_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(refused)


def read_all(server, sizes, base):
    with server.client() as c:
        order = list(range(len(sizes)))
        random.Random(3).shuffle(order)
        for start in range(0, len(order), 32):
            part = order[start:start + 32]
            c.send_raw(b''.join(c.encode('GET', f'k{i}') for i in part))
            for i in part:
                check(c.receive() == pattern(base + i, sizes[i]), f'k{i} has other bytes')


# ---- Cases -------------------------------------------------------------------


def case_disk(program):
    with tempfile.TemporaryDirectory(dir='/var/tmp', prefix='weir-full-') as directory:
        disk = mount_disk(directory, 64)
        try:
            disk_full(program, disk)
        finally:
            run('umount', disk)


def disk_full(program, disk):
    with Server(program, '--memory', '48m', '--workers', '2', '--wait-max', '700',
                spill_directory=disk) as server, server.client() as c:
        accepted = []
        refused = 0
        waited = 0.0
        for i in range(200000):
            started = time.monotonic()
            c.send('SET', f'k{i}', pattern(i, 5000))
            reply = c.receive()
            if reply == 'OK':
                accepted.append(i)
                continue
            check(isinstance(reply, ReplyError) and str(reply).startswith('OOM'), reply)
            waited = max(waited, time.monotonic() - started)
            refused += 1
            if refused == 4:
                break
        check(refused == 4, 'the disk did not fill')
        check(waited >= 0.6, f'a write was refused after {waited:.2f} s already')
        check(len(accepted) * 5000 > 64 * MEBIBYTE, f'only {len(accepted)} values were accepted')
        for i in accepted:
            check(c('GET', f'k{i}') == pattern(i, 5000), f'k{i} has other bytes')
        # A long value and a stream meet the same disk.
        check('OOM' in c.error('SET', 'long', pattern(1, 3000000)), 'a long value')
        c.send('WPUSH', 's', 7, pattern(1, 3000000))
        check('OOM' in str(c.receive()), 'a long item')
        half = len(accepted) // 2
        for i in accepted[:half]:
            check(c('DEL', f'k{i}') == 1, f'k{i} cannot be removed')

        def goes_on():
            c.send('SET', 'again', pattern(1, 5000))
            return c.receive() == 'OK'

        wait_for(goes_on, 20, 'a write after deletes')
        for i in range(500):
            check(c('SET', f'n{i}', pattern(i, 5000)) == 'OK', f'n{i} after deletes')
        for i in accepted[half:]:
            check(c('GET', f'k{i}') == pattern(i, 5000), f'k{i} has other bytes')
        print(f'disk: {len(accepted)} values accepted, refused after {waited:.2f} s')


def case_cgroup(program):
    if os.geteuid() != 0 or not os.access(CGROUPS, os.W_OK):
        skip('no v1 memory cgroups that could be made')
    group = os.path.join(CGROUPS, f'weir-e2e-{os.getpid()}')
    os.mkdir(group)
    try:
        with open(os.path.join(group, 'memory.limit_in_bytes'), 'w', encoding='ascii') as file:
            file.write(str(128 * MEBIBYTE))

        def enter():
            with open(os.path.join(group, 'cgroup.procs'), 'w', encoding='ascii') as file:
                file.write(str(os.getpid()))

        sizes = [4096] * 262144
        with Server(program, '--memory', '64m', preexec=enter) as server:
            started = time.monotonic()
            check(set_all(server, sizes, 0) == 0, 'writes were refused')
            written = time.monotonic() - started
            read_all(server, sizes, 0)
            with server.client() as c:
                check(c('DBSIZE') == len(sizes), 'the number of keys')
            figures = {}
            for name in ('failcnt', 'max_usage_in_bytes'):
                with open(os.path.join(group, f'memory.{name}'), encoding='ascii') as file:
                    figures[name] = int(file.read())
        print(f'cgroup: written in {written:.1f} s, read in '
              f'{time.monotonic() - started - written:.1f} s, limit hit {figures["failcnt"]} '
              f'times, peak {figures["max_usage_in_bytes"] >> 20} MiB')
        check(figures['failcnt'] <= 5, 'the limit was hit too often')
    finally:
        wait_for(lambda: remove(group), 10, 'the end of the cgroup')


def remove(group):
    try:
        os.rmdir(group)
        return True
    except OSError:
        return False


def case_truth(program):
    generator = random.Random(11)
    sizes = []
    while sum(sizes) < 1024 * MEBIBYTE:
        sizes.append(min(int(generator.lognormvariate(10.5, 1.9)), 8 * MEBIBYTE))
    with Server(program, '--memory', '64m') as server:
        peak = Peak(server)
        started = time.monotonic()
        check(set_all(server, sizes, 0) == 0, 'writes were refused')
        read_all(server, sizes, 0)
        for i, size in enumerate(sizes):  # what is overwritten changes its size
            sizes[i] = size // 3 if i % 3 == 0 else size
        check(set_all(server, sizes, 1 << 30) == 0, 'writes were refused')
        read_all(server, sizes, 1 << 30)
        held = peak.end()
        with server.client() as c:
            drift = c.info()['memory_drift_bytes']
        print(f'truth: {len(sizes)} values of up to {max(sizes)} bytes in '
              f'{time.monotonic() - started:.1f} s, peak {held >> 20} MiB = '
              f'{peak.row.peak_anon_bytes >> 20} anonymous + {peak.row.peak_shmem_bytes >> 20} '
              f'shared + {peak.row.peak_cache_bytes >> 20} page cache, drift {drift}')
        check(0 < held <= server.limit + 16 * MEBIBYTE, f'the kernel counted {held} bytes')


CASES = {'disk': case_disk, 'cgroup': case_cgroup, 'truth': case_truth}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--server', required=True)
    parser.add_argument('cases', nargs='*', default=list(CASES), choices=[*CASES, []])
    arguments = parser.parse_args()
    for name in arguments.cases:
        CASES[name](os.path.abspath(arguments.server))


if __name__ == '__main__':
    main()

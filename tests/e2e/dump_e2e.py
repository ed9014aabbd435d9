#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""dump_e2e - weir-dump against a process that is really there

    dump_e2e.py --dump FILE --owner FILE

The owner (dump_owner.c) does what it is told on its standard input and nothing
else; for most cases it is even stopped, so what weir-dump tells it found alone.
"""

import argparse
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

CHUNK = 2 << 20
arguments = None


def item_bytes(key, count):
    return bytes((key + 7 * i) % 251 for i in range(count))


class Owner:
    def __init__(self):
        self.process = subprocess.Popen(
            [arguments.owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def tell(self, line):
        self.process.stdin.write(line + '\n')
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f'the owner ended with {self.process.wait()}')
        return line.strip()

    def ask(self, line):
        self.tell(line)
        return self.answer()

    def put(self, key, owner, count, region=0):
        index, generation = self.ask(f'put {region} {key} {owner} {count}').split()
        return int(index), int(generation)

    def freeze(self):
        """Stopped, and known to be: whoever needs its help would wait for ever."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.thaw()
        self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        return status


def dump(*words, **more):
    return subprocess.run([arguments.dump, *[str(word) for word in words]], timeout=60,
                          capture_output=True, text=True, **more)


def dump_in_terminal(*words, columns, **environment):
    """What a person sees: the output in a terminal of this width."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    process = subprocess.Popen([arguments.dump, *[str(word) for word in words]], stdin=other,
                               stdout=other, stderr=other, env={**os.environ, **environment})
    os.close(other)
    out = b''
    while select.select([main], [], [], 60)[0]:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        out += piece
    os.close(main)
    return process.wait(), out.decode().replace('\r\n', '\n')


class LiveCase(unittest.TestCase):
    def setUp(self):
        folder = os.environ.get('TMPDIR', '/var/tmp')
        self.directory = tempfile.TemporaryDirectory(dir=folder, prefix='weir-dump-')
        self.owner = Owner()
        self.assertEqual(self.owner.ask(f'open {self.directory.name}'), '0')

    def tearDown(self):
        self.assertEqual(self.owner.end(), 0)
        self.directory.cleanup()

    def look(self, *words):
        """One region as JSON; the owner does not run meanwhile."""
        self.owner.freeze()
        result = dump('--pid', self.owner.pid, '--json', *words)
        self.owner.thaw()
        self.assertIn(result.returncode, (0, 1), result.stderr)
        return result.returncode, json.loads(result.stdout)['regions']

    def fill(self, count, bytes_each):
        return {key: self.owner.put(key, key % 7, bytes_each + key)
                for key in range(1, count + 1)}


class Content(LiveCase):
    def test_summary(self):
        slots = self.fill(100, 1000)
        self.owner.freeze()
        result = dump('--pid', self.owner.pid)
        self.owner.thaw()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(f'region 0 of process {self.owner.pid}, in {self.directory.name}\n',
                      result.stdout)
        self.assertIn(f'in {len(slots)} slots', result.stdout)

        _, regions = self.look()
        self.assertEqual(len(regions), 1)
        self.assertEqual(regions[0]['slot_count'], 100)
        self.assertEqual(regions[0]['live_bytes'], sum(1000 + key for key in slots))
        self.assertEqual(regions[0]['bytes_max'], 256 << 20)
        self.assertGreaterEqual(regions[0]['disk_bytes'], regions[0]['file_bytes'])
        self.assertEqual(regions[0]['pid'], self.owner.pid)
        self.assertEqual(regions[0]['directory'], self.directory.name)

    def test_slots(self):
        slots = self.fill(50, 10)
        for key in range(1, 50, 3):
            self.assertEqual(self.owner.ask('free 0 %d %d' % slots.pop(key)), '0')
        built = self.owner.ask('build 0 777 5000').split()

        _, (region,) = self.look('--slots')
        seen = {slot['key']: slot for slot in region['slots']}
        self.assertFalse(seen[777]['committed'])
        self.assertEqual([seen[777]['index'], seen[777]['generation']], [int(w) for w in built])
        del seen[777]
        self.assertEqual({key: (slot['index'], slot['generation']) for key, slot in seen.items()},
                         slots)
        for key, slot in seen.items():
            self.assertEqual((slot['owner'], slot['bytes']), (key % 7, 10 + key))
            self.assertTrue(slot['committed'])

        # The same in columns.
        self.owner.freeze()
        result = dump('--pid', self.owner.pid, '--slots')
        self.owner.thaw()
        rows = [line.split() for line in result.stdout.split('SUM\n')[1].splitlines()]
        self.assertEqual({int(row[3]): (int(row[0]), int(row[1])) for row in rows},
                         {**slots, 777: tuple(int(w) for w in built)})
        self.assertEqual([row[7] for row in rows if row[3] == '777'], ['built'])

    def test_free(self):
        slots = self.fill(20, 1 << 10)
        for key in range(2, 20, 2):
            self.owner.ask('free 0 %d %d' % slots[key])
        self.assertEqual(self.owner.ask('poll 0'), 'done')
        _, (region,) = self.look('--free')
        self.assertEqual(len(region['free']), region['free_extent_count'])
        self.assertEqual(sum(free['bytes'] for free in region['free']), region['free_bytes'])

    def test_payload(self):
        index, _ = self.owner.put(5, 0, 100000)
        empty, _ = self.owner.put(6, 0, 0)
        self.owner.freeze()
        result = dump('--pid', self.owner.pid, '--slot', index)
        nothing = dump('--pid', self.owner.pid, '--slot', empty)
        missing = dump('--pid', self.owner.pid, '--slot', 4000000)
        self.owner.thaw()
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.split('bytes 100000\n')[1].splitlines()
        self.assertEqual(bytes.fromhex(''.join(line[12:59] for line in lines)),
                         item_bytes(5, 100000))
        self.assertEqual(nothing.returncode, 0)
        self.assertTrue(nothing.stdout.endswith('bytes 0\n'))
        self.assertEqual(missing.returncode, 2)
        self.assertIn('no such slot', missing.stderr)

    def test_histogram(self):
        self.fill(10, 1000)
        self.owner.put(11, 0, 100000)
        result = dump('--pid', self.owner.pid, '--histogram')
        rows = {tuple(line.split()[:2]): int(line.split()[2])
                for line in result.stdout.split('FREE EXTENTS\n')[1].splitlines()}
        self.assertEqual(rows['1.0', 'KiB'], 10)
        self.assertEqual(rows['128.0', 'KiB'], 1)

    def test_two_regions(self):
        self.assertEqual(self.owner.ask(f'open {self.directory.name}'), '1')
        self.owner.put(1, 0, 10)
        self.owner.put(2, 0, 20, region=1)
        _, regions = self.look('--slots')
        self.assertEqual([[slot['key'] for slot in region['slots']] for region in regions],
                         [[1], [2]])
        _, regions = self.look('--region', '1')
        self.assertEqual([region['region'] for region in regions], [1])
        result = dump('--pid', self.owner.pid, '--region', 2)
        self.assertEqual(result.returncode, 2)


class Named(LiveCase):
    def test_with_owner_and_without(self):
        self.assertEqual(self.owner.ask(f'open {self.directory.name} shard'), '1')
        for key in range(1, 31):
            self.owner.put(key, 3, 1000 + key, region=1)
        path = os.path.join(self.directory.name, 'shard.weir')

        def check(result):
            self.assertEqual(result.returncode, 0, result.stderr)
            region = json.loads(result.stdout)['regions'][-1]
            self.assertEqual({slot['key']: slot['bytes'] for slot in region['slots']},
                             {key: 1000 + key for key in range(1, 31)})
            return region

        def payload(key):
            region = check(dump('--json', '--slots', path))
            index = next(slot['index'] for slot in region['slots'] if slot['key'] == key)
            result = dump('--slot', index, path)
            self.assertEqual(result.returncode, 0, result.stderr)
            lines = result.stdout.split(f'bytes {1000 + key}\n')[1].splitlines()
            self.assertEqual(bytes.fromhex(''.join(line[12:59] for line in lines)),
                             item_bytes(key, 1000 + key))

        check(dump('--pid', self.owner.pid, '--json', '--slots'))
        payload(7)
        self.owner.process.kill()
        self.owner.process.wait()
        payload(11)
        self.assertEqual(dump('--verify', path).returncode, 0)

        # Opened again, closed, and moved elsewhere: the names are what counts.
        for pipe in (self.owner.process.stdin, self.owner.process.stdout):
            pipe.close()
        self.owner = Owner()
        self.assertEqual(self.owner.ask(f'open {self.directory.name} shard'), '0')
        payload(30)
        os.rename(path + '-data', path[:-5] + '2.weir-data')
        os.rename(path, path[:-5] + '2.weir')
        path = path[:-5] + '2.weir'
        payload(1)
        os.truncate(path, 8192)
        self.assertEqual(dump(path).returncode, 2)
        os.unlink(path + '-data')
        self.assertEqual(dump(path).returncode, 2)


class Map(LiveCase):
    def setUp(self):
        super().setUp()
        self.slots = self.fill(150, 300000)

    def rows(self, text):
        """The cells, and the counts of the legend."""
        body, legend = re.search(r'^((?:[\d.]+ \w+ +\S[^\n]*\n)+) +(\S[^\n]*)\n +a cell is', text,
                                 re.M).groups()
        cells = ''.join(line[11:] for line in body.splitlines())
        return cells, {letter: int(count) for letter, count in
                       re.findall(r'(\S) \w+ (\d+)', legend)}

    def draw(self):
        """The cells of the owner's map without colour, each compared with its chunk."""
        self.owner.freeze()
        drawn = dump('--pid', self.owner.pid, '--map')
        told = dump('--pid', self.owner.pid, '--map', '--json')
        self.owner.thaw()
        (region,) = json.loads(told.stdout)['regions']
        self.assertTrue(drawn.stdout.isascii())
        self.assertTrue(all(len(line) <= 80 for line in drawn.stdout.splitlines()[9:]))
        cells, legend = self.rows(drawn.stdout)
        self.assertEqual(len(cells), region['chunk_count'])
        letters = {'dirty': 'D', 'writing': 'W', 'filling': 'F', 'clean': 'C', 'cold': 'O',
                   'fresh': '.', 'hole': '_'}
        for cell, chunk in zip(cells, region['chunks']):
            self.assertEqual(cell.upper(), letters[chunk['state']])
            if cell.isalpha() and abs(chunk['live_bytes'] - CHUNK / 2) > CHUNK / 8:
                self.assertEqual(cell.isupper(), chunk['live_bytes'] > CHUNK / 2)
        for letter, count in legend.items():
            self.assertEqual(count, cells.upper().count(letter))
        self.assertEqual(sum(legend.values()), len(cells))
        return cells

    def test_plain(self):
        self.assertGreater(self.draw().upper().count('O'), 5, 'nothing went cold')

    def test_holes(self):
        for index, generation in list(self.slots.values())[10:-10]:
            self.assertEqual(self.owner.ask(f'free 0 {index} {generation}'), '0')
        until = time.monotonic() + 60
        while '"hole"' not in dump('--pid', self.owner.pid, '--map', '--json').stdout:
            self.assertLess(time.monotonic(), until, 'no chunk became a hole')
            self.owner.ask('poll 0')
        self.assertIn('_', self.draw())

    def test_terminal(self):
        words = ('--pid', self.owner.pid, '--map')
        for columns in (60, 120):
            status, out = dump_in_terminal(*words, columns=columns, TERM='xterm-256color',
                                           LC_ALL='C.UTF-8', NO_COLOR='')
            self.assertEqual(status, 0)
            self.assertIn('\033[38;5;', out)
            self.assertFalse(out.isascii())
            rows = re.sub(r'\033\[[\d;]*m', '', out.split('\nmemory')[1]).splitlines()
            self.assertTrue(all(len(row) <= columns for row in rows), out)
        for environment in ({'NO_COLOR': '1', 'TERM': 'xterm'}, {'TERM': 'dumb', 'NO_COLOR': ''}):
            status, out = dump_in_terminal(*words, columns=100, LC_ALL='C.UTF-8', **environment)
            self.assertEqual(status, 0)
            self.assertTrue(out.isascii())
            self.assertNotIn('\033', out)


    def test_top(self):
        process = subprocess.Popen([arguments.dump, '--pid', str(self.owner.pid), '--top'],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        seen = 0
        for line in process.stdout:
            if line.startswith('region 0 of'):
                seen += 1
            if seen == 1 and line.startswith('  live'):
                self.assertIn('150 slots', line)
                self.owner.put(1000, 0, 1)
            if seen == 2 and line.startswith('  live'):
                self.assertIn('151 slots', line)
                process.stdin.write('q')
                process.stdin.flush()
        self.assertEqual(process.wait(), 0)
        self.assertEqual(seen, 2)
        process.stdin.close()
        process.stdout.close()


class Verify(LiveCase):
    def test_good_and_bad(self):
        self.fill(200, 200000)
        status, (region,) = self.look('--verify', '--slots')
        self.assertEqual(status, 0)
        self.assertEqual(region['verify']['bad'], 0)
        self.assertEqual(region['bad_slots'], [])
        self.assertGreater(region['verify']['good'], 50, 'nothing was written back')
        self.assertEqual(region['verify']['good'] + region['verify']['unsummed'], 200)

        # One byte of one cold item, on disk.
        cold = [slot for slot in region['slots'] if slot['summed'] and slot['chunk'] == 'cold']
        victim = cold[len(cold) // 2]
        path = f"/proc/{self.owner.pid}/fd/{region['data_fd']}"
        at = victim['offset'] + victim['bytes'] - 1
        with open(path, 'r+b', buffering=0) as data:
            data.seek(at)
            byte = data.read(1)
            data.seek(at)
            data.write(bytes([byte[0] ^ 1]))
            os.fsync(data.fileno())

        self.owner.freeze()
        result = dump('--pid', self.owner.pid, '--verify')
        self.owner.thaw()
        self.assertEqual(result.returncode, 1)
        bad = [line for line in result.stdout.splitlines() if line.startswith('bad:')]
        self.assertEqual(len(bad), 1)
        self.assertIn(f"slot {victim['index']}.{victim['generation']} ", bad[0])
        self.assertIn(f"key {victim['key']} ", bad[0])
        self.assertIn(f"{region['verify']['good'] - 1} good, 1 bad", result.stdout)

        status, (region,) = self.look('--verify')
        self.assertEqual(status, 1)
        self.assertEqual([slot['index'] for slot in region['bad_slots']], [victim['index']])

    def test_while_it_changes(self):
        self.fill(100, 100000)
        self.owner.tell('churn 0 1 40000')
        looks = 0
        while not select.select([self.owner.process.stdout], [], [], 0)[0] or looks == 0:
            result = dump('--pid', self.owner.pid, '--verify', '--json', '--slots', '--map')
            self.assertEqual(result.returncode, 0, result.stdout[-400:] + result.stderr)
            region, = json.loads(result.stdout)['regions']
            kept = [slot for slot in region['slots'] if slot['key'] <= 100]
            self.assertEqual(len(kept), 100)
            looks += 1
        self.assertEqual(self.owner.answer(), 'done')
        print(f'# looked {looks} times', file=sys.stderr)


class Trouble(unittest.TestCase):
    def test_nothing_there(self):
        child = subprocess.Popen(['true'])
        child.wait()
        gone = dump('--pid', child.pid)
        self.assertEqual(gone.returncode, 2)
        self.assertIn('no such process', gone.stderr)
        none = dump('--pid', os.getpid())
        self.assertEqual(none.returncode, 2)
        self.assertIn('has 0 regions', none.stderr)

    def test_usage(self):
        for words in ([], ['--pid', 'x'], ['--pid', '0'], ['--pid', '1', '--region', '-1'],
                      ['--pid', '1', '--slot', '0'], ['--pid', '1', '--what'],
                      ['--pid', '1', '--json', '--histogram'], ['--pid', '1', '--top', '--json']):
            result = dump(*words)
            self.assertEqual(result.returncode, 2, words)
            self.assertEqual(result.stdout, '')
        self.assertEqual(dump('--help').returncode, 0)
        self.assertRegex(dump('--version').stdout, r'^weir-dump \d+\.\d+\.\d+\n$')

    def test_impostor(self):
        """A memfd of the right name and the wrong content, in this very process."""
        for content in (b'', b'\0' * 8192, b'\xff' * 8192, os.urandom(65536)):
            fd = os.memfd_create('weir.region', os.MFD_ALLOW_SEALING)
            os.write(fd, content)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            result = dump('--pid', os.getpid(), '--verify', '--map', '--slots')
            os.close(fd)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertEqual(result.stdout, '')

    def test_full_output(self):
        with open('/dev/full', 'w', encoding='ascii') as full:
            fd = os.memfd_create('weir.region')
            result = subprocess.run([arguments.dump, '--pid', str(os.getpid()), '--json'],
                                    stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            os.close(fd)
        self.assertEqual(result.returncode, 2)
        self.assertIn('standard output', result.stderr)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--dump', required=True)
    parser.add_argument('--owner', required=True)
    arguments, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)

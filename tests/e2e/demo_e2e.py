#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""demo_e2e - the main job in small, and whether it would notice

    demo_e2e.py --server FILE --dump FILE [--sanitized]

Two halves. The job runs against weir-server as it stands, on a tree with what is
odd in trees. And it runs against demo_liar.py, which cheats in every way that the
job claims to see: each lie must end in status 1 and in the figure that names it.
"""

import argparse
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, '..', '..', 'tools', 'demo', 'demo.py')
LIAR = os.path.join(HERE, 'demo_liar.py')
VICTIM = 100  # as in demo_liar.py
MEBIBYTE = 1 << 20

LAST = re.compile(r'demo: files (\d+) bytes (\d+) delivered (\d+) mismatched (\d+) lost (\d+)'
                  r' limit (\d+) peak (\d+) spilled (\d+) seconds (\d+\.\d+)')
NAMES = ('files', 'bytes', 'delivered', 'mismatched', 'lost', 'limit', 'peak', 'spilled', 'seconds')

arguments = None


class Result:
    def __init__(self, status, out, errors):
        self.status = status
        self.out = out
        self.errors = errors
        lines = out.splitlines()
        match = LAST.fullmatch(lines[-1]) if lines else None
        self.last = dict(zip(NAMES, (float(word) for word in match.groups()))) if match else None

    def __repr__(self):
        return f'status {self.status}\n{self.out}\n{self.errors}'


def seed():
    return int(os.environ.get('WEIR_SEED', '1'))


def children_of(pid):
    """Processes whose parent is `pid`."""
    found = []
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                with open(f'/proc/{name}/stat', 'rb') as file:
                    if int(file.read().rpartition(b')')[2].split()[1]) == pid:
                        found.append(int(name))
            except OSError:
                pass
    return found


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            return file.read().rpartition(b')')[2].split()[0] != b'Z'
    except OSError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Case(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.mkdtemp(prefix='weir-e2e-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)
        self.files = os.path.join(self.place, 'files')
        self.spill = os.path.join(self.place, 'spill')
        os.mkdir(self.files)
        os.mkdir(self.spill)
        self.random = random.Random(seed())

    def write(self, name, length):
        path = os.path.join(self.files, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(self.random.randbytes(length))
        return path

    def command(self, server, *words):
        return [sys.executable, '-B', DEMO, '--server', server, '--files', self.files,
                '--spill-dir', self.spill, '--patience', '3', *words]

    def demo(self, server, *words, **environment):
        ended = subprocess.run(self.command(server, *words), env={**os.environ, **environment},
                               stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               errors='surrogateescape', timeout=100, check=False)
        result = Result(ended.returncode, ended.stdout, ended.stderr)
        self.assertEqual(os.listdir(self.spill), [], result)
        return result


class Liar(Case):
    """What is claimed to be seen is seen."""

    COUNT = 300

    def setUp(self):
        super().setUp()
        self.paths = [self.write(f'{i:05}', self.random.randrange(1, 9000))
                      for i in range(self.COUNT)]

    def lie(self, name, *words, **environment):
        return self.demo(LIAR, '--memory', '32m', *words, WEIR_LIAR=name, **environment)

    def expect(self, name, mismatched=0, lost=0, status=1, **environment):
        result = self.lie(name, **environment)
        self.assertEqual(result.status, status, result)
        self.assertIsNotNone(result.last, result)
        self.assertEqual((result.last['mismatched'], result.last['lost']), (mismatched, lost),
                         result)
        self.assertEqual(result.last['files'], self.COUNT, result)
        self.assertEqual(result.last['delivered'] + result.last['lost'], self.COUNT, result)
        return result

    def test_the_truth_passes(self):
        result = self.expect('honest', status=0)
        self.assertEqual(result.last['limit'], 32 * MEBIBYTE)
        self.assertEqual(result.last['bytes'], sum(os.path.getsize(p) for p in self.paths))
        self.assertGreater(result.last['peak'], MEBIBYTE)

    def test_a_flipped_bit_is_a_mismatch(self):
        self.expect('flip', mismatched=1)

    def test_a_missing_byte_is_a_mismatch(self):
        self.expect('cut', mismatched=1)

    def test_an_item_stepped_over_is_lost(self):
        self.expect('step', lost=1)

    def test_neighbours_that_changed_places_are_a_mismatch(self):
        self.expect('swap', mismatched=1)

    def test_an_item_that_comes_twice_is_a_mismatch(self):
        self.expect('twice', mismatched=1)

    def test_refused_pushes_are_made_again(self):
        result = self.expect('refuse', status=0)
        self.assertRegex(result.out, r' [1-9]\d* pushes were refused')

    def test_an_item_that_never_comes_ends_the_job(self):
        result = self.expect('swallow', lost=self.COUNT - VICTIM)
        self.assertIn('nothing has moved for 3 s', result.errors)

    def test_a_server_that_answers_nobody_ends_the_job(self):
        result = self.lie('hang')
        self.assertEqual(result.status, 1, result)
        self.assertIn('nothing has moved for 3 s', result.errors)

    def test_a_closed_connection_ends_the_job(self):
        result = self.lie('close')
        self.assertEqual(result.status, 1, result)
        self.assertRegex(result.errors, 'the consumer: (the server closed the connection'
                                        '|Connection reset by peer)')

    def test_the_death_of_the_server_ends_the_job(self):
        result = self.lie('die')
        self.assertEqual(result.status, 1, result)
        self.assertIn('weir-server ended with signal 9 (SIGKILL)', result.errors)

    def test_heap_above_the_limit_fails(self):
        result = self.expect('heap')
        self.assertGreater(result.last['peak'], 48 * MEBIBYTE)

    def test_page_cache_above_the_limit_fails(self):
        result = self.expect('file')
        self.assertGreater(result.last['peak'], 48 * MEBIBYTE)

    def test_a_file_left_behind_fails(self):
        result = self.expect('leave')
        self.assertIn('left 1 files', result.errors)

    def test_a_server_that_does_not_stop_fails(self):
        result = self.expect('deaf')
        self.assertIn('did not stop', result.errors)

    def test_a_source_that_changed_meanwhile_is_no_mismatch(self):
        result = self.expect('append', status=0, WEIR_LIAR_SOURCE=self.paths[VICTIM])
        self.assertIn('; 1 files changed meanwhile', result.out)

    def test_a_flipped_bit_of_a_source_that_changed_is_a_mismatch(self):
        self.expect('garble', mismatched=1, WEIR_LIAR_SOURCE=self.paths[VICTIM])


class Ending(Case):
    """However it ends, no process stays."""

    def setUp(self):
        super().setUp()
        for i in range(300):
            self.write(f'{i:05}', 1000)

    def end_by(self, number):
        words = self.command(LIAR, '--memory', '32m')
        words[words.index('--patience') + 1] = '60'
        with subprocess.Popen(words, env={**os.environ, 'WEIR_LIAR': 'hang'},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            # server, sampler, four producers, the late one, consumer; then some end
            self.assertTrue(wait_for(lambda: len(children_of(process.pid)) >= 3
                                     and b'held back' in process.stdout.peek(), 20))
            children = children_of(process.pid)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        self.assertTrue(wait_for(lambda: not any(map(is_alive, children)), 10), children)
        return process.returncode, errors

    def test_an_interrupt_stops_everything(self):
        status, errors = self.end_by(signal.SIGINT)
        self.assertEqual(status, 128 + signal.SIGINT)
        self.assertIn(b'interrupted', errors)
        self.assertEqual(os.listdir(self.spill), [])

    def test_a_polite_end_stops_everything(self):
        status, _ = self.end_by(signal.SIGTERM)
        self.assertEqual(status, 128 + signal.SIGTERM)
        self.assertEqual(os.listdir(self.spill), [])

    def test_a_killed_job_leaves_no_process(self):
        status, _ = self.end_by(signal.SIGKILL)
        self.assertEqual(status, -signal.SIGKILL)


class Options(Case):
    """What is malformed or unknown is an error."""

    def test_wrong_options_are_refused(self):
        for words in (('--memory', '64q'), ('--memory', '0'), ('--memory', ''), ('--bytes', '-1'),
                      ('--bytes', '1gg'), ('--producers', '0'), ('--producers', 'x'),
                      ('--patience', '0'), ('--mem', '64m'), ('--unknown',), ('stray',)):
            result = self.demo(LIAR, *words)
            self.assertEqual(result.status, 2, (words, result))

    def test_a_directory_without_files_is_refused(self):
        result = self.demo(LIAR)
        self.assertEqual(result.status, 1)
        self.assertIn('no file to take', result.errors)

    def test_a_server_that_cannot_start_is_named(self):
        self.write('file', 10)
        result = self.demo('/bin/false')
        self.assertEqual(result.status, 1)
        self.assertIn('weir-server ended with status 1', result.errors)
        result = self.demo('/no/such/server')
        self.assertEqual(result.status, 1)
        self.assertIn('cannot start /no/such/server', result.errors)


class Cache(Case):
    """Both ways to measure the page cache agree, with a count that is known."""

    def setUp(self):
        super().setUp()
        spec = importlib.util.spec_from_file_location(
            'sampler', os.path.join(os.path.dirname(DEMO), 'sampler.py'))
        self.sampler = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.sampler)

    def test_pages_of_an_unnamed_file_are_counted(self):
        with tempfile.TemporaryFile(dir=self.spill) as file:
            file.write(b'x' * (3 * MEBIBYTE))
            file.flush()
            os.fsync(file.fileno())
            self.check(file.fileno(), 3 * MEBIBYTE)
            os.posix_fadvise(file.fileno(), 2 * MEBIBYTE, MEBIBYTE, os.POSIX_FADV_DONTNEED)
            self.check(file.fileno(), 2 * MEBIBYTE)
            os.ftruncate(file.fileno(), 0)
            self.check(file.fileno(), 0)

    def check(self, fd, expected):
        self.assertEqual(self.sampler.cached_by_mincore(fd), expected)
        if self.sampler.choose_measure() is self.sampler.cached_by_cachestat:
            self.assertEqual(self.sampler.cached_by_cachestat(fd), expected)


class Job(Case):
    """The job itself, against weir-server."""

    def setUp(self):
        super().setUp()
        self.assertTrue(arguments.server and arguments.dump, 'give --server and --dump')

    def assert_passed(self, result):
        """A sanitizer's shadow is memory too: there the limit is not judged."""
        is_held = result.last['peak'] <= result.last['limit'] + 16 * MEBIBYTE
        if not arguments.sanitized:
            self.assertTrue(is_held, result)
        self.assertEqual(result.status, 0 if is_held else 1, result)

    def test_a_tree_of_files_comes_back(self):
        files, total = 0, 0
        for i in range(2000):
            length = self.random.choice((0, 1, 100, 4096, 16384, 100_000, 250_000))
            self.write(f'{i % 37}/{i:05}', length)
            files, total = files + 1, total + length
        for length in (1, 65536, 65537, 3 * MEBIBYTE, 4 * MEBIBYTE):
            self.write(f'{length}.bytes', length)
            files, total = files + 1, total + length
        for name in ('a new\nline', ' spaces ', '\udcff not utf-8', '*$:-+'):
            self.write(name, 50)
            files, total = files + 1, total + 50
        # What is not to be taken: too large, a link, a fifo, a link to a directory.
        self.write('large', 4 * MEBIBYTE + 1)
        os.symlink('large', os.path.join(self.files, 'link'))
        os.symlink('..', os.path.join(self.files, 'loop'))
        os.mkfifo(os.path.join(self.files, 'fifo'))

        began = time.monotonic()
        result = self.demo(arguments.server, '--dump', arguments.dump, '--memory', '32m',
                           '--patience', '30')
        self.assertLess(time.monotonic() - began, 60)

        self.assert_passed(result)
        self.assertEqual(result.errors, '')
        self.assertIn('(left out: 1 larger than 4194304 bytes, 0 beyond', result.out)
        last = result.last
        self.assertEqual((last['files'], last['bytes'], last['delivered']),
                         (files, total, files), result)
        self.assertEqual((last['mismatched'], last['lost'], last['limit']),
                         (0, 0, 32 * MEBIBYTE), result)
        self.assertGreater(last['peak'], 4 * MEBIBYTE, result)
        # Half of it was held up, which memory cannot carry.
        self.assertGreater(total // 2, 40 * MEBIBYTE)
        self.assertGreater(last['spilled'], total // 2 - 32 * MEBIBYTE, result)
        self.assertIn('--map:', result.out)
        self.assertNotIn('cannot start', result.out)

    def test_one_file_is_enough(self):
        self.write('empty', 0)
        result = self.demo(arguments.server, '--memory', '64m', '--producers', '2')
        self.assert_passed(result)
        self.assertEqual(result.last['delivered'], 1, result)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--server')
    parser.add_argument('--dump')
    parser.add_argument('--sanitized', action='store_true')
    arguments, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=1)

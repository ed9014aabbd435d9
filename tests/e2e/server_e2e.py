#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""server_e2e - weir-server from outside, over raw sockets

    server_e2e.py --server FILE --untold LIBRARY [-v] [CASE ...]

Every command, pipelines, nonsense, more data than memory, ordered streams, slow
and dying clients, the end. Values are patterns of their number, so that a byte of
another value is seen.
"""

import argparse
import ctypes
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from server_harness import Client, ReplyError, Server, pattern, raise_descriptors, wait_for

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20

arguments = None


def start(*options, **kinds):
    return Server(arguments.server, *options, **kinds)


def run(*words):
    return subprocess.run([arguments.server, *words], capture_output=True, timeout=30, check=False)


class SharedServer(unittest.TestCase):
    """Cases that need nothing but a server with room."""

    @classmethod
    def setUpClass(cls):
        cls.server = start('--memory', '96m', '--workers', '2')

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        if status != 0:
            raise AssertionError(f'the server ended with {status}\n{cls.server.error_text()}')

    def setUp(self):
        self.client = self.server.client()
        self.addCleanup(self.client.close)
        self.client('FLUSHALL')


class Commands(SharedServer):
    def test_the_session(self):
        c = self.client
        self.assertEqual(c('PING'), 'PONG')
        self.assertEqual(c('ping', 'hello'), b'hello')
        self.assertEqual(c('ECHO', b'\r\n\0x'), b'\r\n\0x')
        self.assertEqual(c('SELECT', 0), 'OK')
        self.assertEqual(c.error('SELECT', 1), 'ERR DB index is out of range')
        self.assertIsNone(c('CLIENT', 'GETNAME'))
        self.assertEqual(c('CLIENT', 'SETNAME', 'me'), 'OK')
        self.assertEqual(c('CLIENT', 'GETNAME'), b'me')
        self.assertIn('cannot contain spaces', c.error('CLIENT', 'SETNAME', 'a b'))
        self.assertGreater(c('CLIENT', 'ID'), 0)
        self.assertEqual(c('HELLO')[:2], [b'server', b'weir-server'])
        self.assertEqual(c('HELLO', 2)[4:6], [b'proto', 2])
        self.assertEqual(c.error('HELLO', 3), 'NOPROTO unsupported protocol version')
        self.assertEqual(c('CONFIG', 'GET', 'save'), [b'save', b''])
        self.assertEqual(c('CONFIG', 'GET', 'maxmemor*')[-2:], [b'maxmemory', b'100663296'])
        self.assertGreater(c('COMMAND', 'COUNT'), 20)
        self.assertEqual(len(c('COMMAND')), c('COMMAND', 'COUNT'))
        self.assertEqual(c('COMMAND', 'DOCS'), [])
        self.assertIn(b'redis_version', c('INFO'))
        self.assertEqual(c('QUIT'), 'OK')
        self.assertTrue(c.is_closed())

    def test_keys(self):
        c = self.client
        self.assertIsNone(c('GET', 'a'))
        self.assertEqual(c('SET', 'a', 'one'), 'OK')
        self.assertEqual(c('GET', 'a'), b'one')
        self.assertEqual(c('STRLEN', 'a'), 3)
        self.assertEqual(c('STRLEN', 'no'), 0)
        self.assertEqual(c('SET', '', ''), 'OK')
        self.assertEqual(c('GET', ''), b'')
        self.assertEqual(c('EXISTS', 'a', '', 'no', 'a'), 3)
        self.assertEqual(c('DBSIZE'), 2)
        self.assertEqual(c('DEL', 'a', 'no', ''), 2)
        self.assertEqual(c('DBSIZE'), 0)
        self.assertEqual(c('TYPE', 'a'), 'none')

    def test_set_and_its_options(self):
        c = self.client
        self.assertIsNone(c('SET', 'k', '1', 'XX'))
        self.assertEqual(c('SET', 'k', '1', 'NX'), 'OK')
        self.assertIsNone(c('SET', 'k', '2', 'NX'))
        self.assertEqual(c('SET', 'k', '3', 'XX', 'GET'), b'1')
        self.assertEqual(c('SET', 'k', pattern(1, 5000), 'GET'), b'3')
        self.assertEqual(c('SET', 'k', pattern(2, 5000), 'GET'), pattern(1, 5000))
        self.assertEqual(c('SET', 'k', 'x', 'GET', 'NX'), pattern(2, 5000))
        self.assertEqual(c('GET', 'k'), pattern(2, 5000))
        self.assertEqual(c('SET', 'k', 'v', 'EX', 100), 'OK')
        self.assertEqual(c('TTL', 'k'), 100)
        self.assertEqual(c('SET', 'k', 'w', 'KEEPTTL'), 'OK')
        self.assertEqual(c('TTL', 'k'), 100)
        self.assertEqual(c('SET', 'k', 'v'), 'OK')
        self.assertEqual(c('TTL', 'k'), -1)
        for words, error in (
                (('EX', 0), "ERR invalid expire time in 'set' command"),
                (('EX', -1), "ERR invalid expire time in 'set' command"),
                (('EX', 'x'), 'ERR value is not an integer or out of range'),
                (('EX', 1 << 62), "ERR invalid expire time in 'set' command"),
                (('EX',), 'ERR syntax error'),
                (('NX', 'XX'), 'ERR syntax error'),
                (('EX', 1, 'PX', 1), 'ERR syntax error'),
                (('EX', 1, 'KEEPTTL'), 'ERR syntax error'),
                (('WHAT',), 'ERR syntax error')):
            self.assertEqual(c.error('SET', 'k', 'v', *words), error, words)
        self.assertEqual(c('GET', 'k'), b'v')

    def test_time(self):
        c = self.client
        self.assertEqual(c('TTL', 'k'), -2)
        self.assertEqual(c('EXPIRE', 'k', 10), 0)
        c('SET', 'k', 'v')
        self.assertEqual(c('EXPIRE', 'k', 100, 'XX'), 0)
        self.assertEqual(c('EXPIRE', 'k', 100, 'NX'), 1)
        self.assertEqual(c('EXPIRE', 'k', 50, 'GT'), 0)
        self.assertEqual(c('EXPIRE', 'k', 50, 'LT'), 1)
        self.assertEqual(c('TTL', 'k'), 50)
        self.assertEqual(c('PERSIST', 'k'), 1)
        self.assertEqual(c('TTL', 'k'), -1)
        self.assertEqual(c('EXPIRE', 'k', 0), 1)
        self.assertIsNone(c('GET', 'k'))
        c('SET', 'k', 'v', 'PX', 30)
        wait_for(lambda: c('GET', 'k') is None, 5, 'the end of a key')
        # Those that nobody asks for go too.
        for i in range(50):
            c('SET', f'e{i}', 'v', 'PX', 20)
        wait_for(lambda: c('DBSIZE') == 0, 20, 'the sweep')

    def test_numbers(self):
        c = self.client
        self.assertEqual(c('INCR', 'n'), 1)
        self.assertEqual(c('INCRBY', 'n', 41), 42)
        self.assertEqual(c('DECR', 'n'), 41)
        self.assertEqual(c('DECRBY', 'n', 50), -9)
        self.assertEqual(c('GET', 'n'), b'-9')
        c('SET', 'n', '9223372036854775807')
        self.assertEqual(c.error('INCR', 'n'), 'ERR increment or decrement would overflow')
        for bad in (' 1', '01', '1x', '', '9223372036854775808', 'x' * 200):
            c('SET', 'n', bad)
            self.assertEqual(c.error('INCR', 'n'), 'ERR value is not an integer or out of range')

    def test_many_keys_at_once(self):
        c = self.client
        pairs = [word for i in range(500) for word in (f'm{i}', pattern(i, i * 3))]
        self.assertEqual(c('MSET', *pairs), 'OK')
        self.assertEqual(c('DBSIZE'), 500)
        names = [f'm{i}' for i in range(500)]
        self.assertEqual(c('MGET', *names, 'no'), [pattern(i, i * 3) for i in range(500)] + [None])
        self.assertEqual(c('EXISTS', *names, *names), 1000)
        self.assertEqual(c('DEL', *names), 500)
        self.assertIn('wrong number', c.error('MSET', 'a', 'b', 'c'))
        self.assertIn('wrong number', c.error('MSET', 'a'))
        # A pair whose value is long, between short ones.
        c('MSET', 'a', '1', 'b', pattern(7, 300000), 'c', '3')
        self.assertEqual(c('MGET', 'a', 'b', 'c'), [b'1', pattern(7, 300000), b'3'])

    def test_what_is_unknown_or_wrong(self):
        c = self.client
        self.assertEqual(c.error('FOO', 'bar', 'b az'),
                         "ERR unknown command 'FOO', with args beginning with: 'bar' 'b az' ")
        self.assertEqual(c.error('GET'), "ERR wrong number of arguments for 'get' command")
        self.assertEqual(c.error('get', 'a', 'b'), "ERR wrong number of arguments for 'get' command")
        self.assertIn('key is longer', c.error('SET', 'k' * 5000, 'v'))
        self.assertIn('too long', c.error('GET', 'k' * 50000))
        self.assertEqual(c('MGET', 'a', 'k' * 50000, 'b'), [None, None, None])
        self.assertEqual(c('DEL', 'k' * 50000), 0)
        self.assertEqual(c('PING'), 'PONG')

    def test_long_words(self):
        c = self.client
        for count in (15 * KIBIBYTE, 16 * KIBIBYTE - 40, 16 * KIBIBYTE, 65536, 1000003,
                      5 * MEBIBYTE + 1):
            value = pattern(count, count)
            self.assertEqual(c('ECHO', value), value)
            self.assertEqual(c('SET', 'long', value, 'EX', '100'), 'OK')
            self.assertEqual(c('TTL', 'long'), 100)
            self.assertEqual(c('STRLEN', 'long'), count)
            self.assertEqual(c('GET', 'long'), value)
            self.assertEqual(c.error('SET', 'long', value, 'WHAT'), 'ERR syntax error')
            self.assertIsNone(c('SET', 'long', value, 'NX'))
        self.assertEqual(c('GET', 'long'), value)

    def test_pipelines_keep_their_order(self):
        c = self.client
        rounds = 3000
        seen = []
        random.seed(1)
        commands = []
        expected = []
        model = {}
        for i in range(rounds):
            key = f'p{random.randrange(40)}'
            what = random.randrange(5)
            if what == 0:
                value = pattern(i, random.choice((1, 100, 200, 5000, 30000)))
                commands.append(('SET', key, value))
                model[key] = value
                expected.append('OK')
            elif what == 1:
                commands.append(('DEL', key))
                expected.append(1 if model.pop(key, None) is not None else 0)
            elif what == 2:
                commands.append(('ECHO', f'{i}'))
                expected.append(b'%d' % i)
            else:
                commands.append(('GET', key))
                expected.append(model.get(key))

        def read():
            for _ in range(rounds):
                seen.append(c.receive())

        reader = threading.Thread(target=read)
        reader.start()
        for command in commands:
            c.send(*command)
        reader.join(60)
        self.assertEqual(len(seen), rounds)
        for i, (got, wanted) in enumerate(zip(seen, expected)):
            self.assertEqual(got, wanted, commands[i][:2])

    def test_commands_cut_anywhere(self):
        data = Client.encode('SET', 'cut', pattern(3, 300)) + b'PING\r\n' + \
            Client.encode('GET', 'cut') + b'*0\r\n' + Client.encode('MGET', 'cut', 'no')
        for step in (1, 2, 3, 7, 50):
            for at in range(0, len(data), step):
                self.client.send_raw(data[at:at + step])
            self.assertEqual(self.client.receive(), 'OK')
            self.assertEqual(self.client.receive(), 'PONG')
            self.assertEqual(self.client.receive(), pattern(3, 300))
            self.assertEqual(self.client.receive(), [pattern(3, 300), None])

    def test_inline_commands(self):
        c = self.client
        c.send_raw(b'SET in "a b\\x41\\n" \r\n\r\n  get \'in\'\nPING\r\n')
        self.assertEqual([c.receive() for _ in range(3)], ['OK', b'a bA\n', 'PONG'])

    def test_two_types(self):
        c = self.client
        c('SET', 'key', 'v')
        c('WPUSH', 'stream', 0, 'v')
        for words in (('GET', 'stream'), ('INCR', 'stream'), ('SET', 'stream', 'x'),
                      ('STRLEN', 'stream'), ('WPUSH', 'key', 0, 'x'), ('WPOP', 'key'),
                      ('WSKIP', 'key'), ('WINFO', 'key')):
            self.assertIn('WRONGTYPE', c.error(*words), words)
        self.assertEqual(c('MGET', 'key', 'stream'), [b'v', None])
        self.assertEqual(c('EXISTS', 'key', 'stream'), 2)
        self.assertEqual(c('TYPE', 'stream'), 'weir-stream')
        self.assertEqual(c('DBSIZE'), 2)
        self.assertEqual(c('DEL', 'key', 'stream'), 2)


class Nonsense(SharedServer):
    def refused(self, data, text=None):
        with self.server.client() as c:
            c.send_raw(data)
            reply = c.receive()
            self.assertIsInstance(reply, ReplyError, data)
            if text:
                self.assertEqual(str(reply), text)
            self.assertTrue(c.is_closed(), data)
        self.assertEqual(self.client('PING'), 'PONG')

    def test_malformed_resp_ends_in_an_error_and_a_closed_connection(self):
        self.refused(b'*1\r\nPING\r\n', "ERR Protocol error: expected '$', got 'P'")
        self.refused(b'*x\r\n', 'ERR Protocol error: invalid multibulk length')
        self.refused(b'*99999999999\r\n', 'ERR Protocol error: invalid multibulk length')
        self.refused(b'*2147483648\r\n', 'ERR Protocol error: invalid multibulk length')
        self.refused(b'*1\r\n$-1\r\n', 'ERR Protocol error: invalid bulk length')
        self.refused(b'*1\r\n$99999999999999\r\n', 'ERR Protocol error: invalid bulk length')
        self.refused(b'*1\r\n$600000000\r\n', 'ERR Protocol error: invalid bulk length')
        self.refused(b'*1\r\n$4x\r\n', 'ERR Protocol error: invalid bulk length')
        self.refused(b'*' + b'1' * 70000, 'ERR Protocol error: too big mbulk count string')
        self.refused(b'*1\r\n$' + b'1' * 70000, 'ERR Protocol error: too big bulk count string')
        self.refused(b'a' * 70000, 'ERR Protocol error: too big inline request')
        self.refused(b'SET "a\r\n', 'ERR Protocol error: unbalanced quotes in request')
        self.refused(b'*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\nb\r\n!', None)

    def test_what_was_sent_before_nonsense_is_answered(self):
        c = self.client
        c.send_raw(Client.encode('SET', 'a', '1') + Client.encode('GET', 'a') + b'*1\r\n!')
        self.assertEqual(c.receive(), 'OK')
        self.assertEqual(c.receive(), b'1')
        self.assertIsInstance(c.receive(), ReplyError)

    def test_random_bytes_do_no_harm(self):
        random.seed(2)
        for i in range(150):
            with self.server.client() as c:
                data = bytes(random.choice(b'*$\r\n0123456789GETSWPUH -"\'x\0')
                             for _ in range(random.randrange(1, 400)))
                try:
                    c.send_raw(data)
                    c.socket.shutdown(socket.SHUT_WR)
                    self.assertTrue(c.is_closed(), data)
                except OSError:
                    pass
        self.assertEqual(self.client('PING'), 'PONG')

    def test_an_endless_command_costs_nothing(self):
        c = self.client
        before = self.server.memory()
        c.send_raw(b'*2000000000\r\n$3\r\nDEL\r\n')
        for _ in range(2000):
            c.send_raw(b'$5\r\nabcde\r\n' * 100)
        c.close()
        self.assertLess(self.server.memory() - before, 8 * MEBIBYTE)

    def test_half_open_connections_are_answered_and_closed(self):
        c = self.client
        c.send_raw(Client.encode('SET', 'h', pattern(1, 100000)) + Client.encode('GET', 'h'))
        c.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(c.receive(), 'OK')
        self.assertEqual(c.receive(), pattern(1, 100000))
        self.assertTrue(c.is_closed())


class Streams(SharedServer):
    def test_any_order_in_strict_order_out(self):
        c = self.client
        for sequence in (2, 0, 1, 4):
            self.assertEqual(c('WPUSH', 's', sequence, f'v{sequence}'), 'OK')
        self.assertEqual(c('WPOP', 's'), [[0, b'v0']])
        self.assertEqual(c('WPOP', 's', 'COUNT', 10), [[1, b'v1'], [2, b'v2']])
        self.assertIsNone(c('WPOP', 's'))
        self.assertIsNone(c('WPOP', 'nosuch'))
        self.assertTrue(c.error('WPUSH', 's', 4, 'x').startswith('DUP'))
        self.assertTrue(c.error('WPUSH', 's', 1, 'x').startswith('RANGE'))
        self.assertTrue(c.error('WPUSH', 's', 1 << 40, 'x').startswith('RANGE'))
        self.assertIn('not an integer', c.error('WPUSH', 's', -1, 'x'))
        self.assertIn('not an integer', c.error('WPUSH', 's', 'a', pattern(0, 50000)))
        self.assertEqual(c('WSKIP', 's'), 4)
        self.assertEqual(c('WPOP', 's', 'BLOCK', 10), [[4, b'v4']])
        self.assertEqual(c.error('WSKIP', 'nosuch'), 'ERR no such stream')
        self.assertEqual(c.error('WINFO', 'nosuch'), 'ERR no such stream')
        info = c('WINFO', 's')
        info = dict(zip(info[::2], info[1::2]))
        self.assertEqual((info[b'next'], info[b'depth'], info[b'delivered'], info[b'skipped']),
                         (5, 0, 4, 1))
        self.assertEqual(c('DEL', 's'), 1)
        self.assertEqual(c('EXISTS', 's'), 0)
        self.assertIn('out of range', c.error('WPOP', 's', 'COUNT', 0))
        self.assertIn('negative', c.error('WPOP', 's', 'BLOCK', -1))
        self.assertEqual(c.error('WPOP', 's', 'WHAT', 1), 'ERR syntax error')
        self.assertEqual(c.error('WPOP', 's', 'COUNT'), 'ERR syntax error')

    def test_empty_and_large_items(self):
        c = self.client
        sizes = (0, 1, 5000, 0, 70000, 4 * MEBIBYTE, 20000, 1)
        for sequence in reversed(range(len(sizes))):
            c('WPUSH', 's', sequence, pattern(sequence, sizes[sequence]))
        got = []
        while len(got) < len(sizes):
            got += c('WPOP', 's', 'COUNT', 100)
        self.assertEqual([sequence for sequence, _ in got], list(range(len(sizes))))
        for sequence, payload in got:
            self.assertEqual(payload, pattern(sequence, sizes[sequence]))

    def test_blocking(self):
        c = self.client
        started = time.monotonic()
        self.assertIsNone(c('WPOP', 's', 'BLOCK', 80))
        self.assertGreaterEqual(time.monotonic() - started, 0.08)
        with self.server.client() as waiter:
            for block in (0, 10000):
                waiter.send('WPOP', 's', 'COUNT', 2, 'BLOCK', block)
                waiter.send('PING')
                wait_for(lambda: c.info()['blocked_pops'] == '1', 5, 'the pop')
                c('WPUSH', 's', 1 if block == 0 else 3, 'b')
                c('WPUSH', 's', 0 if block == 0 else 2, 'a')
                got = waiter.receive()
                if len(got) == 1:
                    self.assertEqual(waiter.receive(), 'PONG')
                    got += waiter('WPOP', 's')
                else:
                    self.assertEqual(waiter.receive(), 'PONG')
                self.assertEqual([payload for _, payload in got], [b'a', b'b'])

    def test_a_client_that_dies_while_it_waits_takes_nothing(self):
        c = self.client
        for name in ('s0', 's1', 's2', 's3'):  # on both cores
            waiter = self.server.client()
            waiter.send('WPOP', name, 'BLOCK', 0)
            wait_for(lambda: c.info()['blocked_pops'] == '1', 5, 'the pop')
            waiter.close()
            wait_for(lambda: c.info()['blocked_pops'] == '0', 5, 'the end of the pop')
            c('WPUSH', name, 0, 'mine')
            self.assertEqual(c('WPOP', name), [[0, b'mine']])

    def test_a_removed_stream_begins_anew(self):
        c = self.client
        with self.server.client() as waiter:
            c('WPUSH', 's', 5, 'old')
            waiter.send('WPOP', 's', 'BLOCK', 0)
            wait_for(lambda: c.info()['blocked_pops'] == '1', 5, 'the pop')
            self.assertEqual(c('DEL', 's'), 1)
            c('WPUSH', 's', 0, 'new')
            self.assertEqual(waiter.receive(), [[0, b'new']])


class Settings(unittest.TestCase):
    def test_what_is_malformed_is_refused_with_status_2(self):
        for words in (('--memory', '1x'), ('--memory', '0'), ('--memory', '12m'),
                      ('--memory', '101%'), ('--memory', '0%'), ('--memory', '-5m'),
                      ('--memory', '64mm'), ('--memory', ''), ('--port', '65536'),
                      ('--port', 'x'), ('--workers', '0'), ('--workers', '1.5'),
                      ('--wait-max', 'soon'), ('--spill-max', '99999999999999g'),
                      ('--spill-max', '1m'), ('--nonsense',), ('word',)):
            result = run(*words)
            self.assertEqual(result.returncode, 2, (words, result))
            self.assertTrue(result.stderr, words)

    def test_levels_that_cannot_be_are_refused_by_name(self):
        for words, said in ((('--soft', '19'), b'--soft'), (('--soft', '97'), b'--soft'),
                            (('--soft', 'much'), b'--soft'), (('--spill', '99'), b'--spill'),
                            (('--spill', '21'), b'--spill'), (('--spill', '-90'), b'--spill'),
                            (('--soft', '90'), b'--soft 90 is not at least 2 below --spill 90'),
                            (('--soft', '70', '--spill', '71'), b'2 below --spill 71'),
                            (('--spill', '80'), b'--soft 80 is not at least 2 below')):
            result = run(*words)
            self.assertEqual(result.returncode, 2, (words, result))
            self.assertIn(said, result.stderr, words)

    def test_levels_are_what_was_said(self):
        for words, soft, spill in (((), 80, 90), (('--soft', '20', '--spill', '22'), 20, 22),
                                   (('--soft', '96', '--spill', '98'), 96, 98),
                                   (('--soft', '60'), 60, 90)):
            with start('--memory', '32m', '--workers', '1', *words) as server, \
                    server.client() as c:
                info = c.info()
                self.assertEqual(int(info['memory_soft_bytes']), server.limit * soft // 100)
                self.assertEqual(int(info['memory_spill_bytes']), server.limit * spill // 100)

    def test_where_nobody_tells_how_much_memory_there_is(self):
        environment = dict(os.environ, LD_PRELOAD=arguments.untold,
                           ASAN_OPTIONS='verify_asan_link_order=0')

        def said(*words):
            result = subprocess.run(
                [arguments.server, '--spill-dir', '/dev/null', *words], capture_output=True,
                timeout=30, check=False, env=environment)
            self.assertEqual(result.returncode, 1, result)
            return result.stderr

        # Bytes will do, so it comes as far as the directory.
        self.assertIn(b'not a directory', said('--memory', '64m'))
        for words in ((), ('--memory', '50%')):
            self.assertIn(b'nobody says how much memory this machine has', said(*words))

    def test_help_and_version(self):
        self.assertIn(b'--spill-max', run('--help').stdout)
        self.assertRegex(run('--version').stdout, rb'^weir-server \d+\.\d+\.\d+\n$')

    def test_a_directory_that_cannot_be_used_is_an_error(self):
        for path in ('/proc/nothing', '/etc/passwd', '/no/such/parent'):
            result = run('--spill-dir', path, '--memory', '64m')
            self.assertEqual(result.returncode, 1, path)
            self.assertIn(path.encode(), result.stderr)

    def test_a_directory_is_made(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as parent:
            path = os.path.join(parent, 'new')
            with start('--memory', '24m', spill_directory=path) as server:
                self.assertEqual(os.stat(path).st_mode & 0o777, 0o700)
                self.assertEqual(server.worker_count, 1)

    def test_workers_are_no_more_than_memory_carries(self):
        with start('--memory', '50m', '--workers', '8') as server:
            self.assertEqual(server.worker_count, 2)
            self.assertIn('2 workers instead of 8', server.error_text())

    def test_a_port_that_is_taken_is_an_error(self):
        with start('--memory', '24m') as server:
            result = run('--port', str(server.port), '--memory', '24m')
            self.assertEqual(result.returncode, 1)
            self.assertIn(b'in use', result.stderr)

    def test_per_cent(self):
        with start('--memory', '1%', '--workers', '1') as server:
            self.assertGreater(server.limit, 24 * MEBIBYTE)


    def test_tmpfs_is_refused(self):
        if not os.path.isdir('/dev/shm'):
            self.skipTest('no tmpfs')
        result = run('--spill-dir', '/dev/shm', '--memory', '64m')
        self.assertEqual(result.returncode, 1)
        self.assertIn(b'tmpfs', result.stderr)

    def test_without_io_uring_it_says_so(self):
        result = subprocess.run(
            [arguments.server, '--port', '0', '--memory', '24m', '--spill-dir', '/var/tmp'],
            capture_output=True, timeout=30, check=False, preexec_fn=forbid_io_uring)
        self.assertEqual(result.returncode, 1, result)
        self.assertIn(b'io_uring', result.stderr)


def forbid_io_uring():
    """By seccomp, as containers do: io_uring_setup(2) answers EPERM."""
    libc = ctypes.CDLL(None, use_errno=True)
    setup, allow, refuse = 425, 0x7fff0000, 0x00050000 | 1
    program = struct.pack('HBBIHBBIHBBIHBBI',
                          0x20, 0, 0, 0,        # the number of the call
                          0x15, 0, 1, setup,
                          0x06, 0, 0, refuse,
                          0x06, 0, 0, allow)
    code = ctypes.create_string_buffer(program)
    header = struct.pack('HxxxxxxQ', 4, ctypes.addressof(code))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(header), 0, 0):
        raise OSError(ctypes.get_errno(), 'seccomp')


class Pressure(unittest.TestCase):
    def test_ten_times_the_memory_reads_back_byte_for_byte(self):
        with start('--memory', '32m', '--workers', '1') as server, server.client() as c:
            sizes = [random.Random(i).choice((10, 200, 3000, 4096, 20000, 200000))
                     for i in range(9000)]
            total = sum(sizes)
            self.assertGreater(total, 10 * 32 * MEBIBYTE)
            peak = 0
            for base in range(0, len(sizes), 100):
                part = range(base, min(base + 100, len(sizes)))
                writer = threading.Thread(target=lambda part=part: [
                    c.send('SET', f'k{i}', pattern(i, sizes[i])) for i in part])
                writer.start()
                for i in part:
                    self.assertEqual(c.receive(), 'OK', i)
                writer.join()
                peak = max(peak, server.memory())
            self.assertEqual(c('DBSIZE'), len(sizes))
            order = list(range(len(sizes)))
            random.Random(5).shuffle(order)
            for base in range(0, len(order), 50):
                part = order[base:base + 50]
                for i in part:
                    c.send('GET', f'k{i}')
                for i in part:
                    self.assertTrue(c.receive() == pattern(i, sizes[i]), i)
                peak = max(peak, server.memory())
            info = c.info()
            self.assertEqual(info['writes_refused'], '0')
            self.assertGreater(int(info['spill_live_bytes']), total - 32 * MEBIBYTE)
            if not arguments.sanitized:
                self.assertLess(peak, server.limit + 16 * MEBIBYTE)
            # Overwritten, removed: the space is given back.
            for i in range(0, len(sizes), 2):
                c.send('DEL', f'k{i}')
            self.assertEqual(sum(c.receive() for i in range(0, len(sizes), 2)),
                             (len(sizes) + 1) // 2)
            c('FLUSHALL')
            wait_for(lambda: c.info()['spill_live_bytes'] == '0', 20, 'an empty file')

    def test_a_stream_larger_than_memory_with_a_late_head(self):
        with start('--memory', '48m', '--workers', '2') as server:
            count = 3000
            sizes = [random.Random(i).choice((0, 50, 4000, 30000, 60000)) if i % 100 else 2500000
                     for i in range(count)]
            late = 3
            errors = []

            def produce(which):
                with server.client() as c:
                    mine = [i for i in range(count) if i % 3 == which and i != late]
                    for base in range(0, len(mine), 8):
                        part = mine[base:base + 8]
                        random.Random(base).shuffle(part)
                        while part:
                            for i in part:
                                c.send('WPUSH', 'big', i, pattern(i, sizes[i]))
                            replies = [(i, c.receive()) for i in part]
                            errors.extend(str(reply) for _, reply in replies
                                          if reply != 'OK' and 'OOM' not in str(reply))
                            part = [i for i, reply in replies if reply != 'OK']

            producers = [threading.Thread(target=produce, args=(which,)) for which in range(3)]
            for thread in producers:
                thread.start()
            peak = 0
            with server.client() as c:
                wait_for(lambda: (time.sleep(0.1), int(c.info()['spill_live_bytes']))[1]
                         > 20 * MEBIBYTE, 60, 'a spill')
                self.assertIn(c('WPOP', 'big', 'COUNT', 3, 'BLOCK', 10000)[-1][0], (0, 1, 2))
                c('WPUSH', 'big', late, pattern(late, sizes[late]))
                wanted = None
                while wanted is None or wanted < count:
                    items = c('WPOP', 'big', 'COUNT', 64, 'BLOCK', 20000)
                    self.assertIsNotNone(items, wanted)
                    for sequence, payload in items:
                        self.assertIn(wanted, (None, sequence))
                        self.assertTrue(payload == pattern(sequence, sizes[sequence]), sequence)
                        wanted = sequence + 1
                    peak = max(peak, server.memory())
            for thread in producers:
                thread.join()
            self.assertEqual(errors, [])
            if not arguments.sanitized:
                self.assertLess(peak, server.limit + 16 * MEBIBYTE)

    def test_a_head_gets_in_when_memory_and_file_are_full(self):
        for head_bytes in (100, 30000, 700000, 3000000):
            with start('--memory', '32m', '--workers', '1', '--spill-max', '40m', '--wait-max',
                       '400') as server, server.client() as c:
                stopped = threading.Event()
                accepted = {0}

                def produce(which, server=server, stopped=stopped, accepted=accepted):
                    with server.client() as producer:
                        sequence = 1 + which
                        while not stopped.is_set():
                            producer.send('WPUSH', 's', sequence, pattern(sequence, 9000))
                            if producer.receive() == 'OK':
                                accepted.add(sequence)
                                sequence += 4

                producers = [threading.Thread(target=produce, args=(which,)) for which in range(4)]
                for thread in producers:
                    thread.start()
                wait_for(lambda c=c: int(c.info()['writes_refused']) >= 4, 60, 'fullness')
                started = time.monotonic()
                self.assertEqual(c('WPUSH', 's', 0, pattern(0, head_bytes)), 'OK', head_bytes)
                self.assertLess(time.monotonic() - started, 5)
                stopped.set()
                wanted = 0
                while wanted < 2000:  # the waiting ones go on when there is room again
                    for sequence, payload in c('WPOP', 's', 'COUNT', 64, 'BLOCK', 3000) or ():
                        self.assertEqual(sequence, wanted)
                        self.assertTrue(payload == pattern(
                            sequence, 9000 if sequence else head_bytes), sequence)
                        wanted += 1
                for thread in producers:
                    thread.join()
                while wanted in accepted:
                    for sequence, payload in c('WPOP', 's', 'COUNT', 64, 'BLOCK', 3000):
                        self.assertEqual(sequence, wanted)
                        wanted += 1

    def test_a_slow_reader_costs_little_and_loses_nothing(self):
        with start('--memory', '32m', '--workers', '1') as server, server.client() as c:
            for i in range(64):
                c('SET', f'v{i}', pattern(i, 100000))
            rounds = 2000
            slow = server.client(receive_bytes=4096)
            asked = threading.Thread(target=lambda: [
                slow.send('GET', f'v{i % 64}') for i in range(rounds)])
            asked.start()
            for _ in range(30):  # others are served all the while
                self.assertEqual(c('GET', 'v1'), pattern(1, 100000))
            if not arguments.sanitized:
                self.assertLess(server.memory(), server.limit + 16 * MEBIBYTE)
            for i in range(rounds):
                self.assertTrue(slow.receive() == pattern(i % 64, 100000), i)
            asked.join()
            slow.close()

    def test_clients_killed_midway_leave_nothing(self):
        with start('--memory', '48m', '--workers', '2') as server, server.client() as c:
            c('PING')  # it was accepted
            descriptors = server.descriptors()
            for i in range(60):
                victim = server.client()
                name = f'half{i}'
                if i % 3 == 0:
                    victim.send_raw(b'*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$6000000\r\n'
                                    % (len(name), name.encode()) + b'x' * (i * 50000))
                elif i % 3 == 1:
                    victim.send_raw(b'*4\r\n$5\r\nWPUSH\r\n$%d\r\n%s\r\n$1\r\n5\r\n$200000\r\n'
                                    % (len(name), name.encode()) + b'x' * 100000)
                else:
                    victim.send('SET', name, pattern(i, 3000000))
                    for _ in range(20):
                        victim.send('GET', name)
                victim.close()
            wait_for(lambda: server.descriptors() == descriptors, 30, 'closed connections')
            for i in range(60):
                c('DEL', f'half{i}')
            wait_for(lambda: c.info()['spill_live_bytes'] == '0', 20, 'an empty file')
            self.assertEqual(c('DBSIZE'), 0)

    def test_writes_wait_then_are_refused_and_nothing_accepted_is_lost(self):
        """The file is full, and memory is."""
        with start('--memory', '32m', '--workers', '1', '--spill-max', '32m', '--wait-max',
                   '300') as server, server.client() as c:
            accepted = []
            refused = 0
            for i in range(30000):
                c.send('SET', f'k{i}', pattern(i, 4096))
                reply = c.receive()
                if reply == 'OK':
                    accepted.append(i)
                    continue
                self.assertTrue(str(reply).startswith('OOM'), reply)
                refused += 1
                if refused == 3:
                    break
            self.assertEqual(refused, 3)
            self.assertGreater(len(accepted) * 4096, 32 * MEBIBYTE)
            for i in accepted:
                c.send('GET', f'k{i}')
                self.assertTrue(c.receive() == pattern(i, 4096), i)
            for i in accepted[:len(accepted) // 2]:
                self.assertEqual(c('DEL', f'k{i}'), 1)
            wait_for(lambda: not isinstance(self.try_set(c), ReplyError), 10, 'room')
            for i in accepted[len(accepted) // 2:]:
                self.assertTrue(c('GET', f'k{i}') == pattern(i, 4096), i)

    @staticmethod
    def try_set(c):
        c.send('SET', 'again', pattern(1, 4096))
        return c.receive()


class Pacing(unittest.TestCase):
    """Between soft and the limit, with memory that cannot be spilled: names of keys."""

    @staticmethod
    def fill(server, per_cent):
        def work(which):
            with server.client() as c:
                number = 0
                while 100 * int(c.info()['used_memory']) < per_cent * server.limit:
                    for _ in range(8):
                        c('SET', (f'{which}:{number}:' + 'x' * 4000)[:4000], 'v')
                        number += 1

        threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def test_who_writes_pauses_and_nobody_else(self):
        with start('--memory', '24m', '--workers', '1') as server, server.client() as c, \
                server.client() as writer:
            c('SET', 'k', 'v')
            self.assertEqual(c.info()['writes_paced'], '0')
            self.fill(server, 93)
            before = c.info()
            delay_s = int(before['memory_delay_us']) / 1e6
            self.assertGreater(delay_s, 0.002)
            request = Client.encode('SET', 'k', 'v')
            for count in (50, 1):  # at once, or each after the answer to the one before
                started = time.monotonic()
                for _ in range(0, 50, count):
                    writer.send_raw(request * count)
                    answered = 0
                    reads = []
                    while answered < count:
                        begun = time.monotonic()
                        self.assertEqual(c('GET', 'k'), b'v')
                        reads.append(time.monotonic() - begun)
                        if count == 1 or len(reads) > 20:
                            self.assertEqual(writer.receive(), 'OK')
                            answered += 1
                took = time.monotonic() - started
                # The last pause begins with its answer.
                self.assertGreater(took, 0.8 * 48 * delay_s, count)
                if count > 1 and not arguments.sanitized:
                    self.assertLess(sorted(reads)[len(reads) // 2], delay_s)
            after = c.info()
            self.assertEqual(int(after['writes_paced']) - int(before['writes_paced']), 100)
            self.assertGreater(int(after['writes_paced_ms']) - int(before['writes_paced_ms']),
                               0.8 * 100 * delay_s * 1000)

    def test_what_removes_or_reads_does_not_pause(self):
        with start('--memory', '24m', '--workers', '1') as server, server.client() as c:
            c('SET', 'k', 'v')
            c('WPUSH', 's', 0, 'a')
            self.fill(server, 93)
            before = c.info()['writes_paced']
            c('GET', 'k')
            c('EXPIRE', 'k', 1000)
            c('WPOP', 's')
            c('DEL', 'k')
            self.assertEqual(c.info()['writes_paced'], before)

    def test_a_client_that_ends_its_side_is_answered_to_the_end(self):
        with start('--memory', '24m', '--workers', '1') as server:
            self.fill(server, 93)
            with server.client() as c:
                c.send_raw(Client.encode('SET', 'k', 'v') * 60)
                c.socket.shutdown(socket.SHUT_WR)
                for i in range(60):
                    self.assertEqual(c.receive(), 'OK', i)
                self.assertTrue(c.is_closed())

    def test_a_head_behind_many_items_comes_in_time(self):
        with start('--memory', '48m', '--workers', '2') as server, server.client() as c:
            names = ('s0', 's1', 's2', 's3')  # of both cores
            for name in names:
                c('WPUSH', name, 100, '')
            self.fill(server, 97)
            for name in names:
                with server.client() as waiter, server.client() as pusher:
                    waiter.send('WPOP', name, 'BLOCK', 20000, 'COUNT', 1)
                    started = time.monotonic()
                    pusher.send_raw(b''.join(
                        Client.encode('WPUSH', name, sequence, pattern(sequence, 40))
                        for sequence in [*range(1, 100), 0]))
                    self.assertEqual(waiter.receive(), [[0, pattern(0, 40)]])
                    self.assertLess(time.monotonic() - started, 3)
                    for _ in range(100):
                        self.assertEqual(pusher.receive(), 'OK')

    def test_info_says_how_it_stands(self):
        with start('--memory', '24m', '--workers', '1', '--wait-max', '300') as server, \
                server.client() as c, server.client() as waiter:
            self.fill(server, 93)
            wait_for(lambda: c.info()['machine_rss_bytes'] != '0', 10, 'a look')
            info = c.info()
            number = {name: int(value) for name, value in info.items()
                      if value.lstrip('-').isdigit()}
            self.assertIn(info['memory_level'], ('soft', 'spill'))
            levels = ('calm', 'soft', 'spill', 'hard')
            self.assertEqual(number['memory_level_changes'],
                             sum(number[f'memory_level_{level}_count'] for level in levels))
            self.assertGreater(number['memory_level_calm_ms'], 0)
            self.assertGreater(number['memory_verdict_admit'], 1000)
            self.assertEqual(number['memory_verdict_wait'], 0)
            self.assertEqual((number['memory_waiters'], info['memory_wait_reason'],
                              info['memory_oldest_waiter']), (0, 'none', ''))
            self.assertLess(number['machine_look_ms_ago'], 5000)
            self.assertGreater(number['machine_limit_bytes'], server.limit)
            self.assertIn('machine_drift_bytes', number)
            self.assertRegex(info['machine_pressure_some'], r'^\d+\.\d\d$')
            holders = [dict(pair.split('=') for pair in info[name].split(','))
                       for name in sorted(info) if name.startswith('holder')]
            self.assertEqual(holders[0]['name'], 'tables-0')
            held = [int(holder['bytes']) for holder in holders]
            self.assertEqual(held, sorted(held, reverse=True))
            self.assertAlmostEqual(sum(held), number['used_memory'], delta=1 << 20)
            for name in ('buffers', 'values'):
                figures = dict(pair.split('=') for pair in info[f'reclaimer_{name}_0'].split(','))
                self.assertGreater(int(figures['asked']), 0, name)

            # At the limit: who waits, why, how long; then who has it.
            waiter.send('SET', 'x' * 4000, 'v')
            for i in range(4000):
                waiter.send('SET', (f'{i}:' + 'y' * 4000)[:4000], 'v')
                if waiter.receive() != 'OK':
                    break
            refusal = waiter.receive()
            self.assertRegex(str(refusal), r'^OOM .*held by tables-0 \d+M, weir-core-0 \d+M$')
            waiter.send('SET', 'z' * 4000, 'v')
            wait_for(lambda: c.info()['memory_waiters'] == '1', 5, 'a waiter')
            info = c.info()
            self.assertEqual((info['memory_level'], info['memory_oldest_waiter'],
                              info['memory_wait_reason']), ('hard', 'tables-0', 'limit'))
            self.assertIsInstance(waiter.receive(), ReplyError)
            self.assertGreaterEqual(int(c.info()['memory_longest_wait_ms']), 290)


class Ends(unittest.TestCase):
    def test_a_clean_stop_with_everything_under_way(self):
        server = start('--memory', '48m', '--workers', '2')
        clients = [server.client() for _ in range(12)]
        for i, c in enumerate(clients):
            c.send('WPOP', f's{i}', 'BLOCK', 0)
            c.send_raw(b'*3\r\n$3\r\nSET\r\n$1\r\na\r\n$3000000\r\nxxx')
        filler = server.client()
        for i in range(300):
            filler.send('SET', f'k{i}', pattern(i, 100000))
        for _ in range(300):
            filler.receive()
        for i in range(100):
            filler.send('GET', f'k{i}')
        started = time.monotonic()
        self.assertEqual(server.stop(), 0, server.error_text())
        self.assertLess(time.monotonic() - started, 10)

    def test_kill_leaves_nothing_in_the_directory(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as path:
            server = start('--memory', '32m', spill_directory=path)
            with server.client() as c:
                for i in range(400):
                    c('SET', f'k{i}', pattern(i, 200000))
            server.kill()
            server.clean()
            self.assertEqual(os.listdir(path), [])

    def test_more_clients_than_allowed_are_told(self):
        with start('--memory', '24m', '--max-clients', '5') as server:
            clients = [server.client() for _ in range(5)]
            for c in clients:
                self.assertEqual(c('PING'), 'PONG')
            with server.client() as c:
                self.assertEqual(str(c.receive()), 'ERR max number of clients reached')
            clients.pop().close()
            wait_for(lambda: self.is_welcome(server), 5, 'a place')

    @staticmethod
    def is_welcome(server):
        with server.client() as c:
            c.send('PING')
            return c.receive() == 'PONG'


def main():
    global arguments
    parser = argparse.ArgumentParser()
    parser.add_argument('--server', required=True)
    parser.add_argument('--untold', required=True, help='a library that hides how much memory there is')
    parser.add_argument('--sanitized', action='store_true',
                        help='its own figures of memory are not true')
    arguments, rest = parser.parse_known_args()
    raise_descriptors()
    unittest.main(argv=[sys.argv[0], *rest])


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""server_soak - random commands from several clients against a model of each

    server_soak.py --server FILE [--seconds N] [--memory BYTES] [--clients N]

Each client has keys and a stream of its own, and knows what must come back;
WEIR_SEED repeats a run's choices. Some connections break off in the middle.
"""

import argparse
import os
import random
import threading
import time

from server_harness import ReplyError, Server, pattern

SIZES = (0, 1, 30, 127, 128, 700, 4096, 4096, 9000, 17000, 70000, 200000, 2000000)


class Soak:
    def __init__(self, server, which, seed):
        self.server = server
        self.which = which
        self.random = random.Random(seed * 1000 + which)
        self.client = server.client()
        self.model = {}
        self.head = 0        # the next that the stream delivers
        self.pushed = {}
        self.counter = 0
        self.command_count = 0
        self.refused = 0
        self.error = None

    def value(self):
        self.counter += 1
        size = self.random.choice(SIZES) if self.random.random() < 0.3 else \
            self.random.choice(SIZES[:9])
        return pattern(self.counter * 64 + self.which, size)

    def key(self):
        return f'{self.which}:{self.random.randrange(300)}'

    def step(self):
        """One command: its words, and a function that judges the reply."""
        key = self.key()
        old = self.model.get(key)
        dice = self.random.randrange(100)
        if dice < 35:
            value = self.value()
            words = ['SET', key, value]
            answer = 'OK'
            if dice < 8:
                words.append('GET')
                answer = old
            if dice % 5 == 0:
                words.append('NX')
                if old is not None:
                    # Its payload may have found no place before NX was read.
                    return words, lambda reply: reply == (old if dice < 8 else None) or \
                        str(reply).startswith('OOM')
                answer = None if dice < 8 else 'OK'

            def judge(reply):
                if isinstance(reply, ReplyError) and str(reply).startswith('OOM'):
                    self.refused += 1
                    return True
                self.model[key] = value
                return reply == answer
            return words, judge
        if dice < 75:
            return ['GET', key], lambda reply: reply == old
        if dice < 80:
            self.model.pop(key, None)
            return ['DEL', key], lambda reply: reply == (old is not None)
        if dice < 83:
            return ['STRLEN', key], lambda reply: reply == len(old or b'')
        if dice < 86:
            keys = [self.key() for _ in range(12)]
            wanted = [self.model.get(key) for key in keys]
            return ['MGET', *keys], lambda reply: reply == wanted
        if dice < 93:
            sequence = self.head + self.random.randrange(40)
            if sequence in self.pushed:
                return ['WPUSH', f's{self.which}', sequence, 'x'], \
                    lambda reply: str(reply).startswith('DUP')
            value = self.value()

            def judge_push(reply):
                if isinstance(reply, ReplyError) and str(reply).startswith('OOM'):
                    self.refused += 1
                    return True
                self.pushed[sequence] = value
                return reply == 'OK'
            return ['WPUSH', f's{self.which}', sequence, value], judge_push
        if dice < 94 and self.head not in self.pushed:
            def judge_skip(reply):
                if isinstance(reply, ReplyError):
                    return str(reply) == 'ERR no such stream'
                self.head += 1
                return reply == self.head
            return ['WSKIP', f's{self.which}'], judge_skip

        def judge_pop(reply):
            for sequence, payload in reply or ():
                if sequence != self.head or self.pushed.pop(sequence) != payload:
                    return False
                self.head += 1
            return reply is None or len(reply) > 0
        return ['WPOP', f's{self.which}', 'COUNT', 20], judge_pop

    def break_off(self):
        """A connection that dies with much under way; what it wrote is not looked at."""
        with self.server.client(timeout_s=0.2) as victim:
            name = f'victim{self.which}'
            try:
                for _ in range(self.random.randrange(30)):
                    victim.send('SET', name, pattern(1, self.random.choice(SIZES)))
                    victim.send('GET', name)
                victim.send_raw(b'*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$3000000\r\nabc')
            except TimeoutError:
                pass  # it does not read, so it is not read

    def run(self, until):
        try:
            while time.monotonic() < until:
                words, judge = self.step()
                self.client.send(*words)
                reply = self.client.receive()
                self.command_count += 1
                if not judge(reply):
                    raise AssertionError(f'{words[:2]} of {len(words)} words was answered '
                                         f'{repr(reply)[:200]}')
                if self.random.randrange(2000) == 0:
                    self.break_off()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error
            raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--server', required=True)
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--memory', default='48m')
    parser.add_argument('--spill-max', default='8g')
    parser.add_argument('--clients', type=int, default=6)
    arguments = parser.parse_args()
    seed = int(os.environ.get('WEIR_SEED', str(time.time_ns() % 100000)))
    print(f'WEIR_SEED={seed}', flush=True)
    with Server(arguments.server, '--memory', arguments.memory, '--workers', '2', '--spill-max',
                arguments.spill_max, '--wait-max', '500') as server:
        soaks = [Soak(server, which, seed) for which in range(arguments.clients)]
        until = time.monotonic() + arguments.seconds
        threads = [threading.Thread(target=soak.run, args=(until,)) for soak in soaks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if any(soak.error for soak in soaks):
            raise SystemExit(1)
        print(f'{sum(soak.command_count for soak in soaks)} commands,'
              f' {sum(soak.refused for soak in soaks)} refused')


if __name__ == '__main__':
    main()

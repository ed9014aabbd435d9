#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""demo_liar - a server that looks like weir-server and cheats as it is told

The demo must notice. WEIR_LIAR names the lie:

    honest   none
    flip     one bit of an item is another one
    cut      an item is shorter by a byte
    step     an item is stepped over
    swap     two neighbours change places
    twice    an item is delivered two times
    refuse   the truth, but every third push is answered -OOM at first
    swallow  an item is accepted and never delivered
    hang     nobody is answered any more
    close    the consumer's connection is closed
    die      the server is killed
    heap     more memory than the limit allows, in its heap
    file     the same, in the page cache of a file without a name
    leave    a file is left in the overflow directory
    deaf     SIGTERM is ignored for the rest of its life
    append   the source itself gets longer before its item is delivered as it was
    garble   the same, and one bit of the item is another one

WEIR_LIAR_SOURCE is the file whose item is lied about, for the last two.
It keeps everything in memory and is for a few hundred small files.
"""

import asyncio
import os
import signal
import sys
import tempfile

LIE = os.environ.get('WEIR_LIAR', 'honest')
VICTIM = 100  # the item that is lied about


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


class Liar:
    def __init__(self):
        self.items = {}
        self.next = 0
        self.push_count = 0
        self.refused = set()
        self.arrived = asyncio.Condition()
        self.limit_bytes = int(option('--memory'))
        self.directory = option('--spill-dir')
        self.keep = None

    async def words(self, reader):
        line = await reader.readline()
        if not line:
            return None
        words = []
        for _ in range(int(line[1:])):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
        return words

    async def serve(self, reader, writer):
        try:
            while words := await self.words(reader):
                answer = await getattr(self, words[0].decode().lower())(*words[1:])
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()

    async def wpush(self, _stream, sequence, payload):
        item = int(sequence)
        self.push_count += 1
        if LIE == 'refuse' and self.push_count % 3 == 0 and item not in self.refused:
            self.refused.add(item)
            return b'-OOM command not allowed when used memory > limit\r\n'
        async with self.arrived:
            if not (LIE == 'swallow' and item == VICTIM):
                self.items[item] = payload
            self.arrived.notify_all()
        return b'+OK\r\n'

    async def wpop(self, _stream, _count_word, count, _block_word, block_ms):
        try:
            async with self.arrived:
                await asyncio.wait_for(self.arrived.wait_for(lambda: self.next in self.items),
                                       int(block_ms) / 1000)
        except asyncio.TimeoutError:
            return b'*-1\r\n'
        pairs = []
        while len(pairs) < int(count) and self.next in self.items:
            pairs.append((self.next, self.items.pop(self.next)))
            self.next += 1
        if any(sequence == VICTIM for sequence, _ in pairs):
            pairs = await self.lie(pairs)
            if pairs is None:
                return None
        return b'*%d\r\n' % len(pairs) + b''.join(
            b'*2\r\n:%d\r\n$%d\r\n%b\r\n' % (sequence, len(payload), payload)
            for sequence, payload in pairs)

    async def lie(self, pairs):
        at = next(i for i, pair in enumerate(pairs) if pair[0] == VICTIM)
        payload = pairs[at][1]
        if LIE in ('append', 'garble'):
            with open(os.environ['WEIR_LIAR_SOURCE'], 'ab') as source:
                source.write(b'more')
        if LIE in ('flip', 'garble'):
            middle = len(payload) // 2
            payload = payload[:middle] + bytes([payload[middle] ^ 4]) + payload[middle + 1:]
            pairs[at] = VICTIM, payload
        elif LIE == 'cut':
            pairs[at] = VICTIM, payload[:-1]
        elif LIE == 'step':
            del pairs[at]
        elif LIE == 'swap':
            other = at - 1 if at > 0 else at + 1
            pairs[at], pairs[other] = pairs[other], pairs[at]
        elif LIE == 'twice':
            pairs.insert(at, pairs[at])
        elif LIE == 'hang':
            await asyncio.sleep(3600)
        elif LIE == 'close':
            return None
        elif LIE == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        elif LIE == 'heap':
            self.keep = b'x' * (self.limit_bytes + (17 << 20))
            await asyncio.sleep(0.2)
        elif LIE == 'file':
            self.keep = tempfile.TemporaryFile(dir=self.directory)
            for _ in range((self.limit_bytes >> 20) + 17):
                self.keep.write(b'x' * (1 << 20))
            self.keep.flush()
            await asyncio.sleep(0.2)
        elif LIE == 'leave':
            with open(os.path.join(self.directory, 'left'), 'wb'):
                pass
        elif LIE == 'deaf':
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        return pairs

    async def info(self):
        text = b'# Workers\r\nmemory_level:calm\r\nworker0:cpu=0,resident=0,live=0,put=0\r\n'
        return b'$%d\r\n%b\r\n' % (len(text), text)

    async def winfo(self, _stream):
        depth = b'%d' % len(self.items)
        return b'*4\r\n$4\r\nnext\r\n:%d\r\n$5\r\ndepth\r\n$%d\r\n%b\r\n' % (
            self.next, len(depth), depth)


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    liar = Liar()
    server = await asyncio.start_server(liar.serve, '127.0.0.1', 0, limit=1 << 24)
    port = server.sockets[0].getsockname()[1]
    print(f'weir-server: ready on 127.0.0.1:{port}, 1 workers, limit {liar.limit_bytes} bytes,'
          f' spill in {liar.directory}', flush=True)
    await asyncio.Event().wait()


asyncio.run(main())

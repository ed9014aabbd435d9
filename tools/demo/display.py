# SPDX-License-Identifier: MIT
"""display - what is seen while the job runs

On a terminal a few lines that are drawn over, elsewhere a plain line every few
seconds. What must stay (the picture of weir-dump, messages) is printed above.
"""

import os
import shutil
import sys
import time

DRAW_S = 0.25
PLAIN_S = 2.0
BAR_CELLS = 40


def mebibytes(count):
    return f'{count / (1 << 20):.1f} MiB'


class Display:
    def __init__(self, item_count, total_bytes, limit_bytes):
        self.item_count = item_count
        self.total_bytes = total_bytes
        self.limit_bytes = limit_bytes
        self.drawn = 0
        self.is_terminal = sys.stdout.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'
        self.began = self.shown = time.monotonic()
        self.earlier = (self.began, 0)
        self.rate = 0.0

    def say(self, text=''):
        """A line that stays."""
        self.wipe()
        print(text, flush=True)

    def wipe(self):
        if self.drawn:
            sys.stdout.write(f'\x1b[{self.drawn}F\x1b[J')
            self.drawn = 0

    def keep(self):
        """What is drawn stays; the next frame comes below."""
        self.drawn = 0

    def is_due(self):
        return time.monotonic() - self.shown >= (DRAW_S if self.is_terminal else PLAIN_S)

    def draw(self, board, cores, queue_count):
        now = time.monotonic()
        self.shown = now
        delivered = board.consumer.delivered_count
        if now - self.earlier[0] >= 0.9:
            self.rate = (delivered - self.earlier[1]) / (now - self.earlier[0])
            self.earlier = now, delivered
        if self.is_terminal:
            self._draw_lines(board, cores, queue_count, now)
        else:
            self._draw_plain(board, cores, queue_count, now)

    def _draw_plain(self, board, cores, queue_count, now):
        parts = [f'{now - self.began:5.1f} s',
                 f'in {self._percent(board.accepted_bytes())}',
                 f'out {self._percent(board.consumer.delivered_bytes)}',
                 f'queue {queue_count}',
                 f'{self.rate:.0f} delivered/s',
                 f'kernel says {mebibytes(board.sampler.now_bytes)}']
        parts += [f'core {core.index}: {core.level}, resident {mebibytes(core.resident_bytes)},'
                  f' spilled {mebibytes(core.spilled_bytes)}' for core in cores]
        print('demo: ' + ' | '.join(parts), flush=True)

    def _draw_lines(self, board, cores, queue_count, now):
        width = shutil.get_terminal_size().columns - 1
        lines = ['  core  level        resident       spilled']
        lines += [f'  {core.index:>4}  {core.level:<8} {mebibytes(core.resident_bytes):>12}'
                  f' {mebibytes(core.spilled_bytes):>13}' for core in cores]
        lines += [
            f'  queue {queue_count}   delivered {board.consumer.delivered_count}'
            f' ({self.rate:.0f}/s)   refused for now {board.again_count()}',
            f'  kernel says {mebibytes(board.sampler.now_bytes)}, at most'
            f' {mebibytes(board.sampler.peak_bytes)} of {mebibytes(self.limit_bytes)} + 16 MiB',
            self._bar(board, now),
        ]
        self.wipe()
        sys.stdout.write('\n'.join(line[:width] for line in lines) + '\n')
        sys.stdout.flush()
        self.drawn = len(lines)

    def _percent(self, count):
        return f'{100 * count / self.total_bytes if self.total_bytes else 100:.0f} %'

    def _bar(self, board, now):
        """Delivered in full blocks, what the server holds behind it in light ones."""
        total = max(self.total_bytes, 1)
        out = min(BAR_CELLS, BAR_CELLS * board.consumer.delivered_bytes // total)
        held = min(BAR_CELLS, BAR_CELLS * board.accepted_bytes() // total)
        bar = '\u2588' * out + '\u2592' * (held - out) + '\u00b7' * (BAR_CELLS - max(held, out))
        if not (sys.stdout.encoding or '').lower().startswith('utf'):
            bar = '#' * out + '+' * (held - out) + '.' * (BAR_CELLS - max(held, out))
        return (f'  [{bar}] in {self._percent(board.accepted_bytes())},'
                f' out {self._percent(board.consumer.delivered_bytes)}, {now - self.began:.0f} s')

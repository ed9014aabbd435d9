# SPDX-License-Identifier: MIT
"""demo - the main job: real files through weir-server and back, byte for byte

      producer 1 ---\\                                /--- consumer
      producer 2 ----+-- TCP -->  weir-server  -- TCP      compares with the source
      ...           /             64 MiB, and
      one item late               an overflow file   <--- sampler: what the kernel says

Each of these is a process. This one starts them, shows how it goes, and judges.
Nothing here believes the server: bytes are compared with the files, memory is
what the kernel says. Only S of the last line, the bytes that went through the
overflow, is the server's own figure; the kernel has none for it.

Whatever ends the job (the end, an error, a signal) comes through one place that
stops all processes; should this process itself be killed, the kernel stops the
others (PR_SET_PDEATHSIG).
"""

import argparse
import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import board as boards
import consumer
import display as displays
import picture as pictures
import producer
import sampler
import sources
import status
import wire as wires

SLACK_BYTES = 16 << 20  # what the limit may be passed by: code, stacks, the kernel's own
HELD_ITEM = 10
START_S = 15
STOP_S = 15
TICK_S = 0.05
MAP_LINES_MAX = 60
PR_SET_PDEATHSIG = 1
OUR_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

READY = re.compile(rb'weir-server: ready on (\S+):(\d+), (\d+) workers?, limit (\d+) bytes')


class Failed(Exception):
    """Why the job cannot go on; the text is for people."""


class Interrupted(BaseException):
    """A signal asked us to end."""

    by = None  # its number: Python drops what is raised while it tidies up an object


class Job:
    """What every process of the job needs to know; filled before they are forked."""


def parse_bytes(text):
    match = re.fullmatch(r'(\d+)([kmg]?)', text.lower())
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of bytes like 64m or 1g')
    return int(match[1]) << {'': 0, 'k': 10, 'm': 20, 'g': 30}[match[2]]


def parse_count(text):
    if not re.fullmatch(r'[1-9]\d{0,2}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 1 to 999')
    return int(text)


def parse_options(words):
    parser = argparse.ArgumentParser(
        prog='demo.sh', allow_abbrev=False,
        description='Push real files through weir-server as one ordered stream, in no order and '
                    'with one early item missing for half of the time; pop them in order and '
                    'compare each with its source, byte for byte; measure from outside what the '
                    'server holds.',
        epilog='Exit status 0: every file came back as it is, and the kernel says that the server '
               'never held more than the limit and 16 MiB. 1: not so. 2: wrong options.')
    parser.add_argument('--files', metavar='DIR', default='/usr',
                        help='take the regular files below DIR (default: /usr)')
    parser.add_argument('--memory', metavar='BYTES', type=parse_bytes, default='64m',
                        help="the server's limit (default: 64m); files larger than an eighth of it "
                             'are left out')
    parser.add_argument('--bytes', metavar='BYTES', type=parse_bytes, default='1g',
                        help='take files up to this many bytes in all (default: 1g)')
    parser.add_argument('--producers', metavar='N', type=parse_count, default='4',
                        help='processes that push (default: 4)')
    parser.add_argument('--spill-dir', metavar='DIR', default='/var/tmp',
                        help='where the overflow files lie, in a new directory of their own '
                             '(default: /var/tmp)')
    parser.add_argument('--patience', metavar='SECONDS', type=parse_count, default='60',
                        help='give up when nothing has moved for so long (default: 60)')
    parser.add_argument('--seed', metavar='N', type=int, default=1,
                        help='of the order in which items are pushed (default: 1)')
    parser.add_argument('--server', metavar='FILE', required=True, help=argparse.SUPPRESS)
    parser.add_argument('--dump', metavar='FILE', help=argparse.SUPPRESS)
    return parser.parse_args(words)


def reason(error):
    """What went wrong, without Python's decoration."""
    if isinstance(error, TimeoutError):
        return 'no answer from the server for too long'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


# ---- Processes ------------------------------------------------------------------


def die_with_parent():
    """Be killed when the process that started us ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Child:
    """One of our own processes; it reports over a pipe when it is done or has failed."""

    def __init__(self, context, name, function, *arguments):
        self.name = name
        self.is_done = False
        self.reports, report = context.Pipe(duplex=False)
        self.process = context.Process(target=self._main, daemon=True,
                                       args=(report, os.getpid(), function, arguments))
        # A signal between fork and _main would be handled as the parent does.
        signal.pthread_sigmask(signal.SIG_BLOCK, OUR_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OUR_SIGNALS)
        report.close()

    def _main(self, report, parent, function, arguments):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OUR_SIGNALS)
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        try:
            function(*arguments)
            report.send(None)
        except (OSError, wires.WireError) as error:
            report.send(reason(error))

    def poll(self):
        """Whether it is done; Failed if it ended in any other way."""
        if self.is_done:
            return True
        try:
            if not self.reports.poll():
                return False
            text = self.reports.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise Failed(f'{self.name} died (status {self.process.exitcode})') from None
        if text is not None:
            raise Failed(f'{self.name}: {text}')
        self.is_done = True
        return True

    def kill(self):
        self.process.kill()
        self.process.join()


class Server:
    """weir-server, in a session of its own so that a Ctrl-C reaches only us."""

    def __init__(self, path, limit_bytes, spill_directory, patience_s):
        self.patience_s = min(patience_s, STOP_S)
        self.said = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(
                [path, '--memory', str(limit_bytes), '--port', '0', '--spill-dir', spill_directory],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.said,
                start_new_session=True, preexec_fn=die_with_parent)
        except OSError as error:
            raise Failed(f'cannot start {path}: {error.strerror}') from None
        self.ready = b''
        self.is_asked_to_stop = False

    def wait_ready(self, limit_bytes):
        """Read the line that says where it listens: (host, port, workers)."""
        out = self.process.stdout
        os.set_blocking(out.fileno(), False)
        deadline = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b'\n' not in self.ready:
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise Failed(f'weir-server was not ready within {START_S} s{self.tail()}')
                data = out.read()
                if data == b'':
                    self.process.wait()
                    raise Failed(f'weir-server ended with {self.ended()}{self.tail()}')
                self.ready += data or b''
        match = READY.match(self.ready)
        if not match:
            raise Failed(f'weir-server said {self.ready[:200]!r} where it should say ready')
        if int(match[4]) != limit_bytes:
            raise Failed(f'weir-server took {int(match[4])} bytes for a limit of {limit_bytes}')
        return match[1].decode(), int(match[2]), int(match[3])

    def ended(self):
        code = self.process.returncode
        if code < 0:
            return f'signal {-code} ({signal.Signals(-code).name})'
        return f'status {code}'

    def tail(self):
        """The last of what it said on stderr."""
        length = self.said.seek(0, os.SEEK_END)
        self.said.seek(max(0, length - 2000))
        text = self.said.read().decode(errors='replace').strip()
        return f'; it said:\n{text}' if text else ''

    def check(self):
        if self.process.poll() is not None:
            raise Failed(f'weir-server ended with {self.ended()}{self.tail()}')
        try:
            self.process.stdout.read()  # so that a talkative one never waits for us
        except OSError:
            pass

    def stop(self):
        """Ask it to end, and see that it does; Failed if it does not do so cleanly."""
        if self.process.poll() is None:
            self.is_asked_to_stop = True
            self.process.terminate()
            try:
                self.process.wait(self.patience_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise Failed(f'weir-server did not stop within {self.patience_s} s') from None
        if self.process.returncode != 0:
            raise Failed(f'weir-server ended with {self.ended()}{self.tail()}')

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Question:
    """INFO and WINFO over a connection of their own, asked without waiting for the answer."""

    REQUEST = wires.command(b'INFO') + wires.command(b'WINFO', producer.STREAM)

    def __init__(self, host, port, timeout_s):
        self.wire = wires.Wire(host, port, timeout_s)
        self.is_asked = False
        self.state = status.State()

    def ask(self):
        if not self.is_asked:
            self.wire.send(self.REQUEST)
            self.is_asked = True

    def poll(self):
        """Take the answer if it is there."""
        if self.is_asked and multiprocessing.connection.wait([self.wire.socket], 0):
            self._read()

    def now(self):
        """Ask, and wait for what is true now."""
        if self.is_asked:
            self._read()
        self.ask()
        self._read()
        return self.state

    def _read(self):
        info = self.wire.value()
        stream = self.wire.value()
        self.is_asked = False
        self.state = status.parse(info, stream)


# ---- The job --------------------------------------------------------------------


class Demo:
    def __init__(self, options, found):
        self.options = options
        self.context = multiprocessing.get_context('fork')
        self.job = job = Job()
        job.paths = found.paths
        job.sizes = found.sizes
        job.item_bytes_max = options.memory // 8
        job.patience_s = options.patience
        job.blocks = producer.shuffled_blocks(len(found.paths), options.seed)
        job.held_item = min(HELD_ITEM, len(found.paths) - 1)
        job.held_until_bytes = min(found.total_bytes // 2,
                                   found.total_bytes - found.sizes[job.held_item])
        job.board = boards.Board(len(found.paths), options.producers)
        job.measure = sampler.choose_measure()
        self.total_bytes = found.total_bytes
        self.display = displays.Display(len(found.paths), found.total_bytes, options.memory)
        self.server = None
        self.children = []
        self.picture = None
        self.spill_directory = None
        self.stall_s = 0.0
        self.seconds = 0.0
        self.has_verdict = False

    def run(self):
        """All of it; Failed when it did not get to its end."""
        try:
            self._start()
            try:
                self._watch()
            finally:
                self.seconds = time.monotonic() - self.display.began
            self._finish()
        except Failed as error:
            # A lost connection is seen first; that the server died is the reason.
            if self.server is not None and self._server_ended():
                raise Failed(f'weir-server ended with {self.server.ended()}'
                             f'{self.server.tail()}') from error
            raise
        finally:
            self._stop_all()

    def _server_ended(self):
        try:
            return not self.server.is_asked_to_stop and self.server.process.wait(0.5) != 0
        except subprocess.TimeoutExpired:
            return False

    def _start(self):
        job = self.job
        say = self.display.say
        try:
            self.spill_directory = tempfile.mkdtemp(prefix='weir-demo-', dir=self.options.spill_dir)
        except OSError as error:
            raise Failed(f'no directory in {self.options.spill_dir}: {error.strerror}') from None
        self.server = Server(self.options.server, self.options.memory, self.spill_directory,
                             self.options.patience)
        job.server_pid = self.server.process.pid
        job.spill_directory = self.spill_directory
        said = os.fstat(self.server.said.fileno())
        job.stderr_key = said.st_dev, said.st_ino
        self.stop_sampler, stop = self.context.Pipe()
        self.sampler = self._child('the sampler', sampler.run, job, stop)
        job.host, job.port, workers = self.server.wait_ready(self.options.memory)
        say(f'demo: weir-server {job.server_pid} on {job.host}:{job.port}, {workers} workers,'
            f' limit {self.options.memory} bytes, overflow in {self.spill_directory}')
        say(f'demo: {self.options.producers} producers push out of order (seed'
            f' {self.options.seed}); item {job.held_item} is held back until half of all bytes'
            ' are in')
        try:
            self.question = Question(job.host, job.port, self.options.patience)
        except OSError as error:
            raise Failed(f'cannot connect to weir-server: {reason(error)}') from None
        self.display.began = time.monotonic()
        self.workers = [self._child(f'producer {i + 1}', producer.run, job, i)
                        for i in range(self.options.producers)]
        self.late = self._child('the producer of the held item', producer.run_held, job)
        self.consumer = self._child('the consumer', consumer.run, job)

    def _child(self, name, function, *arguments):
        child = Child(self.context, name, function, *arguments)
        self.children.append(child)
        return child

    def _watch(self):
        """Until the consumer has seen the last item, or something is wrong."""
        display = self.display
        board = self.job.board
        moved = None
        moved_at = ask_at = time.monotonic()
        while not self.consumer.poll():
            if Interrupted.by is not None:
                raise Interrupted(Interrupted.by)
            self.server.check()
            for child in self.children:
                child.poll()
            if self.sampler.is_done:
                raise Failed('the sampler ended before its time')
            try:
                self.question.poll()
                if time.monotonic() >= ask_at:
                    self.question.ask()
                    ask_at = time.monotonic() + displays.DRAW_S
            except (OSError, wires.WireError) as error:
                raise Failed(f'INFO: {reason(error)}') from None
            if display.is_due():
                state = self.question.state
                display.draw(board, state.cores, state.queue_count)
            self._look_at_stall()

            now = time.monotonic()
            seen = (board.accepted_count(), board.consumer.place,
                    board.consumer.mismatched_count)
            if seen != moved:
                moved, moved_at = seen, now
            elif now - moved_at > self.options.patience:
                self._give_up()
            waiting = [child.reports for child in self.children if not child.is_done]
            multiprocessing.connection.wait(waiting, TICK_S)

    def _give_up(self):
        """What was not delivered is lost."""
        board = self.job.board
        place = board.consumer.place
        count = len(self.job.paths)
        board.consumer.lost_count += count - place
        self.has_verdict = True
        raise Failed(
            f'nothing has moved for {self.options.patience} s: {board.accepted_count()} of'
            f' {count} items were accepted, {place} popped; next is'
            f' {os.fsdecode(self.job.paths[place])}, the server says'
            f' {self.question.state.words()}')

    def _look_at_stall(self):
        """While the stream waits for the held item: one picture of the region."""
        board = self.job.board
        held_is_in = board.producers[boards.HELD_PRODUCER].accepted_count > 0
        if not held_is_in:
            self.stall_s = time.monotonic() - self.display.began
        if self.options.dump is not None:
            if self.picture is None:
                if board.accepted_bytes() * 5 >= self.job.held_until_bytes * 3:
                    self.picture = pictures.Picture(self.options.dump, self.job.server_pid,
                                                    die_with_parent)
            elif (drawn := self.picture.poll()) is not None:
                self._show_picture(*drawn)

    def _show_picture(self, name, text):
        say = self.display.say
        say(f'demo: the stream waits for item {self.job.held_item}; {name}:')
        lines = text.rstrip('\n').split('\n')
        for line in lines[:MAP_LINES_MAX]:
            say(line)
        if len(lines) > MAP_LINES_MAX:
            say(f'(and {len(lines) - MAP_LINES_MAX} more lines)')

    def _finish(self):
        """Everything came: ask for the last figures, then end the server as one does."""
        deadline = time.monotonic() + STOP_S
        for child in (*self.workers, self.late):
            while not child.poll():
                if time.monotonic() > deadline:
                    raise Failed(f'{child.name} does not end, though all was delivered')
                multiprocessing.connection.wait([child.reports], TICK_S)
        self.has_verdict = True
        try:
            state = self.question.now()
            self.display.draw(self.job.board, state.cores, state.queue_count)
            self.display.keep()
        except (OSError, wires.WireError) as error:
            raise Failed(f'INFO: {reason(error)}') from None
        if state.queue_count != 0:
            raise Failed(f'all was delivered, but the stream still holds {state.queue_count} items')
        self.sampler.poll()
        self.stop_sampler.send(None)
        deadline = time.monotonic() + STOP_S
        while not self.sampler.poll():
            if time.monotonic() > deadline:
                raise Failed('the sampler does not end')
            multiprocessing.connection.wait([self.sampler.reports], TICK_S)
        if state.put_bytes > 0 and self.job.board.sampler.file_count == 0:
            raise Failed('weir-server says that it used its overflow, but the sampler found no'
                         ' file of it: the peak is not the truth')
        deadline = time.monotonic() + STOP_S
        while self.picture is not None and not self.picture.is_over():
            if (drawn := self.picture.poll()) is not None:
                self._show_picture(*drawn)
            elif time.monotonic() > deadline:
                raise Failed('weir-dump does not end')
            else:
                time.sleep(TICK_S)
        self.question.wire.close()
        self.server.stop()
        left = os.listdir(self.spill_directory)
        if left:
            raise Failed(f'weir-server left {len(left)} files in its overflow directory')

    def _stop_all(self):
        for number in OUR_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for child in self.children:
            child.kill()
        if self.picture is not None:
            self.picture.close()
        if self.server is not None:
            try:
                self.server.stop()
            except Failed:
                pass
        if self.spill_directory is not None:
            shutil.rmtree(self.spill_directory, ignore_errors=True)
        self.display.wipe()
        sys.stdout.flush()

    # ---- The verdict ------------------------------------------------------------

    def tell(self):
        """What was seen besides the last line."""
        board = self.job.board
        say = self.display.say
        count = max(board.sampler.sample_count, 1)
        say(f'demo: at the peak {displays.mebibytes(board.sampler.peak_anon_bytes)} anonymous +'
            f' {displays.mebibytes(board.sampler.peak_shmem_bytes)} shared +'
            f' {displays.mebibytes(board.sampler.peak_cache_bytes)} page cache of region files;'
            f' {count} samples ({self.job.measure.__name__.split("_")[-1]}),'
            f' {board.sampler.gap_ns / 1e6:.0f} ms apart at most')
        say(f'demo: the stream stood still for {self.stall_s:.1f} s; {board.again_count()} pushes'
            f' were refused for lack of memory and made again; {board.consumer.changed_count}'
            f' files changed meanwhile (compared by SHA-256), {board.gone_count()} went away')

    def result(self):
        """The last line, and whether it is as it must be."""
        board = self.job.board
        row = board.consumer
        files = len(self.job.paths) - board.gone_count()
        peak = board.sampler.peak_bytes
        spilled = self.question.state.put_bytes
        self.display.say(
            f'demo: files {files} bytes {sum(board.lengths)} delivered {row.delivered_count}'
            f' mismatched {row.mismatched_count} lost {row.lost_count} limit {self.options.memory}'
            f' peak {peak} spilled {spilled} seconds {self.seconds:.1f}')
        return (row.delivered_count == files and row.mismatched_count == 0 and row.lost_count == 0
                and 0 < peak <= self.options.memory + SLACK_BYTES)


def _interrupt(number, _frame):
    Interrupted.by = number
    raise Interrupted(number)


def main(words):
    options = parse_options(words)
    sys.stdout.reconfigure(errors='backslashreplace')  # a file's name may be any bytes
    sys.stderr.reconfigure(errors='backslashreplace')
    for number in OUR_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        found = sources.find(os.fsencode(options.files), options.bytes, options.memory // 8)
        if not found.paths:
            print(f'demo: no file to take below {options.files}', file=sys.stderr)
            return 1
        print(f'demo: {len(found.paths)} files, {found.total_bytes} bytes below {options.files}'
              f' (left out: {found.large_count} larger than {options.memory // 8} bytes,'
              f' {found.beyond_count} beyond {options.bytes} bytes in all,'
              f' {found.unreadable_count} unreadable)', flush=True)
        gc.collect()
        gc.freeze()  # shared with the children as it is
        demo = Demo(options, found)
        try:
            demo.run()
        except Failed as error:
            print(f'demo: {error}', file=sys.stderr, flush=True)
            if demo.has_verdict:
                demo.result()
            return 1
        demo.tell()
        return 0 if demo.result() else 1
    except Interrupted as signalled:
        print('demo: interrupted', file=sys.stderr)
        return 128 + signalled.args[0]


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

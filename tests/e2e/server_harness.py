# SPDX-License-Identifier: MIT
"""server_harness - start weir-server, talk to it, look at it from outside

Python's standard library only. A Client speaks RESP2 over a raw socket; a Server
is a process with its own spill directory; figures of memory are the kernel's.
"""

import ctypes
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

WAIT_S = 60
CLONE_NEWNS = 0x20000


def skip(reason):
    """Status 77: meson counts it as passed over."""
    print(f'skipped: {reason}')
    sys.exit(77)


def check(condition, what):
    if not condition:
        raise AssertionError(what)


class ReplyError(Exception):
    """An error reply."""


class Client:
    def __init__(self, port, timeout_s=WAIT_S, receive_bytes=None):
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect(('127.0.0.1', port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def encode(*words):
        parts = [b'*%d\r\n' % len(words)]
        for word in words:
            if isinstance(word, str):
                word = word.encode()
            elif isinstance(word, int):
                word = b'%d' % word
            parts.append(b'$%d\r\n' % len(word))
            parts.append(bytes(word))
            parts.append(b'\r\n')
        return b''.join(parts)

    def send(self, *words):
        self.socket.sendall(self.encode(*words))

    def send_raw(self, data):
        self.socket.sendall(data)

    def _fill(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError('the server closed the connection')
        self.buffer += data

    def _line(self):
        while True:
            at = self.buffer.find(b'\r\n')
            if at >= 0:
                line = bytes(self.buffer[:at])
                del self.buffer[:at + 2]
                return line
            self._fill()

    def _bytes(self, count):
        while len(self.buffer) < count + 2:
            self._fill()
        data = bytes(self.buffer[:count])
        if self.buffer[count:count + 2] != b'\r\n':
            raise ValueError('a bulk without its end')
        del self.buffer[:count + 2]
        return data

    def receive(self):
        """One reply; an error reply as a ReplyError object, not raised."""
        line = self._line()
        kind, text = line[:1], line[1:]
        if kind == b'+':
            return text.decode()
        if kind == b'-':
            return ReplyError(text.decode())
        if kind == b':':
            return int(text)
        if kind == b'$':
            return None if text == b'-1' else self._bytes(int(text))
        if kind == b'*':
            return None if text == b'-1' else [self.receive() for _ in range(int(text))]
        raise ValueError(f'no reply: {line[:80]!r}')

    def __call__(self, *words):
        self.send(*words)
        reply = self.receive()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def error(self, *words):
        """The text of the error reply that this must give."""
        self.send(*words)
        reply = self.receive()
        if not isinstance(reply, ReplyError):
            raise AssertionError(f'{words[:3]!r} was answered {reply!r}')
        return str(reply)

    def info(self):
        text = self('INFO').decode()
        return dict(line.split(':', 1) for line in text.split('\r\n') if ':' in line)

    def is_closed(self):
        """Whether the server has closed; waits for it."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except socket.timeout:
            return False


class Server:
    def __init__(self, program, *options, spill_directory=None, prefix=(), preexec=None):
        self.own_directory = None
        if spill_directory is None:
            self.own_directory = tempfile.TemporaryDirectory(dir='/var/tmp', prefix='weir-e2e-')
            spill_directory = self.own_directory.name
        self.spill_directory = spill_directory
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*prefix, program, '--port', '0', '--spill-dir', spill_directory, *options],
            stdout=subprocess.PIPE, stderr=self.errors, preexec_fn=preexec)
        line = self.process.stdout.readline().decode()
        match = re.fullmatch(
            r'weir-server: ready on 127\.0\.0\.1:(\d+), (\d+) workers, limit (\d+) bytes, '
            r'spill in (.*)\n', line)
        if not match:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f'no ready line, but {line!r}\n{self.error_text()}')
        self.port = int(match.group(1))
        self.worker_count = int(match.group(2))
        self.limit = int(match.group(3))
        self.pid = self.process.pid

    def error_text(self):
        if self.errors.closed:
            return self.errors_said
        self.errors.seek(0)
        return self.errors.read().decode(errors='replace')

    def client(self, **options):
        return Client(self.port, **options)

    def stop(self):
        """SIGTERM, and what it ended with; sanitizers report through the status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = 'did not stop'
        self.clean()
        return status

    def kill(self):
        self.process.kill()
        self.process.wait()

    def clean(self):
        self.process.stdout.close()
        self.errors_said = self.error_text()
        self.errors.close()
        if self.own_directory:
            self.own_directory.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            status = self.stop()
            if kind is None and status != 0:
                raise AssertionError(f'the server ended with {status}\n{self.error_text()}')
        elif kind is None:
            raise AssertionError(
                f'the server ended by itself: {self.process.returncode}\n{self.error_text()}')
        if kind is not None:
            sys.stderr.write(self.error_text())

    # ---- As the kernel sees it -------------------------------------------------

    def descriptors(self):
        return len(os.listdir(f'/proc/{self.pid}/fd'))

    def memory(self):
        """RssAnon + RssShmem, in bytes."""
        total = 0
        with open(f'/proc/{self.pid}/status', encoding='ascii') as file:
            for line in file:
                if line.startswith(('RssAnon:', 'RssShmem:')):
                    total += int(line.split()[1]) * 1024
        return total


def run(*words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout.decode()


def mount_disk(directory, mebibytes):
    """The path of an ext4 image of its own, which this process and its children see; or skip."""
    image = os.path.join(directory, 'image')
    disk = os.path.join(directory, 'disk')
    if os.geteuid() != 0:
        skip('only root may mount')
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        skip('no mount namespace')
    os.mkdir(disk)
    with open(image, 'wb') as file:
        file.truncate(mebibytes * (1 << 20))
    try:
        run('mount', '--make-rprivate', '/')
        run('mkfs.ext4', '-q', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image)
        run('mount', '-o', 'loop', image, disk)
    except (OSError, subprocess.CalledProcessError) as error:
        skip(f'no disk of its own: {error}')
    return disk


def wait_for(condition, seconds=WAIT_S, what='condition'):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f'{what} did not come true in {seconds} s')
        time.sleep(0.01)


def pattern(seed, count):
    """`count` bytes that no other seed gives."""
    unit = (b'%016x' % ((seed * 0x9e3779b97f4a7c15 + 1) & (1 << 64) - 1)) * 4
    return (unit * (count // len(unit) + 1))[:count]


def raise_descriptors():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

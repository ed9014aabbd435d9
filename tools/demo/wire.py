# SPDX-License-Identifier: MIT
"""wire - the client's side of RESP, for few large buffers

One connection. Replies are read into one buffer that is kept; a bulk string is
answered as a place in that buffer, so that nothing is copied to look at it.
"""

import socket

CAPACITY_BYTES = 1 << 20


class WireError(Exception):
    """The server closed the connection, or answered what is no RESP."""


class Wire:
    def __init__(self, host, port, timeout_s):
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(CAPACITY_BYTES)
        self._view = memoryview(self.buffer)
        self._start = 0
        self._end = 0

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def _want(self, wanted):
        """Have `wanted` bytes from _start on in the buffer."""
        if self._start + wanted > len(self.buffer):
            held = self._end - self._start
            target = self.buffer
            if wanted > len(target):
                target = bytearray(wanted + CAPACITY_BYTES)
            # Through bytes: source and target may be the same memory.
            target[:held] = bytes(self._view[self._start:self._end])
            if target is not self.buffer:
                self.buffer = target
                self._view = memoryview(target)
            self._start = 0
            self._end = held
        while self._end - self._start < wanted:
            count = self.socket.recv_into(self._view[self._end:])
            if count == 0:
                raise WireError('the server closed the connection')
            self._end += count

    def line(self):
        """The next line, without its end."""
        if self._start == self._end:
            self._start = self._end = 0
        searched = self._start
        while True:
            at = self.buffer.find(b'\r\n', searched, self._end)
            if at >= 0:
                text = self.buffer[self._start:at]
                self._start = at + 2
                return text
            held = self._end - self._start
            self._want(held + 1)
            searched = max(self._start, self._start + held - 1)

    def header(self):
        """The next line as (kind, number or text): of `*3` it is (ord('*'), 3)."""
        text = self.line()
        if not text:
            raise WireError('an empty line where a reply should be')
        kind = text[0]
        if kind in b'*$:':
            try:
                return kind, int(text[1:])
            except ValueError:
                raise WireError(f'no number in reply {bytes(text[:80])!r}') from None
        return kind, text[1:]

    def bulk(self, length):
        """Where the `length` bytes of a bulk string are in self.buffer, until the next read."""
        self._want(length + 2)
        start = self._start
        if self.buffer[start + length:start + length + 2] != b'\r\n':
            raise WireError('a bulk string without its end')
        self._start = start + length + 2
        return start

    def value(self):
        """A whole reply as Python values; for the small ones."""
        kind, rest = self.header()
        if kind == ord('*'):
            return None if rest < 0 else [self.value() for _ in range(rest)]
        if kind == ord('$'):
            if rest < 0:
                return None
            start = self.bulk(rest)
            return bytes(self._view[start:start + rest])
        if kind == ord(':'):
            return rest
        if kind == ord('+'):
            return bytes(rest)
        if kind == ord('-'):
            return WireError(rest.decode(errors='replace'))
        raise WireError(f'a reply of unknown kind {chr(kind)!r}')


def command(*words):
    """One command as RESP."""
    parts = [b'*%d\r\n' % len(words)]
    for word in words:
        parts.append(b'$%d\r\n%b\r\n' % (len(word), word))
    return b''.join(parts)

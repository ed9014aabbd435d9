# SPDX-License-Identifier: MIT
"""picture - weir-dump --map of the server's fullest region, while it lives

Two runs of weir-dump: the first tells which region holds most, the second draws
it. Nobody waits for either: poll() says whether there is something to show. On a
terminal weir-dump draws with colours, so it is given one (a pseudo-terminal).
"""

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios


class Run:
    """One program, and all that it has said so far."""

    def __init__(self, words, on_terminal, preexec):
        self.words = words
        self.said = b''
        if on_terminal:
            self.fd, out = pty.openpty()
            size = shutil.get_terminal_size()
            fcntl.ioctl(out, termios.TIOCSWINSZ, struct.pack('4H', size.lines, size.columns, 0, 0))
        else:
            self.fd, out = os.pipe()
        os.set_blocking(self.fd, False)
        self.process = None
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=out, preexec_fn=preexec)
        except OSError as error:
            self.said = f'cannot start {words[0]}: {error.strerror}\n'.encode()
        finally:
            os.close(out)

    def poll(self):
        """Whether it is over."""
        is_over = self.process is None or self.process.poll() is not None
        try:
            while data := os.read(self.fd, 65536):
                self.said += data
        except OSError:
            pass  # nothing now (EAGAIN), or a pseudo-terminal that nobody holds (EIO)
        return is_over

    def is_good(self):
        return self.process is not None and self.process.returncode == 0

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


class Picture:
    def __init__(self, path, pid, preexec):
        self.words = [path, '--pid', str(pid)]
        self.preexec = preexec
        self.run = Run([*self.words, '--json'], False, preexec)
        self.is_drawing = False

    def poll(self):
        """(what was run, what it drew) once, when it is there; else None."""
        if self.run is None or not self.run.poll():
            return None
        if self.is_drawing or not self.run.is_good():
            return self._end()
        words = [*self.words, '--region', str(_fullest(self.run.said)), '--map']
        self.run.close()
        self.run = Run(words, sys.stdout.isatty(), self.preexec)
        self.is_drawing = True
        return None

    def _end(self):
        name = ' '.join(['weir-dump', *self.run.words[1:]])
        text = self.run.said.decode(errors='replace').replace('\r\n', '\n')
        self.close()
        return name, text

    def is_over(self):
        return self.run is None

    def close(self):
        if self.run is not None:
            self.run.close()
            self.run = None


def _fullest(text):
    """The number of the region that holds most."""
    try:
        regions = json.loads(text)['regions']
        return max(regions, key=lambda region: region['live_bytes'])['region']
    except (ValueError, KeyError, TypeError):
        return 0

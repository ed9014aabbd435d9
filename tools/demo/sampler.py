# SPDX-License-Identifier: MIT
"""sampler - what the kernel says that a process holds

From outside, every 20 ms, without asking the process:

    RssAnon + RssShmem of /proc/PID/status      its heap, stacks, memfds
  + page cache of its region files              files without a name, or below
                                                the overflow directory, behind
                                                its descriptors

A region's file has no name, so it is opened through /proc/PID/fd, once for each
inode, and cachestat(2) tells how many of its pages are in memory, whoever mapped
them. Kernels before 6.5 have no cachestat; there mincore(2) is asked over a
mapping of our own that is never touched. Memfds are left out: what is mapped of
them is RssShmem already.
"""

import ctypes
import os
import stat
import time

INTERVAL_NS = 20_000_000
PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')

_CACHESTAT = 451  # on every architecture: it came after the numbers were joined
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_PROT_READ = 1
_MAP_SHARED = 1


class _Range(ctypes.Structure):
    _fields_ = [('offset', ctypes.c_uint64), ('length', ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in
                ('cached', 'dirty', 'writeback', 'evicted', 'recently_evicted')]


def _raise_errno(what):
    number = ctypes.get_errno()
    raise OSError(number, f'{what}: {os.strerror(number)}')


def cached_by_cachestat(fd):
    """Bytes of the file in the page cache, or OSError."""
    whole = _Range(0, 0)
    answer = _Cachestat()
    if _libc.syscall(ctypes.c_long(_CACHESTAT), ctypes.c_uint(fd), ctypes.byref(whole),
                     ctypes.byref(answer), ctypes.c_uint(0)) != 0:
        _raise_errno('cachestat')
    return answer.cached * PAGE_BYTES


def cached_by_mincore(fd):
    """The same, from a mapping."""
    length = os.fstat(fd).st_size
    if length == 0:
        return 0
    address = _libc.mmap(None, length, _PROT_READ, _MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        _raise_errno('mmap')
    try:
        pages = (length + PAGE_BYTES - 1) // PAGE_BYTES
        vector = ctypes.create_string_buffer(pages)
        if _libc.mincore(address, length, vector) != 0:
            _raise_errno('mincore')
        return vector.raw.count(b'\x01') * PAGE_BYTES
    finally:
        _libc.munmap(address, length)


def choose_measure():
    """cachestat where the kernel has it; tried on a file of ours: others' it may refuse."""
    fd = os.memfd_create('cachestat')
    try:
        cached_by_cachestat(fd)
        return cached_by_cachestat
    except OSError:
        return cached_by_mincore
    finally:
        os.close(fd)


class Sampler:
    def __init__(self, pid, row, measure, directory, stderr_key):
        self.pid = pid
        self.row = row
        self.measure = measure
        self.directory = directory + '/'
        self.not_regions = {stderr_key}  # memfds too, as they are met
        self._fds = {}     # (device, inode): our descriptor
        self._status = os.open(f'/proc/{pid}/status', os.O_RDONLY | os.O_CLOEXEC)

    def sample(self):
        """One look; ProcessLookupError when the process is gone."""
        anon, shmem = self._resident()
        cache = self._cached()
        total = anon + shmem + cache
        row = self.row
        row.now_bytes = total
        if total > row.peak_bytes:
            row.peak_anon_bytes = anon
            row.peak_shmem_bytes = shmem
            row.peak_cache_bytes = cache
            row.peak_bytes = total
        row.sample_count += 1

    def _resident(self):
        text = os.pread(self._status, 8192, 0)
        at = text.find(b'\nRssAnon:')
        if at < 0:
            raise ProcessLookupError(self.pid)  # a zombie has no memory
        anon = int(text[at + 9:text.index(b'kB', at)])
        at = text.index(b'\nRssShmem:')
        shmem = int(text[at + 10:text.index(b'kB', at)])
        return anon * 1024, shmem * 1024

    def _cached(self):
        directory = f'/proc/{self.pid}/fd'
        seen = {}
        for name in os.listdir(directory):
            path = f'{directory}/{name}'
            try:
                status = os.stat(path)
                key = status.st_dev, status.st_ino
                if not stat.S_ISREG(status.st_mode) or key in seen or key in self.not_regions:
                    continue
                fd = self._fds.pop(key, None)
                if fd is None:
                    target = os.readlink(path)
                    if target.startswith('/memfd:') or (
                            status.st_nlink != 0 and not target.startswith(self.directory)):
                        self.not_regions.add(key)
                        continue
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                seen[key] = fd
            except FileNotFoundError:
                continue  # closed since it was listed
        # What the process has closed must not live on through us.
        for fd in self._fds.values():
            os.close(fd)
        self._fds = seen
        self.row.file_count = max(self.row.file_count, len(seen))
        return sum(self.measure(fd) for fd in seen.values())


def run(job, stop):
    """Until `stop` (an end of a pipe) has something to say."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # on time, also where all cores are busy
    except OSError:
        pass  # not for everybody
    sampler = Sampler(job.server_pid, job.board.sampler, job.measure,
                      os.path.realpath(job.spill_directory), job.stderr_key)
    earlier = due = time.monotonic_ns()
    while True:
        sampler.sample()
        now = time.monotonic_ns()
        job.board.sampler.gap_ns = max(job.board.sampler.gap_ns, now - earlier)
        earlier = now
        due = max(due + INTERVAL_NS, now)
        if stop.poll((due - now) / 1e9):
            return

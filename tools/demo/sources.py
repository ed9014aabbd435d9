# SPDX-License-Identifier: MIT
"""sources - which files the job takes

All regular files below a directory, in the order of their names, until the
bytes asked for are reached. A file's place in this list is its sequence in the
stream. Symbolic links are not followed and not taken; what cannot be read is
counted and left out.
"""

import os
import stat


class Sources:
    """The list, and what was left out of it."""

    def __init__(self):
        self.paths = []
        self.sizes = []
        self.total_bytes = 0
        self.large_count = 0
        self.beyond_count = 0
        self.unreadable_count = 0


def find(directory, bytes_max, item_bytes_max):
    """Walk `directory` (bytes) to its end, take what fits, count the rest."""
    found = Sources()
    pending = [directory]
    while pending:
        path = pending.pop()
        try:
            with os.scandir(path) as entries:
                names = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError:
            found.unreadable_count += 1
            continue
        files = []
        for entry in names:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError:
                found.unreadable_count += 1
                continue
            if stat.S_ISREG(status.st_mode):
                files.append((entry.path, status.st_size))
        for path, size in reversed(files):
            _take(found, path, size, bytes_max, item_bytes_max)
    return found


def _take(found, path, size, bytes_max, item_bytes_max):
    if size > item_bytes_max:
        found.large_count += 1
    elif found.beyond_count > 0 or found.total_bytes + size > bytes_max:
        # The first that does not fit ends the list: filling up with ever
        # smaller files would make an odd mix of the last megabyte.
        found.beyond_count += 1
    elif not os.access(path, os.R_OK):
        found.unreadable_count += 1
    else:
        found.paths.append(path)
        found.sizes.append(size)
        found.total_bytes += size

# SPDX-License-Identifier: MIT
"""status - what the server says of itself, for the display

Taken from INFO and WINFO. Only `put_bytes` gets into the verdict's line (the
bytes that went through the overflow); no judgement rests on any of it.
"""


class Core:
    """One worker."""

    def __init__(self, index):
        self.index = index
        self.level = '?'
        self.resident_bytes = 0
        self.spilled_bytes = 0


class State:
    def __init__(self):
        self.cores = []
        self.queue_count = 0
        self.put_bytes = 0
        self.stream = {}

    def words(self):
        return ', '.join(f'{name} {value}' for name, value in self.stream.items()) or 'nothing'


def _number(fields, name):
    try:
        return int(fields.get(name, 0))
    except ValueError:
        return 0


def _fields(info):
    """The lines `name:value` of INFO; a core's `worker0:name=value,...` becomes a dictionary."""
    fields = {}
    for line in info.decode(errors='replace').split('\r\n'):
        name, colon, value = line.partition(':')
        if colon and not line.startswith('#'):
            if '=' in value:
                value = dict(pair.partition('=')[::2] for pair in value.split(','))
            fields[name] = value
    return fields


def parse(info, stream):
    """The answers to INFO and to WINFO; either may be an error or empty."""
    state = State()
    fields = _fields(info) if isinstance(info, bytes) else {}
    while isinstance(worker := fields.get(f'worker{len(state.cores)}'), dict):
        core = Core(len(state.cores))
        core.level = worker.get('level', fields.get('memory_level', '?'))
        core.resident_bytes = _number(worker, 'resident')
        core.spilled_bytes = _number(worker, 'live')
        state.put_bytes += _number(worker, 'put')
        state.cores.append(core)
    if isinstance(stream, list):
        pairs = zip(stream[::2], stream[1::2])
        state.stream = {name.decode(): value.decode() if isinstance(value, bytes) else value
                        for name, value in pairs if isinstance(name, bytes)}
        state.queue_count = _number(state.stream, 'depth')
    return state

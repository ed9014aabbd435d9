#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench - weir-bench runs all its cases, and says what it says it says

    tests/e2e/bench_e2e.py --bench PROGRAM

TAP. Not how fast: that is for who reads the figures on a quiet machine.
"""

import argparse
import json
import subprocess
import sys

YARDSTICKS = {
    'region': {
        'memcpy', 'memcpy, in order', 'memcpy, at random', 'memcpy + lines of tables', 'memcpy into a file',
        'self - lost core time', 'ftruncate', 'pwrite + write-back', 'O_DIRECT read',
    },
    'governor': {'atomic add', 'atomic add, shared', 'plain loads and stores', 'two atomic adds'},
    'reorder': {'memcpy', 'tsearch + malloc', 'sequential 256 KiB', 'random 16 KiB'},
    'writebuf': {'memcpy'},
}


def run(program, *options):
    return subprocess.run([program, *options], capture_output=True, text=True)


# What the rows must show, as (row, of, name): the bounds are the project's.
TARGETS = {
    ('put 64 B, after free in order', 'ratio', 'memcpy'): 4,
    ('put 64 B, after free at random', 'ns', None): 30,
    ('put 64 B, into isolated holes', 'ns', None): 180,
    ('put 1 KiB, after free in order', 'ratio', 'memcpy'): 1.2,
    ('put 1 KiB, after free at random', 'ns', None): 80,
    ('put 1 KiB, into isolated holes', 'ratio', 'memcpy'): 3.2,
    ('fill + drain 64 B, fresh space', 'ratio', 'memcpy'): 3.5,
    ('fill + drain 1 KiB, fresh space', 'ratio', 'memcpy'): 1.6,
    ('churn 512 MiB: put + get + free', 'ratio', 'memcpy, in order'): 1.7,
    ('churn 512 MiB: put + get + free', 'figure', 'peak file/live'): 1.04,
    ('shift: put 16 KiB where 2 KiB were', 'ratio', 'memcpy'): 3,
    ('shift: put 16 KiB where 2 KiB were', 'figure', 'peak file/live'): 1.08,
    ('shift: put 16 KiB where 2 KiB were', 'figure', 'moved/put'): 0.3,
    ('churn 512 MiB, 64 resident: put + free', 'figure', 'written/put'): 2,
    ('churn 512 MiB, 64 resident: put + free', 'figure', 'peak file/live'): 1.3,
    ('churn 512 MiB, 64 resident: put + free', 'figure', "peak resident MiB, the kernel's"): 96,
    ('the same, 80 % of it in a hot 20 %', 'figure', 'written/put'): 2.2,
    ('the same, 80 % of it in a hot 20 %', 'figure', 'peak file/live'): 1.35,
    ('the same, 80 % of it in a hot 20 %', 'figure', "peak resident MiB, the kernel's"): 96,
    ('10^4 holes, 64 B-2 KiB: free + put', 'ratio', 'memcpy'): 1.1,
    ('10^6 holes, 64 B-2 KiB: free + put', 'figure', 'ns / ns at 10^3'): 1.2,
    ('10^4 holes, 64 B-32 KiB: free + put', 'ratio', 'memcpy'): 1.1,
    ('grow: put 4 KiB, 64 MiB to 2 GiB', 'max', None): 1e6,
    ('grow: put 4 KiB, 64 MiB to 2 GiB', 'max', 'self - lost core time'): 1e6,
    ('grow: put 4 KiB, to 4 GiB at 1 GB/s', 'p99.9', None): 5e5,
    ('grow: put 4 KiB, to 4 GiB at 1 GB/s', 'max', None): 5e6,
    ('grow: put 4 KiB, to 4 GiB at 1 GB/s', 'p99.9', 'self - lost core time'): 5e5,
    ('grow: put 4 KiB, to 4 GiB at 1 GB/s', 'max', 'self - lost core time'): 5e6,
    ('emptied: all of 512 MiB freed, ticks', 'figure', 's until <= 4 MiB (3: never)'): 1,
    ('emptied: all of 512 MiB freed, ticks', 'figure', 'worst tick, us'): 1000,
    ('emptied: all of 512 MiB freed, ticks', 'figure', 'worst own tick, us'): 1000,
    ('emptied: the same, 64 MiB resident', 'figure', 's until <= 4 MiB (3: never)'): 1,
    ('emptied: the same, 64 MiB resident', 'figure', 'worst tick, us'): 1000,
    ('emptied: the same, 64 MiB resident', 'figure', 'worst own tick, us'): 1000,
    ('fetch 16 KiB at random, 16 ahead', 'speed', 'O_DIRECT read'): 0.85,
    ('fetch 16 KiB in order, 16 ahead', 'speed', 'O_DIRECT read'): 0.85,
    ('charge + refund, below soft', 'ns', None): 5,
    ('charge + refund, 2 threads, 2 accounts', 'figure', 'part of what two plain loops reach'): 0.95,
    ('after a stall, 1 GiB in order', 'speed', 'sequential 256 KiB'): 0.8,
    ('after a stall, 1 GiB in order', 'figure', 'device/spilled'): 1.05,
    ('after a stall, 1 GiB in order', 'figure', 'rewritten'): 0,
    ('after a stall, 1 GiB in order', 'figure', 'memory MiB'): 36,
    ('after a stall, 1 GiB shuffled', 'speed', 'random 16 KiB'): 0.8,
    ('after a stall, 1 GiB shuffled', 'figure', 'device/spilled'): 1.05,
    ('after a stall, 1 GiB shuffled', 'figure', 'rewritten'): 0,
    ('after a stall, 1 GiB shuffled', 'figure', 'memory MiB'): 36,
}

# Only where this user may make a memory cgroup.
TARGETS_LIMITED = {
    (row, *target): bound
    for row in ('limited: 4 KiB at 400 MiB/s in 256 MiB', 'limited: the same, 1 GiB stays behind')
    for target, bound in {
        ('p99.9', None): 4e5,
        ('p99.9', 'self - lost core time'): 4e5,
        ('figure', 'puts above 10 ms that waited'): 3,
        ('figure', 'cgroup peak MiB'): 96,
    }.items()
}


def check_targets(row):
    """what is met is what the value and the bound say; the bounds by (row, of, name)"""
    bounds = {}
    for target in row['targets']:
        bound = target.get('at_most', target.get('at_least'))
        met = target['value'] <= bound if 'at_most' in target else target['value'] >= bound
        # The value is rounded in JSON, the verdict is not.
        assert target['met'] == met or abs(target['value'] - bound) < 0.001, row
        bounds[row['row'], target['of'], target.get('name')] = bound
    return bounds


def case_json(program):
    """every row of every module has positive times, a yardstick, ordered figures, and its targets"""
    result = run(program, 'all', '--quick', '--runs', '2', '--json')
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data['runs'] == 2
    seen = {module: set() for module in YARDSTICKS}
    passed_over = {row['row'] for row in data['rows'] if 'passed_over' in row}
    bounds = {}
    for row in data['rows']:
        if 'passed_over' in row:
            print(f"# passed over: {row['row']}: {row['passed_over']}")
            continue
        bounds.update(check_targets(row))
        name, sides = row['row'], row['sides']
        assert sides[0]['name'] == 'self' and len(sides) > 1, name
        assert all(side['ns'] > 0 for side in sides), row
        for side in sides[1:]:
            assert 0 < side['ratio_min'] <= side['ratio'] <= side['ratio_max'], row
            seen[row['module']].add(side['name'])
        for side in sides:
            if 'latency_ns' in side:
                latency = list(side['latency_ns'].values())
                assert list(side['latency_ns']) == ['p50', 'p99', 'p99.9', 'max'], row
                # A percentile is the middle of its step of 3 %, the largest is exact.
                assert all(a <= b * 1.04 for a, b in zip(latency, latency[1:])), row
    assert seen == YARDSTICKS, seen
    wanted = TARGETS | {key: bound for key, bound in TARGETS_LIMITED.items() if key[0] not in passed_over}
    assert passed_over <= {key[0] for key in TARGETS_LIMITED}, passed_over
    assert bounds == wanted, bounds.items() ^ wanted.items()


def case_table(program):
    """the table of one case has its row, its ratio and its target"""
    result = run(program, 'governor', '--case', 'pair', '--quick', '--runs', '1')
    assert result.returncode == 0, result.stderr
    assert 'charge + refund, below soft' in result.stdout, result.stdout
    assert 'threads' not in result.stdout, result.stdout
    result = run(program, 'region', '--case', 'churn', '--quick', '--runs', '1')
    assert result.returncode == 0, result.stderr
    assert 'resident: put + free' not in result.stdout, 'an exact name is that case alone: ' + result.stdout
    lines = [line for line in result.stdout.splitlines() if 'memcpy, in order' in line]
    assert len(lines) == 1 and '<= 1.7: ' in lines[0] and lines[0].endswith(('met', 'MET')), result.stdout


def case_usage(program):
    """a wrong module, number or directory is refused with 2"""
    for options in (['nothing'], ['--runs', '0'], ['--runs', '2x'],
                    ['region', '--quick', '--directory', '/nonexistent']):
        result = run(program, *options)
        assert result.returncode == 2, (options, result)
        assert result.stderr.startswith('weir-bench: '), result.stderr


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--bench', required=True)
    program = parser.parse_args().bench
    cases = [case_json, case_table, case_usage]
    failed = 0
    print(f'1..{len(cases)}')
    for number, case in enumerate(cases, 1):
        try:
            case(program)
            print(f'ok {number} - {case.__doc__}')
        except Exception as error:
            failed += 1
            print(f'not ok {number} - {case.__doc__}')
            print(f'# {type(error).__name__}: {error}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())

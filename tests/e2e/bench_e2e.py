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
    'region': {'memcpy', 'memcpy, in order', 'memcpy, at random', 'pwrite + write-back', 'O_DIRECT read'},
    'governor': {'atomic add', 'atomic add, shared'},
    'reorder': {'memcpy', 'tsearch + malloc'},
}


def run(program, *options):
    return subprocess.run([program, *options], capture_output=True, text=True)


def case_json(program):
    """every row of every module has positive times, a yardstick, and ordered figures"""
    result = run(program, 'all', '--quick', '--runs', '2', '--json')
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data['runs'] == 2
    seen = {module: set() for module in YARDSTICKS}
    for row in data['rows']:
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


def case_table(program):
    """the table of one case has its row and its ratio"""
    result = run(program, 'governor', '--case', 'pair', '--quick', '--runs', '1')
    assert result.returncode == 0, result.stderr
    assert 'charge + refund, below soft' in result.stdout, result.stdout
    assert 'threads' not in result.stdout, result.stdout


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

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""spin - check a Promela model, and that what is broken in it on purpose is found

    tests/model/spin.py MODEL CC [--turns=N] [--broken=N]

One TAP line for the model, and one for each BROKEN that it knows, up to N. Passed over
where there is no spin.
"""

import re
import shutil
import subprocess
import sys
import tempfile


def check(model, compiler, broken, turns):
    """How many errors Spin found, and in how many states."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(['spin', f'-DBROKEN={broken}', f'-DTURNS={turns}', '-a', model],
                       cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*compiler, '-O1', '-w', '-DSAFETY', '-DCOLLAPSE', '-o', 'pan', 'pan.c'],
                       cwd=folder, check=True)
        told = subprocess.run(['./pan', '-m1000000'], cwd=folder, capture_output=True,
                              text=True, check=False).stdout
    errors = re.search(r'errors: (\d+)', told)
    states = re.search(r'(\S+) states, stored', told)
    complete = 'Search not completed' not in told and 'max search depth too small' not in told
    if errors is None or states is None:
        sys.exit(told)
    return int(errors.group(1)), int(float(states.group(1))), complete


def main():
    model, compiler = sys.argv[1], sys.argv[2].split()
    options = dict(word[2:].split('=') for word in sys.argv[3:])
    turns = options.get('turns', '2')
    if shutil.which('spin') is None:
        print('1..1\n# passed over: spin is not installed\nok 1 - passed over')
        return
    with open(model, encoding='utf-8') as file:
        last = int(re.search(r'BROKEN = 1 \.\. (\d+)', file.read()).group(1))
    last = min(last, int(options.get('broken', last)))
    print(f'1..{last + 1}', flush=True)
    errors, states, complete = check(model, compiler, 0, turns)
    good = errors == 0 and complete
    print(f'{"ok" if good else "not ok"} 1 - no error in {states} states', flush=True)
    for broken in range(1, last + 1):
        errors, states, _ = check(model, compiler, broken, turns)
        print(f'{"ok" if errors > 0 else "not ok"} {broken + 1} - broken {broken} is found',
              flush=True)


main()

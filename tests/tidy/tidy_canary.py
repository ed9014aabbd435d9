#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tidy_canary - each rule of tidy.py sees what it is there for

A small sound tree on which no rule complains; then, one at a time, a fault is
put into it, and the rule that stands for it must name the file and the fault.
"""

import os
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import tidy  # noqa: E402

SPDX = '/* SPDX-License-Identifier: MIT */\n'
MAN = '''.Dd January 1, 2025
.Dt WEIR_{upper} 3
.Os
.Sh NAME
.Nm weir_{module} ,
.Nm weir_{module}_{verb}
.Nd {module}s
.Sh SYNOPSIS
.In weir/{module}.h
.Ft int
.Fo weir_{module}_{verb}
.Fa "struct weir_{module} *{module}"
.Fa "size_t bytes"
.Fc
.Sh DESCRIPTION
A {module}.
.Sh SEE ALSO
.Xr weir 7
'''
HEADER = SPDX + '''#ifndef WEIR_{upper}_H
#define WEIR_{upper}_H

#include <stddef.h>

/* one {module}; -EINVAL, or -{code} */
WEIR_API int weir_{module}_{verb}(struct weir_{module} *{module}, size_t bytes);

#endif
'''
SOUND = {
    'LICENSE': 'MIT\n',
    'README.md': 'See [errors](docs/errors.md).\n\n```c\n#include <weir/region.h>\n\nint x;\n```\n',
    'docs/errors.md': '| code | meaning | who |\n| --- | --- | --- |\n'
                      '| `-EINVAL` | bad | region governor |\n| `-EDQUOT` | ours | region |\n'
                      '| `-ETIMEDOUT` | late | governor |\n',
    'docs/features.md': '| id | what | state | shown by |\n| --- | --- | --- | --- |\n'
                        '| R1 | a file | done | `tests/unit/region_unit.c` "it works" |\n'
                        '| R2 | more | open | |\n',
    'docs/seeds.md': '| id | fault | state | shown by |\n| --- | --- | --- | --- |\n'
                     '| so-w1 | it loses | done | `tests/unit/region_unit.c` "it works" |\n',
    'docs/examples/overflow.c': SPDX + '#include <weir/region.h>\n\nint x;\n',
    'docs/examples/meson.build': "['overflow']\n",
    'docs/design/region.md': '# region\n',
    'docs/design/governor.md': '# governor\n',
    'docs/meson.build': "['weir.7', 'weir_region.3', 'weir_governor.3', 'weir-dump.1']\n",
    'docs/man/weir.7': '.Dd January 1, 2025\n.Dt WEIR 7\n.Os\n.Sh NAME\n.Nm weir\n.Nd all of it\n'
                       '.Sh DESCRIPTION\nAll of it.\n.Sh SEE ALSO\n.Xr weir_region_put 3\n',
    'docs/man/weir-dump.1': '.Dd January 1, 2025\n.Dt WEIR-DUMP 1\n.Os\n.Sh NAME\n.Nm weir-dump\n'
                            '.Nd look\n.Sh DESCRIPTION\nLooks.\n',
    'docs/man/weir_region.3': MAN.format(upper='REGION', module='region', verb='put'),
    'docs/man/weir_governor.3': MAN.format(upper='GOVERNOR', module='governor', verb='ask'),
    'include/weir/region.h': HEADER.format(upper='REGION', module='region', verb='put',
                                           code='EDQUOT'),
    'include/weir/governor.h': HEADER.format(upper='GOVERNOR', module='governor', verb='ask',
                                             code='ETIMEDOUT'),
    'src/weir.map': 'WEIR_0 {\nglobal:\n    weir_governor_ask;\n    weir_region_put;\n'
                    'local:\n    *;\n};\n',
    'src/base/heap.c': SPDX + '#include "base/heap.h"\n\nvoid *take(void)\n{\n'
                              '    return malloc(1);\n}\n',
    'src/base/heap.h': SPDX + '#ifndef WEIR_BASE_HEAP_H\n#define WEIR_BASE_HEAP_H\n'
                              '/* not weir__heap_gone() */\nvoid *weir__heap_take(void);\n#endif\n',
    'tests/harness/seam_calls.def': SPDX + '/*\n * SEAM_CALL(name)\n */\n'
                                           'SEAM_HEAP(heap_take, (void), ())\n',
    'src/base/sys.c': SPDX + '/* sleep() is for others */\n\nint go(void)\n{\n'
                             '    return munmap("//", open("strcpy(", 0));\n}\n',
    'src/base/region_layout.h': SPDX + '#ifndef WEIR_BASE_REGION_LAYOUT_H\n'
                                       '#define WEIR_BASE_REGION_LAYOUT_H\n'
                                       '#include <stdint.h>\n'
                                       'struct weir__figures {\n    uint64_t live;\n};\n'
                                       'struct weir__header {\n    uint32_t magic;\n'
                                       '    uint64_t bytes;\n    char directory[256];\n'
                                       '    struct weir__figures figures;\n};\n'
                                       'struct weir__chunk {\n    uint64_t word;\n};\n'
                                       'struct weir__entry {\n    uint64_t tag;\n};\n'
                                       'enum {\n    EXTENT_VACANT,\n};\n#endif\n',
    'docs/format.md': '## header\n\n| 0 | 4 | `magic` | x |\n| 8 | 8 | `bytes` | x |\n'
                      '| 16 | 256 | `directory` | x |\n| 272 | 8 | `live` | x |\n\n'
                      '## chunk\n\n| 0 | 8 | `word` | x |\n\n'
                      '## entry\n\n| 0 | 8 | `tag` | EXTENT_VACANT |\n',
    'src/region/region.c': SPDX + '#include <weir/region.h>\n\n#include "base/heap.h"\n\n'
                                  'int weir__region_here(struct x *x)\n{\n'
                                  '    return x->read(1) + region_free(x);\n}\n',
    'src/governor/governor.c': SPDX + '#include <weir/governor.h>\n\nint weir__y;\n',
    'tests/unit/region_unit.c': SPDX + '/* "it works" */\nint a = weir_region_put(1) + '
                                       'weir_governor_ask(2);\n',
    'tests/run.py': '#!/usr/bin/env python3\n# SPDX-License-Identifier: MIT\n',
    'tools/dump/dump.c': SPDX + '#include <weir/region.h>\n\n#include "dump/draw.h"\n\nint z;\n',
    'tools/dump/draw.h': SPDX + '#ifndef DRAW_H\n#define DRAW_H\n#endif\n',
    'tools/meson.build': "weir_dep 'dump/dump.c'\n",
    'src/meson.build': "'base/heap.c', 'base/sys.c', 'region/region.c', 'governor/governor.c'\n",
    'tests/unit/meson.build': "'region'\n",
}

APPEND = object()

# rule, path, (old, new) | (APPEND, text) | whole text | None (gone), what is said
FAULTS = [
    ('form', 'src/governor/governor.c', (APPEND, 'int  weir__b( void ) ;\n'), 'clang-format'),
    ('form', 'docs/examples/overflow.c', (APPEND, 'int *p, * q;\n'), 'clang-format'),
    ('text', 'tools/meson.build', 'weir_dep \n', 'trailing blank'),
    ('text', 'tools/meson.build', '\tweir_dep\n', 'a tab'),
    ('text', 'tools/meson.build', 'weir_dep', 'newline at the end'),
    ('text', 'README.md', (APPEND, 'see /home/someone/weir\n'), '/home/someone/weir'),
    ('licence', 'src/governor/governor.c', (SPDX, ''), 'SPDX'),
    ('licence', 'tests/run.py', ('# SPDX-License-Identifier: MIT\n', ''), 'SPDX'),
    ('remarks', 'src/governor/governor.c', (APPEND, 'int weir__c; // hm\n'), '// comment'),
    ('remarks', 'include/weir/region.h', (APPEND, '/* FIX' + 'ME: later */\n'), 'unfinished'),
    ('remarks', 'tests/run.py', (APPEND, '# TO' + 'DO\n'), 'unfinished'),
    ('names', 'src/governor/region.c', SPDX + 'int weir__d;\n', 'has the name of'),
    ('names', 'src/base/heap.h', ('WEIR_BASE_HEAP_H', 'BASE_HEAP_H'), 'the guard should be'),
    ('names', 'tools/dump/draw.h', ('#ifndef DRAW_H\n', ''), 'no header guard'),
    ('names', 'tests/also.py', '#!/usr/bin/env python3\n# SPDX-License-Identifier: MIT\n',
     'cannot be run'),
    ('doors', 'src/region/region.c', (APPEND, 'void *m = mmap(0);\n'), 'mmap()'),
    ('doors', 'src/region/region.c', (APPEND, 'int m = pread(0);\n'), 'pread()'),
    ('doors', 'src/region/region.c', (APPEND, '#include <liburing.h>\n'), '<liburing.h>'),
    ('doors', 'src/region/region.c', (APPEND, 'int m = io_uring_submit(0);\n'), 'io_uring_submit()'),
    ('doors', 'src/region/region.c', (APPEND, 'void *m = calloc(1, 1);\n'), 'calloc()'),
    ('doors', 'src/base/sys.c', (APPEND, 'void *m = malloc(1);\n'), 'malloc()'),
    ('doors', 'src/base/sys.c', (APPEND, 'int f(void) {\n    free(0);\n}\n'), 'free()'),
    ('doors', 'src/region/region.c', (APPEND, 'int m = printf("x");\n'), 'never logs'),
    ('calls', 'src/region/region.c', (APPEND, 'int m = strcpy(a, b);\n'), 'strcpy()'),
    ('calls', 'tools/dump/dump.c', (APPEND, 'int m = atoi(b);\n'), 'atoi()'),
    ('calls', 'tests/unit/region_unit.c', (APPEND, 'int m = usleep(1);\n'), 'usleep()'),
    ('calls', 'include/weir/region.h', (APPEND, 'int m = sprintf(a, b);\n'), 'sprintf()'),
    ('arrows', 'src/region/region.c', (APPEND, '#include <weir/governor.h>\n'),
     'may not know governor'),
    ('arrows', 'src/region/region.c', (APPEND, '#include "governor/budget.h"\n'), 'private'),
    ('arrows', 'src/base/sys.c', (APPEND, '#include <weir/region.h>\n'), 'may not know region'),
    ('arrows', 'src/region/region.c', (APPEND, '#include <weir.h>\n'), 'name the one'),
    ('arrows', 'include/weir/governor.h', (APPEND, '#include <weir/worker.h>\n'),
     'may not know worker'),
    ('arrows', 'include/weir/region.h', (APPEND, '#include "base/heap.h"\n'), 'public header'),
    ('arrows', 'src/other/other.c', SPDX + 'int weir__o;\n', 'no storey'),
    ('outside', 'tools/dump/dump.c', (APPEND, '#include "base/heap.h"\n'), 'not part of tools/'),
    ('outside', 'tools/dump/dump.c', (APPEND, '#include <weir/gone.h>\n'), '<weir/gone.h>'),
    ('outside', 'tools/dump/dump.c', (APPEND, 'int n = weir__region_here(0);\n'), 'private'),
    ('outside', 'tools/meson.build', 'weir_private_dep\n', 'only include/'),
    ('built', 'src/region/slot.c', SPDX + 'int weir__s;\n', 'no meson.build'),
    ('built', 'src/meson.build', ("'base/sys.c', ", ''), 'src/base/sys.c'),
    ('built', 'tests/unit/meson.build', "'regional'\n", 'tests/unit/region_unit.c'),
    ('surface', 'include/weir/region.h',
     (APPEND, 'WEIR_API void weir_governor_ask(struct weir_region *region);\n'), 'declared in'),
    ('surface', 'include/weir/region.h',
     (APPEND, 'WEIR_API WEIR_MUST_CHECK void *weir_region_new(void);\n'), 'NAME section'),
    ('surface', 'include/weir/region.h',
     (APPEND, 'WEIR_API void weir_region_new(void);\n'), 'not in src/weir.map'),
    ('surface', 'include/weir/region.h',
     (APPEND, 'static inline int weir_region_new(void)\n{\n    return 0;\n}\n'), 'no test calls'),
    ('surface', 'include/weir/region.h', (APPEND, 'int weir_region_new(void);\n'), 'WEIR_API'),
    ('surface', 'src/weir.map', ('weir_governor_ask', 'weir_governor_gone'), 'no public header'),
    ('surface', 'src/weir.map', ('weir_governor_ask', 'weir_zone_ask'), 'not sorted'),
    ('surface', 'tests/unit/region_unit.c', ('weir_governor_ask', 'nothing'), 'no test calls'),
    ('surface', 'docs/man/weir_governor.3', ('.Nd', ',\n.Nm weir_region_put\n.Nd'), 'too'),
    ('manual', 'docs/man/weir_region.3', None, 'missing'),
    ('manual', 'docs/man/weir-dump.1', None, 'missing'),
    ('manual', 'docs/design/region.md', None, 'missing'),
    ('manual', 'docs/meson.build', "['weir.7']\n", 'does not install'),
    ('manual', 'docs/man/weir_region.3', ('.Xr weir 7', '.Xr weir_gone 3'), 'weir_gone(3)'),
    ('manual', 'docs/man/weir_region.3', ('.Sh SEE ALSO\n', '.Sh SEE ALSO\n.Zz\n'), 'weir_region.3'),
    ('synopsis', 'docs/man/weir_region.3', ('"size_t bytes"', '"int bytes"'), 'is shown as'),
    ('synopsis', 'docs/man/weir_region.3', ('.Ft int', '.Ft void'), 'is shown as'),
    ('synopsis', 'docs/man/weir_region.3', ('.Fo weir_region_put', '.Fo weir_region_gone'),
     'not in the SYNOPSIS'),
    ('links', 'README.md', ('docs/errors.md', 'docs/gone.md'), 'no docs/gone.md'),
    ('errors', 'docs/errors.md', ('| `-EDQUOT` | ours | region |\n', ''), '-EDQUOT is missing'),
    ('errors', 'docs/errors.md', ('region governor', 'region'), '-EINVAL is returned by'),
    ('errors', 'docs/errors.md', (APPEND, '| `-EPIPE` | x | region |\n'), 'no header speaks'),
    ('layout', 'src/base/region_layout.h', ('uint32_t magic', 'uint64_t magic'), 'no row'),
    ('layout', 'src/base/region_layout.h', ('    uint64_t live', '    uint64_t free;\n'
                                            '    uint64_t live'), 'does not lie at 272'),
    ('layout', 'docs/format.md', ('| 0 | 8 | `word` | x |\n', ''), '`word`'),
    ('layout', 'docs/format.md', ('EXTENT_VACANT', 'x'), 'EXTENT_VACANT'),
    ('seam', 'src/base/heap.h', ('void *weir__heap_take(void);\n', 'void *weir__heap_take(void);\n'
                                'int weir__heap_more(\n    int bytes);\n'),
     'weir__heap_more() does not stand'),
    ('seam', 'tests/harness/seam_calls.def', (APPEND, 'SEAM_NEVER(sys_gone)\n'),
     'no weir__sys_gone()'),
    ('features', 'docs/features.md', ('region_unit.c', 'gone.c'), 'no tests/unit/gone.c'),
    ('features', 'docs/features.md', ('it works', 'it flies'), 'no case'),
    ('features', 'docs/features.md', ('| more | open | |', '| more | done | `LICENSE` |'),
     'names no test'),
    ('features', 'docs/features.md', ('| open |', '| soon |'), 'a row is'),
    ('seeds', 'docs/seeds.md', ('it works', 'it flies'), 'no case'),
    ('seeds', 'docs/seeds.md', ('| done |', '| later |'), 'a row is'),
    ('showcase', 'docs/examples/overflow.c', ('int x', 'int y'), 'does not show'),
    ('showcase', 'docs/examples/overflow.c', None, 'does not show'),
    ('showcase', 'docs/examples/more.c', SPDX + 'int z;\n', 'neither'),
    ('showcase', 'docs/examples/meson.build', '[]\n', 'does not run'),
    ('showcase', 'docs/embedding.md', '```c\nint gone;\n```\n', 'shows a program'),
]


def write(root, path, text):
    whole = os.path.join(root, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, 'w', encoding='utf-8') as file:
        file.write(text)
    if path == 'tests/run.py':
        os.chmod(whole, 0o755)


def plant(root, path, change):
    if change is None:
        os.remove(os.path.join(root, path))
    elif isinstance(change, str):
        write(root, path, change)
    elif change[0] is APPEND:
        write(root, path, SOUND[path] + change[1])
    else:
        assert change[0] in SOUND[path], f'{path} does not have {change[0]!r}'
        write(root, path, SOUND[path].replace(change[0], change[1]))


def restore(root, path):
    if path in SOUND:
        write(root, path, SOUND[path])
    else:
        shutil.rmtree(os.path.join(root, path), ignore_errors=True)
        if os.path.exists(os.path.join(root, path)):
            os.remove(os.path.join(root, path))


def main():
    results = []
    with tempfile.TemporaryDirectory() as root:
        for path, text in SOUND.items():
            write(root, path, text)
        shutil.copy(os.path.join(HERE, '..', '..', '.clang-format'), root)
        skipped = set()
        for name in tidy.RULES:
            found, reason = tidy.complaints(tidy.Tree(root), name)
            results.append((not found, f'{name}: silent on a sound tree', found))
            if reason:
                skipped.add(name)
        for name, path, change, said in FAULTS:
            plant(root, path, change)
            found, _ = tidy.complaints(tidy.Tree(root), name)
            caught = any(said in complaint for complaint in found)
            note = ' # SKIP the rule cannot run here' if name in skipped and not caught else ''
            results.append((caught or bool(note), f'{name}: catches "{said}" in {path}{note}', found))
            restore(root, path)
        for name in sorted(set(tidy.RULES) - {fault[0] for fault in FAULTS}):
            results.append((False, f'{name}: has no canary', []))

        # As a program.
        plant(root, 'README.md', (APPEND, 'blank \n'))
        run = subprocess.run([sys.executable, os.path.join(HERE, 'tidy.py'), '--root', root, 'text'],
                             capture_output=True, text=True)
        results.append((run.returncode == 1 and 'not ok 1 - text' in run.stdout,
                        'tidy.py: fails as a program', [run.stdout]))
        restore(root, 'README.md')

    print(f'1..{len(results)}')
    for number, (good, what, found) in enumerate(results, 1):
        print(f'{"ok" if good else "not ok"} {number} - {what}', flush=True)
        if not good:
            for complaint in found or ['silent']:
                print(f'# {complaint}', file=sys.stderr)
    return 0 if all(good for good, _, _ in results) else 1


if __name__ == '__main__':
    sys.exit(main())

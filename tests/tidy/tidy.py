#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tidy - what a reader's eye misses, as a test

    tests/tidy/tidy.py [--root DIR] [RULE ...]

One TAP line per rule; complaints are `# path:line: what`, on standard error.
Taste (length, density, wording) is not measured here but read. Each rule has
a canary in tidy_canary.py: a small tree with the fault, which it must catch.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

# ---- The agreement -----------------------------------------------------------

# A storey uses those below it, never a neighbour.
STOREYS = [
    ['base'],
    ['governor', 'region', 'view'],
    ['reorder', 'writebuf', 'scratch'],
    ['worker'],
]
STOREY_OF = {module: height for height, row in enumerate(STOREYS) for module in row}

# Calls that belong to one place. In src/ everything that enters the kernel passes
# base/, and the heap has one door.
KERNEL_CALLS = '''
    mmap mmap64 mremap munmap madvise posix_madvise mincore mlock munlock mprotect msync
    open open64 openat creat close dup dup2 dup3 fcntl ioctl flock
    read write pread pwrite readv writev preadv pwritev lseek
    truncate ftruncate fallocate posix_fallocate fsync fdatasync sync_file_range posix_fadvise
    memfd_create eventfd epoll_create1 epoll_ctl epoll_wait poll ppoll select timerfd_create
    stat fstat lstat statfs fstatfs unlink unlinkat link linkat rename mkdir mkstemp mkostemp
    opendir readdir readlink fopen fdopen fread fwrite fclose popen
    syscall getrandom sysconf getrlimit setrlimit
'''.split()
HEAP_CALLS = '''
    malloc calloc realloc reallocarray free aligned_alloc posix_memalign memalign valloc
    strdup strndup asprintf vasprintf getline alloca
'''.split()
LOUD_CALLS = '''
    printf fprintf vprintf vfprintf dprintf puts fputs putchar perror syslog
    exit _exit quick_exit abort assert
'''.split()
# No bound, no error, or a wait that proves nothing.
BANNED_CALLS = '''
    strcpy strcat strncpy stpcpy sprintf vsprintf gets
    atoi atol atoll atof strtok rand srand
    sleep usleep nanosleep clock_nanosleep
'''.split()

# ---- The tree ----------------------------------------------------------------


def blank(text):
    return re.sub(r'[^\n]', ' ', text)


C_TOKEN = re.compile(
    r'(?P<block>/\*.*?(?:\*/|\Z))|(?P<line>//[^\n]*)'
    r'|(?P<text>"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')', re.S)


def c_code(text, keep_strings=False):
    """The text without comments (and strings), in the same places."""
    def replace(match):
        if match.lastgroup == 'text':
            if keep_strings:
                return match.group()
            return '"' + blank(match.group()[1:-1]) + '"'
        return blank(match.group())
    return C_TOKEN.sub(replace, text)


class Tree:
    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.paths = sorted(self._tracked() or self._walked())
        self._texts = {}

    def _tracked(self):
        """What git knows or would add: a build's leavings are not ours to judge."""
        try:
            top = subprocess.run(['git', '-C', self.root, 'rev-parse', '--show-toplevel'],
                                 capture_output=True, text=True, check=True).stdout.strip()
            if os.path.realpath(top) != os.path.realpath(self.root):
                return None
            names = subprocess.run(
                ['git', '-C', self.root, 'ls-files', '-z', '-co', '--exclude-standard'],
                capture_output=True, text=True, check=True).stdout.split('\0')
        except (OSError, subprocess.CalledProcessError):
            return None
        return [name for name in set(names)
                if name and os.path.isfile(os.path.join(self.root, name))]

    def _walked(self):
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders
                          if name not in ('.git', '__pycache__')
                          and not (folder == self.root and name.startswith('build'))]
            found += [os.path.relpath(os.path.join(folder, name), self.root) for name in names]
        return found

    def text(self, path):
        if path not in self._texts:
            try:
                with open(os.path.join(self.root, path), encoding='utf-8') as file:
                    self._texts[path] = file.read()
            except (OSError, UnicodeDecodeError):
                self._texts[path] = ''
        return self._texts[path]

    def exists(self, path):
        return os.path.exists(os.path.join(self.root, path))

    def under(self, *folders, suffixes=None):
        for path in self.paths:
            if any(path.startswith(folder + '/') for folder in folders):
                if suffixes is None or path.endswith(suffixes):
                    yield path

    def c_files(self, *folders):
        return self.under(*(folders or ('include', 'src', 'tools', 'tests', 'docs')),
                          suffixes=('.c', '.h'))

    def headers(self):
        return list(self.under('include/weir', suffixes='.h'))

    def modules(self):
        return [os.path.basename(path)[:-2] for path in self.headers()]


def line_of(text, position):
    return text.count('\n', 0, position) + 1


def matches(path, text, pattern, message):
    for match in re.finditer(pattern, text, re.M):
        word = next((group for group in match.groups() if group), match.group())
        yield f'{path}:{line_of(text, match.start())}: {message.format(word)}'


def call_pattern(names):
    return r'(?<![\w.>])(' + '|'.join(names) + r')\s*\('


RULES = {}


def rule(function):
    RULES[function.__name__] = function
    return function


class Skip(Exception):
    pass


# ---- Text --------------------------------------------------------------------


@rule
def form(tree):
    """clang-format 14 changes nothing"""
    for name in ('clang-format-14', 'clang-format'):
        program = shutil.which(name)
        if program:
            version = subprocess.run([program, '--version'], capture_output=True, text=True).stdout
            if ' 14.' in version:
                break
    else:
        raise Skip('no clang-format 14')
    files = [path for path in tree.c_files()]
    if not files:
        return
    run = subprocess.run([program, '--dry-run', '-Werror', '--style=file', *files],
                         cwd=tree.root, capture_output=True, text=True)
    yield from re.findall(r'^(\S+?:\d+:\d+: error: .*)$', run.stderr, re.M)
    if run.returncode != 0 and 'error:' not in run.stderr:
        yield f'{program}: {run.stderr.strip()}'


@rule
def text(tree):
    """UTF-8, no tab, no trailing blank, one newline at the end, no absolute path of a machine"""
    machine = r'(?<![\w.])/(?:home|Users|root|work|tmp)/\w[\w./-]*'
    for path in tree.paths:
        if 'corpus' in path.split('/'):
            continue  # bytes for a fuzzer, as they must be
        whole = tree.text(path)
        if not whole:
            if os.path.getsize(os.path.join(tree.root, path)) > 0:
                yield f'{path}:1: not UTF-8'
            continue
        yield from matches(path, whole, r'[ \t]+$', 'trailing blank')
        if '\t' in whole and not path.startswith('LICENSE'):
            yield from matches(path, whole, r'\t', 'a tab')
        if not whole.endswith('\n') or whole.endswith('\n\n'):
            yield f'{path}:{whole.count(chr(10))}: not one newline at the end'
        if not path.startswith('tests/tidy/'):
            yield from matches(path, whole, machine, 'a path of one machine: {}')


@rule
def licence(tree):
    """the SPDX line comes first"""
    for path in tree.paths:
        if path.endswith(('.c', '.h', '.h.in')) or path == 'tests/headers/header.in':
            if not tree.text(path).startswith('/* SPDX-License-Identifier: MIT */\n'):
                yield f'{path}:1: no SPDX line'
        if path.endswith(('.py', '.sh')) or path in ('.ci/run', '.githooks/pre-commit'):
            if 'SPDX-License-Identifier: MIT' not in '\n'.join(tree.text(path).split('\n')[:2]):
                yield f'{path}:1: no SPDX line'


@rule
def remarks(tree):
    """no // comment, nothing left to do in a comment"""
    unfinished = r'\b(' + '|'.join(('FIX' + 'ME', 'TO' + 'DO', 'XX' + 'X', 'HA' + 'CK')) + r')\b'
    for path in tree.c_files():
        whole = tree.text(path)
        for match in C_TOKEN.finditer(whole):
            if match.lastgroup == 'line':
                yield f'{path}:{line_of(whole, match.start())}: a // comment'
    for path in tree.paths:
        if path.endswith(('.c', '.h', '.py', '.sh', 'meson.build', '.ci/run')):
            yield from matches(path, tree.text(path), unfinished, '{} is unfinished work')


@rule
def names(tree):
    """no two sources of one name, header guards as the path says, scripts that can run"""
    seen = {}
    for path in tree.paths:
        name = os.path.basename(path)
        if name.endswith(('.c', '.h', '.py', '.sh')):
            if name in seen:
                yield f'{path}:1: has the name of {seen[name]}'
            seen[name] = path
        if path.endswith('.h'):
            stem = re.sub(r'^(include|src)/(weir/)?', '', path)
            if path.startswith(('tests/', 'tools/')):
                guards = None
            else:
                guards = {re.sub(r'^(WEIR_)?', 'WEIR_', re.sub(r'\W', '_', word).upper())
                          for word in (stem, name)}
            found = re.search(r'^#ifndef (\w+)\n#define (\w+)$', tree.text(path), re.M)
            if not found or found.group(1) != found.group(2):
                yield f'{path}:2: no header guard'
            elif guards and found.group(1) not in guards:
                yield f'{path}:2: the guard should be {" or ".join(sorted(guards))}'
        if tree.text(path).startswith('#!'):
            if not os.access(os.path.join(tree.root, path), os.X_OK):
                yield f'{path}:1: begins with #! but cannot be run'


# ---- Doors and arrows --------------------------------------------------------


@rule
def doors(tree):
    """the kernel and the ring only in src/base, the heap only in src/base/heap.c"""
    for path in tree.c_files('src'):
        code = c_code(tree.text(path))
        if not path.startswith('src/base/'):
            yield from matches(path, code, call_pattern(KERNEL_CALLS),
                               '{}() outside src/base: through base/sys or base/ring')
            yield from matches(path, code, r'\b(io_uring_\w+)\s*\(',
                               '{}() outside src/base: through base/ring')
            yield from matches(path, code, r'^#\s*include <(liburing\.h)>',
                               '<{}> outside src/base')
        if path != 'src/base/heap.c':
            yield from matches(path, code, call_pattern(HEAP_CALLS),
                               '{}() outside src/base/heap.c')
        if path != 'src/base/check.c':
            yield from matches(path, code, call_pattern(LOUD_CALLS),
                               '{}(): the library never logs and never exits')


@rule
def calls(tree):
    """no call without a bound or an error, no sleep"""
    for path in tree.c_files():
        yield from matches(path, c_code(tree.text(path)), call_pattern(BANNED_CALLS),
                           '{}() is not used here')


@rule
def arrows(tree):
    """each storey includes those below it, by their public headers only"""
    pattern = re.compile(r'^#\s*include\s+(<weir[/.][^>]*>|"[^"]*")', re.M)
    for path in tree.c_files('src', 'include'):
        parts = path.split('/')
        if path == 'include/weir.h' or len(parts) < 3:
            continue
        module = parts[1] if parts[0] == 'src' else parts[2][:-2]
        if module not in STOREY_OF:
            yield f'{path}:1: {module} stands on no storey'
            continue
        code = c_code(tree.text(path), keep_strings=True)
        for match in pattern.finditer(code):
            name = match.group(1)[1:-1]
            place = f'{path}:{line_of(code, match.start())}'
            if match.group(1)[0] == '"':
                if parts[0] == 'include':
                    yield f'{place}: a public header includes "{name}"'
                elif name.split('/')[0] not in ('base', module):
                    yield f'{place}: {module} includes "{name}", which is private to another'
                continue
            other = re.fullmatch(r'weir/(\w+)\.h', name)
            if not other:
                yield f'{place}: includes <{name}>: name the one that is needed'
            elif other.group(1) not in STOREY_OF:
                yield f'{place}: no module {other.group(1)}'
            elif other.group(1) not in (module, 'base') and \
                    STOREY_OF[other.group(1)] >= STOREY_OF[module]:
                yield f'{place}: {module} may not know {other.group(1)}'


@rule
def outside(tree):
    """tools, end-to-end tests and examples see only include/"""
    pattern = re.compile(r'^#\s*include\s+(?:"([^"]*)"|<(weir/[^>]*)>)', re.M)
    for path in tree.c_files('tools', 'tests/e2e', 'docs/examples'):
        code = c_code(tree.text(path), keep_strings=True)
        room = path.split('/')[0]
        for match in pattern.finditer(code):
            place = f'{path}:{line_of(code, match.start())}'
            own, public = match.groups()
            if own and not (tree.exists(os.path.join(os.path.dirname(path), own))
                            or tree.exists(os.path.join(room, own))):
                yield f'{place}: "{own}" is not part of {room}/'
            if public and not tree.exists('include/' + public):
                yield f'{place}: there is no <{public}>'
        yield from matches(path, code, r'\b(weir__\w+)', '{} is private to the library')
    for path in tree.under('tools', 'tests/e2e', 'docs', suffixes='meson.build'):
        yield from matches(path, tree.text(path), r'(weir_private_dep|\.\./src\b)',
                           '{}: only include/ is seen from here')


@rule
def built(tree):
    """each source is part of a build: by its name, or by its module's word in its folder's list"""
    builders = '\n'.join(tree.text(path) for path in tree.paths
                         if path.endswith('meson.build') or path == 'tools/test.sh')
    for path in tree.paths:
        folder, name = os.path.split(path)
        word = re.sub(rf'(_{os.path.basename(folder)})?\.c$', '', name)
        if name.endswith('.c') and not re.search(rf"[/']{re.escape(name)}\b", builders) \
                and f"'{word}'" not in tree.text(f'{folder}/meson.build'):
            yield f'{path}:1: no meson.build has it'


# ---- The surface -------------------------------------------------------------


def prototypes(tree, path):
    """name -> (line, 'return type', ['argument', ...]) of one public header."""
    whole = tree.text(path)
    code = c_code(whole)
    code = re.sub(r'^#[^\n]*', lambda match: blank(match.group()), code, flags=re.M)
    found = {}
    pattern = re.compile(r'(?:^|(?<=[;}\n]))[ \t]*((?:WEIR_API|static inline)\b[^;{}()]*?)'
                         r'\b(\w+)\s*\(([^;{]*?)\)\s*[;{]', re.S)
    for match in pattern.finditer(code):
        returned = re.sub(r'\b(WEIR_API|WEIR_MUST_CHECK|static|inline)\b', '', match.group(1))
        arguments = [squeeze(piece) for piece in match.group(3).split(',')]
        found[match.group(2)] = (line_of(code, match.start(2)), squeeze(returned), arguments)
    return found


def squeeze(declaration):
    return re.sub(r'\s*\*\s*', ' *', re.sub(r'\s+', ' ', declaration)).replace('* *', '**').strip()


@rule
def surface(tree):
    """each public name: one header, weir.map, its module's man page, a test"""
    homes = {}
    exported = {}
    described = {}
    for page in pages(tree):
        for name in page_names(tree, page):
            if described.setdefault(name, page) != page:
                yield f'{page}:1: {name} is described in {described[name]} too'
    for path in tree.headers():
        for name, (line, _, _) in prototypes(tree, path).items():
            place = f'{path}:{line}'
            if name in homes:
                yield f'{place}: {name} is declared in {homes[name]} too'
            homes[name] = place
            declared = tree.text(path).split('\n')
            if 'static inline' not in '\n'.join(declared[max(0, line - 2):line]):
                exported[name] = place
            module = os.path.basename(path)[:-2]
            page = f'docs/man/weir_{module}.3'
            if name not in page_names(tree, page):
                yield f'{place}: {name} is not in the NAME section of {page}'
    listed = re.findall(r'^    (\w+);$', tree.text('src/weir.map'), re.M)
    if listed != sorted(set(listed)):
        yield 'src/weir.map:1: not sorted, or a name twice'
    for name in sorted(set(exported) - set(listed)):
        yield f'{exported[name]}: {name} is not in src/weir.map'
    for name in sorted(set(listed) - set(exported)):
        yield f'src/weir.map:1: {name} is in no public header'
    proof = '\n'.join(tree.text(path) for path in tree.under('tests', suffixes=('.c', '.h', '.py'))
                      if not path.startswith(('tests/tidy/', 'tests/headers/')))
    tested = set(re.findall(r'\bweir_\w+', proof))
    for name, place in sorted(homes.items()):
        if name not in tested:
            yield f'{place}: no test calls {name}'
    bare = r'^(?!WEIR_API|static|typedef|extern|struct|enum|#)\w[\w *]*\b(weir_\w+)\('
    for path in tree.headers():
        yield from matches(path, c_code(tree.text(path)), bare, '{} is not WEIR_API')


# ---- The manual --------------------------------------------------------------


def pages(tree):
    return [path for path in tree.under('docs/man') if re.search(r'\.[1-9]$', path)]


def page_section(tree, path, name):
    match = re.search(rf'^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)', tree.text(path), re.M | re.S)
    return match.group(1) if match else ''


def page_names(tree, path):
    return re.findall(r'^\.Nm (\S+)', page_section(tree, path, 'NAME'), re.M)


@rule
def manual(tree):
    """a page per module and program, clean for mandoc, installed; every reference leads somewhere"""
    listed = tree.text('docs/meson.build')
    known = set()
    for path in pages(tree):
        section = path[-1]
        known |= {(name, section) for name in page_names(tree, path)}
        known.add((os.path.basename(path)[:-2], section))
        if f"'{os.path.basename(path)}'" not in listed:
            yield f'{path}:1: docs/meson.build does not install it'
    for module in tree.modules():
        if (f'weir_{module}', '3') not in known:
            yield f'docs/man/weir_{module}.3:1: missing'
        if not tree.exists(f'docs/design/{module}.md') and module != 'base':
            yield f'docs/design/{module}.md:1: missing'
    if ('weir', '7') not in known:
        yield 'docs/man/weir.7:1: missing'
    for folder in sorted({path.split('/')[1] for path in tree.under('tools', suffixes='.c')}):
        builder = tree.text(f'tools/{folder}/meson.build')
        if (f'weir-{folder}', '1') not in known and 'library(' not in builder:
            yield f'docs/man/weir-{folder}.1:1: missing'
    for path in pages(tree):
        whole = tree.text(path)
        for match in re.finditer(r'^\.Xr (\S+) (\d)', whole, re.M):
            if match.group(1).startswith('weir') and match.groups() not in known:
                yield (f'{path}:{line_of(whole, match.start())}: '
                       f'{match.group(1)}({match.group(2)}) does not exist')
    program = shutil.which('mandoc')
    if not program:
        raise Skip('no mandoc')
    for path in pages(tree):
        run = subprocess.run([program, '-Tlint', '-Wwarning', path], cwd=tree.root,
                             capture_output=True, text=True)
        for line in (run.stdout + run.stderr).splitlines():
            yield line.replace('mandoc: ', '', 1)


@rule
def synopsis(tree):
    """the prototypes of a page are those of its header"""
    for path in tree.headers():
        page = f'docs/man/weir_{os.path.basename(path)[:-2]}.3'
        shown = dict(page_prototypes(page_section(tree, page, 'SYNOPSIS')))
        if not shown:
            continue
        for name, (line, returned, arguments) in prototypes(tree, path).items():
            if name not in shown:
                yield f'{path}:{line}: {name} is not in the SYNOPSIS of {page}'
            elif shown[name] != (returned, arguments):
                yield (f'{page}:1: {name} is shown as {shown[name][0]} ({", ".join(shown[name][1])})'
                       f', not {returned} ({", ".join(arguments)})')
        for name in shown:
            if name not in prototypes(tree, path):
                yield f'{page}:1: {name} is not in {path}'


def page_prototypes(section):
    """(name, (returned, arguments)) from .Ft and .Fn, or .Ft and .Fo .Fa .Fc."""
    returned = ''
    name = None
    arguments = []
    for line in section.split('\n'):
        macro, _, rest = line.partition(' ')
        words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if macro == '.Ft':
            returned = squeeze(' '.join(words))
        elif macro == '.Fn' and words:
            yield words[0], (returned, [squeeze(word) for word in words[1:]])
        elif macro == '.Fo' and words:
            name, arguments = words[0], []
        elif macro == '.Fa':
            arguments += [squeeze(word) for word in words]
        elif macro == '.Fc':
            yield name, (returned, arguments)


# ---- The pages ---------------------------------------------------------------


@rule
def links(tree):
    """what a page points at is there"""
    for path in tree.paths:
        if not path.endswith('.md'):
            continue
        whole = tree.text(path)
        for match in re.finditer(r'\]\(([^)\s]+)\)', whole):
            target = match.group(1).split('#')[0]
            if not target or re.match(r'\w+:', target):
                continue
            if not tree.exists(os.path.normpath(os.path.join(os.path.dirname(path), target))):
                yield f'{path}:{line_of(whole, match.start())}: no {target}'


@rule
def errors(tree):
    """docs/errors.md has each code of the headers, and names the modules that return it"""
    users = {}
    for path in tree.headers():
        module = os.path.basename(path)[:-2]
        for code in re.findall(r'-(E[A-Z0-9]+)\b', tree.text(path)):
            users.setdefault(code, set()).add(module)
    whole = tree.text('docs/errors.md')
    rows = {match.group(1): (line_of(whole, match.start()), set(re.findall(r'\w+', match.group(2))))
            for match in re.finditer(r'^\| `-(E\w+)` \|[^|]*\|([^|]*)\|', whole, re.M)}
    for code, modules in sorted(users.items()):
        modules = modules - {'base'}
        if code not in rows:
            yield f'docs/errors.md:1: -{code} is missing'
        elif rows[code][1] != modules:
            yield (f'docs/errors.md:{rows[code][0]}: -{code} is returned by '
                   f'{" ".join(sorted(modules)) or "nobody"}')
    for code in sorted(set(rows) - set(users)):
        yield f'docs/errors.md:{rows[code][0]}: no header speaks of -{code}'


def layout_fields(code, name, bytes_of={'uint64_t': 8, 'int64_t': 8, 'uint32_t': 4, 'int32_t': 4,
                                        'uint16_t': 2, 'uint8_t': 1, 'char': 1}):
    """(offset, field, bytes) of a struct of region_layout.h; nested ones in their place"""
    body = re.search(r'^struct ' + name + r' \{\n(.*?)^\};', code, re.M | re.S)
    offset = 0
    for kind, field, count in re.findall(r'^    (?:struct )?(\w+) (\w+)(?:\[(\d+)\])?;',
                                         body.group(1) if body else '', re.M):
        if kind not in bytes_of:
            nested = offset
            for inner, name_inner, length in layout_fields(code, kind):
                yield nested + inner, name_inner, length
                offset = nested + inner + length
            continue
        offset += -offset % bytes_of[kind]
        yield offset, field, bytes_of[kind] * int(count or 1)
        offset += bytes_of[kind] * int(count or 1)


@rule
def layout(tree):
    """docs/format.md has every field of the table file where base/region_layout.h has it"""
    code = c_code(tree.text('src/base/region_layout.h'))
    whole = tree.text('docs/format.md')
    parts = {match.group(1): match.group(2) for match in
             re.finditer(r'^## (\w+)$(.*?)(?=^## |\Z)', whole, re.M | re.S)}
    for part in ('header', 'chunk', 'entry'):
        shown = [(int(offset), field, int(length)) for offset, length, field in
                 re.findall(r'^\| (\d+) \| (\d+) \| `(\w+)` \|', parts.get(part, ''), re.M)]
        fields = list(layout_fields(code, 'weir__' + part))
        if not fields:
            yield f'src/base/region_layout.h:1: no struct weir__{part}'
        for field in fields:
            if field not in shown:
                yield f'docs/format.md:1: {part}: no row | {field[0]} | {field[2]} | `{field[1]}` |'
        for field in shown:
            if field not in fields:
                yield f'docs/format.md:1: {part}: {field[1]} does not lie at {field[0]}'
    for match in re.finditer(r'^    (EXTENT_\w+),', code, re.M):
        if match.group(1) not in whole:
            yield f'docs/format.md:1: {match.group(1)} is missing'


@rule
def seam(tree):
    """the fault seam knows each function of base/sys, base/ring and base/heap, and no other"""
    table = 'tests/harness/seam_calls.def'
    code = c_code(tree.text(table))
    listed = {match.group(1): line_of(code, match.start())
              for match in re.finditer(r'^SEAM_[A-Z]+\((\w+)', code, re.M)}
    doors = {}
    for name in ('sys', 'ring', 'heap'):
        path = f'src/base/{name}.h'
        declared = c_code(tree.text(path))
        for match in re.finditer(r'\bweir__(' + name + r'_\w+)\s*\(', declared):
            doors.setdefault(match.group(1), f'{path}:{line_of(declared, match.start())}')
    for name in sorted(set(doors) - set(listed)):
        yield f'{doors[name]}: weir__{name}() does not stand in {table}'
    for name in sorted(set(listed) - set(doors)):
        yield f'{table}:{listed[name]}: there is no weir__{name}()'


def proven(tree, page, row, states, proven_states):
    """rows | id | what | state | proof |: what is named must be there"""
    whole = tree.text(page)
    for match in re.finditer(r'^\| (' + row + r') \|(.*)\|$', whole, re.M):
        place = f'{page}:{line_of(whole, match.start())}'
        cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', match.group(2))]
        if len(cells) != 3 or cells[1] not in states:
            yield f'{place}: {match.group(1)}: a row is | id | what | {", ".join(states)} | proof |'
            continue
        proof = re.findall(r'`([^`]+)`', cells[2])
        for path in proof:
            if not tree.exists(path):
                yield f'{place}: {match.group(1)}: no {path}'
        shown = '\n'.join(tree.text(path) for path in proof if tree.exists(path))
        for case in re.findall(r'"([^"]+)"', cells[2]):
            if case not in shown:
                yield f'{place}: {match.group(1)}: no case "{case}" in what is named'
        if cells[1] in proven_states and not any(path.startswith(('tests/', 'tools/test.sh'))
                                                 for path in proof):
            yield f'{place}: {match.group(1)} is called {cells[1]} and names no test'


@rule
def features(tree):
    """docs/features.md: what is called done or part names a test that is there, and its case"""
    yield from proven(tree, 'docs/features.md', r'[A-Z]\d+', ('done', 'part', 'open', 'later'),
                      ('done', 'part'))


@rule
def seeds(tree):
    """docs/seeds.md: the same for what earlier systems do, and for their faults"""
    yield from proven(tree, 'docs/seeds.md', r'[a-z]+-[fw]\d+', ('done', 'part', 'other', 'open'),
                      ('done', 'part'))


@rule
def showcase(tree):
    """each program of docs/examples is shown as it is, overflow.c by README.md, and nothing else is"""
    pages = {path: re.findall(r'^```c\n(.*?)^```$', tree.text(path), re.M | re.S)
             for path in ('README.md', 'docs/embedding.md')}
    programs = {path: tree.text(path).partition('\n')[2]
                for path in tree.under('docs/examples', suffixes='.c')}
    if programs.get('docs/examples/overflow.c', '') not in pages['README.md']:
        yield 'README.md:1: does not show docs/examples/overflow.c (its SPDX line left out)'
    for path, program in programs.items():
        if not any(program in shown for shown in pages.values()):
            yield f'{path}:1: neither README.md nor docs/embedding.md shows it as it is'
        if f"'{os.path.basename(path)[:-2]}'" not in tree.text('docs/examples/meson.build'):
            yield f'{path}:1: docs/examples/meson.build does not run it'
    for page, shown in pages.items():
        for program in shown:
            if program not in programs.values():
                yield f'{page}:1: shows a program that is not in docs/examples: {program[:40]!r}'


# ---- The run -----------------------------------------------------------------


def complaints(tree, name):
    """([complaint, ...], the reason of a skip or None)"""
    found = []
    try:
        for complaint in RULES[name](tree):
            found.append(complaint)
    except Skip as skip:
        return found, str(skip)
    return found, None


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description='the style as a test')
    parser.add_argument('--root', default=os.path.join(here, '..', '..'))
    parser.add_argument('rules', nargs='*', metavar='RULE', help=' '.join(RULES))
    arguments = parser.parse_args()
    for name in arguments.rules:
        if name not in RULES:
            parser.error(f'no rule {name}: {" ".join(RULES)}')
    tree = Tree(arguments.root)
    chosen = arguments.rules or list(RULES)
    failed = 0
    print(f'1..{len(chosen)}')
    for number, name in enumerate(chosen, 1):
        found, skipped = complaints(tree, name)
        failed += bool(found)
        note = f' # SKIP {skipped}' if skipped and not found else ''
        print(f'{"not ok" if found else "ok"} {number} - {name}: {RULES[name].__doc__}{note}',
              flush=True)
        for complaint in found:
            print(f'# {complaint}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())

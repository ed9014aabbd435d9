#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test - build weir and pass its tests, from a bare Debian 12 on
#
#   tools/test.sh          gcc: debug with ASan and UBSan, and release; short suites
#   tools/test.sh --long   the long suites too
#   tools/test.sh --all    and clang, TSan, an installed consumer, the exported names
#   tools/test.sh --row R  only this row (see --help); may be given more than once
#
# Says which packages are missing and installs only those (root or sudo). Builds
# in build-*/, leaves the rest of the source tree as it was, and looks whether
# that is true. A second run builds only what changed.
set -eu

cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

usage() {
    cat <<'END'
usage: tools/test.sh [--long] [--all] [--row ROW]...

Each row, with what only it can catch:
  debug          overruns, use after free, leaks, undefined behaviour (ASan, UBSan)
  release        what only the optimiser shows, and asserts that do work (NDEBUG)
  clang-debug    what gcc's warnings let through, and code that is gcc's dialect
  clang-release  another optimiser's idea of the same undefined corners
  tsan           data races between threads
  install        a header, library or weir.pc that is missing or wrong once installed
  names          a private name that escaped into the library
Rows of a plain run: debug, release. --all: every row. --long: also the tests
that take minutes, in debug and release.
END
}

rows=
groups='build test'
setup=short
while [ $# -gt 0 ]; do
    case $1 in
    --long)
        setup=long
        groups="$groups long"
        ;;
    --all)
        rows='debug release clang-debug clang-release tsan install names'
        groups="$groups all"
        ;;
    --row)
        case ${2-} in
        debug | release | install | names) ;;
        clang-debug | clang-release | tsan) groups="$groups all" ;;
        *)
            usage >&2
            exit 2
            ;;
        esac
        rows="$rows $2"
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
[ -n "$rows" ] || rows='debug release'

say() {
    printf '\n== %s ==\n' "$*"
}

# What lies outside the builds: names, sizes, times of change.
fingerprint() {
    find . \( -path ./.git -o -path './build*' \) -prune -o -type f -printf '%p %s %T@\n' | sort
}

# configure ROW CC CXX OPTION...
configure() {
    row=$1
    compiler=$2
    compiler_cxx=$3
    shift 3
    if [ ! -f "build-$row/build.ninja" ]; then
        rm -rf "build-$row"
        log=$(CC=$compiler CXX=$compiler_cxx meson setup "build-$row" --werror "$@" 2>&1) || {
            printf '%s\n' "$log" >&2
            return 1
        }
    fi
}

# compile ROW TARGET...; `all` has the tests too, but from meson 1.7 on
compile() {
    echo "building in build-$1/"
    row=$1
    shift
    ninja -C "build-$row" --quiet "$@"
}

# build ROW CC CXX OPTION...
build() {
    configure "$@"
    compile "$1" all meson-test-prereq
}

# run ROW SETUP ARGUMENT...: only failures are shown in full, of skips the reason.
# One process more than there are cores: many wait for a disk or for each other.
run() {
    row=$1
    shift
    meson test -C "build-$row" --no-rebuild --print-errorlogs \
        --num-processes $(($(nproc) + 1)) --setup "$@"
    awk '/^test: / { name = $0; sub(/^test: */, "", name) }
        /^SKIP: |^1\.\.0 # SKIP / { sub(/^.*SKIP:? /, ""); print "skipped: " name ": " $0 }' \
        "build-$row/meson-logs/testlog-$1.txt"
}

# A sanitized shared library leaves symbols to the program: b_lundef.
row_debug() {
    build debug gcc g++ -Dbuildtype=debug -Db_sanitize=address,undefined -Db_lundef=false
    run debug "$setup"
}

row_release() {
    build release gcc g++ -Dbuildtype=release
    run release "$setup" --no-suite once
}

# All of it is compiled; what units and faults, which pass every line, and the fuzzer's
# corpus leave to find is not the compiler's.
row_clang_debug() {
    build clang-debug clang-14 clang++-14 -Dbuildtype=debug -Db_sanitize=address,undefined \
        -Db_lundef=false
    run clang-debug short --suite headers --suite unit --suite fault --suite fuzz \
        --no-suite long
}

# What runs real processes or fills disks does not depend on the compiler.
row_clang_release() {
    build clang-release clang-14 clang++-14 -Dbuildtype=release
    run clang-release short --no-suite once --no-suite headers --no-suite e2e --no-suite full
}

# Only where a second thread starts can two of them race.
row_tsan() {
    configure tsan gcc g++ -Dbuildtype=debugoptimized -Db_ndebug=false -Db_sanitize=thread \
        -Db_lundef=false
    for suite in unit stress; do
        threaded=$(grep -lE 'pthread_create|weir_worker_start' tests/$suite/*_$suite.c)
        # shellcheck disable=SC2046
        compile tsan $(echo "$threaded" | sed 's/\.c$//')
        # shellcheck disable=SC2046
        run tsan short --suite $suite $(echo "$threaded" | sed "s|.*/||; s|_$suite\.c$||")
    done
}

# The consumer is small and valid in both languages; it is linked against what was
# installed, once with the shared library and once with nothing shared at all.
row_install() {
    build release gcc g++ -Dbuildtype=release
    stage=$PWD/build-release/stage
    rm -rf "$stage"
    DESTDIR=$stage meson install -C build-release --no-rebuild --quiet
    pc=$(dirname "$(find "$stage" -name weir.pc)")
    library=$(dirname "$(find "$stage" -name libweir.so)")
    export PKG_CONFIG_PATH="$pc" PKG_CONFIG_SYSROOT_DIR="$stage"
    for language in c c++; do
        case $language in
        c) compiler='gcc -std=c11' ;;
        c++) compiler='g++ -std=c++17' ;;
        esac
        # The sysroot stands before weir's own folders only: Debian's -I and -L are dropped.
        # shellcheck disable=SC2046,SC2086
        $compiler -x $language -Wall -Wextra -Wpedantic -Werror tests/headers/consumer.c -x none \
            -o "build-release/consumer-$language" $(pkg-config --cflags --libs weir)
        LD_LIBRARY_PATH=$library "build-release/consumer-$language"
        # shellcheck disable=SC2046,SC2086
        $compiler -x $language -Wall -Wextra -Wpedantic -Werror tests/headers/consumer.c -x none \
            -static -o "build-release/consumer-$language-static" \
            $(pkg-config --static --cflags --libs weir)
        "build-release/consumer-$language-static"
    done
    unset PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR

    # The programs find the library beside them, without ldconfig.
    for program in dump server bench; do
        "$stage/usr/local/bin/weir-$program" --help >/dev/null
    done

    # And as a meson subproject of somebody else's tree.
    host=$PWD/build-release/host
    rm -rf "$host"
    mkdir -p "$host/subprojects"
    ln -s "$PWD" "$host/subprojects/weir"
    cp tests/headers/consumer.c "$host"
    printf '%s\n' "project('host', 'c')" \
        "test('consumer', executable('consumer', 'consumer.c', dependencies: dependency('weir', fallback: 'weir')))" \
        >"$host/meson.build"
    log=$(meson setup "$host/build" "$host" --force-fallback-for=weir 2>&1 &&
        meson test -C "$host/build" --suite host 2>&1) || {
        printf '%s\n' "$log" >&2
        return 1
    }

    # Who installs and no more compiles no test.
    lean=$PWD/build-release/lean
    rm -rf "$lean"
    log=$(meson setup "$lean" -Dauto_features=disabled 2>&1) || {
        printf '%s\n' "$log" >&2
        return 1
    }
    if ninja -C "$lean" -n all meson-test-prereq | grep 'tests/\|examples/' >&2; then
        echo "install: tests are compiled for who only installs" >&2
        return 1
    fi
    echo "consumer: C and C++, shared and static, and as a subproject; programs start"
}

row_names() {
    build release gcc g++ -Dbuildtype=release
    shared=$(nm -D --defined-only --format=posix build-release/src/libweir.so |
        sed 's/@.*//; s/ .*//' | grep -v '^WEIR_0$' | sort)
    # The static library shows what crosses files too: weir_ and weir__, nothing else.
    static=$(nm -g --defined-only --format=posix build-release/src/libweir.a |
        awk 'NF >= 2 && $2 ~ /^[A-Z]$/ { print $1 }' | sort -u)
    bad=$(printf '%s\n' "$shared" | grep -v '^weir_[a-z]') && {
        echo "names: exported without weir_:" $bad >&2
        return 1
    }
    bad=$(printf '%s\n' "$static" | grep -v '^weir_') && {
        echo "names: global in libweir.a without weir_:" $bad >&2
        return 1
    }
    listed=$(sed -n 's/^    \(weir_[a-z_]*\);$/\1/p' src/weir.map | sort)
    if [ "$shared" != "$listed" ]; then
        echo "names: libweir.so and src/weir.map differ" >&2
        return 1
    fi
    echo "names: $(printf '%s\n' "$shared" | wc -l) exported, all weir_"
}

began=$(date +%s)
# shellcheck disable=SC2086
tools/packages.sh $groups
before=$(fingerprint)
under_way=
trap 'r=$?; [ $r -eq 0 ] || [ -z "$under_way" ] || say "failed: $under_way (of: $rows)"' EXIT

for row in $rows; do
    say "$row"
    under_way=$row
    case $row in
    debug) row_debug ;;
    release) row_release ;;
    clang-debug) row_clang_debug ;;
    clang-release) row_clang_release ;;
    tsan) row_tsan ;;
    install) row_install ;;
    names) row_names ;;
    esac
done

under_way=
after=$(fingerprint)
if [ "$before" != "$after" ]; then
    echo "test.sh: the source tree is not as it was (or was edited meanwhile):" >&2
    printf '%s\n' "$before" >build-debug/before.txt
    printf '%s\n' "$after" | diff build-debug/before.txt - | sed -n 's/^[<>] /  /p' >&2
    exit 1
fi
say "all passed in $(($(date +%s) - began)) s:$(printf ' %s' $rows)"

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# demo - real files through weir-server and back, in one command
#
#   tools/demo.sh [--files DIR] [--memory 64m] [--bytes 1g] [--producers 4] ...
#   tools/demo.sh --help
#
# Installs the packages that are missing (and says which), builds a release into
# build-release/, and runs the job: tools/demo/demo.py says what that is. Nothing
# is written into the source tree but build-release/, and nothing is left
# running.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build-release

python=/usr/bin/python3
[ -x "$python" ] || python=python3
export PYTHONDONTWRITEBYTECODE=1

job() {
    exec "$python" "$root/tools/demo/demo.py" --server "$build/tools/server/weir-server" \
        --dump "$build/tools/dump/weir-dump" "$@"
}

for word; do
    case $word in
    -h | --help)
        command -v "$python" >/dev/null || "$root/tools/packages.sh" build
        job --help
        ;;
    esac
done

"$root/tools/packages.sh" build

# As tools/test.sh configures it, so that either may come first.
if [ ! -f "$build/build.ninja" ]; then
    echo "demo: configuring build-release/"
    rm -rf "$build"
    log=$(CC=gcc CXX=g++ meson setup "$build" "$root" --werror -Dbuildtype=release 2>&1) || {
        printf '%s\n' "$log" >&2
        exit 1
    }
fi
echo "demo: building in build-release/"
ninja -C "$build" --quiet tools/server/weir-server tools/dump/weir-dump

job "$@"

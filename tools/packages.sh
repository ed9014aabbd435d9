#!/bin/sh
# SPDX-License-Identifier: MIT
#
# packages - what building, testing and checking need, on Debian 12
#
#   tools/packages.sh build           the library, weir-dump, weir-server
#   tools/packages.sh build test      and the short suites
#   tools/packages.sh build test long and what tools/test.sh --long adds
#   tools/packages.sh build test all  and what tools/test.sh --all adds
#
# Says what is missing, installs only that (root, or sudo), and does nothing when
# nothing is missing. On a system without dpkg it says what it would look for,
# and leaves the rest to the build.
set -eu

packages_of() {
    case $1 in
    build)
        # libc6-dev is only recommended by gcc. g++ and cmocka are for tests, but
        # meson looks for them once, when a build is configured, whoever does it.
        echo gcc g++ libc6-dev meson ninja-build pkg-config python3
        echo liburing-dev libnuma-dev libxxhash-dev libcmocka-dev
        ;;
    test)
        # e2fsprogs makes the small disks that fill up; libuv is for an example
        echo clang-format-14 mandoc e2fsprogs libuv1-dev
        ;;
    long)
        # a guest with two nodes; disks of other kinds, passed over where they are missing
        echo qemu-system-x86 busybox-static cpio spin xfsprogs btrfs-progs
        ;;
    all)
        # clang's sanitizers are only recommended by clang
        echo clang-14 libclang-rt-14-dev binutils
        ;;
    *)
        echo "packages.sh: no group '$1': build, test, long or all" >&2
        exit 2
        ;;
    esac
}

[ $# -gt 0 ] || set -- build test

wanted=
for group; do
    list=$(packages_of "$group") || exit 2
    wanted="$wanted $list"
done

if ! command -v dpkg-query >/dev/null; then
    echo "packages: no dpkg here; going on without a check. Debian's names of what is needed:"
    echo "  " $wanted
    exit 0
fi

missing=
for package in $wanted; do
    state=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null) || state=
    case " $state" in
    *" installed "*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "packages: these are missing, and there is neither root nor sudo to install them:" >&2
        echo "  apt-get install --no-install-recommends$missing" >&2
        echo "Let root run this line (after apt-get update), then start again." >&2
        exit 1
    fi
    sudo='sudo env DEBIAN_FRONTEND=noninteractive'
fi

echo "packages: installing$missing (this may take a minute)"
export DEBIAN_FRONTEND=noninteractive
# Lists may be old or absent; where they cannot be fetched, those that are there may do.
$sudo apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null ||
    echo "packages: apt-get update failed; trying with the lists that are there" >&2
# Hundreds of lines, of interest only when it fails.
# shellcheck disable=SC2086
log=$($sudo apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    install --no-install-recommends $missing 2>&1) || {
    printf '%s\n' "$log" >&2
    echo "packages: apt-get could not install$missing" >&2
    exit 1
}

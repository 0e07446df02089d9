#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Builds LightV's Linux guest kernel from Debian's linux-source-6.1. `cargo xtask linux` calls it, and caches the result.
#
#   build.sh prepare              installs the Debian packages that are missing (as root), or names them
#   build.sh versions             prints the versions of everything that the result depends on, one a line
#   build.sh build DIR [FILE…]    builds into DIR: vmlinux, bzImage, System.map, config, build.log. Each FILE (absolute
#                                 path) holds more configuration; a later line overrides an earlier one
#
# Progress goes to standard error. DIR/build holds the source tree during the build; it takes 2 GB.
set -eu

source_package=linux-source-6.1
packages="$source_package bc binutils bison cpio flex gcc libc6-dev libelf-dev lz4 make patch xz-utils"
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "linux: $*" >&2; }

missing() {
    for package in $packages; do
        status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
        case $status in ii*) ;; *) printf ' %s' "$package" ;; esac
    done
}

prepare() {
    wanted=$(missing)
    [ -z "$wanted" ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "packages are missing; remedy on Debian, as root: apt-get install --no-install-recommends$wanted"
        exit 1
    fi
    say "installing$wanted"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # one word a package
    { apt-get update -q && apt-get install -q -y --no-install-recommends $wanted; } >&2
}

versions() {
    # shellcheck disable=SC2016,SC2086 # dpkg's own variables; one word a package
    dpkg-query -W -f '${Package} ${Version}\n' $source_package binutils
    gcc --version | head -n 1
}

# Puts all configuration files into one, a later line in the place of an earlier one for the same option.
merge() {
    awk '
        { name = $0; sub(/^# /, "", name); sub(/( is not set|=.*)$/, "", name) }
        name !~ /^CONFIG_/ { next }
        !(name in line) { order[++count] = name }
        { line[name] = $0 }
        END { for (i = 1; i <= count; i++) print line[order[i]] }
    ' "$@"
}

# Fails when a line of "$1" did not become part of .config: its option is gone, or needs another one.
verify() {
    lost=0
    while read -r line; do
        case $line in
        '# '*) option=${line#\# } option=${option% is not set}
            grep -q "^$option=" .config && { say "not kept: $line"; lost=1; } ;;
        *) grep -qxF -- "$line" .config || { say "not kept: $line"; lost=1; } ;;
        esac
    done <"$1"
    [ "$lost" -eq 0 ]
}

# Runs make: all it says goes to the log, every 200th line and every warning to standard error.
run_make() {
    log=$1
    shift
    rm -f "$log.ok"
    { make "$@" 2>&1 && : >"$log.ok"; } | tee -a "$log" |
        awk '/(warning|error|Error):? / || NR % 200 == 0 { print "linux: " NR " " $0; fflush() }' >&2
    [ -e "$log.ok" ] || { tail -n 40 "$log" >&2; exit 1; }
}

build() {
    mkdir -p "$1/build"
    out=$(cd "$1" && pwd)
    shift
    cd "$out/build"
    tarball=$(dpkg -L "$source_package" | grep '\.tar\.xz$')
    say "unpacking $(basename "$tarball")"
    # Left out: large folders that this build does not read.
    tar -xf "$tarball" --strip-components=1 --exclude='*/tools/testing' --exclude='*/drivers/gpu/drm/amd/include' \
        --exclude='*/arch/*/boot/dts'
    for file in "$here"/patches/*.patch; do
        say "applying $(basename "$file")"
        patch -s -p1 --no-backup-if-mismatch <"$file" >&2
    done

    merge "$here/kernel.config" "$@" >wanted.config
    # Nothing of the result depends on when, where and by whom it was built.
    export KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=lightv KBUILD_BUILD_HOST=lightv KBUILD_BUILD_VERSION=1
    export KCONFIG_ALLCONFIG="$PWD/wanted.config" LC_ALL=C
    run_make "$out/build.log" allnoconfig
    verify wanted.config
    say "compiling; about 2200 steps"
    run_make "$out/build.log" -j"$(nproc)" vmlinux bzImage

    strip -o "$out/vmlinux" vmlinux
    cp arch/x86/boot/bzImage System.map "$out/"
    cp .config "$out/config"
    rm -f "$out/build.log.ok"
    cd "$out"
    rm -rf build
}

case ${1-} in
prepare) prepare ;;
versions) versions ;;
build) shift && build "$@" ;;
*) sed -n '3,11s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac

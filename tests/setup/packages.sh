#!/bin/sh
# Installs what the tests and the demo need from Debian's packages. Asks nothing, skips what is there.
#
#   packages.sh PACKAGE...
#
# QEMU 10 comes from the backports suite, whose newest design pullfs prefers; where the suite cannot be had the
# machine's own QEMU has to do, and that is said loudly.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
backports=/etc/apt/sources.list.d/pullfs-backports
export DEBIAN_FRONTEND=noninteractive

say() { echo "setup: $*"; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
qemu_major() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p'; }
need_root() {
    [ "$(id -u)" = 0 ] || { say "to install $* I must be root: run \`make setup\` as root"; exit 1; }
}

updated=
update() {
    [ -n "$updated" ] && return 0
    say "apt-get update"
    updated=yes
    apt-get update -q >/dev/null
}

# A machine's image often comes without package lists, or with lists that are older than the archive.
install() {
    need_root "$*"
    say "installing $*"
    apt-get install -qy --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    update && apt-get install -qy --no-install-recommends "$@" >/dev/null
}

newer_qemu() {
    need_root "QEMU 10"
    updated=
    if "$here/backports.sh" /etc/apt "$codename" && update &&
        install -t "$codename-backports" qemu-system-x86 qemu-utils; then
        return 0
    fi
    # A source that does not answer would make every later `apt-get update` of this machine fail.
    rm -f "$backports.sources" "$backports.list"
    updated=
    return 1
}

missing=
for package in "$@"; do
    installed "$package" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list of words
    install $missing
else
    say "already here: $*"
fi

if [ "$(qemu_major || true)" -ge 9 ] 2>/dev/null; then
    say "already here: $(qemu-system-x86_64 --version | head -n 1)"
elif newer_qemu && [ "$(qemu_major)" -ge 9 ]; then
    say "installed $(qemu-system-x86_64 --version | head -n 1)"
else
    installed qemu-system-x86 && installed qemu-utils || install qemu-system-x86 qemu-utils
    say "*** QEMU 10 COULD NOT BE HAD from $codename-backports: only $(qemu-system-x86_64 --version | head -n 1) is tested ***"
fi

#!/bin/sh
# Makes a Debian with next to nothing in it: what the package is installed in by the tests.
#
#   clean-root.sh TARBALL      root directory of this machine's release, from this machine's mirror
#
# What the package recommends is downloaded and not installed, so that apt in the root needs no network. Does nothing when
# TARBALL is there and no older than this script.
set -eu

tarball=$1
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
say() { echo "setup: $*"; }

[ -n "$(find "$tarball" -newer "$0" 2>/dev/null)" ] && { say "already here: a clean $codename"; exit 0; }
mkdir -p "$(dirname "$tarball")"
say "making a clean $codename"
# shellcheck disable=SC2016 # $1 is mmdebstrap's
mmdebstrap --quiet --variant=apt --skip=cleanup/apt \
    --customize-hook='chroot "$1" apt-get -qq install --download-only fuse3' \
    "$codename" "$tarball.new.tar"
mv "$tarball.new.tar" "$tarball"
say "a clean $codename is in $tarball"

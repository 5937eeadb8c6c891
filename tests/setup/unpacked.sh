#!/bin/sh
# Unpacks a package whose programs the tests run, but which is not to be installed: it would start something for the whole
# computer. Libraries that it depends on are installed.
#
#   unpacked.sh DIR PACKAGE
#
# Does nothing when DIR is complete.
set -eu

dir=$1 package=$2
say() { echo "setup: $*"; }

[ -e "$dir/.complete" ] && { say "already here: $package in $dir"; exit 0; }
rm -rf "$dir"
mkdir -p "$dir"
# The unprivileged user that APT downloads as cannot write here.
download() { (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$package"); }
download || { apt-get update -q >/dev/null && download; }
dpkg -x "$dir"/*.deb "$dir"
rm "$dir"/*.deb
libraries=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Depends: //p' | head -n 1 |
    tr ',' '\n' | sed 's/^ *//; s/[ (:|].*//' | grep '^lib' | sort -u || true)
# shellcheck disable=SC2086 # a list of words
[ -z "$libraries" ] || DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $libraries >/dev/null
touch "$dir/.complete"
say "$package is in $dir"

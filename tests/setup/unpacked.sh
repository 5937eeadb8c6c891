#!/bin/sh
# Unpacks packages whose programs the tests run, but which are not to be installed: they would start something for the whole
# computer. Libraries that they depend on are installed.
#
#   unpacked.sh DIR PACKAGE...
#
# Does nothing when DIR is complete.
set -eu

dir=$1
shift
say() { echo "setup: $*"; }

[ -e "$dir/.complete" ] && { say "already here: $* in $dir"; exit 0; }
rm -rf "$dir"
mkdir -p "$dir"
# The unprivileged user that APT downloads as cannot write here.
download() { (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$@"); }
download "$@" || { apt-get update -q >/dev/null && download "$@"; }
for package in "$dir"/*.deb; do
    dpkg -x "$package" "$dir"
    rm "$package"
done
libraries=$(apt-cache show --no-all-versions "$@" | sed -n 's/^Depends: //p' |
    tr ',' '\n' | sed 's/^ *//; s/[ (:|].*//' | grep '^lib' | sort -u || true)
# shellcheck disable=SC2086 # a list of words
[ -z "$libraries" ] || DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $libraries >/dev/null
touch "$dir/.complete"
say "$*: in $dir"

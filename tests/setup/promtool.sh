#!/bin/sh
# Unpacks Debian's promtool, which judges what pullfs tells Prometheus. Nothing is installed: the package would start a server.
#
#   promtool.sh DIR       DIR/usr/bin/promtool
#
# Does nothing when DIR is complete.
set -eu

dir=$1
stamp=$dir/.complete

[ -e "$stamp" ] && { echo "setup: already here: promtool in $dir"; exit 0; }
[ -n "$(apt-cache madison prometheus)" ] || apt-get update -q >/dev/null
rm -rf "$dir"
mkdir -p "$dir/packages"
# The unprivileged user that APT downloads as cannot write here.
download() { (cd "$dir/packages" && apt-get -qq -o APT::Sandbox::User=root download prometheus); }
download || { apt-get update -q >/dev/null && download; }
dpkg --fsys-tarfile "$dir"/packages/*.deb | tar -x -C "$dir" ./usr/bin/promtool
rm -r "$dir/packages"
"$dir/usr/bin/promtool" --version | head -n 1
: >"$stamp"

#!/bin/sh
# Unpacks the newest QEMU that a later Debian release has, with all its libraries, beside the installed one. Nothing of it is
# installed, and APT's own lists stay as they are.
#
#   qemu-newest.sh DIR [CODENAME]     DIR/bin/qemu-system-x86_64, of CODENAME's backports (trixie)
#
# Its libraries are newer than this machine's, so it is started through its own dynamic linker. Does nothing when DIR is
# complete. Exit status: 3 when it cannot be had.
set -eu

dir=$1
later=${2:-trixie}
stamp=$dir/.complete
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
say() { echo "setup: $*"; }

[ -e "$stamp" ] && { say "already here: $(cat "$stamp") in $dir"; exit 0; }

# The mirror and the key that this machine uses for its own release.
source=$(find /etc/apt/sources.list.d -name '*.sources' -exec grep -l "^Suites:.*\b$codename\b" {} + | head -n 1)
[ -n "$source" ] || { say "no package source of $codename is in /etc/apt/sources.list.d"; exit 3; }
field() { sed -n "s/^$1: *//p" "$source" | head -n 1; }

rm -rf "$dir"
mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/root" "$dir/bin"
: >"$dir/apt/status"
printf 'Types: deb\nURIs: %s\nSuites: %s %s-backports\nComponents: main\nSigned-By: %s\n' \
    "$(field URIs)" "$later" "$later" "$(field Signed-By)" >"$dir/apt/later.sources"
apt_later() {
    apt-get -qq -o "Dir::State=$dir/apt" -o "Dir::State::status=$dir/apt/status" -o "Dir::Cache=$dir/apt" \
        -o "Dir::Etc::sourcelist=$dir/apt/later.sources" -o "Dir::Etc::sourceparts=$dir/apt/none" \
        -o "Dir::Etc::preferencesparts=$dir/apt/none" -o APT::Sandbox::User=root -o Debug::NoLocking=true "$@"
}
mkdir -p "$dir/apt/none"
say "unpacking QEMU of $later-backports into $dir"
apt_later update >/dev/null || exit 3
apt_later install -y --download-only --no-install-recommends -t "$later-backports" qemu-system-x86 >/dev/null || exit 3
for archive in "$dir"/apt/archives/*.deb; do
    dpkg -x "$archive" "$dir/root"
done
rm -r "$dir/apt"

libraries=$(dirname "$(find "$dir/root/usr/lib" -name 'ld-linux-x86-64.so.2' -path '*-linux-gnu/*' | head -n 1)")
cat >"$dir/bin/qemu-system-x86_64" <<SCRIPT
#!/bin/sh
export QEMU_MODULE_DIR=$libraries/qemu
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries $dir/root/usr/bin/qemu-system-x86_64 \\
    -L $dir/root/usr/share/qemu -L $dir/root/usr/share/seabios "\$@"
SCRIPT
chmod 755 "$dir/bin/qemu-system-x86_64"
"$dir/bin/qemu-system-x86_64" --version | head -n 1 >"$stamp.new" || { say "it does not run here"; exit 3; }
mv "$stamp.new" "$stamp"
say "$(cat "$stamp") is in $dir"

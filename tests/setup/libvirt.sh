#!/bin/sh
# Unpacks libvirt's daemon, its drivers of QEMU and of storage, and virsh, of one major version. Nothing of it is installed, and no service is
# started: the tests start it themselves (tests/src/libvirt).
#
#   libvirt.sh DIR MAJOR      DIR/usr/sbin/libvirtd, DIR/usr/bin/virsh and what they need of libvirt itself
#
# On Debian 12, 9 is the release's own and 11 comes from the backports suite. Does nothing when DIR is complete.
# Exit status: 3 when that version cannot be had.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=$1 major=$2
stamp=$dir/.complete
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
say() { echo "setup: $*"; }

# What an older one of these scripts has left lacks the driver of storage.
[ -e "$stamp" ] && [ -n "$(find "$dir" -name libvirt_driver_storage.so)" ] && { say "already here: libvirt $(cat "$stamp") in $dir"; exit 0; }

version_of() {
    apt-cache madison "$1" | awk -F ' *\\| *' -v major="$major" '$2 ~ "^" major "\\." { print $2; exit }'
}
# Package lists may be missing, or the suite.
[ -n "$(version_of libvirt-daemon)" ] || apt-get update -q >/dev/null
if [ -z "$(version_of libvirt-daemon)" ] && "$here/backports.sh" /etc/apt "$codename"; then
    apt-get update -q >/dev/null
fi
version=$(version_of libvirt-daemon)
[ -n "$version" ] || { say "no libvirt $major in $codename"; exit 3; }

rm -rf "$dir"
mkdir -p "$dir/packages"
say "unpacking libvirt $version into $dir"
# Newer versions are cut into more packages.
for package in libvirt0 libvirt-common libvirt-daemon libvirt-daemon-common libvirt-daemon-driver-qemu \
    libvirt-daemon-driver-storage libvirt-clients; do
    of_package=$(version_of "$package")
    [ -n "$of_package" ] || continue
    # The unprivileged user that APT downloads as cannot write here.
    (cd "$dir/packages" && apt-get -qq -o APT::Sandbox::User=root download "$package=$of_package") || exit 3
done
for archive in "$dir"/packages/*.deb; do
    dpkg -x "$archive" "$dir"
done
libraries=$(for archive in "$dir"/packages/*.deb; do dpkg-deb --field "$archive" Depends; done |
    tr ',' '\n' | sed 's/^ *//; s/[ (|].*//' | grep '^lib' | grep -v '^libvirt' | sort -u)
rm -r "$dir/packages"

# Only these drivers, and of storage the directories: others need libraries that no test needs, and one that cannot be loaded
# keeps libvirtd from starting.
find "$dir" -path '*/libvirt/*-driver/*' ! -name libvirt_driver_qemu.so ! -name libvirt_driver_storage.so -type f -delete
find "$dir" -path '*/libvirt/storage-backend/*' ! -name libvirt_storage_backend_fs.so -type f -delete
own=$(dirname "$(find "$dir/usr/lib" -name libvirt.so.0)")
# shellcheck disable=SC2046 # a list of words
unresolved() {
    LD_LIBRARY_PATH=$own ldd "$dir/usr/sbin/libvirtd" "$dir/usr/bin/virsh" $(find "$dir" -name 'libvirt_driver_*.so') |
        awk '/not found/ { print $1 }' | sort -u
}
if [ -n "$(unresolved)" ]; then
    say "installing the libraries of libvirt $version"
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $libraries >/dev/null
fi
if [ -n "$(unresolved)" ]; then
    say "libvirt $version cannot run here, it misses: $(unresolved | tr '\n' ' ')"
    exit 3
fi
echo "$version" >"$stamp"
say "libvirt $version is in $dir"

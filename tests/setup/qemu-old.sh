#!/bin/sh
# Unpacks this Debian release's own QEMU (7.2 on Debian 12) beside the installed one. Nothing of it is installed.
#
#   qemu-old.sh DIR       DIR/usr/bin/qemu-system-x86_64 and friends
#
# It runs with `-L DIR/usr/share/qemu -L DIR/usr/share/seabios` and QEMU_MODULE_DIR=DIR/usr/lib/<triplet>/qemu: the
# emulator's own accelerator and block drivers are modules. Does nothing when DIR is complete.
# Exit status: 3 when the release's own QEMU cannot be had, or is no older than 9.
set -eu

dir=$1
stamp=$dir/.complete
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
say() { echo "setup: $*"; }

[ -e "$stamp" ] && { say "already here: QEMU $(cat "$stamp") in $dir"; exit 0; }

# The suite itself first, then its security updates: never backports.
version_of() {
    apt-cache madison "$1" | awk -F ' *\\| *' -v suite="$codename" '
        $3 ~ " " suite "/" { print $2; exit }
        $3 ~ " " suite "-(security|updates)/" && !other { other = $2 }
        END { if (other) print other }' | head -n 1
}

packages='qemu-system-x86 qemu-system-common qemu-system-data qemu-utils seabios'
[ -n "$(version_of qemu-system-x86)" ] || apt-get update -q >/dev/null
version=$(version_of qemu-system-x86)
case $version in
    *:[2-8].* | [2-8].*) ;;
    *) say "no QEMU older than 9 in $codename (found: ${version:-none})"; exit 3 ;;
esac

rm -rf "$dir"
mkdir -p "$dir/packages"
say "unpacking QEMU $version into $dir"
for package in $packages; do
    # Data packages are built once for all architectures, so their version may differ by a rebuild's suffix.
    of_package=$(version_of "$package")
    # The unprivileged user that APT downloads as cannot write here.
    (cd "$dir/packages" && apt-get -qq -o APT::Sandbox::User=root download "$package=$of_package") ||
        (apt-get update -q >/dev/null && cd "$dir/packages" &&
            apt-get -qq -o APT::Sandbox::User=root download "$package=$(version_of "$package")") ||
        exit 3
done
for archive in "$dir"/packages/*.deb; do
    dpkg -x "$archive" "$dir"
done
rm -r "$dir/packages"

binaries="$dir/usr/bin/qemu-system-x86_64 $dir/usr/bin/qemu-storage-daemon $dir/usr/bin/qemu-io $dir/usr/bin/qemu-img $dir/usr/bin/qemu-nbd"
modules="$dir"/usr/lib/*/qemu/accel-tcg-x86_64.so
# shellcheck disable=SC2086 # lists of words
unresolved() { ldd $binaries $modules | awk '/not found/ { print $1 }' | sort -u; }

# Libraries that this QEMU needs and the newer one does not, from what its packages say they depend on.
if [ -n "$(unresolved)" ]; then
    # shellcheck disable=SC2046,SC2086
    libraries=$(for package in qemu-system-x86 qemu-system-common qemu-utils; do
        apt-cache show "$package=$(version_of "$package")" | sed -n 's/^Depends: //p' | head -n 1
    done | tr ',' '\n' | sed 's/^ *//; s/[ (|].*//' | grep '^lib' | sort -u)
    say "installing the libraries of QEMU $version"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $libraries >/dev/null
fi
if [ -n "$(unresolved)" ]; then
    say "QEMU $version cannot run here, it misses: $(unresolved | tr '\n' ' ')"
    exit 3
fi
echo "$version" >"$stamp"
say "QEMU $version is in $dir"

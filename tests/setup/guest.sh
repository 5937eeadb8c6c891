#!/bin/sh
# Makes the guest of the tests and the demo: Debian's cloud kernel and an initramfs of busybox, qemu-guest-agent, stalls.c
# and guest-init.sh.
#
#   guest.sh DIR          DIR/vmlinuz, DIR/initramfs.gz
#
# Kernel and agent are unpacked from their packages, not installed. Does nothing when DIR is complete and no older than
# its parts.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=$1
stamp=$dir/.complete
say() { echo "setup: $*"; }

newest() {
    find "$stamp" -newer "$here/guest.sh" -newer "$here/guest-init.sh" -newer "$here/stalls.c" 2>/dev/null
}
[ -n "$(newest)" ] && { say "already here: a guest with Linux $(cat "$stamp")"; exit 0; }

# The metapackage names the kernel of the day.
kernel_package() {
    apt-cache show --no-all-versions linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^Depends: *\(linux-image-[^ ,]*\).*/\1/p' | head -n 1
}
download() {
    package=$(kernel_package)
    [ -n "$package" ] && (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$package" qemu-guest-agent)
}

rm -rf "$dir"
mkdir -p "$dir/unpacked" "$dir/root"
say "making a guest in $dir from Debian's cloud kernel and guest agent"
download || { apt-get update -q >/dev/null && download; }
for package in "$dir"/linux-image-*.deb "$dir"/qemu-guest-agent_*.deb; do
    dpkg -x "$package" "$dir/unpacked"
    rm "$package"
done
kernel=$(basename "$dir"/unpacked/boot/vmlinuz-*)
release=${kernel#vmlinuz-}
cp "$dir/unpacked/boot/$kernel" "$dir/vmlinuz"
modules=$dir/unpacked
[ -d "$modules/lib/modules" ] || modules=$dir/unpacked/usr
depmod -b "$modules" "$release"

root=$dir/root
mkdir -p "$root/bin" "$root/modules" "$root/proc" "$root/sys" "$root/dev" "$root/a" "$root/b"
cp /bin/busybox "$root/bin/busybox" 2>/dev/null || cp /usr/bin/busybox "$root/bin/busybox"
cp "$here/guest-init.sh" "$root/init"
chmod 755 "$root/init"
gcc -O2 -Wall -static -o "$root/bin/stalls" "$here/stalls.c"

# The agent is the only program of the guest that is not static: its libraries are this machine's, which has them for QEMU.
agent=$dir/unpacked/usr/sbin/qemu-ga
if ldd "$agent" | grep 'not found'; then
    say "qemu-guest-agent needs libraries that this machine does not have; is qemu-system-x86 installed?"
    exit 1
fi
mkdir -p "$root/run"
cp "$agent" "$root/bin/qemu-ga"
ldd "$agent" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done

# modprobe tells each module's dependencies, in the order in which they go in.
for module in virtio_pci virtio_blk virtio_console ext4 xfs crc32c_generic vfat nls_cp437 nls_ascii; do
    modprobe --dirname "$modules" --set-version "$release" --show-depends "$module" 2>/dev/null |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
done | awk '!seen[$0]++' | while read -r file; do
    name=$(basename "$file" | sed 's/\.ko.*/.ko/')
    case $file in
        *.xz) xz -dc "$file" >"$root/modules/$name" ;;
        *) cp "$file" "$root/modules/$name" ;;
    esac
    echo "$name" >>"$root/modules/order"
done
[ -s "$root/modules/order" ] || { say "no modules found in $release"; exit 1; }

(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$dir/initramfs.gz"
rm -rf "$root" "$dir/unpacked"
echo "$release" >"$stamp"
say "a guest with Linux $release is in $dir"

# What the namespaces of a libvirtd are made of, and what lives in them:
#
#   sh -euc "$(cat keeper.sh)" keeper STATE ROOT [LISTEN]
#
# With LISTEN, `--listen`, libvirtd takes connections over the network, as its configuration says.
# STATE is seen outside as well: etc (which lies over /etc), run and log (libvirt's directories of those names). ROOT is where
# libvirt is unpacked: it lies over /usr, so that each of its programs finds the others. /tmp is everybody's.
#
# Each line of standard input starts a libvirtd; its end ends all that there is.
state=$1 root=$2 listen=${3:-}

# Mounts that others made are let go of, so that nobody who unmounts one waits for us.
umount -l -a -t fuse,fuse.pullfs,fuse.nbdfuse 2>/dev/null || :
mount -t overlay -o "lowerdir=$root/usr:/usr" overlay /usr
mount -t overlay -o "lowerdir=$state/etc:/etc" overlay /etc
# What libvirt writes, and nobody else's.
for private in /run /var/lib /var/cache /var/log; do
    mount -t tmpfs -o mode=755 tmpfs "$private"
done
mkdir /run/libvirt /var/log/libvirt
mount --bind "$state/run" /run/libvirt
mount --bind "$state/log" /var/log/libvirt
mount --bind "$state/etc/libvirt" /etc/libvirt

# KVM does not work here, for anybody. If root alone can open it, libvirt asks QEMU all over again what it can do whenever it
# wants to know, which takes seconds each time.
if [ -e /dev/kvm ]; then
    : >"$state/no-kvm"
    mount --bind "$state/no-kvm" /dev/kvm
    mount -o remount,bind,ro /dev/kvm
fi

exec 3<&0 </dev/null
while read -r _ <&3; do
    # Nobody's child, as under systemd: whoever has no parent is the first process'.
    # shellcheck disable=SC2086 # a word, or none
    (libvirtd $listen 3<&- >>"$state/libvirtd.log" 2>&1 &)
done &
exec 3<&-
# The first process of a namespace has to wait for those whose parents have gone, libvirtd and QEMU among them.
wait $!

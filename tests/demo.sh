#!/bin/sh
# Backs up a small machine that runs Linux and writes all the time, with cp.
#
#   demo.sh PULLFS GUEST_DIR        the binary; what tests/setup/guest.sh made
#
# Every command that is shown with a `$` can be typed by hand. Run it by `make demo`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pullfs_dir=$(cd "$(dirname "$1")" && pwd)
guest=$(cd "$2" && pwd)
PATH=$pullfs_dir:$here:$PATH
work=$(mktemp -d /tmp/pullfs-demo.XXXXXX)
cd "$work"
mkdir mnt backup
machine=

bold() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
# Shows a command as it would be typed, then runs it.
run() {
    printf '\n$'
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=,+-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    echo
    "$@"
}
fail() { echo "demo: $*" >&2; exit 1; }

# Runs on any exit: a machine, a mount and a directory of ours do not outlive the demo.
clean_up() {
    status=$?
    trap - EXIT
    cd /
    mountpoint -q "$work/mnt" && umount "$work/mnt"
    [ -n "$machine" ] && kill "$machine" 2>/dev/null && wait "$machine" 2>/dev/null
    rm -rf --one-file-system "$work"
    [ "$status" = 0 ] || echo "demo: FAILED" >&2
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

boot() {
    : >console
    qemu-system-x86_64 -nodefaults -display none -m 256 -accel "$1" \
        -kernel "$guest/vmlinuz" -initrd "$guest/initramfs.gz" -append "console=ttyS0 quiet panic=-1" \
        -serial file:console -qmp unix:vm.qmp,server=on,wait=off -qmp unix:other.qmp,server=on,wait=off \
        -blockdev driver=qcow2,node-name=disk-a,discard=unmap,file.driver=file,file.filename=a.qcow2 \
        -device virtio-blk-pci,id=vda,drive=disk-a \
        -blockdev driver=raw,node-name=disk-b,discard=unmap,file.driver=file,file.filename=b.raw \
        -device virtio-blk-pci,id=vdb,drive=disk-b >qemu.log 2>&1 &
    machine=$!
}
counter() { sed -n 's/^counter=\([0-9]*\).*/\1/p' console | tail -n 1; }
# Waits, for at most so many tenths of a second, until the guest has counted to a number.
counted_to() {
    tenths=$2
    until [ "$(counter || true)" -ge "$1" ] 2>/dev/null; do
        tenths=$((tenths - 1))
        [ "$tenths" -gt 0 ] || return 1
        kill -0 "$machine" 2>/dev/null || return 1
        sleep 0.1
    done
}

bold "A machine: two disks (qcow2 and raw) with ext4, Linux writing to both of them all the time"
run truncate -s 256M a.raw b.raw
run mkfs.ext4 -q -F a.raw
run mkfs.ext4 -q -F b.raw
run qemu-img convert -O qcow2 a.raw a.qcow2
rm a.raw

# A machine may have /dev/kvm and yet run no guest by it: only a guest that counts proves it.
accelerator=tcg
if [ -w /dev/kvm ]; then
    boot kvm
    if counted_to 1 60; then
        accelerator=kvm
    else
        kill "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
    fi
fi
if [ "$accelerator" = tcg ]; then
    boot tcg
    counted_to 1 600 || { cat console qemu.log; fail "the guest did not boot"; }
fi
printf '\n$ %s \\\n      %s\n' "qemu-system-x86_64 -accel $accelerator -kernel vmlinuz -initrd initramfs.gz -qmp unix:vm.qmp,server=on,wait=off" \
    "-blockdev …a.qcow2 -device virtio-blk-pci,id=vda,… -blockdev …b.raw -device virtio-blk-pci,id=vdb,… &"
echo "Linux $(cat "$guest/.complete") runs, and has counted to $(counter) in a file on both disks."

bold "A checkpoint, as the machine's own backup tool makes it: QEMU notes what changes from now on"
run qmp.py other.qmp transaction '{"actions": [
  {"type": "block-dirty-bitmap-add", "data": {"node": "disk-a", "name": "monday", "persistent": true}},
  {"type": "block-dirty-bitmap-add", "data": {"node": "disk-b", "name": "monday"}}]}'
counted_to $(($(counter) + 30)) 600 || fail "the guest stopped counting"

bold "Mount it: nothing starts yet, a look costs the machine nothing"
run pullfs mount "qmp:$work/vm.qmp" mnt
run ls -l mnt mnt/current/vda mnt/current/vdb
run qmp.py other.qmp query-jobs

bold "Copy both disks while the guest writes: the first read freezes one point in time of both"
before=$(counter)
run cp mnt/current/vda/disk.raw backup/vda.raw
run cp mnt/current/vdb/disk.raw backup/vdb.raw
counted_to $(($(counter) + 5)) 600 || fail "the guest stopped counting"
after=$(counter)
echo "The guest had counted to $before before, and to $after after: it never paused."
run pullfs status mnt

bold "The copies are as if the plug had been pulled: the journal is replayed, then e2fsck finds no fault"
for disk in vda vdb; do
    # As a booting machine does it. Exit code 1: the journal was replayed. More than that is a fault.
    run e2fsck -f -p backup/$disk.raw || [ $? = 1 ]
    run e2fsck -f -n backup/$disk.raw
done
printf '\n$ %s\n' "debugfs -R 'cat /counter' backup/vda.raw"
debugfs -R 'cat /counter' backup/vda.raw 2>/dev/null
printf '\n$ %s\n' "debugfs -R 'cat /counter' backup/vdb.raw"
debugfs -R 'cat /counter' backup/vdb.raw 2>/dev/null
copied=$(debugfs -R 'cat /counter' backup/vda.raw 2>/dev/null | sed 's/^0*//')
{ [ "$copied" -ge "$before" ] && [ "$copied" -le "$after" ]; } ||
    fail "the copy's counter $copied is not between $before and $after"

bold "What changed since the checkpoint: an incremental backup reads only that"
run head -n 14 mnt/checkpoints/monday/vda/dirty.map
run cp --sparse=auto mnt/checkpoints/monday/vda/delta.raw backup/vda.monday.raw
run du -h --apparent-size backup/vda.monday.raw
run du -h backup/vda.monday.raw

bold "Unmount: QEMU is as it was"
run pullfs umount mnt
run qmp.py other.qmp query-jobs
run qmp.py other.qmp query-block-exports
run qmp.py other.qmp query-named-block-nodes '{"flat": true}' node-name drv
kill -0 "$machine" || fail "the machine is gone"
seen=$(counter)
counted_to $((seen + 1)) 600 || fail "the guest stopped counting"
echo
echo "The guest goes on: $(counter). That was all of it: mount, cp, umount."

#!/bin/sh
# nightly MNT BACKUPS: backs up all disks of the machine that is mounted on MNT, with cp, into the directory BACKUPS.
#
# Each night leaves DISK.TIME.qcow2, which is that night's whole disk: what changed since the night before, over that
# night's image. The first image is a full one, and so is every other for which nobody can tell what changed. A night that
# fails leaves nothing behind, and the next one makes up for it. To restore, and to shorten the chain: docs/cookbook.md.
set -eu
[ $# = 2 ] || { echo "usage: nightly MNT BACKUPS" >&2; exit 1; }
mnt=$1 backups=$2
last=$(cat "$backups/last" 2>/dev/null || echo none)
now=$(date +%Y%m%d-%H%M%S)

undo() {
    echo release >"$mnt/control" || :
    rmdir "$mnt/checkpoints/$now" || :
    rm -f "$backups"/*."$now.qcow2"
}

# All disks are frozen at this instant, and what changes from now on is noted for the next night.
mkdir "$mnt/checkpoints/$now"
trap undo EXIT
trap 'exit 1' HUP INT TERM

for disk in $(ls "$mnt/current"); do
    image=$backups/$disk.$now.qcow2
    if [ -e "$backups/$disk.$last.qcow2" ] && cp "$mnt/checkpoints/$last/$disk/delta.qcow2" "$image"; then
        continue
    fi
    cp "$mnt/current/$disk/disk.qcow2" "$image"
done
# If it ended by itself after the last copy, the copies are whole all the same.
echo release >"$mnt/control" || :
sync
echo "$now" >"$backups/last.new"
mv "$backups/last.new" "$backups/last"
trap - EXIT

# The next night begins from this one; the one before has done its duty.
[ ! -d "$mnt/checkpoints/$last" ] || rmdir "$mnt/checkpoints/$last"

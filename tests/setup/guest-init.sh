#!/bin/busybox sh
# The whole of the guest: two file systems, a counter that both of them hold, and files that come and go.
#
# Once `counter=N` is on the serial console, N is on both disks for good. /a gets N before /b, so in one point in time of
# both disks /a is at most one ahead of /b: a copy of the two at different instants shows.
# The kernel's command line chooses what happens, as pullfs.mode=
#   churn   (default) the above
#   daily   the above, and for each N a file /days/N on both disks, there for good before `counter=N`
#   idle    mounted and silent
#   list    mounts each disk there is, says `vda=N` for its files /days/N, and powers off
#   fill    fills the FAT file system on each disk but the first, copies what it then shows to a directory of the disk's name
#           on the ext4 on /dev/vda, and powers off; pullfs.files=N:N:… says how many files each gets
#   stalls  mounts nothing, overwrites /dev/vda as stalls.c does, pullfs.passes=N times (for good), and powers off;
#           pullfs.passes=times: with small writes, and tells how long they take
# pullfs.fs=xfs mounts XFS where churn, daily and idle mount ext4 otherwise.
# pullfs.agent starts qemu-guest-agent, and pullfs.agent=COMMAND,… one that does not allow these commands.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

while read -r module; do
    insmod "/modules/$module"
done </modules/order

mode=churn
fs=ext4
agent=
blocked=
passes=0
files=
for word in $(cat /proc/cmdline); do
    case $word in
        pullfs.mode=*) mode=${word#pullfs.mode=} ;;
        pullfs.fs=*) fs=${word#pullfs.fs=} ;;
        pullfs.passes=*) passes=${word#pullfs.passes=} ;;
        pullfs.files=*) files=${word#pullfs.files=} ;;
        pullfs.agent) agent=yes ;;
        pullfs.agent=*) agent=yes blocked=${word#pullfs.agent=} ;;
    esac
done

waited=0
until [ -b /dev/vda ] && { [ -b /dev/vdb ] || [ "$mode" = list ] || [ "$mode" = stalls ]; }; do
    waited=$((waited + 1))
    [ "$waited" -gt 50 ] && { echo "guest: the disks did not appear"; exec poweroff -f; }
    sleep 0.1
done
if [ "$mode" = stalls ]; then
    stalls /dev/vda "$passes"
    exec poweroff -f
fi
if [ "$mode" = list ]; then
    for disk in /dev/vd?; do
        name=${disk#/dev/}
        if mount -t ext4 "$disk" /a; then
            for file in /a/days/*; do
                [ "$(cat "$file")" = "${file##*/}" ] && echo "$name=${file##*/}" || echo "guest: $name: bad $file"
            done
            umount /a && echo "guest: $name listed"
        else
            echo "guest: cannot mount $disk"
        fi
    done
    exec poweroff -f
fi

# Everything that a directory of vfat can hold, as far as the shell can make it, and a number of files ($2).
fill() {
    mkdir -p "$1/one/two/three/four" "$1/an empty directory" "$1/many" "$1/turns"
    for name in UPPER.TXT lower.txt Mixed.Txt LOWER.ext UPPER.low two.dots.txt '+,;=[]' 'a b' ümläut ÜMLÄUT2 日本語 \
        '😀 emoji 🎉' 'one/two/three/four/deep' 'ends in dots...' "$(printf '%0250d' 7)"; do
        echo "this is $name" >"$1/$name" || echo "guest: cannot make $name"
    done
    i=0
    while [ $i -lt "$2" ]; do
        directory=$1/many/$((i / 1000))
        [ -d "$directory" ] || mkdir "$directory"
        i=$((i + 1))
        echo $i >"$directory/a file of some length, number $i" || echo "guest: cannot make $i"
    done
    for directory in "$1/many/"*; do
        rm "$directory/"*[37]
    done
    i=0
    while [ $i -lt 100 ]; do
        i=$((i + 1))
        printf '%03000d' $i >>"$1/turns/one"
        printf '%03000d' $i >>"$1/turns/two"
    done
    dd if=/dev/urandom of="$1/large" bs=64k count=16 2>/dev/null
    # What lies before is written with zeroes: FAT has no holes.
    dd if=/dev/urandom of="$1/far" bs=1k count=1 seek=500 2>/dev/null
    : >"$1/empty"
    chmod a-w "$1/large"
    touch -d '1980-01-02 03:04:06' "$1/UPPER.TXT"
    touch -d '2038-02-03 04:05:08' "$1/lower.txt"
    touch -d '2104-02-29 23:59:58' "$1/Mixed.Txt"
    mv "$1/a b" "$1/one/two/moved and with a longer name"
}
if [ "$mode" = fill ]; then
    mount -t ext4 /dev/vda /b || echo "guest: cannot mount /dev/vda"
    for disk in /dev/vd[b-z]; do
        mount -t vfat "$disk" /a && fill /a "${files%%:*}" && umount /a || echo "guest: cannot fill $disk"
        mount -t vfat -o ro "$disk" /a && cp -a /a "/b/${disk#/dev/}" && umount /a || echo "guest: cannot copy $disk"
        files=${files#*:}
    done
    umount /b && echo "guest: filled"
    exec poweroff -f
fi

ordered=
[ "$fs" = ext4 ] && ordered="-o data=ordered"
mount -t "$fs" $ordered /dev/vda /a || echo "guest: cannot mount /dev/vda"
mount -t "$fs" $ordered /dev/vdb /b || echo "guest: cannot mount /dev/vdb"
mkdir -p /a/churn /b/churn /a/days /b/days
if [ -n "$agent" ]; then
    # Without udev nobody gives the port its name; it is the only one there is. Its state and log are not on the disks,
    # which it freezes.
    qemu-ga -m virtio-serial -p /dev/vport*p1 -t /run -f /run/qemu-ga.pid ${blocked:+-b "$blocked"} &
fi
echo "guest: ready"

# In place and of one length: the file is a number at every instant, whatever has reached the disk.
count() { printf '%012d\n' "$2" | dd of="$1/counter" conv=notrunc,fsync 2>/dev/null || echo "guest: cannot write $1"; }

# At most 16 files of at most 512 KiB on each disk.
churn() {
    slot=$(($2 % 16))
    dd if=/dev/urandom of="$1/churn/$slot" bs=64k count=$(($2 % 8 + 1)) 2>/dev/null || echo "guest: cannot write $1"
    rm -f "$1/churn/$((($2 + 5) % 16))"
}

# The directory's entry as well is there for good.
day() { echo "$2" >"$1/days/$2" && sync; }

n=0
while [ "$mode" != idle ]; do
    n=$((n + 1))
    [ "$mode" = daily ] && { day /a $n; day /b $n; }
    count /a $n
    count /b $n
    echo "counter=$n"
    churn /a $n
    churn /b $n
done
while :; do sleep 3600; done

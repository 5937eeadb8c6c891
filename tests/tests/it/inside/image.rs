//! A disk image with partitions and files, made by the tools that everybody makes them with.

use std::fs;
use std::path::{Path, PathBuf};

use pullfs_tests::machine::MIB;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::tool;

/// Where the first partition is, in bytes.
pub(super) const START: u64 = MIB;
/// How large it is, in bytes.
pub(super) const SIZE: u64 = 48 * MIB;
/// How large the disk is, in bytes.
pub(super) const DISK: u64 = 64 * MIB;

/// What fills a file system ($1): all that a copy may lose, and a directory of many files ($2).
pub(super) const FILL: &str = r#"
set -e
many=$2
cd "$1"
mkdir -p etc home/user/deep/er many empty
echo 127.0.0.1 localhost > etc/hosts
chmod 600 etc/hosts
head -c 3000000 /dev/urandom > home/user/large
chown 1234:5678 home/user home/user/large
chmod 4750 home/user/large
ln home/user/large home/user/deep/second-name
ln -s /etc/passwd etc/absolute
ln -s ../etc/hosts home/relative
ln -s "$(printf 'x%.0s' $(seq 200))" home/long-link
printf data > home/sparse
truncate -s 20M home/sparse
printf end | dd of=home/sparse bs=1 seek=10000000 conv=notrunc status=none
: > empty/nothing
printf odd > "$(printf 'home/odd \377\376 name\n')"
for n in $(seq "$many"); do echo "$n" > "many/a file with a name of its own, number $n"; done
mkfifo home/fifo
mknod home/device c 1 3
mknod home/block b 8 1
setfattr -n user.note -v 'a note' etc/hosts
setfattr -n user.large -v "$(printf 'v%.0s' $(seq 900))" home/user/large
setfattr -n trusted.secret -v 'for root' etc/hosts
setcap cap_net_raw+ep home/user/deep/second-name
setfacl -m u:1234:rw,g:5678:r etc/hosts
printf listed > etc/listed
printf denied > etc/denied
chgrp 65534 etc/denied
chmod 600 etc/listed etc/denied
setfacl -m u:65534:r etc/listed
setfacl -m u:1234:r etc/denied
setfacl -d -m u:1234:rwx home/user/deep
touch -d '1969-12-31 23:59:58.5 UTC' empty/nothing
touch -h -d '2001-02-03 04:05:06.789 UTC' etc/absolute
chmod 000 many/*"$((many - 1))"
chmod 1777 empty
"#;

/// Makes the image: a GPT, ext4 on the first partition, nothing that is known on the second, swap on the third.
pub(super) fn make(path: &Path) {
    fs::File::create(path).expect("an image").set_len(DISK).expect("its size");
    ok(tool("sgdisk").args(["-n", "1:2048:+48M", "-t", "1:8300", "-c", "1:the root"]).arg(path));
    ok(tool("sgdisk").args(["-n", "2:0:+4M", "-n", "3:0:+4M", "-t", "3:8200"]).arg(path));
    let offset = format!("offset={START}");
    ok(tool("mkfs.ext4").args(["-q", "-L", "guest root", "-E", &offset]).arg(path).arg((SIZE / 1024).to_string()));
    fill(path, "ext4", (START, SIZE), FILL, &["1500"]);
}

/// Has the kernel fill a part (offset, size) of an image, by a script whose $1 is where it is mounted.
///
/// It is mounted in a namespace of its own: one that another test makes meanwhile would keep it mounted, and so unfinished.
#[track_caller]
pub(super) fn fill(image: &Path, kind: &str, (offset, size): (u64, u64), script: &str, arguments: &[&str]) {
    let place = image.with_extension("fill");
    fs::create_dir_all(&place).expect("a mount point");
    let options = format!("loop,noatime,offset={offset},sizelimit={size}");
    let script = format!("mount -t {kind} -o {options} \"$0\" \"$1\"\n({script})\numount \"$1\"");
    let mut unshare = tool("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-euc", &script]);
    ok(unshare.arg(image).arg(&place).args(arguments));
}

/// A file system in an image, mounted by the kernel until this is dropped.
pub(super) struct Mounted(pub(super) PathBuf);

impl Mounted {
    /// Mounts the first partition of what [`make`] made.
    #[track_caller]
    pub(super) fn of(image: &Path, options: &str) -> Self {
        Self::part(image, "ext4", options, (START, SIZE))
    }

    /// Mounts a part (offset, size) of an image.
    #[track_caller]
    pub(super) fn part(image: &Path, kind: &str, options: &str, (offset, size): (u64, u64)) -> Self {
        let place = image.with_extension(format!("{offset}.mnt"));
        fs::create_dir_all(&place).expect("a mount point");
        let options = format!("{options},noatime,offset={offset},sizelimit={size}");
        ok(tool("mount").args(["-t", kind, "-o", &options]).arg(image).arg(&place));
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(tool("umount").arg(&self.0));
    }
}

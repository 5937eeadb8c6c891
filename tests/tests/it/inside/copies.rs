//! Copies of the guest's files by tools that copy files: what they restore is what the guest has, whatever its file system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::differences;
use super::image::{FILL, Mounted, fill};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::{require, tool};

/// The partitions: what is on each, how it is made, where it begins and how large it is, in MiB. XFS is made no smaller.
const PARTITIONS: [(&str, &str, u64, u64); 4] = [
    ("ext4", "mkfs.ext4 -q", 1, 48),
    ("xfs", "mkfs.xfs -q", 49, 300),
    ("ntfs", "mkntfs -F -q -Q", 349, 16),
    ("vfat", "mkfs.vfat", 365, 16),
];
const SIZE: u64 = 384 * MIB;

/// What NTFS and FAT hold as well as others.
const PLAIN: &str = r#"
mkdir -p "$1/a directory/deep/er" "$1/many" "$1/empty"
head -c 3000000 /dev/urandom >"$1/a directory/large"
for n in $(seq 300); do echo "$n" >"$1/many/a file with a long name of its own, number $n"; done
echo ümläut >"$1/a directory/ümläut 日本語"
: >"$1/nothing"
"#;

/// Copies files ($1) to an NTFS ($2), which is mounted on $3 meanwhile. Its driver has written all when it has ended.
const TO_NTFS: &str = r#"
mkdir "$3"
ntfs-3g -o no_detach "$2" "$3" &
for _ in $(seq 200); do mountpoint -q "$3" && break; sleep 0.05; done
mountpoint -q "$3"
cp -r "$1/." "$3"
umount "$3"
wait
"#;

/// Copies files ($1) to a FAT ($2).
const TO_FAT: &str = r#"LC_ALL=C.UTF-8 MTOOLS_SKIP_CHECK=1 mcopy -s -Q -i "$2" "$1"/* ::/"#;

fn shell(script: &str, arguments: &[&Path]) {
    ok(tool("sh").args(["-euc", script, "sh"]).args(arguments));
}

/// Makes a disk of them all, in a directory.
fn make(dir: &Path) -> PathBuf {
    let (disk, plain) = (dir.join("vda.raw"), dir.join("plain"));
    File::create(&disk).expect("an image").set_len(SIZE).expect("its size");
    shell(PLAIN, &[&plain]);
    for (number, (kind, make, start, size)) in (1..).zip(PARTITIONS) {
        let part = dir.join(kind);
        File::create(&part).expect("an image").set_len(size * MIB).expect("its size");
        shell(&format!("{make} \"$1\""), &[&part]);
        match kind {
            "ntfs" => shell(TO_NTFS, &[&plain, &part, &dir.join("ntfs.mnt")]),
            "vfat" => shell(TO_FAT, &[&plain, &part]),
            _ => fill(&part, kind, (0, size * MIB), FILL, &["200"]),
        }
        ok(tool("sgdisk").args(["-n", &format!("{number}:{}:+{size}M", start * 2048)]).arg(&disk));
        let mut dd = tool("dd");
        dd.args(["bs=1M", "conv=notrunc,sparse", "status=none", &format!("seek={start}")]);
        ok(dd.arg(format!("if={}", part.display())).arg(format!("of={}", disk.display())));
    }
    disk
}

fn restic(repository: &Path) -> std::process::Command {
    let mut restic = tool("restic");
    restic.args(["-q", "--no-cache", "-r"]).arg(repository).env("RESTIC_PASSWORD", "of a test");
    restic
}

on!(what_tools_restore_is_what_the_guest_has: new = New);
fn what_tools_restore_is_what_the_guest_has(flavor: Flavor) {
    for tool in ["mkfs.xfs", "mkntfs", "ntfs-3g", "mkfs.vfat"] {
        require(tool);
    }
    let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
    let (disk, copy) = (make(dir.path()), dir.path().join("copy.raw"));
    ok(tool("cp").arg("--sparse=always").args([&disk, &copy]));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", SIZE).from_image(&disk)).start();
    let mount = Mount::of(&machine);
    let repository = mount.beside("repository");
    ok(restic(&repository).arg("init"));
    for (number, (kind, _, start, size)) in (1..).zip(PARTITIONS) {
        let files = mount.path(&format!("current/vda/partitions/{number}/files"));
        if ["ntfs", "vfat"].contains(&kind) {
            ok(tool("diff").arg("-r").arg(dir.path().join("plain")).arg(&files));
            continue;
        }
        let kernel = Mounted::part(&copy, kind, "loop,ro", (start * MIB, size * MIB));
        let [by_rsync, by_restic] = ["rsync", "restic"].map(|tool| mount.beside(&format!("{kind}.{tool}")));
        ok(tool("rsync").args(["-aHAX", "--numeric-ids"]).arg(format!("{}/", files.display())).arg(&by_rsync));
        ok(restic(&repository).args(["backup", "files"]).current_dir(files.parent().expect("a partition")));
        ok(restic(&repository).args(["restore", "latest", "--target"]).arg(&by_restic));
        for restored in [&files, &by_rsync, &by_restic.join("files")] {
            assert_eq!(differences(&kernel.0, restored), "", "{kind}: {}", restored.display());
        }
        let sparse = by_rsync.join("home/sparse");
        assert_eq!(fs::metadata(&sparse).expect("a file").len(), 20 * MIB);
    }
    assert!(mount.unmount().success());
}

//! A directory of 100,000 files is listed whole, in memory that does not grow with it, and looked at in few questions.

use std::collections::BTreeSet;
use std::fs::{self, File};

use super::image::fill;
use super::killed::children;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

const FILES: usize = 100_000;
const FILES_MADE: &str = r#"
mkdir "$1/many"
cd "$1/many"
seq -f 'a file of the guest, number %.0f' "$2" | tr '\n' '\0' | xargs -0 touch
"#;
const SIZE: u64 = 96 * MIB;

/// What the daemon may grow by, in KiB: the kernel remembers files, and so does the daemon until the kernel forgets them.
const DAEMON: u64 = 64 << 10;
/// What the process that reads the disk may take in all, in KiB.
const READER: u64 = 64 << 10;

/// How many questions to that process a look at each file may take: 25 files a question, with what lists them.
const MOST_ASKED: u64 = FILES as u64 / 25;

/// How many questions the process that reads the disk has answered.
#[track_caller]
fn answers(mount: &Mount) -> u64 {
    mount.status()["readers"]["answers"].as_u64().expect("a count")
}

/// The most that a process ever had in memory, in KiB.
#[track_caller]
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("KiB")
}

on!(a_hundred_thousand_files_are_listed_and_looked_at_in_bounded_memory: new = New);
fn a_hundred_thousand_files_are_listed_and_looked_at_in_bounded_memory(flavor: Flavor) {
    let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
    let image = dir.path().join("vda.raw");
    File::create(&image).expect("an image").set_len(SIZE).expect("its size");
    ok(tool("mkfs.ext4").args(["-q", "-N", "101000"]).arg(&image));
    fill(&image, "ext4", (0, SIZE), FILES_MADE, &[&FILES.to_string()]);
    let machine = Machine::build(flavor).disk(Disk::raw("vda", SIZE).from_image(&image)).start();
    // Of which inode tables fill all there is.
    let mount = Mount::with(&machine, "cache=8M");
    let many = mount.path("current/vda/partitions/0/files/many");
    assert!(many.is_dir());
    let before = peak(mount.pid());
    let found = ok(tool("find").arg(&many).args(["-type", "f", "-printf", "%f\\n"]));
    let names: BTreeSet<&str> = found.lines().collect();
    assert_eq!((found.lines().count(), names.len()), (FILES, FILES));
    let asked = answers(&mount);
    let found = ok(tool("find").arg(&many).args(["-type", "f", "-empty", "-printf", "%i %s %m %l%f\\n"]));
    let seen: BTreeSet<&str> =
        found.lines().filter_map(|line| line.split_once(" 0 644 ")).map(|(_, name)| name).collect();
    assert!(seen == names, "{} of {FILES} are as they should be", seen.len());
    let asked = answers(&mount) - asked;
    assert!(asked < MOST_ASKED, "{asked} questions");
    let grown = peak(mount.pid()) - before;
    let readers: Vec<u64> = children(mount.pid()).into_iter().map(peak).collect();
    assert!(grown < DAEMON && readers.iter().all(|peak| *peak < READER), "{grown} KiB, {readers:?} KiB");
    assert!(!readers.is_empty());
    assert!(mount.unmount().success());
}

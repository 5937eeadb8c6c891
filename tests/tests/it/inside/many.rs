//! A directory of 100,000 files is listed whole, in memory that does not grow with it, and looked at in few questions; and each of
//! thousands of files is what the kernel shows.

use std::collections::BTreeSet;
use std::fs::{self, File};

use super::image::{FILL, Mounted, fill};
use super::killed::children;
use super::{compared, differences};
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

/// What the daemon may grow by, in KiB: the kernel remembers files, and so does the daemon until the kernel forgets them.
const DAEMON: u64 = 64 << 10;
/// What the process that reads the disk may take in all, in KiB.
const READER: u64 = 64 << 10;

/// How many files are compared with what the kernel shows; `make long` compares more.
const COMPARED: u32 = 2_000;

/// How many files are looked at, and how many questions to that process that may take: 25 files a question.
const LOOKED_AT: usize = 10_000;
const MOST_ASKED: u64 = LOOKED_AT as u64 / 25;

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
    listed(flavor, "ext4", &["mkfs.ext4", "-q", "-N", "101000"], 96 * MIB);
}

on!(a_hundred_thousand_files_of_xfs_are_listed_and_looked_at_in_bounded_memory: new = New);
fn a_hundred_thousand_files_of_xfs_are_listed_and_looked_at_in_bounded_memory(flavor: Flavor) {
    listed(flavor, "xfs", &["mkfs.xfs", "-q"], 300 * MIB);
}

fn listed(flavor: Flavor, kind: &str, mkfs: &[&str], size: u64) {
    let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
    let image = dir.path().join("vda.raw");
    File::create(&image).expect("an image").set_len(size).expect("its size");
    ok(tool(mkfs[0]).args(&mkfs[1..]).arg(&image));
    fill(&image, kind, (0, size), FILES_MADE, &[&FILES.to_string()]);
    let machine = Machine::build(flavor).disk(Disk::raw("vda", size).from_image(&image)).start();
    // Of which inode tables fill all there is.
    let mount = Mount::with(&machine, "cache=8M");
    let many = mount.path("current/vda/partitions/0/files/many");
    assert!(many.is_dir());
    let before = peak(mount.pid());
    let found = ok(tool("find").arg(&many).args(["-type", "f", "-printf", "%f\\n"]));
    let names: BTreeSet<&str> = found.lines().collect();
    assert_eq!((found.lines().count(), names.len()), (FILES, FILES));
    let asked = answers(&mount);
    // In the order of the directory, as who walks one of some thousands does. Of more, `find` has an order of its own.
    let listed = ok(tool("ls").args(["-1", "--sort=none", "--color=never"]).arg(&many));
    assert!(listed.lines().collect::<BTreeSet<_>>() == names);
    let list = mount.beside("names");
    let some: Vec<&str> = listed.lines().take(LOOKED_AT).collect();
    fs::write(&list, some.join("\0")).expect("a list");
    let mut stat = tool("xargs");
    stat.current_dir(&many).args(["-0", "-a"]).arg(&list).args(["stat", "-c", "%s %a %n"]);
    let told = ok(&mut stat);
    let seen: BTreeSet<&str> = told.lines().filter_map(|line| line.strip_prefix("0 644 ")).collect();
    assert!(seen == some.into_iter().collect(), "{} of {LOOKED_AT} are as they should be", seen.len());
    let asked = answers(&mount) - asked;
    assert!(asked < MOST_ASKED, "{asked} questions");
    let grown = peak(mount.pid()) - before;
    let readers: Vec<u64> = children(mount.pid()).into_iter().map(peak).collect();
    assert!(grown < DAEMON && readers.iter().all(|peak| *peak < READER), "{grown} KiB, {readers:?} KiB");
    assert!(!readers.is_empty());
    assert!(mount.unmount().success());
}

on!(thousands_of_files_are_what_the_kernel_shows: new = New);
fn thousands_of_files_are_what_the_kernel_shows(flavor: Flavor) {
    alike(flavor, "ext4", &["mkfs.ext4", "-q", "-b", "1024", "-N", "110000"], 200 * MIB);
}

on!(thousands_of_files_of_xfs_are_what_the_kernel_shows: new = New);
fn thousands_of_files_of_xfs_are_what_the_kernel_shows(flavor: Flavor) {
    alike(flavor, "xfs", &["mkfs.xfs", "-q", "-b", "size=1024"], 400 * MIB);
}

/// Attributes and content of each of them.
fn alike(flavor: Flavor, kind: &str, mkfs: &[&str], size: u64) {
    let files = compared(COMPARED).to_string();
    let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
    let [image, copy] = ["vda.raw", "copy.raw"].map(|name| dir.path().join(name));
    File::create(&image).expect("an image").set_len(size).expect("its size");
    ok(tool(mkfs[0]).args(&mkfs[1..]).arg(&image));
    fill(&image, kind, (0, size), FILL, &[&files]);
    ok(tool("cp").arg("--sparse=always").args([&image, &copy]));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", size).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let kernel = Mounted::part(&copy, kind, "loop,ro", (0, size));
    assert_eq!(differences(&kernel.0, &mount.path("current/vda/partitions/0/files")), "", "{files} files");
    assert!(mount.unmount().success());
}

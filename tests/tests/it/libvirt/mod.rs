//! What is special to domains of libvirt's: one backup at a time, which others may end, and a daemon that comes and goes.

mod agent;
mod bases;
mod by_ssh;
mod checkpoints;
mod disks;
mod ended;
mod host;
mod marks;
mod redefined;
mod remote;
mod restarts;
mod unplugged;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::wait_until;
use pullfs_tests::random::Random;
use rustix::io::Errno;
use serde_json::Value;

/// A disk that libvirt makes checkpoints of, and one that it makes none of.
const DISKS: [&str; 2] = ["vda", "vdb"];

/// Of both, in bytes.
const SIZE: u64 = 4 * MIB;

/// For what libvirt does at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What [`DISKS`] says.
fn builder(flavor: Flavor) -> pullfs_tests::builder::Builder {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", SIZE).filled(&[(0, 3 * MIB)]))
        .disk(Disk::raw("vdb", SIZE).filled(&[(0, 3 * MIB)]))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or_else(|| panic!("no errno: {error}"))
}

/// The disks as they are, by QEMU's own tool.
fn contents(machine: &Machine) -> [Vec<u8>; 2] {
    DISKS.map(|id| fs::read(machine.copy(id, &format!("{id}.contents"))).expect("a copy"))
}

/// Reads at random until a read fails, and says how it does; what is read is compared.
fn read_until_it_fails(file: &File, right: &[u8], seed: u64) -> Errno {
    let mut random = Random::new(seed);
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        match read_once(file, right, &mut random) {
            Ok(()) => {}
            Err(error) => return errno(&error),
        }
    }
    panic!("reads did not fail within {LIMIT:?}");
}

/// Reads 64 KiB somewhere.
fn read_once(file: &File, right: &[u8], random: &mut Random) -> io::Result<()> {
    const LENGTH: u64 = 64 << 10;
    let size = u64::try_from(right.len()).expect("a size");
    let offset = random.below((size - LENGTH) / 512) * 512;
    let mut read = vec![0; 64 << 10];
    file.read_exact_at(&mut read, offset)?;
    let start = usize::try_from(offset).expect("an offset");
    assert!(read == right[start..start + read.len()], "wrong bytes at {offset}");
    Ok(())
}

/// That libvirt has no backup of the domain, and nothing of ours is where scratch files are.
#[track_caller]
fn nothing_is_left(machine: &Machine, mount: &Mount) {
    wait_until("the end of libvirt's backup", LIMIT, || !has_backup(machine));
    wait_until("an empty scratch directory", LIMIT, || is_empty(&mount.scratch()));
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).expect("a directory").next().is_none()
}

/// Whether virsh tells of a backup.
#[track_caller]
fn has_backup(machine: &Machine) -> bool {
    let info = machine.domain().virsh("domjobinfo", &[]).success();
    assert!(info.contains("Job type:"), "{info}");
    !info.lines().any(|line| line.starts_with("Job type:") && line.trim_end().ends_with("None"))
}

/// The message of the last error.
#[track_caller]
fn last_error(mount: &Mount) -> String {
    let status: Value = mount.status();
    status["last_error"]["message"].as_str().unwrap_or_else(|| panic!("no error in {status}")).to_owned()
}

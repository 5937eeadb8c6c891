//! The figures that pullfs promises: printed beside their limits, never failing. Run by `make bench`.

use std::fs::{self, File};
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, run_within};
use pullfs_tests::scattered;

const TIB: u64 = 1 << 40;
/// Rounds of which the median is told.
const ROUNDS: usize = 7;
/// For a copy of a GiB on a slow disk.
const COPY_LIMIT: Duration = Duration::from_secs(300);
const DIRTY_EXTENTS: u64 = 1_000_000;

fn main() {
    for flavor in [Flavor::New, Flavor::Old] {
        if flavor.available() {
            first_byte(flavor);
            throughput(flavor);
            memory(flavor);
            increment(flavor);
        }
    }
}

/// From an idle mount to the first byte of a large disk: the point in time is taken meanwhile.
fn first_byte(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", TIB).filled(&[(0, MIB)])).start();
    machine.add_bitmap("vda", "monday", 65536);
    let mount = Mount::of(&machine);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        ok(Command::new("head").arg("-c1").arg(mount.disk("vda")));
        times.push(start.elapsed());
        mount.command(&["release"]).success();
    }
    let (median, slowest) = median(times);
    println!("first byte of a 1 TiB disk, {flavor:?} QEMU: {median:.1?} (slowest {slowest:.1?}; limit 300 ms)");
}

/// A whole disk through the mount, by one reader, the first time and from the kernel's cache.
fn throughput(flavor: Flavor) {
    let size = 512 * MIB;
    let machine = Machine::build(flavor).disk(Disk::raw("vda", size).filled(&[(0, size)])).start();
    let mount = Mount::of(&machine);
    let copy = || {
        let start = Instant::now();
        let mut disk = File::open(mount.disk("vda")).expect("the disk");
        // Through memory, as most backup programs read; splice would hide what a reader sees.
        let mut buffer = vec![0; 1 << 20];
        while io::Read::read(&mut disk, &mut buffer).expect("reading the disk") > 0 {}
        512.0 / start.elapsed().as_secs_f64()
    };
    let (first, cached) = (copy(), copy());
    println!("one reader of 512 MiB, {flavor:?} QEMU: {first:.0} MiB/s, again {cached:.0} MiB/s");
}

/// The daemon's memory when it tells a dirty map of a million extents.
fn memory(flavor: Flavor) {
    let images = tempfile::tempdir().expect("a temporary directory");
    let image = images.path().join("vda.qcow2");
    let made = scattered::image(&image, "monday", DIRTY_EXTENTS);
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 0).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let idle = resident(&mount);
    let start = Instant::now();
    let map = fs::read_to_string(mount.path("checkpoints/monday/vda/dirty.map")).expect("the map");
    let took = start.elapsed();
    let extents = oracle::read_map(&map, |_| true).len();
    let after_map = resident(&mount);
    fs::read(mount.path("checkpoints/monday/vda/dirty.json")).expect("the map");
    let after_json = resident(&mount);
    assert_eq!(u64::try_from(extents).ok(), Some(made), "an extent for each of the bitmap's");
    println!("dirty.map of {extents} extents, {flavor:?} QEMU: {took:.1?}");
    println!(
        "memory of the daemon: {idle} idle, {after_map} after dirty.map, {after_json} after dirty.json \
         (limit 40 MiB and the configured cache)"
    );
}

/// A delta of 1 % of a large disk costs in proportion to the 1 %, whatever the size of the disk.
fn increment(flavor: Flavor) {
    const SIZE: u64 = 100 << 30;
    const PARTS: u64 = SIZE / 100 / MIB;
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", SIZE).filled(&[(0, 64 * MIB)])).start();
    let mount = Mount::of(&machine);
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    mount.command(&["release"]).success();
    for part in 0..PARTS {
        machine.write("vda", part * (SIZE / PARTS / MIB) * MIB, MIB, 0x5a);
    }
    let (start, copy) = (Instant::now(), mount.beside("delta.qcow2"));
    run_within(Command::new("cp").arg(mount.path("checkpoints/monday/vda/delta.qcow2")).arg(&copy), COPY_LIMIT)
        .success();
    let (took, size) = (start.elapsed(), fs::metadata(&copy).expect("the copy").len() / MIB);
    let nbd = &mount.status()["point"]["nbd"];
    let bytes = nbd["bytes"].as_u64().unwrap_or(0) / MIB;
    println!(
        "delta.qcow2 of {PARTS} MiB in as many places of 100 GiB, {flavor:?} QEMU: {size} MiB in {took:.1?}, of which \
         {bytes} MiB were read over NBD by {} requests (and {} for maps)",
        nbd["reads"], nbd["maps"]
    );
}

/// What the kernel says the daemon has in memory, and had at most.
fn resident(mount: &Mount) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).expect("the daemon's status");
    let mib = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0).div_ceil(1024)
    };
    format!("{} MiB (at most {})", mib("VmRSS:"), mib("VmHWM:"))
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

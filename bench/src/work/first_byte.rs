//! (e) How long one waits for the first byte, for a listing, and what a large dirty map costs.

use std::fs;
use std::time::Instant;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use pullfs_tests::{oracle, scattered};

use super::Work;
use crate::args::Args;
use crate::process::{most_resident, resident_now, timed};
use crate::results::{OURS, Results};
use crate::units::{GIB, MIB, Unit};

pub(crate) const WORK: Work = Work {
    letter: 'e',
    title: "time to the first byte, of listings and of maps",
    how: "The first byte of an idle mount of a 1 TiB disk: the point in time is taken meanwhile. `ls -lR` is of a mount \
          that has listed nothing yet.",
    run: waits,
};

/// Dirty extents of the map.
const EXTENTS: u64 = 1_000_000;
/// Checkpoints of each of so many disks.
const CHECKPOINTS: usize = 1000;
const DISKS: usize = 8;

fn waits(args: &Args, results: &mut Results) {
    for flavor in [Flavor::New, Flavor::Old] {
        if flavor.available() {
            first_byte(args, results, flavor);
            maps(results, flavor);
        } else {
            results.miss('e', &format!("there is no {flavor:?} QEMU"));
        }
    }
    listing(args, results);
}

fn first_byte(args: &Args, results: &mut Results, flavor: Flavor) {
    let what = format!("first byte of 1 TiB, {flavor:?} QEMU");
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 1024 * GIB).filled(&[(0, MIB)])).start();
    machine.add_bitmap("vda", "monday", 65536);
    let mount = Mount::of(&machine);
    for _ in 0..args.rounds {
        let took = timed(tool("head").arg("-c1").arg(mount.disk("vda")));
        results.add('e', &what, OURS, Unit::Seconds, took.as_secs_f64());
        mount.command(&["release"]).success();
    }
}

/// A dirty map of a million extents, and the daemon's memory while it tells it.
fn maps(results: &mut Results, flavor: Flavor) {
    let images = tempfile::tempdir().expect("a temporary directory");
    let image = images.path().join("vda.qcow2");
    scattered::image(&image, "monday", EXTENTS);
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 0).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let mut add = |what: &str, unit, sample| results.add('e', &format!("{what}, {flavor:?} QEMU"), OURS, unit, sample);
    add("memory of an idle daemon", Unit::Mib, resident_now(mount.pid()));
    let start = Instant::now();
    let map = fs::read_to_string(mount.path("checkpoints/monday/vda/dirty.map")).expect("the map");
    add("dirty.map of 10^6 extents", Unit::Seconds, start.elapsed().as_secs_f64());
    let extents = oracle::read_map(&map, |_| true).len();
    assert_eq!(u64::try_from(extents).ok(), Some(EXTENTS), "an extent for each of the bitmap's");
    fs::read(mount.path("checkpoints/monday/vda/dirty.json")).expect("the map");
    add("memory with 10^6 extents, at most", Unit::Mib, most_resident(mount.pid()));
}

fn listing(args: &Args, results: &mut Results) {
    let images = tempfile::tempdir().expect("a temporary directory");
    let first = images.path().join("first.qcow2");
    ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&first).arg((64 * MIB).to_string()));
    // QEMU's tool opens the image anew for each bitmap: once for all of the disks.
    for number in 0..CHECKPOINTS {
        ok(tool("qemu-img").args(["bitmap", "--add"]).arg(&first).arg(format!("day-{number:04}")));
    }
    let mut machine = Machine::build(Flavor::New);
    for number in 0..DISKS {
        let (id, image) = (format!("vd{number}"), images.path().join(format!("{number}.qcow2")));
        fs::copy(&first, &image).expect("a copy of the image");
        machine = machine.disk(Disk::qcow2(&id, 0).from_image(&image));
    }
    let machine = machine.start();
    for _ in 0..args.rounds {
        let mount = Mount::of(&machine);
        let took = timed(tool("ls").arg("-lR").arg(mount.mnt()));
        let what = format!("ls -lR, {CHECKPOINTS} checkpoints × {DISKS} disks");
        results.add('e', &what, OURS, Unit::Seconds, took.as_secs_f64());
    }
}

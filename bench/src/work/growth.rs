//! (h) How cost grows with what there is.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use pullfs_tests::{oracle, scattered};

use super::Work;
use crate::args::Args;
use crate::process::{cpu_to_now, most_resident, threads, timed};
use crate::readers::direct;
use crate::results::{Results, Step};
use crate::units::{GIB, MIB, Unit, float};

pub(crate) const WORK: Work = Work {
    letter: 'h',
    title: "how cost grows",
    how: "What costs the same for each is in proportion. The data is QEMU's `null-co`, which takes no time, so that what grows \
          is the way from there; `dd bs=1M iflag=direct` reads all of it. Extents are those of a dirty bitmap of 512 bytes, \
          every other one dirty. Disks are qcow2, with a bitmap each, on virtio-scsi. \"begin\" and \"release\" are writes to \
          `control`; the CPU time of all threads is to the nanosecond.",
    run: grow,
};

const BITMAP: &str = "monday";

fn grow(args: &Args, results: &mut Results) {
    for gib in [1, 4, 16, 64] {
        data(args, results, gib);
    }
    for thousands in [1, 10, 100, 1000] {
        extents(args, results, thousands);
    }
    for count in [1, 4, 16, 64] {
        disks(args, results, count);
    }
}

fn data(args: &Args, results: &mut Results, gib: u64) {
    let step = Step { name: format!("{gib} GiB"), count: float(gib), each: "GiB" };
    let mut add = |what: &str, unit, sample| results.grow('h', what, &step, unit, sample);
    let machine = Machine::build(Flavor::New).disk(Disk::endless("vda", gib * GIB)).start();
    for _ in 0..args.rounds {
        let mount = Mount::of(&machine);
        let before = cpu_to_now(mount.pid());
        let took = timed(&direct(&mount.disk("vda")));
        add("data: reading", Unit::Seconds, took.as_secs_f64());
        add("data: CPU of the daemon", Unit::Seconds, cpu_to_now(mount.pid()).saturating_sub(before).as_secs_f64());
        add("data: memory of the daemon, at most", Unit::Mib, most_resident(mount.pid()));
    }
}

fn extents(args: &Args, results: &mut Results, thousands: u64) {
    let step = Step { name: format!("{} extents", thousands * 1000), count: float(thousands), each: "1,000" };
    let images = tempfile::tempdir().expect("a temporary directory");
    let image = images.path().join("vda.qcow2");
    scattered::image(&image, BITMAP, thousands * 1000);
    let mut machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", 0).from_image(&image)).start();
    let qemu = machine.server().pid();
    for _ in 0..args.rounds {
        let mount = Mount::of(&machine);
        let mut told = Told { results, step: &step, axis: "extents", pids: [qemu, mount.pid()] };
        let start = Instant::now();
        told.cost("begin", || mount.control("begin").expect("a point in time"));
        let map = fs::read_to_string(mount.path(&format!("checkpoints/{BITMAP}/vda/dirty.map"))).expect("the map");
        told.add("begin and the whole dirty.map", Unit::Milliseconds, milliseconds(start.elapsed()));
        let found = oracle::read_map(&map, |_| true).len();
        assert_eq!(u64::try_from(found).ok(), Some(thousands * 1000), "an extent for each of the bitmap's");
        told.add("memory of the daemon, at most", Unit::Mib, most_resident(mount.pid()));
    }
}

fn disks(args: &Args, results: &mut Results, count: u64) {
    let step = Step { name: format!("{count} disks"), count: float(count), each: "disk" };
    let images = tempfile::tempdir().expect("a temporary directory");
    let first = images.path().join("first.qcow2");
    ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&first).arg((64 * MIB).to_string()));
    ok(tool("qemu-io").args(["-f", "qcow2", "-c", "write -q -P 7 0 1M"]).arg(&first));
    let names: Vec<String> = (0..count).map(|number| format!("sd{number}")).collect();
    let mut machine = Machine::build(Flavor::New).scsi();
    for name in &names {
        machine = machine.disk(Disk::qcow2(name, 0).from_image(&copy(&first, name)));
    }
    let mut machine = machine.start();
    let qemu = machine.server().pid();
    for name in &names {
        machine.add_bitmap(name, BITMAP, 65536);
    }
    for _ in 0..args.rounds {
        let mount = Mount::of(&machine);
        let mut told = Told { results, step: &step, axis: "disks", pids: [qemu, mount.pid()] };
        told.cost("begin", || mount.control("begin").expect("a point in time"));
        let start = Instant::now();
        let last = fs::File::open(mount.disk(&names[names.len() - 1])).expect("a disk");
        std::os::unix::fs::FileExt::read_exact_at(&last, &mut [0], 0).expect("its first byte");
        told.add("the first byte after begin", Unit::Milliseconds, milliseconds(start.elapsed()));
        drop(last);
        told.add("threads of the daemon", Unit::Count, threads(mount.pid()));
        told.add("memory of the daemon, at most", Unit::Mib, most_resident(mount.pid()));
        told.cost("release", || mount.control("release").expect("a release"));
    }
}

/// Another image like this one, beside it.
#[track_caller]
fn copy(image: &Path, name: &str) -> std::path::PathBuf {
    let copy = image.with_file_name(format!("{name}.qcow2"));
    fs::copy(image, &copy).expect("a copy of the image");
    copy
}

/// The figures of a step.
struct Told<'a> {
    results: &'a mut Results,
    step: &'a Step,
    axis: &'static str,
    /// QEMU's and the daemon's.
    pids: [u32; 2],
}

impl Told<'_> {
    /// How long something takes, and what of it is whose CPU time.
    #[track_caller]
    fn cost(&mut self, what: &str, work: impl FnOnce()) {
        let before = self.pids.map(cpu_to_now);
        let start = Instant::now();
        work();
        let took = start.elapsed();
        let after = self.pids.map(cpu_to_now);
        self.add(what, Unit::Milliseconds, milliseconds(took));
        for (index, whose) in ["QEMU's", "the daemon's"].into_iter().enumerate() {
            let spent = after[index].saturating_sub(before[index]);
            self.add(&format!("{what}, {whose} CPU"), Unit::Milliseconds, milliseconds(spent));
        }
    }

    fn add(&mut self, what: &str, unit: Unit, sample: f64) {
        self.results.grow('h', &format!("{}: {what}", self.axis), self.step, unit, sample);
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

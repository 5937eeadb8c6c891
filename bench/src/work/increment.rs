//! (d) What changed: an incremental backup, from its beginning to the last byte on disk.

use std::time::Instant;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;

use super::Work;
use super::data::cp;
use crate::args::Args;
use crate::process::timed;
use crate::results::{OURS, Results};
use crate::units::{MIB, Unit, float};

pub(crate) const WORK: Work = Work {
    letter: 'd',
    title: "an incremental backup of 1 %, in scattered clusters of 64 KiB",
    how: "From `pullfs begin` to the end of `cp delta.qcow2`, and of `sync` of the copy. The disk is a hundred times as large as \
          what changed. virtnbdbackup is not run yet.",
    run: increments,
};

/// What is compared.
pub(crate) const DELTA: &str = "begin and cp of delta.qcow2, 1 % changed";
pub(crate) const FETCHED: &str = "MiB fetched for 1 % changed";
pub(crate) const CHANGED: &str = "MiB changed, of 1 %";

const CLUSTER: u64 = 65536;

fn increments(args: &Args, results: &mut Results) {
    let clusters = args.size / 8 / CLUSTER;
    let size = clusters * 100 * CLUSTER;
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", size).filled(&[(0, MIB)])).start();
    machine.add_bitmap("vda", "monday", CLUSTER);
    for number in 0..clusters {
        machine.write("vda", number * 100 * CLUSTER, CLUSTER, 0x5a);
    }
    for _ in 0..args.rounds {
        let mount = Mount::of(&machine);
        let copy = mount.beside("delta.qcow2");
        let start = Instant::now();
        mount.command(&["begin"]).success();
        timed(&cp(&mount.path("checkpoints/monday/vda/delta.qcow2"), &copy));
        timed(pullfs_tests::tools::tool("sync").arg(&copy));
        results.add('d', DELTA, OURS, Unit::Seconds, start.elapsed().as_secs_f64());
        let fetched = mount.status()["point"]["nbd"]["bytes"].as_u64().expect("a count");
        results.add('d', FETCHED, OURS, Unit::Mib, float(fetched) / float(MIB));
        results.add('d', CHANGED, OURS, Unit::Mib, float(clusters * CLUSTER) / float(MIB));
    }
    results.miss('d', "virtnbdbackup, and `qemu-img map` with a loop of copies");
}

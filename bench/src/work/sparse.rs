//! (c) A large disk with little on it: what a copy costs beyond its data.

use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::tools::tool;

use super::Work;
use super::data::{cp, pieces, same_image};
use crate::args::Args;
use crate::held::Held;
use crate::peers::{NBDCOPY, convert};
use crate::process::{settle, timed};
use crate::results::{OURS, Results};
use crate::units::{GIB, MIB, Unit};

pub(crate) const WORK: Work = Work {
    letter: 'c',
    title: "a copy of a 100 GiB disk with little data on it",
    how: "The data lies in eight places. `cp` has its defaults. The time of a first copy includes asking what is allocated; \
          the peers do that too. Each copy of the first round is compared with the disk. \"The data alone\" is `cp` of a file of as many bytes beside it.",
    run: copies,
};

/// What is copied.
pub(crate) const RAW: &str = "cp of disk.raw, 100 GiB sparse";
pub(crate) const ALONE: &str = "cp of the data alone";
const QCOW2: &str = "cp of disk.qcow2, 100 GiB sparse";

const SIZE: u64 = 100 * GIB;
const PLACES: u64 = 8;

fn copies(args: &Args, results: &mut Results) {
    let part = args.size / PLACES;
    let extents: Vec<_> = (0..PLACES).flat_map(|place| pieces(place * (SIZE / PLACES) / MIB * MIB, part)).collect();
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", SIZE).filled(&extents)).start();
    let images = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    let (alone, copy) = (images.path().join("alone"), images.path().join("copy"));
    timed(
        tool("dd")
            .arg(format!("of={}", alone.display()))
            .args(["if=/dev/urandom", "bs=1M"])
            .arg(format!("count={}", args.size / MIB)),
    );
    for round in 0..args.rounds {
        let mut add = |what: &str, who: &str, command: &std::process::Command| {
            settle(images.path(), args.size);
            let took = timed(command);
            if round == 0 && what != ALONE {
                same_image(&copy, machine.image("vda"));
            }
            std::fs::remove_file(&copy).expect("a copy");
            results.add('c', what, who, Unit::Seconds, took.as_secs_f64());
        };
        add(ALONE, "cp", &cp(&alone, &copy));
        let ours = |file: &str| {
            let held = Held::of(&machine);
            let from = held.mount.path(&format!("current/vda/{file}"));
            (held, from)
        };
        let (held, raw) = ours("disk.raw");
        add(RAW, OURS, &cp(&raw, &copy));
        drop(held);
        let (held, qcow2) = ours("disk.qcow2");
        add(QCOW2, OURS, &cp(&qcow2, &copy));
        add(RAW, NBDCOPY[0].name, &NBDCOPY[0].command(&held.uri(), &copy));
        add(RAW, "qemu-img convert", &convert(&held.uri(), Path::new(&copy)));
    }
}

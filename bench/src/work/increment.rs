//! (d) What changed: an incremental backup, from its beginning to its end; and the full one that it stands on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::tools;
use serde_json::json;

use super::data::{cp, same_image};
use super::{Work, full};
use crate::args::Args;
use crate::domain::{Domain, unlocked};
use crate::libvirt::{Libvirt, Virtnbdbackup};
use crate::process::{settle, sync, timed};
use crate::pulled;
use crate::results::{OURS, Results};
use crate::turns::turns;
use crate::units::{MIB, Unit, float};
use crate::vm::{self, Vm};

pub(crate) const WORK: Work = Work {
    letter: 'd',
    title: "an incremental backup of 1 %, in scattered clusters of 64 KiB, and a full backup",
    how: "All back up the same running disk, from their first command until it is let go of, with the copy on disk (`sync`). \
          pullfs: `begin --checkpoint`, `cp`, `release`, of a mount that is there. virtnbdbackup: one run of it, with its \
          defaults, on a domain that is paused. The loop is what scripts do: a pull backup by hand, `qemu-img map` with \
          `x-dirty-bitmap`, and a copy-on-read of each run (`qemu-io -C`) into a qcow2 image; one qemu-io does them all, \
          which is kinder than one for each run. The disk of the increment is a hundred times as large as what changed, and \
          other clusters change each round. The full backup is of a qcow2 disk full of data; \"the image itself\" is `cp` \
          and `sync` of it, with no machine between. What all of them copied is compared with the disk afterwards.",
    run: backups,
};

/// What is compared.
pub(crate) const DELTA: &str = "an increment of 1 %, start to finish";
pub(crate) const FETCHED: &str = "MiB fetched for 1 % changed";
pub(crate) const CHANGED: &str = "MiB changed, of 1 %";
/// By whom.
pub(crate) const VIRTNBDBACKUP: &str = "virtnbdbackup";
const LOOP: &str = "qemu-img map, qemu-io";

/// Of the dirty bitmap, and of what changes.
const CLUSTER: u64 = 65536;
/// One cluster of so many changes.
const EVERY: u64 = 100;

fn backups(args: &Args, results: &mut Results) {
    let clusters = args.size / 8 / CLUSTER;
    let disk = || Disk::qcow2("vda", clusters * EVERY * CLUSTER).filled(&[(0, MIB)]);
    match Libvirt::start() {
        Ok(libvirt) => {
            increments(args, results, Domain::start(&libvirt, disk()), clusters, Some(&libvirt));
            full::backups(args, results, &libvirt);
        }
        Err(why) => {
            results.miss('d', &format!("virtnbdbackup, and with it the full backup: {why}"));
            let machine = Machine::build(Flavor::New).disk(disk()).start();
            increments(args, results, machine, clusters, None);
        }
    }
}

/// The checkpoint that a round is the increment since: virtnbdbackup counts its own, and expects no other.
fn since(round: u16) -> String {
    format!("virtnbdbackup.{round}")
}

fn increments(args: &Args, results: &mut Results, mut vm: impl Vm, clusters: u64, libvirt: Option<&Libvirt>) {
    let images = tempfile::Builder::new().prefix("pullfs-bench-").tempdir_in("/var/tmp").expect("a directory");
    let copy = |who: &str, round: u16| images.path().join(format!("{who}.{round}.qcow2"));
    let base = images.path().join("base.qcow2");
    timed(tools::tool("qemu-img").args(["convert", "-U", "-O", "qcow2"]).arg(vm.image()).arg(&base));
    let theirs = libvirt.map(|libvirt| Virtnbdbackup::of(libvirt, Domain::NAME, &images.path().join(VIRTNBDBACKUP)));
    if let Some(theirs) = &theirs {
        timed(&theirs.command("full"));
    }
    for round in 0..args.rounds {
        change(&vm, clusters, round, theirs.is_none());
        let mut fetched = 0;
        for who in turns(&[OURS, VIRTNBDBACKUP, LOOP], round) {
            settle(images.path(), args.size);
            let start = Instant::now();
            let took = match (who, &theirs) {
                (OURS, _) => {
                    let mount = Mount::source(&vm.source(), "");
                    let delta = mount.path(&format!("checkpoints/{}/{}/delta.qcow2", since(round), vm.disk()));
                    let took = backup(&mount, &delta, &copy(who, round));
                    fetched = took.fetched;
                    took.all
                }
                (LOOP, _) => {
                    pulled::increment(&vm, &since(round), &copy(who, round));
                    start.elapsed()
                }
                (_, Some(theirs)) => {
                    timed(&theirs.command("inc"));
                    sync(&theirs.increment(&since(round + 1)));
                    start.elapsed()
                }
                (_, None) => continue,
            };
            results.add('d', DELTA, who, Unit::Seconds, took.as_secs_f64());
        }
        results.add('d', FETCHED, OURS, Unit::Mib, float(fetched) / float(MIB));
        results.add('d', CHANGED, OURS, Unit::Mib, float(clusters * CLUSTER) / float(MIB));
    }
    vm.quit();
    for who in [OURS, LOOP] {
        let copies: Vec<PathBuf> = (0..args.rounds).map(|round| copy(who, round)).collect();
        same_image(chained(&base, &copies), vm.image());
    }
    if let Some(theirs) = &theirs {
        let restored = theirs.restored();
        unlocked(&restored);
        same_image(&restored, vm.image());
    }
}

/// The guest changes its part, other clusters each round, and the checkpoint of the round knows of it.
#[track_caller]
fn change(vm: &dyn Vm, clusters: u64, round: u16, begin: bool) {
    if begin {
        let arguments = json!({"node": vm::node(vm), "name": since(round), "granularity": CLUSTER});
        vm.qmp().must("block-dirty-bitmap-add", arguments);
    }
    let pattern = u8::try_from(round % 250).expect("a byte") + 1;
    for number in 0..clusters {
        vm::write(vm, (number * EVERY + u64::from(round) % EVERY) * CLUSTER, CLUSTER, pattern);
    }
    assert_eq!(vm::changed(vm, &since(round)), clusters * CLUSTER, "what changed");
}

/// What a backup took.
pub(super) struct Took {
    /// From its first command to the end of its last.
    pub(super) all: Duration,
    /// Of it, the `sync` of what it wrote.
    pub(super) sync: Duration,
    /// The bytes that were fetched for it.
    fetched: u64,
}

/// Copies a file of the mount between `pullfs begin` and `pullfs release`. As virtnbdbackup does, it makes a checkpoint
/// for the next backup; this one is deleted again, because theirs are what all increments here are since.
#[track_caller]
pub(super) fn backup(mount: &Mount, file: &Path, copy: &Path) -> Took {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(tools::pullfs());
        command.args(arguments).arg(mount.mnt());
        command
    };
    let begun = timed(&command(&["begin", "--checkpoint", "bench"]));
    let copied = timed(&cp(file, copy));
    let sync = sync(copy);
    let fetched = mount.status()["point"]["nbd"]["bytes"].as_u64().expect("a count");
    let all = begun + copied + sync + timed(&command(&["release"]));
    mount.checkpoint("delete", "bench").success();
    Took { all, sync, fetched }
}

/// The last of increments that stand one upon the other, the first of them on `base`.
#[track_caller]
fn chained<'a>(base: &'a Path, copies: &'a [PathBuf]) -> &'a Path {
    let mut below = base;
    for copy in copies {
        timed(tools::tool("qemu-img").args(["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(below).arg(copy));
        below = copy;
    }
    below
}

//! (d) A full backup of a disk full of data, beside virtnbdbackup's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::mount::Mount;

use super::data::{cp, pieces, same_image};
use super::increment::{VIRTNBDBACKUP, backup};
use crate::args::Args;
use crate::domain::{Domain, unlocked};
use crate::libvirt::{Libvirt, Virtnbdbackup};
use crate::process::{settle, sync, timed};
use crate::results::{OURS, Results};
use crate::turns::turns;
use crate::units::Unit;
use crate::vm::Vm;

/// What is compared.
pub(crate) const FULL: &str = "a full backup, start to finish";
const SYNC: &str = "a full backup, of it sync";
/// The physical limit: what the disk below and `cp` need for as many bytes.
const IMAGE: &str = "the image itself";

pub(super) fn backups(args: &Args, results: &mut Results, libvirt: &Libvirt) {
    let vm = Domain::start(libvirt, Disk::qcow2("vda", args.size).filled(&pieces(0, args.size)));
    for round in 0..args.rounds {
        let images = tempfile::Builder::new().prefix("pullfs-bench-").tempdir_in("/var/tmp").expect("a directory");
        let copy = images.path().join("disk.qcow2");
        for who in turns(&[OURS, VIRTNBDBACKUP, IMAGE], round) {
            settle(images.path(), args.size);
            let (all, synced) = match who {
                OURS => {
                    let mount = Mount::source(&vm.source(), "");
                    let took = backup(&mount, &mount.path(&format!("current/{}/disk.qcow2", vm.disk())), &copy);
                    if round == 0 {
                        same_image(&copy, vm.image());
                    }
                    (took.all, took.sync)
                }
                IMAGE => {
                    let (copied, synced) = (timed(&cp(vm.image(), &copy)), sync(&copy));
                    (copied + synced, synced)
                }
                _ => theirs(&vm, libvirt, &images.path().join(VIRTNBDBACKUP), round == 0),
            };
            if who != VIRTNBDBACKUP {
                fs::remove_file(&copy).expect("removing a copy");
            }
            results.add('d', FULL, who, Unit::Seconds, all.as_secs_f64());
            results.add('d', SYNC, who, Unit::Seconds, synced.as_secs_f64());
        }
    }
}

/// A full backup by virtnbdbackup, and the `sync` of it; with `check`, it is restored and compared.
#[track_caller]
fn theirs(vm: &dyn Vm, libvirt: &Libvirt, dir: &Path, check: bool) -> (Duration, Duration) {
    let theirs = Virtnbdbackup::of(libvirt, Domain::NAME, dir);
    let (taken, synced) = (timed(&theirs.command("full")), sync(&theirs.full()));
    if check {
        let restored = theirs.restored();
        unlocked(&restored);
        same_image(&restored, vm.image());
    }
    libvirt.virsh(&["checkpoint-delete", Domain::NAME, "virtnbdbackup.0"]);
    fs::remove_dir_all(dir).expect("removing a backup");
    (taken + synced, synced)
}

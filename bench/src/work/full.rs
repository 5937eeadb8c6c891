//! (d) A full backup of a disk full of data, beside virtnbdbackup's.

use std::fs;
use std::time::Instant;

use pullfs_tests::disk::Disk;
use pullfs_tests::mount::Mount;

use super::data::{pieces, same_image};
use super::increment::{VIRTNBDBACKUP, backup};
use crate::args::Args;
use crate::domain::{Domain, unlocked};
use crate::libvirt::{Libvirt, Virtnbdbackup};
use crate::process::{sync, timed};
use crate::results::{OURS, Results};
use crate::turns::turns;
use crate::units::Unit;
use crate::vm::Vm;

/// What is compared.
pub(crate) const FULL: &str = "a full backup, start to finish";

pub(super) fn backups(args: &Args, results: &mut Results, libvirt: &Libvirt) {
    let vm = Domain::start(libvirt, Disk::qcow2("vda", args.size).filled(&pieces(0, args.size)));
    for round in 0..args.rounds {
        let images = tempfile::Builder::new().prefix("pullfs-bench-").tempdir_in("/var/tmp").expect("a directory");
        for who in turns(&[OURS, VIRTNBDBACKUP], round) {
            let took = if who == OURS {
                let mount = Mount::source(&vm.source(), "");
                let copy = images.path().join("disk.qcow2");
                let (took, _) = backup(&mount, &mount.path(&format!("current/{}/disk.qcow2", vm.disk())), &copy);
                if round == 0 {
                    same_image(&copy, vm.image());
                }
                fs::remove_file(&copy).expect("removing a copy");
                took
            } else {
                let theirs = Virtnbdbackup::of(libvirt, Domain::NAME, &images.path().join(VIRTNBDBACKUP));
                let start = Instant::now();
                timed(&theirs.command("full"));
                sync(&theirs.full());
                let took = start.elapsed();
                if round == 0 {
                    let restored = theirs.restored();
                    unlocked(&restored);
                    same_image(&restored, vm.image());
                }
                libvirt.virsh(&["checkpoint-delete", Domain::NAME, "virtnbdbackup.0"]);
                took
            };
            results.add('d', FULL, who, Unit::Seconds, took.as_secs_f64());
        }
    }
}

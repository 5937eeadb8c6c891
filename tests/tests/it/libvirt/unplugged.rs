//! A disk that is taken from the machine while a backup of it runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::wait_until;
use rustix::io::Errno;
use serde_json::json;

use super::{LIMIT, errno, nothing_is_left};

/// Until a point in time has ended; libvirt has to be told twice to end its backup. On a busy machine.
const END_LIMIT: Duration = Duration::from_secs(20);

/// SCSI disks go without the guest's consent.
fn machine(flavor: Flavor) -> Machine {
    let disk = |id| Disk::qcow2(id, 4 * MIB).filled(&[(0, MIB)]);
    Machine::build(flavor).scsi().disk(disk("sda")).disk(disk("sdb")).start()
}

// libvirt refuses it: what it knows of is safe.
on!(a_disk_is_detached_only_after_the_backup: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_disk_is_detached_only_after_the_backup(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let right = machine.copy("sdb", "right");
    let open = File::open(mount.disk("sdb")).expect("a disk");
    let detach = || machine.domain().virsh("detach-disk", &["sdb", "--live"]);
    let refused = detach();
    assert!(refused.code != Some(0) && refused.stderr.contains("active block job"), "{refused}");
    assert_eq!(mount.state(), "held");
    oracle::same(&mount.disk("sdb"), &right);
    drop(open);
    mount.command(&["release"]).success();
    detach().success();
    wait_until("a mount without the disk", LIMIT, || !mount.disk("sdb").exists());
    oracle::same(&mount.disk("sda"), &machine.copy("sda", "sda.right"));
    assert!(mount.unmount().success());
}

on!(a_disk_that_is_left_out_may_go: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_disk_that_is_left_out_may_go(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::with(&machine, "disks=sda");
    let right = machine.copy("sda", "right");
    let open = File::open(mount.disk("sda")).expect("a disk");
    machine.domain().virsh("detach-disk", &["sdb", "--live"]).success();
    wait_until("a machine without the disk", LIMIT, || {
        !machine.qmp().must("query-block", json!({})).to_string().contains("ua-sdb")
    });
    // libvirt tells of it in a moment.
    thread::sleep(Duration::from_millis(500));
    oracle::same(&mount.disk("sda"), &right);
    assert_eq!((mount.state().as_str(), &mount.status()["point"]["number"]), ("held", &json!(1)));
    drop(open);
    assert!(mount.unmount().success());
}

// A guest can let go of its disks by itself, as QEMU's own command makes it here. libvirt forgets the disk then, and its job,
// which stays in QEMU; it keeps no other disk from anything.
on!(a_disk_that_goes_by_itself_ends_the_backup: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_disk_that_goes_by_itself_ends_the_backup(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let open = File::open(mount.disk("sda")).expect("a disk");
    let mut qmp = machine.qmp();
    qmp.must("device_del", json!({"id": "ua-sdb"}));
    qmp.wait_event("DEVICE_DELETED", LIMIT, |data| data["device"] == "ua-sdb");
    drop(qmp);
    let unplugged = Instant::now();
    wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
    assert!(unplugged.elapsed() < END_LIMIT, "{:?}", unplugged.elapsed());
    let end = mount.status()["last_end"].clone();
    assert_eq!(end["kind"], "unplugged", "{end}");
    let read = open.read_at(&mut [0; 4096], 0).map_err(|error| errno(&error));
    assert!(matches!(read, Err(Errno::IO | Errno::STALE)), "{read:?}");
    drop(open);
    nothing_is_left(&machine, &mount);
    assert_eq!(machine.qmp().must("query-status", json!({}))["status"], "running");

    let right = machine.copy("sda", "right");
    oracle::same(&mount.disk("sda"), &right);
    assert!(!mount.disk("sdb").exists());
    assert!(mount.unmount().success());
}

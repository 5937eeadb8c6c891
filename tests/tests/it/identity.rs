//! What tools look at to tell whether a file changed: a disk that did not change is skipped, one that did never is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

const DISKS: [&str; 2] = ["vda", "vdb"];

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 16 * MIB).filled(&[(0, 4 * MIB)]))
        .disk(Disk::qcow2("vdb", 8 * MIB).filled(&[(MIB, MIB)]))
        .start()
}

/// Runs `rsync -a`, which skips by size and time; two runs here are of one second, so it has to look at all of the time. The disks that it did not skip; each copy must be the disk.
fn rsync(mount: &Mount, machine: &Machine, run: &str) -> Vec<&'static str> {
    let copies = machine.dir().join("copies");
    let from = format!("{}/", mount.path("current").display());
    let told = ok(tool("rsync")
        .args(["-a", "--modify-window=-1", "--out-format=%n", "--include=*/", "--include=disk.raw", "--exclude=*"])
        .arg(from)
        .arg(&copies));
    if mount.state() == "held" {
        mount.command(&["release"]).success();
    }
    for disk in DISKS {
        let right = machine.copy(disk, &format!("{disk}.{run}"));
        is(&copies.join(disk).join("disk.raw"), &right);
    }
    DISKS.into_iter().filter(|disk| told.lines().any(|line| line == format!("{disk}/disk.raw"))).collect()
}

fn is(copy: &Path, right: &Path) {
    ok(tool("cmp").arg(copy).arg(right));
}

on!(rsync_skips_what_did_not_change_and_nothing_else: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn rsync_skips_what_did_not_change_and_nothing_else(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    // Nothing is known without a checkpoint, also when the mount is the same and the guest writes at once.
    assert_eq!(rsync(&mount, &machine, "first"), DISKS);
    machine.write("vda", 0, 65536, 0x11);
    assert_eq!(rsync(&mount, &machine, "unknown"), DISKS);

    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    assert_eq!(rsync(&mount, &machine, "monday"), DISKS);
    assert_eq!(rsync(&mount, &machine, "same"), [""; 0], "nothing changed");
    assert_eq!(mount.state(), "none", "and nothing was started");
    machine.write("vda", MIB, 65536, 0x22);
    assert_eq!(rsync(&mount, &machine, "changed"), ["vda"], "at once");
    // A later checkpoint takes nothing away from an earlier one's proof, and gives another one.
    fs::create_dir(mount.path("checkpoints/tuesday")).expect("a checkpoint");
    assert_eq!(rsync(&mount, &machine, "tuesday"), ["vda"]);
    let before = fs::metadata(mount.disk("vda")).expect("a disk");
    assert!(mount.unmount().success());

    let mount = Mount::of(&machine);
    let after = fs::metadata(mount.disk("vda")).expect("a disk");
    let seen = |of: &fs::Metadata| (of.ino(), of.size(), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    assert_eq!(seen(&before), seen(&after), "another mount is the same");
    assert_eq!(rsync(&mount, &machine, "remounted"), [""; 0]);
    machine.write("vdb", MIB, 512, 0x33);
    assert_eq!(rsync(&mount, &machine, "remounted and changed"), ["vdb"]);
    assert!(mount.unmount().success());

    // The bitmaps are stored in the images, and lost in a crash.
    machine.quit();
    machine.restart();
    let mount = Mount::of(&machine);
    assert_eq!(rsync(&mount, &machine, "restarted"), ["vdb"], "since Tuesday vdb changed, and vda did not");
    assert!(mount.unmount().success());
    machine.kill();
    machine.restart();
    let mount = Mount::of(&machine);
    assert_eq!(rsync(&mount, &machine, "crashed"), DISKS);
    assert!(mount.unmount().success());
}

on!(what_is_held_is_told_as_it_was: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_is_held_is_told_as_it_was(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let time = |path: &Path| fs::metadata(path).expect("a file").modified().expect("a time");
    let held = time(&mount.disk("vda"));
    machine.write("vda", 0, 65536, 0x44);
    assert_eq!(time(&mount.disk("vda")), held, "the point in time is what it was");
    mount.command(&["release"]).success();
    assert!(time(&mount.disk("vda")) > held, "and the disk is not");
    mount.command(&["begin"]).success();
    let map = mount.path("current/vdb/allocated.map");
    assert!(time(&mount.disk("vda")) > held && time(&map) > held, "nor is a map, which tells of the point in time");
    assert_eq!(time(&mount.disk("vdb")), held, "each disk has its own");
    assert!(mount.unmount().success());
}

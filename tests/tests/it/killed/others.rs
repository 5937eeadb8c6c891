//! Cleaning up touches nothing of others, whatever it is called, and no mount that lives.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, END_LIMIT, Mount, MountPoint, is_mounted, open_direct};
use pullfs_tests::process::{has_ended, kill_at_once, run, wait_until};
use pullfs_tests::tools::pullfs;
use serde_json::{Value, json};

use super::scene::Traces;

on!(recover_touches_nothing_of_others: new = New, old = Old);
/// Another mount of the same machine that lives, and things of somebody else under names that look like ours.
fn recover_touches_nothing_of_others(flavor: Flavor) {
    let sockets = tempfile::Builder::new().prefix("pullfs-others-").tempdir().expect("a temporary directory");
    let second = sockets.path().join("second.qmp");
    let monitor = format!("unix:{},server=on,wait=off", second.display());
    let disk = |id: &str| Disk::qcow2(id, 4 * MIB).filled(&[(0, MIB)]);
    let machine = Machine::build(flavor)
        .disk(disk("vda"))
        .disk(disk("vdb"))
        .disk(disk("vdc"))
        .arguments(&["-qmp".to_owned(), monitor])
        .start();
    // One NBD server for both mounts.
    let server = sockets.path().join("nbd");
    let address = json!({"addr": {"type": "unix", "data": {"path": server}}, "max-connections": 0});
    machine.qmp().must("nbd-server-start", address);
    let options = |disk: &str| format!("disks={disk},nbd=unix:{}", server.display());
    theirs(&machine);

    let living = Mount::source(&format!("qmp:{}", second.display()), &options("vdb"));
    let held = open_direct(&living.disk("vdb"));
    let copy = machine.copy("vdb", "vdb.before");
    machine.write("vdb", 0, MIB, 0x33);
    let before = Leftovers::of(&machine);
    assert!(before.of_prefix(&living.id()).len() >= 4, "{before:?}");

    let mut dead = Mount::with(&machine, &options("vda"));
    let traces = Traces::of(&dead);
    let open = File::open(dead.disk("vda")).expect("a disk");
    assert!(Leftovers::of(&machine).of_prefix(&dead.id()).len() >= 4);
    kill_at_once(&[dead.guardian(), dead.pid()]);
    dead.ended();
    drop(open);
    mount::recover(&machine).success();
    before.come_back(&machine, std::time::Duration::ZERO);
    traces.go(std::time::Duration::ZERO);

    // The other's point in time is what it was.
    let mut bytes = vec![0; 1 << 20];
    held.read_exact_at(&mut bytes, 0).expect("a read of the mount that lives");
    assert!(std::fs::read(copy).expect("a copy").starts_with(&bytes), "another instant");
    drop(held);
    assert!(living.unmount().success());
}

/// A node, a bitmap and a backup job of somebody else, named as ours are.
#[track_caller]
fn theirs(machine: &Machine) {
    let mut qmp = machine.qmp();
    for name in ["pullfs-000000-1-0p", "pullfs-000000-1-0s"] {
        qmp.must("blockdev-add", json!({"driver": "null-co", "node-name": name, "size": 4 * MIB}));
    }
    let bitmap = json!({"node": machine.node("vda"), "name": "pullfs-000000-1-0", "granularity": 65536});
    qmp.must("block-dirty-bitmap-add", bitmap);
    let backup = json!({
        "job-id": "pullfs-000000-1-0", "device": machine.node("vdc"), "target": "pullfs-000000-1-0s", "sync": "none",
    });
    qmp.must("blockdev-backup", backup);
    qmp.must("block-export-add", json!({"type": "nbd", "id": "pullfs-000000-1-0", "node-name": "pullfs-000000-1-0p"}));
}

on!(the_next_mount_may_be_at_the_same_place: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_next_mount_may_be_at_the_same_place(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, MIB)])).start();
    let nothing = Leftovers::of(&machine);
    let point = MountPoint::new();
    for _ in 0..2 {
        mount::mount(&machine.source(), &point.mnt(), &machine.options(&point.scratch())).success();
        let open = File::open(point.mnt().join("current/vda/disk.raw")).expect("a disk");
        let status = std::fs::read(point.mnt().join("status.json")).expect("status.json");
        let status: Value = serde_json::from_slice(&status).expect("JSON");
        let pid = |of: &Value| of.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id");
        let both = [pid(&status["guard"]["pid"]), pid(&status["pid"])];
        kill_at_once(&both);
        wait_until("their end", END_LIMIT, || both.iter().all(|&pid| has_ended(pid)));
        let error = open.read_at(&mut [0; 512], 0).expect_err("nobody serves it");
        assert_eq!(error.kind(), ErrorKind::NotConnected);
    }
    mount::mount(&machine.source(), &point.mnt(), &machine.options(&point.scratch())).success();
    assert_eq!(Leftovers::of(&machine), nothing, "of the dead mounts");
    run(std::process::Command::new(pullfs()).arg("umount").arg(point.mnt())).success();
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(!is_mounted(&point.mnt()), "no dead mount is below");
}

on!(recover_leaves_a_mount_that_lives_alone: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn recover_leaves_a_mount_that_lives_alone(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, MIB)])).start();
    let nothing = Leftovers::of(&machine);
    let recover = || mount::recover(&machine);
    let said = recover();
    assert!(said.code == Some(0) && !said.stdout.is_empty(), "there is nothing, which it says: {said}");
    let mount = Mount::of(&machine);
    let open = open_direct(&mount.disk("vda"));
    machine.write("vda", 0, 4096, 0x33);
    let held = Leftovers::of(&machine);
    let said = recover();
    assert_eq!(Leftovers::of(&machine), held, "{said}");
    let mut bytes = [0; 512];
    open.read_exact_at(&mut bytes, 0).expect("a read");
    assert_ne!(bytes, [0x33; 512], "it is still the instant that it was");
    assert_eq!(mount.state(), "held");
    drop(open);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

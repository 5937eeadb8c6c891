//! Whatever happens to the machine or to the time a point in time may last ends it, says why, and leaves nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::stalls::Stalls;
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::json;

use super::{NOTICE_LIMIT, why_it_ended};

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, MIB)]))
        .disk(Disk::raw("vdb", 4 * MIB).filled(&[(0, MIB)]))
        .start()
}

/// Takes a point in time, does something to the machine, and panics unless it ended, for a reason with this word.
#[track_caller]
fn ends(machine: &Machine, mount: &Mount, word: &str, what: impl FnOnce()) {
    let open = open_direct(&mount.disk("vda"));
    open.read_at(&mut [0; 4096], 0).expect("a read");
    machine.write("vda", 0, 65536, 0x41);
    what();
    let why = why_it_ended(mount);
    assert!(why.contains(word), "no {word:?} in {why:?}");
    let read = open.read_at(&mut [0; 4096], 0).map_err(|e| Errno::from_io_error(&e));
    assert!(matches!(read, Err(Some(Errno::IO | Errno::STALE))), "{read:?}");
}

/// Panics unless there is nothing left, and a new point in time can be taken and read.
#[track_caller]
fn another_can_be_taken(machine: &Machine, mount: Mount, nothing: &Leftovers) {
    nothing.come_back(machine, NOTICE_LIMIT);
    machine.write("vda", 0, 4096, 0x42);
    let mut bytes = [0; 512];
    let open = File::open(mount.disk("vda")).expect("another point in time");
    open.read_exact_at(&mut bytes, 0).expect("a read");
    assert_eq!(bytes, [0x42; 512]);
    drop(open);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(machine), *nothing);
}

on!(a_point_in_time_lasts_no_longer_than_hold_limit: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_point_in_time_lasts_no_longer_than_hold_limit(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::with(&machine, "hold_limit=2s");
    let begun = Instant::now();
    ends(&machine, &mount, "hold_limit", || {});
    assert!(begun.elapsed() >= Duration::from_secs(2), "after {:?}", begun.elapsed());
    another_can_be_taken(&machine, mount, &nothing);
}

on!(a_point_in_time_that_nobody_reads_ends: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_point_in_time_that_nobody_reads_ends(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::with(&machine, "idle_timeout=1s");
    let open = File::open(mount.disk("vda")).expect("a disk");
    // As long as it is open, it is in use.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(mount.state(), "held");
    let closed = Instant::now();
    drop(open);
    let why = why_it_ended(&mount);
    assert!(why.contains("idle_timeout"), "{why}");
    assert!(closed.elapsed() >= Duration::from_millis(900), "after {:?}", closed.elapsed());
    another_can_be_taken(&machine, mount, &nothing);
}

on!(a_stopped_nbd_server_ends_it: new = New, old = Old, daemon = Daemon);
fn a_stopped_nbd_server_ends_it(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    ends(&machine, &mount, "NBD", || drop(machine.qmp().must("nbd-server-stop", json!({}))));
    another_can_be_taken(&machine, mount, &nothing);
}

on!(a_cancelled_job_ends_it: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_cancelled_job_ends_it(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    // With libvirt, whose jobs nobody should cancel, the whole backup.
    let word = if flavor.libvirt().is_some() { "backup that kept it" } else { "cancelled" };
    ends(&machine, &mount, word, || machine.cancel_backup());
    another_can_be_taken(&machine, mount, &nothing);
}

/// Migrates to nowhere; `events` is a capability that makes QEMU tell of it.
fn migrates(flavor: Flavor, events: bool) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let capability = json!({"capabilities": [{"capability": "events", "state": events}]});
    machine.qmp().must("migrate-set-capabilities", capability);
    // A little machine is migrated in no time; a real one is not. This is a minute and more, many looks at it.
    let speed = |bytes: u64| drop(machine.qmp().must("migrate-set-parameters", json!({"max-bandwidth": bytes})));
    speed(2_000);
    ends(&machine, &mount, "migrated", || {
        drop(machine.qmp().must("migrate", json!({"uri": "exec:cat >/dev/null"})));
    });
    speed(1 << 30);
    wait_until("the end of the migration", NOTICE_LIMIT, || {
        let status = machine.qmp().must("query-migrate", json!({}));
        assert_ne!(status["status"], "failed", "{status}");
        status["status"] == "completed"
    });
    // It is not over yet when it is complete.
    wait_until("a machine that goes on", NOTICE_LIMIT, || machine.qmp().execute("cont", json!({})).is_ok());
    if flavor == Flavor::Old {
        // QEMU before 9.1 closes descriptors only while a machine runs, when one of its clients leaves.
        mount.command(&["begin"]).success();
        mount.command(&["release"]).success();
    }
    // One that was done is no reason against another point in time.
    let open = File::open(mount.disk("vda")).expect("a point in time after a migration");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(mount.state(), "held", "{}", mount.status());
    drop(open);
    mount.command(&["release"]).success();
    another_can_be_taken(&machine, mount, &nothing);
}

on!(a_migration_ends_it: new = New, old = Old);
fn a_migration_ends_it(flavor: Flavor) {
    migrates(flavor, true);
}

on!(a_migration_that_nobody_is_told_of_ends_it: new = New, old = Old);
fn a_migration_that_nobody_is_told_of_ends_it(flavor: Flavor) {
    migrates(flavor, false);
}

on!(a_disk_that_is_unplugged_ends_it: new = New, old = Old);
fn a_disk_that_is_unplugged_ends_it(flavor: Flavor) {
    let images = tempfile::Builder::new().prefix("pullfs-images-").tempdir().expect("a temporary directory");
    let image = images.path().join("sda.qcow2");
    ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("4M"));
    let blockdev = json!({
        "driver": "qcow2", "node-name": "fmt-sda", "file": {"driver": "file", "filename": image},
    });
    // SCSI disks go without the guest's consent.
    let arguments = [
        "-device".to_owned(),
        "virtio-scsi-pci,id=scsi".to_owned(),
        "-blockdev".to_owned(),
        blockdev.to_string(),
        "-device".to_owned(),
        "scsi-hd,bus=scsi.0,id=sda,drive=fmt-sda".to_owned(),
    ];
    let machine =
        Machine::build(flavor).disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, MIB)])).arguments(&arguments).start();
    let mount = Mount::of(&machine);
    assert!(mount.disk("sda").exists());
    ends(&machine, &mount, "unplugged", || {
        let mut qmp = machine.qmp();
        qmp.must("device_del", json!({"id": "sda"}));
        qmp.wait_event("DEVICE_DELETED", NOTICE_LIMIT, |data| data["device"] == "sda");
    });
    // Nothing of ours holds its node any more, so its owner can take it away.
    wait_until("a node that nobody has", NOTICE_LIMIT, || {
        machine.qmp().execute("blockdev-del", json!({"node-name": "fmt-sda"})).is_ok()
    });
    let nothing = Leftovers::of(&machine);
    assert!(!nothing.any_job(), "{nothing:?}");
    another_can_be_taken(&machine, mount, &nothing);
}

on!(a_machine_that_shuts_down_ends_it: new = New, old = Old);
fn a_machine_that_shuts_down_ends_it(flavor: Flavor) {
    // It stays, as a machine of libvirt's does for its owner to see, and powers off by itself.
    let guest = Stalls::boot_with(flavor, 32, "pullfs.passes=3", &["-no-shutdown".to_owned()]);
    let machine = guest.machine();
    let nothing = Leftovers::of(machine);
    let mount = Mount::of(machine);
    let open = File::open(mount.disk("vda")).expect("a disk");
    machine.qmp().wait_event("SHUTDOWN", NOTICE_LIMIT * 4, |_| true);
    let why = why_it_ended(&mount);
    assert!(why.contains("shuts down"), "{why}");
    drop(open);
    // QEMU before 9.1 closes descriptors only while a machine runs.
    let still = if machine.flavor() == Flavor::Old { "fdset " } else { "status " };
    let changes = nothing.changes(&Leftovers::of(machine));
    let known = |change: &String| change[2..].starts_with("status ") || change[2..].starts_with(still);
    assert!(changes.iter().all(known), "{changes:?}");
    guest.untroubled();
    assert!(mount.unmount().success());
}

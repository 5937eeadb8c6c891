//! What cannot be done is refused in one line that says why, with an exit code, and leaves nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::fake_qmp::{FakeQmp, Script};
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount, MountPoint};
use pullfs_tests::process::{ok, run};
use pullfs_tests::qmp::Qmp;
use pullfs_tests::tools::{pullfs, tool};
use rustix::io::Errno;
use serde_json::json;

/// mount(8): the mount failed.
const MOUNT_FAILED: i32 = 32;
const USAGE: i32 = 1;
const BUSY: i32 = 4;

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, 65536)])).start()
}

/// Mounts, which must fail; the one line of error.
#[track_caller]
fn refused(source: &str, options: &str, mnt: &Path) -> String {
    let line = mount::mount(source, mnt, options).refused(MOUNT_FAILED);
    assert!(!mount::is_mounted(mnt), "{line}, but it is mounted");
    line
}

#[track_caller]
fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in {line:?}");
    }
}

#[test]
fn a_socket_where_nobody_listens() {
    let point = MountPoint::new();
    says(&refused("qmp:/nonexistent/vm.qmp", "", &point.mnt()), &["/nonexistent/vm.qmp"]);
    let file = point.mnt().with_file_name("file");
    fs::write(&file, "").expect("a file");
    says(&refused(&format!("qmp:{}", file.display()), "", &point.mnt()), &["file"]);
}

#[test]
fn a_server_that_is_not_ours_to_talk_to() {
    let point = MountPoint::new();
    let old = FakeQmp::start(Script::Version(6, 2));
    says(&refused(&old.source(), "", &point.mnt()), &["6.2", "7.2"]);
    let other = FakeQmp::start(Script::NotQmp);
    says(&refused(&other.source(), "", &point.mnt()), &["QMP"]);
    let gone = FakeQmp::start(Script::HangsUp);
    says(&refused(&gone.source(), "", &point.mnt()), &["QMP"]);
}

on!(a_monitor_that_is_in_use: new = New, old = Old, daemon = Daemon);
fn a_monitor_that_is_in_use(flavor: Flavor) {
    let machine = machine(flavor);
    let point = MountPoint::new();
    let socket = machine.dir().join("pull.qmp");
    let other = Qmp::connect(&socket, Duration::from_secs(10)).expect("the socket is free");
    says(&refused(&machine.source(), "", &point.mnt()), &["pull.qmp", "one client"]);
    drop(other);
    mount::mount(&machine.source(), &point.mnt(), &point.scratch()).success();
}

on!(an_unsafe_iothread: old = Old);
fn an_unsafe_iothread(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).iothread().start();
    let nothing = Leftovers::of(&machine);
    let point = MountPoint::new();
    says(&refused(&machine.source(), "", &point.mnt()), &["iothread", "vda"]);
    assert_eq!(Leftovers::of(&machine), nothing);
}

on!(an_iothread_of_a_domain: libvirt_old = LibvirtOld);
fn an_iothread_of_a_domain(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).iothread().start();
    let point = MountPoint::new();
    let line = refused(&machine.source(), &machine.options(&point.scratch()), &point.mnt());
    says(&line, &["iothread", "8.2.3", "machine type"]);
}

on!(a_safe_iothread: new = New);
fn a_safe_iothread(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, 65536)])).iothread().start();
    let nothing = Leftovers::of(&machine);
    let before = machine.copy("vda", "before");
    let mount = Mount::of(&machine);
    let open = fs::File::open(mount.disk("vda")).expect("a disk");
    machine.write("vda", 0, 65536, 0x71);
    ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
    drop(open);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

on!(a_place_that_cannot_be_mounted_on: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_place_that_cannot_be_mounted_on(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let point = MountPoint::new();
    let missing = point.mnt().join("missing");
    says(&refused(&machine.source(), &machine.options(""), &missing), &["missing"]);
    let file = point.mnt().join("file");
    fs::write(&file, "").expect("a file");
    says(&refused(&machine.source(), &machine.options(""), &file), &["file", "directory"]);
    says(&refused(&machine.source(), &machine.options(""), &point.mnt()), &["not empty"]);
    assert_eq!(Leftovers::of(&machine), nothing);
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let point = MountPoint::new();
    let mnt = point.mnt();
    for arguments in [&["mount"][..], &["mount", "qmp:/x"], &["no-such-command"], &["begin"]] {
        let finished = run(Command::new(pullfs()).args(arguments));
        assert_eq!(finished.code, Some(USAGE), "{finished}");
    }
    for (source, options, words) in [
        ("vmware:/x", "", ["vmware"]),
        ("qmp:/x", "no_such_option=1", ["no_such_option"]),
        ("qmp:/x", "fleece=sheep", ["sheep"]),
    ] {
        says(&mount::mount(source, &mnt, options).refused(USAGE), &words);
    }
    for command in ["status", "begin", "release", "umount"] {
        let finished = run(Command::new(pullfs()).arg(command).arg(&mnt));
        assert!(finished.code.is_some_and(|code| code != 0), "{finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    }
}

on!(a_disk_that_is_not_there: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_disk_that_is_not_there(flavor: Flavor) {
    let machine = machine(flavor);
    let point = MountPoint::new();
    let finished = mount::mount(&machine.source(), &point.mnt(), &machine.options("disks=vda+vdx"));
    says(&finished.refused(MOUNT_FAILED), &["vdx"]);
}

on!(an_nbd_server_that_already_runs: new = New, old = Old, daemon = Daemon);
fn an_nbd_server_that_already_runs(flavor: Flavor) {
    let machine = machine(flavor);
    let free = Leftovers::of(&machine);
    let socket = machine.dir().join("other.nbd");
    machine.qmp().must("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let taken = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    says(&mount.command(&["begin"]).refused(BUSY), &["NBD server"]);
    assert_eq!(Leftovers::of(&machine), taken, "what was begun is undone");
    let open = fs::File::open(mount.disk("vda")).expect_err("no point in time");
    assert_eq!(Errno::from_io_error(&open), Some(Errno::BUSY), "{open}");
    let begin = mount.control("begin").expect_err("no point in time");
    assert_eq!(Errno::from_io_error(&begin), Some(Errno::BUSY), "{begin}");
    says(mount.status()["last_error"]["message"].as_str().expect("a message"), &["NBD server"]);
    assert_eq!(Leftovers::of(&machine), taken, "what was begun is undone");

    machine.qmp().must("nbd-server-stop", json!({}));
    mount.command(&["begin"]).success();
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), free);
}

on!(an_nbd_server_that_is_to_be_used: new = New, old = Old, daemon = Daemon);
fn an_nbd_server_that_is_to_be_used(flavor: Flavor) {
    let machine = machine(flavor);
    let socket = machine.dir().join("other.nbd");
    let address = json!({"addr": {"type": "unix", "data": {"path": socket}}, "max-connections": 0});
    machine.qmp().must("nbd-server-start", address);
    let taken = Leftovers::of(&machine);
    let before = machine.copy("vda", "before");
    let mount = Mount::with(&machine, &format!("nbd=unix:{}", socket.display()));
    ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), taken, "the server is not ours to stop");
}

on!(a_disk_that_another_backup_has: new = New, old = Old);
fn a_disk_that_another_backup_has(flavor: Flavor) {
    let machine = machine(flavor);
    let mut qmp = machine.qmp();
    qmp.must("blockdev-add", json!({"driver": "null-co", "node-name": "other", "size": MIB}));
    let other = json!({"job-id": "other", "device": machine.node("vda"), "target": "other", "sync": "none"});
    qmp.must("blockdev-backup", other);
    drop(qmp);
    let taken = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    says(&mount.command(&["begin"]).refused(BUSY), &["job"]);
    assert_eq!(Leftovers::of(&machine), taken, "what was begun is undone");
    assert!(mount.unmount().success());
}

#[test]
fn a_control_that_is_given_nonsense() {
    if !Flavor::New.available() {
        return;
    }
    let machine = machine(Flavor::New);
    let mount = Mount::of(&machine);
    let nonsense = mount.control("no-such-command").expect_err("no such command");
    assert_eq!(Errno::from_io_error(&nonsense), Some(Errno::INVAL), "{nonsense}");
    assert!(fs::read(mount.path("control")).is_err(), "control is write-only");
    assert!(fs::write(mount.disk("vda"), "x").is_err(), "disks are read-only");
    assert!(fs::remove_file(mount.disk("vda")).is_err(), "disks stay");
    assert!(fs::create_dir(mount.path("current/new")).is_err(), "there is nothing to make here");
    assert_eq!(mount.state(), "none");
    assert!(mount.unmount().success());
}

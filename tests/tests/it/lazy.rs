//! Looking costs nothing: only reading a disk or a dirty map takes a point in time, and then one of everything.

use std::fs;
use std::process::Command;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::of_two_disks(flavor);
    for id in ["vda", "vdb"] {
        machine.write(id, 2 * MIB, 65536, 0x77);
    }
    machine
}

on!(looking_starts_nothing: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn looking_starts_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let looks: &[(&str, &[&str])] = &[
        ("ls", &["-lR"]),
        ("find", &[]),
        ("du", &["-a"]),
        ("du", &["-ab"]),
        ("getfattr", &["-R", "-d", "-m", "-"]),
        ("getfattr", &["-R", "-n", "user.none"]),
        ("stat", &["-f"]),
    ];
    for (program, arguments) in looks {
        let finished = pullfs_tests::process::run(tool(program).args(*arguments).arg(mount.mnt()));
        // getfattr fails where there are no attributes.
        assert!(finished.code == Some(0) || *program == "getfattr", "{finished}");
    }
    for path in ok(tool("find").arg(mount.mnt())).lines() {
        ok(Command::new("stat").arg(path));
    }
    ok(tool("find").arg(mount.mnt()).args(["-type", "f", "-size", "+0"]));
    assert_eq!(Leftovers::of(&machine), nothing, "a look started something");
    mount.command(&["status"]).success();
    mount.command(&["status", "--json"]).success();
    mount.command(&["checkpoint", "list"]).success();
    assert_eq!(mount.state(), "none");
    assert_eq!(fs::metadata(mount.disk("vda")).expect("a disk").len(), 8 * MIB, "the virtual size");
    assert_eq!(Leftovers::of(&machine), nothing, "a status started something");
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

on!(each_kind_of_content_starts_it: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn each_kind_of_content_starts_it(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let files = [
        "current/vda/disk.raw",
        "current/vdb/allocated.map",
        "checkpoints/monday/vda/dirty.map",
        "checkpoints/monday/vdb/dirty.json",
        "checkpoints/monday/vda/delta.raw",
    ];
    for (number, file) in (1..).zip(files) {
        ok(Command::new("head").arg("-c1").arg(mount.path(file)));
        let point = &mount.status()["point"];
        assert_eq!(point["state"], "held", "after reading {file}");
        assert_eq!(point["number"], number, "after reading {file}");
        assert!(point["time"].is_string(), "{point}");
        mount.command(&["release"]).success();
        assert_eq!(mount.state(), "none");
    }
    assert!(mount.unmount().success());
}

on!(one_open_freezes_everything: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn one_open_freezes_everything(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vdb", "vdb.before");
    let changed = oracle::changes(&machine, "vdb", &[&machine.node("vdb")], "monday", 65536);
    let mount = Mount::of(&machine);
    let open = fs::File::open(mount.disk("vda")).expect("the first open");
    machine.write("vdb", 0, 65536, 0x99);
    machine.write("vdb", 3 * MIB, 65536, 0x99);
    ok(tool("cmp").arg(mount.disk("vdb")).arg(&before));
    let map = fs::read_to_string(mount.path("checkpoints/monday/vdb/dirty.map")).expect("a map");
    assert_eq!(oracle::read_map(&map, |_| true), changed.dirty(), "the dirty map is of the same instant");
    drop(open);
    assert_eq!(mount.state(), "held", "closing is no release");
    ok(tool("cmp").arg(mount.disk("vdb")).arg(&before));
    assert!(mount.unmount().success());
}

on!(only_begin_starts_it_when_told_so: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn only_begin_starts_it_when_told_so(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::with(&machine, "start=manual");
    assert!(fs::read(mount.disk("vda")).is_err(), "reading must not start it");
    assert_eq!(Leftovers::of(&machine), nothing);
    mount.command(&["begin"]).success();
    assert_eq!(mount.state(), "held");
    let before = machine.copy("vda", "vda.before");
    machine.write("vda", 0, 65536, 0x99);
    oracle::same(&mount.disk("vda"), &before);
    mount.command(&["release"]).success();
    assert!(fs::read(mount.disk("vda")).is_err(), "after the release as before");
    mount.control("begin").expect("control takes commands");
    assert_eq!(mount.status()["point"]["number"], 2);
    mount.control("release").expect("control takes commands");
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(mount.unmount().success());
}

on!(only_the_chosen_disks_are_frozen: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn only_the_chosen_disks_are_frozen(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vdb", "vdb.before");
    let mount = Mount::with(&machine, "disks=vdb");
    let listed = ok(tool("ls").arg(mount.path("current")));
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["vdb"]);
    ok(tool("cmp").arg(mount.disk("vdb")).arg(&before));
    let jobs = machine.qmp().must("query-jobs", serde_json::json!({}));
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{jobs}");
    assert!(mount.unmount().success());
}

//! Checkpoints that libvirt forgets, while their bitmaps are in the images, and knows again.

use std::fs;
use std::path::{Path, PathBuf};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, of_machine};
use pullfs_tests::process::{Finished, ok, wait_until};
use pullfs_tests::tools::tool;
use rustix::io::Errno;

use super::bases::{full, stands_on};
use super::checkpoints::{CLUSTER, dirty, made, restored, shown, tree, virtnbdbackup};
use super::{LIMIT, builder, last_error, nothing_is_left};

/// Makes monday and tuesday, with copies of vda, and writes a cluster after each.
fn two_days(machine: &Machine, mount: &Mount) {
    for (at, name) in [(0, "monday"), (MIB, "tuesday")] {
        assert_eq!(made(mount, name), Ok(()));
        full(mount, name);
        mount.command(&["release"]).success();
        machine.write("vda", at, CLUSTER, 0x61);
    }
}

/// What `pullfs checkpoint save` prints, in a file.
#[track_caller]
fn saved(machine: &Machine) -> PathBuf {
    write(machine, "saved.xml", &of_machine(machine, &["checkpoint", "save"], &[]).success())
}

fn write(machine: &Machine, name: &str, text: &str) -> PathBuf {
    let file = machine.dir().join(name);
    fs::write(&file, text).expect("a description");
    file
}

/// libvirt's own description of a checkpoint of vda.
fn description(name: &str, parent: Option<&str>, made: u32) -> String {
    let parent = parent.map(|parent| format!("<parent><name>{parent}</name></parent>")).unwrap_or_default();
    format!(
        "<domaincheckpoint><name>{name}</name>{parent}<creationTime>{made}</creationTime>\
         <disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>"
    )
}

fn redefine(machine: &Machine, files: &[&Path]) -> Finished {
    of_machine(machine, &["checkpoint", "redefine"], files)
}

/// Has libvirt forget them.
fn forget(machine: &Machine, names: &[&str]) {
    for name in names {
        machine.domain().virsh("checkpoint-delete", &[name, "--metadata"]).success();
    }
    assert!(tree(machine).is_empty());
}

// It gets another UUID, as on another host.
on!(a_transient_domain_has_its_checkpoints_again: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_transient_domain_has_its_checkpoints_again(flavor: Flavor) {
    let mut machine = builder(flavor).start();
    machine.domain().make_transient();
    let mount = Mount::of(&machine);
    two_days(&machine, &mount);
    let saved = saved(&machine);
    let copies = ["vda.monday.qcow2", "vda.tuesday.qcow2"];
    for copy in copies {
        fs::rename(mount.beside(copy), machine.dir().join(copy)).expect("a copy");
    }
    assert!(mount.unmount().success());
    machine.quit();
    machine.restart();

    let mount = Mount::of(&machine);
    assert!(shown(&mount).is_empty() && tree(&machine).is_empty());
    assert_eq!(made(&mount, "monday"), Err(Errno::EXIST));
    let why = last_error(&mount);
    assert!(why.contains("libvirt has forgotten") && why.contains("pullfs checkpoint redefine"), "{why}");
    nothing_is_left(&machine, &mount);
    let told = redefine(&machine, &[&saved]).success();
    assert_eq!(told, "monday: libvirt knows it again\ntuesday: libvirt knows it again\n");
    assert_eq!(tree(&machine), ["monday", "tuesday"]);
    wait_until("the checkpoints", LIMIT, || shown(&mount) == ["monday", "tuesday"]);
    assert_eq!(mount.status_of_checkpoint("monday")["foreign"], false, "what was noted is there again");
    let told = redefine(&machine, &[&saved]).success();
    assert_eq!(told, "monday: libvirt knows it already\ntuesday: libvirt knows it already\n");

    for copy in copies {
        fs::rename(machine.dir().join(copy), mount.beside(copy)).expect("a copy");
    }
    machine.write("vda", 2 * MIB, CLUSTER, 0x62);
    let all = [(0, CLUSTER), (MIB, CLUSTER), (2 * MIB, CLUSTER)];
    for (name, changed) in [("tuesday", &all[1..]), ("monday", &all[..])] {
        mount.command(&["begin", "--since", name]).success();
        assert_eq!(dirty(&mount, name), changed, "{name}");
        stands_on(&mount, name);
    }
    // Of one base, as ever.
    stands_on(&mount, "tuesday");
    mount.command(&["release"]).success();
    assert_eq!(made(&mount, "wednesday"), Ok(()));
    assert_eq!(tree(&machine), ["monday", "tuesday", "wednesday"]);
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

on!(what_is_not_as_described_is_left_out: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_is_not_as_described_is_left_out(flavor: Flavor) {
    let mut machine = builder(flavor).start();
    let mount = Mount::of(&machine);
    two_days(&machine, &mount);
    let saved = saved(&machine);
    forget(&machine, &["tuesday", "monday"]);

    // The wrong way round, and one that never was.
    let wrong = [
        description("tuesday", None, 1),
        description("monday", Some("tuesday"), 2),
        description("never", Some("tuesday"), 3),
    ];
    let wrong = write(&machine, "wrong.xml", &format!("<domaincheckpoints>{}</domaincheckpoints>", wrong.concat()));
    let told = redefine(&machine, &[&wrong]);
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "tuesday: libvirt knows it again", "{told}");
    assert!(
        lines[1].starts_with("monday: left out: it did not come after tuesday: more of disk vda changed"),
        "{told}"
    );
    assert!(lines[2].starts_with("never: left out: ") && lines[2].contains("missing or broken bitmap"), "{told}");
    assert_eq!(told.refused(2), "pullfs: libvirt knows 1 of the 3 checkpoints that are described");
    assert_eq!(tree(&machine), ["tuesday"]);
    // Nothing of a file that makes no sense.
    let circle = [description("tuesday", Some("monday"), 1), description("monday", Some("tuesday"), 1)].concat();
    let circle = write(&machine, "circle.xml", &format!("<domaincheckpoints>{circle}</domaincheckpoints>"));
    let why = redefine(&machine, &[&circle]).refused(1);
    assert!(why.contains("in a circle"), "{why}");
    assert_eq!(tree(&machine), ["tuesday"]);

    // libvirt itself believes everything.
    for (name, parent) in [("tuesday", None), ("monday", Some("tuesday"))] {
        let file = write(&machine, "one.xml", &description(name, parent, 1));
        machine.domain().virsh("checkpoint-create", &[&file.display().to_string(), "--redefine"]).success();
    }
    assert_eq!(tree(&machine), ["tuesday", "monday"]);
    wait_until("the checkpoints", LIMIT, || shown(&mount) == ["monday", "tuesday"]);
    mount.command(&["begin", "--since", "tuesday"]).success();
    let refused = fs::File::open(mount.path("checkpoints/monday/vda/dirty.map"));
    assert_eq!(refused.err().map(|error| super::errno(&error)), Some(Errno::BUSY), "not in what changed since tuesday");
    mount.command(&["release"]).success();
    assert_eq!(dirty(&mount, "monday"), [(0, CLUSTER), (MIB, CLUSTER)]);
    stands_on(&mount, "monday");
    assert!(mount.unmount().success());

    // What was in use when QEMU was killed is broken.
    forget(&machine, &["monday", "tuesday"]);
    machine.quit();
    machine.restart();
    machine.kill();
    machine.restart();
    let told = redefine(&machine, &[&saved]);
    assert_eq!(told.stdout.matches("missing or broken bitmap").count(), 2, "{told}");
    told.refused(2);
    assert!(tree(&machine).is_empty());
}

on!(what_virtnbdbackup_keeps_is_taken: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_virtnbdbackup_keeps_is_taken(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, MIB)])).start();
    let theirs = machine.dir().join("theirs");
    virtnbdbackup(&machine, "full", &theirs);
    machine.write("vda", 0, CLUSTER, 0x71);
    virtnbdbackup(&machine, "inc", &theirs);
    machine.write("vda", MIB, CLUSTER, 0x72);
    let names = ["virtnbdbackup.0", "virtnbdbackup.1"];
    assert_eq!(tree(&machine), names);
    forget(&machine, &["virtnbdbackup.1", "virtnbdbackup.0"]);

    let files = ["virtnbdbackup.1", "virtnbdbackup.0"].map(|name| theirs.join(format!("checkpoints/{name}.xml")));
    redefine(&machine, &files.each_ref().map(PathBuf::as_path)).success();
    assert_eq!(tree(&machine), names);
    let mount = Mount::of(&machine);
    assert_eq!(dirty(&mount, names[1]), [(MIB, CLUSTER)]);
    mount.command(&["release"]).success();
    assert_eq!(dirty(&mount, names[0]), [(0, CLUSTER), (MIB, CLUSTER)]);
    mount.command(&["release"]).success();
    virtnbdbackup(&machine, "inc", &theirs);
    let right = machine.copy("vda", "right.raw");
    let restored = restored(&machine, &theirs);
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(restored).arg(right));
    assert!(mount.unmount().success());
}

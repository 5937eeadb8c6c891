//! The qcow2 files of a mount are images that QEMU's own tools find nothing wrong with, and chains of their copies open.

use std::fs;
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

const DISKS: [&str; 2] = ["vda", "vdb"];

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 24 * MIB).filled(&[(0, 5 * MIB), (9 * MIB + 512, MIB)]))
        .disk(Disk::with_checkpoints(flavor, "vdb", 11 * MIB + 512).filled(&[(MIB, 2 * MIB)]))
        .start()
}

/// What the guest does between two checkpoints.
fn day(machine: &Machine, day: u8) {
    let shift = u64::from(day) * MIB;
    for id in DISKS {
        machine.write(id, shift, 100_352, 0x30 + day);
        machine.write(id, shift + 5 * MIB - 512, 1024, 0x40 + day);
        machine.write_zeroes(id, shift + MIB, MIB / 2);
    }
    machine.write("vdb", 11 * MIB, 512, 0x50 + day);
}

fn checked(image: &Path) {
    ok(tool("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(image));
}

fn compare(image: &Path, raw: &Path) {
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(raw));
}

on!(a_chain_of_copies_is_each_day_s_disk: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_chain_of_copies_is_each_day_s_disk(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let backups = mount.beside("backups");
    fs::create_dir(&backups).expect("a directory");
    let days = ["monday", "tuesday", "wednesday"];
    for (number, name) in (0..).zip(days) {
        day(&machine, number);
        fs::create_dir(mount.path("checkpoints").join(name)).expect("a checkpoint");
        for id in DISKS {
            let image = match number.checked_sub(1) {
                None => mount.path(&format!("current/{id}/disk.qcow2")),
                Some(before) => mount.path(&format!("checkpoints/{}/{id}/delta.qcow2", days[usize::from(before)])),
            };
            let copy = backups.join(format!("{id}.{name}.qcow2"));
            ok(tool("cp").arg(&image).arg(&copy));
            oracle::same(&image, &copy);
            checked(&copy);
            compare(&copy, &mount.disk(id));
            // What was left for later is still what it was.
            ok(tool("cp").arg("--sparse=always").arg(mount.disk(id)).arg(backups.join(format!("{id}.{name}.raw"))));
        }
    }
    for (id, name) in DISKS.iter().flat_map(|id| days.map(|name| (id, name))) {
        compare(&backups.join(format!("{id}.{name}.qcow2")), &backups.join(format!("{id}.{name}.raw")));
    }
    assert!(mount.unmount().success());
}

on!(the_first_reader_gets_all_of_it_whatever_the_size_was_said_to_be: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_first_reader_gets_all_of_it_whatever_the_size_was_said_to_be(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vda", "before");
    for options in ["", "cluster_size=4K", "cluster_size=2M,formats=qcow2"] {
        let mount = Mount::with(&machine, options);
        let image = mount.path("current/vda/disk.qcow2");
        let copies = ["one", "two"].map(|name| mount.beside(name));
        // The estimate is in the kernel's cache; dd asks for no size.
        let estimate = fs::metadata(&image).expect("an image").len();
        for copy in &copies {
            let (from, to) = (format!("if={}", image.display()), format!("of={}", copy.display()));
            ok(tool("dd").args(["bs=300000", "status=none"]).args([from, to]));
            checked(copy);
            compare(copy, &before);
            // Another point in time of the same content gives the same file.
            mount.command(&["release"]).success();
        }
        oracle::same(&copies[0], &copies[1]);
        assert_ne!(estimate, fs::metadata(&copies[0]).expect("a copy").len(), "the test needs an estimate that is off");
        let listed = ok(tool("ls").arg(mount.path("current/vda")));
        assert_eq!(listed.contains("disk.raw"), !options.contains("formats"), "{listed}");
        assert!(mount.unmount().success());
    }
}

on!(a_delta_names_what_it_stands_on: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_delta_names_what_it_stands_on(flavor: Flavor) {
    let machine = machine(flavor);
    // A colon looks like a protocol to QEMU; libvirt has no such names.
    let checkpoint = if flavor.libvirt().is_some() { "a.b" } else { "a: b" };
    let beside = if flavor.libvirt().is_some() { "vda.a.b.qcow2" } else { "./vda.a: b.qcow2" };
    let elsewhere = format!("/backups/{checkpoint}/vda");
    for (options, name) in [("", beside), ("backing=/backups/{checkpoint}/{disk}", elsewhere.as_str())] {
        let mount = Mount::with(&machine, options);
        let made = fs::create_dir(mount.path("checkpoints").join(checkpoint));
        assert!(made.is_ok() || options.contains("backing"), "{made:?}");
        machine.write("vda", MIB, 65536, 0x61);
        mount.command(&["begin"]).success();
        let copy = mount.beside("delta");
        ok(tool("cp").arg(mount.path("checkpoints").join(checkpoint).join("vda/delta.qcow2")).arg(&copy));
        let info = ok(tool("qemu-img").args(["info", "-U", "--output=json"]).arg(&copy));
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(
            (info["backing-filename"].as_str(), info["backing-filename-format"].as_str()),
            (Some(name), Some("qcow2"))
        );
        assert!(mount.unmount().success());
    }
}

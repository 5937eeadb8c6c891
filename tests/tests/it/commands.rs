//! What `pullfs status`, `checkpoint list`, status.json and the mount helper say and do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount, MountPoint};
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use serde_json::Value;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::of_two_disks(flavor);
    for id in ["vda", "vdb"] {
        machine.write(id, 2 * MIB, 65536, 0x77);
    }
    machine
}

on!(status_tells_what_there_is: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn status_tells_what_there_is(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let status = mount.status_of_machine();
    assert_eq!(status["pid"], mount.pid());
    assert_eq!(status["machine"]["fleece"], flavor.fleece(), "{status}");
    assert_eq!(status["machine"]["source"], machine.source());
    let version = status["machine"]["qemu"].as_str().expect("QEMU's version");
    // libvirt tells of the QEMU that is installed, whichever runs the domain.
    let told_old = flavor.is_old() && flavor.libvirt().is_none();
    assert_eq!(version.starts_with("7.2"), told_old, "{version}");
    let disks = status["disks"].as_array().expect("disks");
    let told: Vec<_> = disks.iter().map(|disk| (&disk["name"], &disk["format"], &disk["size"])).collect();
    let expected = [("vda", "qcow2", 8 * MIB), ("vdb", machine.format("vdb"), 4 * MIB + 512)];
    assert_eq!(told.len(), expected.len(), "{status}");
    for ((name, format, size), expected) in told.iter().zip(expected) {
        assert!(**name == expected.0 && **format == expected.1 && **size == expected.2, "{status}");
    }
    let monday = &status["checkpoints"][0];
    assert_eq!(monday["name"], "monday");
    assert_eq!(monday["dirty_bytes"], 2 * 65536);
    assert_eq!(monday["disks"]["vda"]["recording"], true);
    let printed: Value = serde_json::from_str(&mount.command(&["status", "--json"]).success()).expect("JSON");
    assert_eq!(printed["mount_id"], status["mount_id"]);
    let list: Value = serde_json::from_str(&mount.command(&["checkpoint", "list", "--json"]).success()).expect("JSON");
    assert!(list.to_string().contains("\"monday\""), "{list}");
    for command in [&["status"][..], &["checkpoint", "list"]] {
        let text = mount.command(command).success();
        assert!(text.contains("monday"), "{text}");
    }
    assert!(mount.unmount().success());
}

on!(the_tree_is_private_and_stable: new = New);
fn the_tree_is_private_and_stable(flavor: Flavor) {
    let machine = machine(flavor);
    let look = |mount: &Mount| -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        for path in ok(tool("find").arg(mount.mnt())).lines() {
            let meta = fs::metadata(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let mode = meta.permissions().mode();
            assert_eq!(mode & 0o077, 0, "{path} is for its owner alone: {mode:o}");
            // Commands are written to one, checkpoints made in the other.
            let written = path.ends_with("/control") || path.ends_with("/checkpoints");
            assert!(written || mode & 0o222 == 0, "{path} is not for writing: {mode:o}");
            let name = path.strip_prefix(&*mount.mnt().to_string_lossy()).expect("a path in the mount");
            seen.push((name.to_owned(), meta.ino()));
        }
        seen.sort();
        seen
    };
    let first = Mount::of(&machine);
    let before = look(&first);
    let paths: Vec<&str> = before.iter().map(|(path, _)| path.as_str()).collect();
    for path in ["/status.json", "/control", "/current/vda/disk.raw", "/current/vdb/allocated.map"] {
        assert!(paths.contains(&path), "no {path} in {paths:?}");
    }
    for file in ["dirty.map", "dirty.json", "delta.raw"] {
        assert!(paths.contains(&&*format!("/checkpoints/monday/vdb/{file}")), "no {file} in {paths:?}");
    }
    assert!(first.unmount().success());
    let second = Mount::of(&machine);
    assert_eq!(look(&second), before, "the same names and inode numbers in every mount");
    assert!(second.unmount().success());
}

on!(the_mount_helper_mounts: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_mount_helper_mounts(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vda", "before");
    let point = MountPoint::new();
    // As mount(8) calls it for a line of fstab.
    let options = machine.options(&format!("ro,noauto,{}", point.scratch()));
    mount::mount_helper(&machine.source(), &point.mnt(), &["-o", &options]).success();
    let disk = point.mnt().join("current/vda/disk.raw");
    ok(tool("cmp").arg(disk).arg(&before));
    ok(tool("umount").arg(point.mnt()));
}

on!(fleece_may_be_chosen: new = New);
fn fleece_may_be_chosen(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vda", "before");
    for fleece in ["job", "backing", "auto"] {
        let mount = Mount::with(&machine, &format!("fleece={fleece}"));
        let expected = if fleece == "auto" { "job" } else { fleece };
        assert_eq!(mount.status()["machine"]["fleece"], expected);
        ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
        assert!(mount.unmount().success());
    }
}

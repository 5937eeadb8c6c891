//! Handles of files outlast what the kernel remembers, and never mean another disk, checkpoint or instant.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{Finished, ok, run, wait_until};
use pullfs_tests::tools::{tool, workspace};
use rustix::io::Errno;
use serde_json::json;

/// For what QEMU and the mount need to notice.
const LIMIT: Duration = Duration::from_secs(20);

fn handles(what: &str, path: &Path) -> Command {
    let mut command = tool("python3");
    command.arg(workspace().join("tests/handles.py")).arg(what).arg(path);
    command
}

fn take(path: &Path) -> String {
    ok(&mut handles("take", path)).trim_end().to_owned()
}

/// What is found under a handle, in a mount, after the kernel has forgotten what it could.
fn read(mount: &Mount, handle: &str) -> Finished {
    forget();
    run(handles("read", &mount.mnt()).arg(handle))
}

/// Drops what the kernel remembers of names and inodes. Harms nobody: what is in use stays.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("to drop caches, as root");
}

#[track_caller]
fn stale(found: &Finished) {
    assert_eq!(found.code, Some(Errno::STALE.raw_os_error()), "{found}");
}

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 2 * MIB)]))
        .disk(Disk::qcow2("vdb", 4 * MIB).filled(&[(MIB, MIB)]))
        .start()
}

/// Opens a disk by handle and compares what it finds.
#[track_caller]
fn is_disk(mount: &Mount, handle: &str, right: &Path) {
    forget();
    let out = mount.beside("out");
    let mut sh = Command::new("sh");
    sh.args(["-euc", "exec \"$@\" >\"$0\""]).arg(&out);
    let mut by_handle = handles("read", &mount.mnt());
    by_handle.arg(handle);
    ok(sh.arg(by_handle.get_program()).args(by_handle.get_args()));
    oracle::same(&out, right);
}

on!(a_handle_finds_its_file_when_the_kernel_has_forgotten_it: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_handle_finds_its_file_when_the_kernel_has_forgotten_it(flavor: Flavor) {
    let machine = machine(flavor);
    let right = machine.copy("vda", "right");
    let mount = Mount::of(&machine);
    let (raw, directory) = (take(&mount.disk("vda")), take(&mount.path("current/vdb")));
    let status = take(&mount.path("status.json"));
    let listed = read(&mount, &directory).success();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["allocated.map", "disk.qcow2", "disk.raw", "partitions"]);
    assert!(read(&mount, &status).success().contains("mount_id"));
    assert_eq!(mount.state(), "none", "nothing of that is a disk");
    forget();
    let path = ok(handles("path", &mount.mnt()).arg(&directory));
    assert_eq!(path.trim_end(), mount.path("current/vdb").display().to_string());

    is_disk(&mount, &raw, &right);
    assert_eq!(mount.state(), "held");
    machine.write("vda", 0, MIB, 0x66);
    is_disk(&mount, &raw, &right);
    mount.command(&["release"]).success();
    stale(&read(&mount, &raw));
    assert_eq!(mount.state(), "none", "and nothing is taken for it");
    let right = machine.copy("vda", "changed");
    is_disk(&mount, &take(&mount.disk("vda")), &right);
    assert!(mount.unmount().success());
}

on!(a_handle_of_a_removed_checkpoint_is_stale: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_handle_of_a_removed_checkpoint_is_stale(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let monday = mount.path("checkpoints/monday");
    fs::create_dir(&monday).expect("a checkpoint");
    let of_monday = || [monday.clone(), monday.join("vda"), monday.join("vda/delta.raw")].map(|path| take(&path));
    let held = of_monday();
    mount.command(&["release"]).success();
    let [directory, disk, delta] = of_monday();
    assert_eq!(held[..2], [directory.clone(), disk.clone()], "directories are of a checkpoint");
    assert_ne!(held[2], delta, "files are of a point in time");
    assert_eq!(read(&mount, &directory).success().lines().collect::<Vec<_>>(), ["vda", "vdb"]);

    fs::remove_dir(&monday).expect("to delete it");
    for handle in [&directory, &disk, &delta] {
        stale(&read(&mount, handle));
    }
    fs::create_dir(&monday).expect("another checkpoint");
    for handle in [&directory, &disk, &delta] {
        stale(&read(&mount, handle));
    }
    mount.command(&["release"]).success();
    for handle in [&directory, &disk, &delta] {
        stale(&read(&mount, handle));
    }
    assert_eq!(mount.state(), "none");
    assert!(mount.unmount().success());
}

on!(a_handle_of_another_mount_is_of_no_other_instant: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_handle_of_another_mount_is_of_no_other_instant(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let directory = take(&mount.path("checkpoints/monday/vdb"));
    let first = take(&mount.disk("vda"));
    mount.command(&["release"]).success();
    let upcoming = take(&mount.disk("vda"));
    assert!(mount.unmount().success());

    let mount = Mount::of(&machine);
    assert!(read(&mount, &directory).success().contains("delta.raw"), "the checkpoint is the same");
    for instant in 0..3 {
        stale(&read(&mount, &first));
        stale(&read(&mount, &upcoming));
        assert_eq!(mount.state(), "none", "nothing is taken for a stale handle");
        machine.write("vda", instant * MIB, 512, 0x77);
        mount.command(&["begin"]).success();
        stale(&read(&mount, &first));
        stale(&read(&mount, &upcoming));
        mount.command(&["release"]).success();
    }
    assert!(mount.unmount().success());
}

on!(a_disk_that_was_exchanged_is_another_one: new = New, old = Old);
fn a_disk_that_was_exchanged_is_another_one(flavor: Flavor) {
    let images = tempfile::Builder::new().prefix("pullfs-images-").tempdir().expect("a temporary directory");
    let image = |name: &str, pattern: &str| {
        let image = images.path().join(name);
        ok(tool("qemu-img").args(["create", "-q", "-f", "raw"]).arg(&image).arg("4M"));
        ok(tool("qemu-io").args(["-f", "raw", "-c", &format!("write -q -P {pattern} 0 4M")]).arg(&image));
        image
    };
    let (old, new) = (image("old", "0x11"), image("new", "0x22"));
    // Everything but the file is the same.
    let blockdev =
        |image: &Path| json!({"driver": "raw", "node-name": "fmt-sda", "file": {"driver": "file", "filename": image}});
    // SCSI disks go without the guest's consent.
    let arguments = [
        "-device".to_owned(),
        "virtio-scsi-pci,id=scsi".to_owned(),
        "-blockdev".to_owned(),
        blockdev(&old).to_string(),
        "-device".to_owned(),
        "scsi-hd,bus=scsi.0,id=sda,drive=fmt-sda".to_owned(),
    ];
    let machine = Machine::build(flavor).disk(Disk::raw("vda", MIB)).arguments(&arguments).start();
    let mount = Mount::of(&machine);
    let (exchanged, other) = (take(&mount.disk("sda")), take(&mount.disk("vda")));
    {
        let mut qmp = machine.qmp();
        qmp.must("device_del", json!({"id": "sda"}));
        qmp.wait_event("DEVICE_DELETED", LIMIT, |data| data["device"] == "sda");
    }
    wait_until("a disk that is gone", LIMIT, || !mount.disk("sda").exists());
    stale(&read(&mount, &exchanged));
    let mut qmp = machine.qmp();
    qmp.must("blockdev-del", json!({"node-name": "fmt-sda"}));
    qmp.must("blockdev-add", blockdev(&new));
    qmp.must("device_add", json!({"driver": "scsi-hd", "bus": "scsi.0", "id": "sda", "drive": "fmt-sda"}));
    drop(qmp);
    wait_until("the other disk", LIMIT, || mount.disk("sda").exists());
    stale(&read(&mount, &exchanged));
    assert_eq!(mount.state(), "none");
    is_disk(&mount, &take(&mount.disk("sda")), &new);
    read(&mount, &other).success();
    assert!(mount.unmount().success());
}

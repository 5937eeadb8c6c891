//! `pullfs sync` makes a copy the disk, writes nothing but what changed, and never the wrong thing.

mod device;
mod interrupted;
mod refused;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{Finished, ok, run, wait_until};
use pullfs_tests::tools::pullfs;
use serde_json::{Value, json};

const KIB: u64 = 1024;
const USAGE: i32 = 1;
const SYSTEM: i32 = 2;
const NOT_FOUND: i32 = 3;
const BUSY: i32 = 4;
const LIMIT: Duration = Duration::from_secs(60);

fn command(source: &Path, dest: &Path) -> Command {
    let mut command = Command::new(pullfs());
    command.arg("sync").arg(source).arg(dest);
    command
}

#[track_caller]
fn sync(source: &Path, dest: &Path) -> Finished {
    run(&mut command(source, dest))
}

fn full(mount: &Mount, id: &str) -> PathBuf {
    mount.path(&format!("current/{id}"))
}

fn since(mount: &Mount, checkpoint: &str, id: &str) -> PathBuf {
    mount.path(&format!("checkpoints/{checkpoint}/{id}"))
}

fn beside(dest: &Path) -> PathBuf {
    dest.with_file_name(format!("{}.pullfs.json", dest.file_name().expect("a name").display()))
}

#[track_caller]
fn identity(dest: &Path) -> Value {
    let path = beside(dest);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("an identity is JSON")
}

/// Changes what is noted of a copy.
#[track_caller]
fn note(dest: &Path, key: &str, value: Value) {
    let mut noted = identity(dest);
    noted[key] = value;
    fs::write(beside(dest), noted.to_string()).expect("an identity");
}

/// Starts to record changes, and waits for the checkpoint to be listed.
#[track_caller]
fn record(machine: &Machine, mount: &Mount, checkpoint: &str, id: &str) {
    machine.add_bitmap(id, checkpoint, 64 * KIB);
    wait_until("the checkpoint", LIMIT, || since(mount, checkpoint, id).exists());
}

/// A full copy made while the bitmap `monday` was there and empty, and so one that fits it.
#[track_caller]
fn copy_of_monday(machine: &Machine, mount: &Mount, id: &str) -> PathBuf {
    record(machine, mount, "monday", id);
    let dest = mount.beside(&format!("{id}.raw"));
    sync(&full(mount, id), &dest).success();
    note(&dest, "checkpoint", json!("monday"));
    mount.control("release").expect("release");
    dest
}

on!(a_full_copy_is_that_of_qemu: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_full_copy_is_that_of_qemu(flavor: Flavor) {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 32 * MIB + 512).filled(&[(0, 4 * MIB), (9 * MIB, 700 * KIB)]))
        .disk(Disk::raw("vdb", 11 * MIB + 1536).filled(&[(MIB, 2 * MIB)]))
        .start();
    let before = ["vda", "vdb"].map(|id| (id, machine.copy(id, &format!("{id}.before"))));
    let mount = Mount::of(&machine);
    for (id, before) in &before {
        let dest = mount.beside(id);
        let said = sync(&full(&mount, id), &dest).success();
        assert!(said.contains("written") && said.contains(*id), "{said}");
        machine.write(id, 2 * MIB, 64 * KIB, 0x31);
        oracle::same(&dest, before);
        oracle::same_image(&dest, before);
        let (took, data) = (oracle::allocated(&dest), oracle::allocated(before));
        assert!(took <= data + 64 * KIB, "{id}: {took} bytes, QEMU's own copy takes {data}");
        let noted = identity(&dest);
        assert_eq!((&noted["disk"], &noted["checkpoint"]), (&json!(id), &Value::Null), "{noted}");
        assert_eq!(noted["machine"]["source"], machine.source());
        assert_eq!(noted["size"], fs::metadata(before).expect("a copy").len());
        for path in [dest.clone(), beside(&dest)] {
            assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o600, "{}", path.display());
        }
    }
    assert!(mount.unmount().success());
}

on!(a_full_copy_replaces_whatever_was_there: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_full_copy_replaces_whatever_was_there(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 16 * MIB).filled(&[(MIB, MIB)])).start();
    let before = machine.copy("vda", "before");
    let mount = Mount::of(&machine);
    let dest = mount.beside("copy");
    for length in [MIB, 20 * MIB] {
        fs::write(&dest, vec![0x55; usize::try_from(length).expect("a length")]).expect("another file");
        assert_eq!(ok(command(&full(&mount, "vda"), &dest).arg("--quiet")), "");
        oracle::same(&dest, &before);
        assert!(oracle::allocated(&dest) <= MIB + 64 * KIB, "holes are punched");
    }
    // One copy, one identity, by whatever name it is called.
    let link = mount.beside("link");
    std::os::unix::fs::symlink(&dest, &link).expect("a link");
    sync(&full(&mount, "vda"), &link).success();
    assert!(!beside(&link).exists() && beside(&dest).exists());
    assert!(mount.unmount().success());
}

on!(an_increment_writes_what_changed_and_nothing_else: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn an_increment_writes_what_changed_and_nothing_else(flavor: Flavor) {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 32 * MIB + 512).filled(&[(0, 4 * MIB), (9 * MIB, MIB)]))
        .disk(Disk::with_checkpoints(flavor, "vdb", 11 * MIB + 1536).filled(&[(0, 11 * MIB)]))
        .start();
    let mount = Mount::of(&machine);
    for id in ["vda", "vdb"] {
        let dest = copy_of_monday(&machine, &mount, id);
        machine.write(id, 5 * MIB - 512, 1024, 0x21);
        machine.write(id, 7 * MIB, 192 * KIB, 0x22);
        machine.discard(id, MIB, 256 * KIB);
        machine.write_zeroes(id, 9 * MIB + 64 * KIB, 128 * KIB);
        machine.write(id, if id == "vda" { 32 * MIB } else { 11 * MIB }, 512, 0x23);
        let dirty = oracle::changes(&machine, id, &[&machine.node(id)], "monday", 64 * KIB).dirty();
        let after = machine.copy(id, &format!("{id}.after"));

        // What did not change is not even looked at: marks there stay. What did is replaced: marks there go.
        let file = File::options().write(true).open(&dest).expect("the copy");
        let unchanged = 3 * MIB + 100;
        assert!(!dirty.iter().any(|&(at, length)| (at..at + length).contains(&unchanged)));
        file.write_all_at(b"mark", unchanged).expect("a mark");
        for &(offset, length) in &dirty {
            file.write_all_at(b"mark", offset).expect("a mark");
            file.write_all_at(b"mark", offset + length - 4).expect("a mark");
        }
        let said = sync(&since(&mount, "monday", id), &dest).success();
        assert!(said.contains("since monday"), "{said}");
        let mut mark = [0; 4];
        File::open(&dest).expect("the copy").read_exact_at(&mut mark, unchanged).expect("the mark");
        assert_eq!(&mark, b"mark", "{id}: something was written where nothing changed");
        let mut expected = [0; 4];
        File::open(&after).expect("QEMU's copy").read_exact_at(&mut expected, unchanged).expect("the bytes");
        file.write_all_at(&expected, unchanged).expect("taking the mark back");
        oracle::same(&dest, &after);
        oracle::same_image(&dest, &after);
        let noted = identity(&dest);
        assert_eq!(noted["checkpoint"], "monday", "no new checkpoint was made: the next increment is since monday too");
        // The discarded and the zeroed extents are holes now, to the cluster.
        let holes = 256 * KIB + 128 * KIB;
        let whole = fs::metadata(&dest).expect("the copy").len();
        assert!(oracle::allocated(&dest) <= whole.next_multiple_of(4096) - holes, "{id}: zeroes are holes");

        // The same again, and what came since.
        machine.write(id, 6 * MIB, 64 * KIB, 0x24);
        let later = machine.copy(id, &format!("{id}.later"));
        mount.control("release").expect("release");
        sync(&since(&mount, "monday", id), &dest).success();
        oracle::same(&dest, &later);
        mount.control("release").expect("release");
    }
    assert!(mount.unmount().success());
}

on!(a_disk_that_grew_is_copied_to_its_end: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_disk_that_grew_is_copied_to_its_end(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    machine.write("vda", 9 * 64 * KIB, 512, 0x41);
    machine.resize("vda", 20 * MIB);
    machine.write("vda", 15 * MIB, 64 * KIB, 0x42);
    let after = machine.copy("vda", "after");
    sync(&since(&mount, "monday", "vda"), &dest).success();
    oracle::same(&dest, &after);
    assert_eq!(identity(&dest)["size"], 20 * MIB);
    assert!(mount.unmount().success());
}

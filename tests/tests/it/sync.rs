//! `pullfs sync` makes a copy the disk, writes nothing but what changed, and never the wrong thing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{Finished, ok, run, signal_child, wait_for, wait_until};
use pullfs_tests::tools::{pullfs, tool};
use rustix::process::Signal;
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

/// A full copy made while the bitmap `monday` was there and empty, and so one that fits it.
#[track_caller]
fn copy_of_monday(machine: &Machine, mount: &Mount, id: &str) -> PathBuf {
    machine.add_bitmap(id, "monday", 64 * KIB);
    let dest = mount.beside(&format!("{id}.raw"));
    sync(&full(mount, id), &dest).success();
    note(&dest, "checkpoint", json!("monday"));
    mount.control("release").expect("release");
    dest
}

on!(a_full_copy_is_that_of_qemu: new = New, old = Old, daemon = Daemon);
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

on!(a_full_copy_replaces_whatever_was_there: new = New);
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

on!(an_increment_writes_what_changed_and_nothing_else: new = New, old = Old, daemon = Daemon);
fn an_increment_writes_what_changed_and_nothing_else(flavor: Flavor) {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 32 * MIB + 512).filled(&[(0, 4 * MIB), (9 * MIB, MIB)]))
        .disk(Disk::raw("vdb", 11 * MIB + 1536).filled(&[(0, 11 * MIB)]))
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

on!(a_disk_that_grew_is_copied_to_its_end: new = New, old = Old);
fn a_disk_that_grew_is_copied_to_its_end(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    machine.write("vda", 9 * 64 * KIB, 512, 0x41);
    machine.qmp().must("block_resize", json!({"node-name": machine.node("vda"), "size": 20 * MIB}));
    machine.write("vda", 15 * MIB, 64 * KIB, 0x42);
    let after = machine.copy("vda", "after");
    sync(&since(&mount, "monday", "vda"), &dest).success();
    oracle::same(&dest, &after);
    assert_eq!(identity(&dest)["size"], 20 * MIB);
    assert!(mount.unmount().success());
}

on!(what_does_not_fit_is_refused_and_nothing_is_written: new = New);
fn what_does_not_fit_is_refused_and_nothing_is_written(flavor: Flavor) {
    let disk = |id| Disk::qcow2(id, 8 * MIB).filled(&[(0, MIB)]);
    let machine = Machine::build(flavor).disk(disk("vda")).disk(disk("vdb")).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    machine.add_bitmap("vdb", "monday", 64 * KIB);
    machine.add_bitmap("vda", "tuesday", 64 * KIB);
    machine.write("vda", 0, 64 * KIB, 0x51);
    machine.write("vdb", 0, 64 * KIB, 0x52);
    let right = fs::read(beside(&dest)).expect("the identity");
    let state = |dest: &Path| {
        let meta = fs::metadata(dest).expect("the copy");
        (meta.mtime(), meta.mtime_nsec(), meta.blocks(), fs::read(dest).expect("the copy"), fs::read(beside(dest)).ok())
    };
    let refused = |source: &Path, words: &str| {
        let before = state(&dest);
        let line = sync(source, &dest).refused(SYSTEM);
        assert!(line.contains(words), "no {words:?} in {line}");
        assert!(state(&dest) == before, "something was written, but: {line}");
        line
    };
    let monday = since(&mount, "monday", "vda");
    refused(&since(&mount, "tuesday", "vda"), "fits checkpoint monday");
    let line = refused(&since(&mount, "monday", "vdb"), "is a copy of disk vda");
    assert!(line.contains("current/vdb"), "it says what to do: {line}");
    for (key, value, words) in [
        ("checkpoint", Value::Null, "no increment fits"),
        ("checkpoint", json!("sunday"), "fits checkpoint sunday"),
        ("machine", json!({"source": "qmp:/other"}), "is a copy of disk vda of qmp:/other"),
    ] {
        note(&dest, key, value);
        refused(&monday, words);
        fs::write(beside(&dest), &right).expect("the identity");
    }
    fs::write(beside(&dest), "notes").expect("another file");
    refused(&monday, "does not tell what a copy is of");
    refused(&full(&mount, "vda"), "does not tell what a copy is of");
    fs::remove_file(beside(&dest)).expect("removing the identity");
    refused(&monday, "nobody noted");
    assert_eq!(mount.state(), "none", "refused before the machine was bothered");
    // Somebody cut it, or made it longer.
    fs::write(beside(&dest), &right).expect("the identity");
    for size in [7 * MIB, 9 * MIB] {
        File::options().write(true).open(&dest).and_then(|file| file.set_len(size)).expect("another size");
        refused(&monday, "bytes");
    }

    let nothing = mount.beside("nothing");
    sync(&monday, &nothing).refused(SYSTEM);
    assert!(!nothing.exists() && !beside(&nothing).exists());
    sync(&mount.path("current/vdz"), &nothing).refused(NOT_FOUND);
    sync(&mount.path("current"), &nothing).refused(USAGE);
    sync(mount.path("").parent().expect("a directory"), &nothing).refused(NOT_FOUND);
    sync(&full(&mount, "vda"), Path::new("/dev/null")).refused(USAGE);
    assert!(!nothing.exists());
    assert!(mount.unmount().success());
}

/// Starts a sync of a delta that takes a while, and returns when it has written something.
#[track_caller]
fn under_way(mount: &Mount, dest: &Path) -> Child {
    let mut first = [0];
    let file = File::open(dest).expect("the copy");
    let mut command = command(&since(mount, "monday", "vda"), dest);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("pullfs");
    while file.read_exact_at(&mut first, 0).is_ok() && first != [0x61] {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

on!(an_interrupted_sync_is_run_again: new = New);
fn an_interrupted_sync_is_run_again(flavor: Flavor) {
    let size = 384 * MIB;
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", size)).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    for part in 0..size / (32 * MIB) {
        machine.write("vda", part * 32 * MIB, 32 * MIB, 0x61);
    }
    let after = machine.copy("vda", "after");
    let noted = fs::read(beside(&dest)).expect("the identity");

    let mut child = under_way(&mount, &dest);
    signal_child(&child, Signal::KILL);
    let status = wait_for(&mut child, LIMIT).expect("its end");
    assert!(status.code().is_none(), "it was killed in the middle");
    assert!(oracle::allocated(&dest) < size, "it was in the middle");
    assert_eq!(fs::read(beside(&dest)).expect("the identity"), noted);

    // The point in time is taken away from it.
    File::options().write(true).open(&dest).and_then(|file| file.write_all_at(&[0], 0)).expect("to begin anew");
    let mut child = under_way(&mount, &dest);
    mount.control("release").expect("release");
    assert_eq!(wait_for(&mut child, LIMIT).expect("its end").code(), Some(SYSTEM));
    let mut said = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().expect("standard error"), &mut said).expect("its words");
    assert!(said.contains("point in time") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read(beside(&dest)).expect("the identity"), noted);

    sync(&since(&mount, "monday", "vda"), &dest).success();
    oracle::same(&dest, &after);
    mount.control("release").expect("release");

    // A full copy that is interrupted leaves nothing that any increment fits.
    let file = File::options().write(true).open(&dest).expect("the copy");
    file.write_all_at(&[0], 0).expect("to begin anew");
    let mut child = command(&full(&mount, "vda"), &dest).stdout(Stdio::null()).spawn().expect("pullfs");
    wait_until("the identity to go", LIMIT, || !beside(&dest).exists());
    signal_child(&child, Signal::KILL);
    assert!(wait_for(&mut child, LIMIT).expect("its end").code().is_none(), "it was killed in the middle");
    assert!(sync(&since(&mount, "monday", "vda"), &dest).refused(SYSTEM).contains("nobody noted"));
    sync(&full(&mount, "vda"), &dest).success();
    oracle::same(&dest, &after);
    assert!(mount.unmount().success());
}

on!(one_sync_at_a_time: new = New);
fn one_sync_at_a_time(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    let mut locked = tool("flock");
    locked.arg(&dest).arg(pullfs()).arg("sync").arg(full(&mount, "vda")).arg(&dest);
    assert!(run(&mut locked).refused(BUSY).contains("another"));
    assert!(mount.unmount().success());
}

//! What does not fit a copy, or cannot be written, is refused before anything is touched.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::run;
use pullfs_tests::tools::{pullfs, tool};
use serde_json::{Value, json};

use super::{BUSY, KIB, NOT_FOUND, SYSTEM, USAGE, beside, copy_of_monday, full, note, record, since, sync};

on!(what_does_not_fit_is_refused_and_nothing_is_written: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_does_not_fit_is_refused_and_nothing_is_written(flavor: Flavor) {
    let disk = |id| Disk::qcow2(id, 8 * MIB).filled(&[(0, MIB)]);
    let machine = Machine::build(flavor).disk(disk("vda")).disk(disk("vdb")).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    record(&machine, &mount, "monday", "vdb");
    record(&machine, &mount, "tuesday", "vda");
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

on!(one_sync_at_a_time: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn one_sync_at_a_time(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).start();
    let mount = Mount::of(&machine);
    let dest = copy_of_monday(&machine, &mount, "vda");
    let mut locked = tool("flock");
    locked.arg(&dest).arg(pullfs()).arg("sync").arg(full(&mount, "vda")).arg(&dest);
    assert!(run(&mut locked).refused(BUSY).contains("another"));
    assert!(mount.unmount().success());
}

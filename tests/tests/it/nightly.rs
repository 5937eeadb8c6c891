//! The script of `pullfs-nightly@.service`, on a machine whose nights are a second apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{Finished, ok, run, wait_until};
use pullfs_tests::tmpfs::Tmpfs;
use pullfs_tests::tools::{tool, workspace};

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 16 * MIB).filled(&[(0, 4 * MIB)]))
        .disk(Disk::raw("vdb", 8 * MIB).filled(&[(MIB, MIB)]))
        .start()
}

/// A night's run; the next one has another name, which is the time in seconds.
fn night(mount: &Mount, backups: &Path) -> Finished {
    let second = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
    let finished = run(Command::new(workspace().join("mount-helpers/nightly.sh")).arg(mount.mnt()).arg(backups));
    let now = second();
    wait_until("the next second", Duration::from_secs(5), || second() > now);
    finished
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

/// The image of `disk` that the last night left.
fn newest(backups: &Path, disk: &str) -> PathBuf {
    let last = fs::read_to_string(backups.join("last")).expect("the last night");
    backups.join(format!("{disk}.{}.qcow2", last.trim_end()))
}

fn is(image: &Path, disk: &Path) {
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(disk));
}

on!(each_night_is_that_nights_disk: new = New, old = Old);
fn each_night_is_that_nights_disk(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    let backups = machine.dir().join("backups");
    fs::create_dir(&backups).expect("a directory");
    let mut known = Vec::new();
    for (number, pattern) in [0x21, 0x42, 0x63, 0x84].into_iter().enumerate() {
        // The third night QEMU was killed before, so that nobody can tell what changed.
        if number == 2 {
            machine.kill();
            machine.restart();
        }
        for disk in ["vda", "vdb"] {
            machine.write(disk, u64::from(pattern) * 65536 / 8, 65536, pattern);
            let right = machine.copy(disk, &format!("{disk}.{number}"));
            known.push((disk, right));
        }
        night(&mount, &backups).success();
        assert_eq!(mount.state(), "none");
        assert_eq!(names(&mount.path("checkpoints")).len(), 1, "of each night but the last, nothing is noted any more");
        for (disk, right) in &known[known.len() - 2..] {
            is(&newest(&backups, disk), right);
        }
    }
    let images: Vec<String> = names(&backups).into_iter().filter(|name| name != "last").collect();
    for disk in ["vda", "vdb"] {
        // Every night's image is still that night's disk.
        let nights = images.iter().filter(|name| name.starts_with(disk));
        let right = known.iter().filter(|(of, _)| *of == disk);
        assert_eq!(nights.clone().count(), 4, "{images:?}");
        for (name, (_, right)) in nights.zip(right) {
            is(&backups.join(name), right);
        }
        let second = images.iter().filter(|name| name.starts_with(disk)).nth(1).expect("the second night");
        let told = ok(tool("qemu-img").args(["info", "--output=json"]).arg(backups.join(second)));
        assert!(told.contains("\"backing-filename\""), "an incremental: {told}");
    }
    assert!(mount.unmount().success());
}

on!(a_night_that_fails_leaves_nothing: new = New, old = Old);
fn a_night_that_fails_leaves_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let backups = machine.dir().join("backups");
    fs::create_dir(&backups).expect("a directory");
    night(&mount, &backups).success();
    let (images, checkpoints) = (names(&backups), names(&mount.path("checkpoints")));
    // There is room for the first disk's image, and not for the second one's.
    let small = Tmpfs::new("5M");
    let full = night(&mount, small.path());
    assert!(full.code == Some(1) && full.stderr.contains("/vdb."), "{full}");
    assert!(names(small.path()).is_empty(), "{:?}", names(small.path()));
    assert_eq!(names(&mount.path("checkpoints")), checkpoints);
    assert_eq!((mount.state().as_str(), names(&backups)), ("none", images));
    // The next one has lost nothing.
    machine.write("vda", 0, 65536, 0x77);
    let right = machine.copy("vda", "right");
    night(&mount, &backups).success();
    is(&newest(&backups, "vda"), &right);
    assert!(mount.unmount().success());
}

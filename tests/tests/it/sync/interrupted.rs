//! A sync that is cut off at any moment breaks nothing that running it again does not mend.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{signal_child, wait_for, wait_until};
use rustix::process::Signal;

use super::{LIMIT, SYSTEM, beside, command, copy_of_monday, full, since, sync};

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

on!(an_interrupted_sync_is_run_again: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
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
    child.stderr.as_mut().expect("standard error").read_to_string(&mut said).expect("its words");
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

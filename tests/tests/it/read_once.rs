//! With `read_once` the scratch space of what was read is given back, and what was given back is an error, not other bytes.

use std::os::unix::fs::FileExt;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount, MountPoint, open_direct};
use pullfs_tests::oracle;
use rustix::io::Errno;

const SIZE: u64 = 144 * MIB;

/// Bytes of the scratch space that are in use.
#[track_caller]
fn used(mount: &Mount) -> u64 {
    mount.status()["point"]["scratch"]["used"].as_u64().expect("a point in time is held")
}

on!(what_was_read_takes_no_scratch_any_more: new = New, daemon = Daemon);
fn what_was_read_takes_no_scratch_any_more(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", SIZE).filled(&[(0, SIZE)])).start();
    let nothing = Leftovers::of(&machine);
    let before = machine.copy("vda", "before");
    let mount = Mount::with(&machine, "read_once,formats=raw");
    mount.control("begin").expect("a point in time");
    for at in (0..SIZE).step_by(usize::try_from(8 * MIB).expect("a step")) {
        machine.write("vda", at, 8 * MIB, 0x33);
    }
    let full = used(&mount);
    assert!(full >= SIZE, "old data of the whole disk: {full}");
    oracle::same(&mount.disk("vda"), &before);
    let after = used(&mount);
    assert!(after < SIZE * 2 / 3, "{after} of {full} bytes are left after the pass");

    // The guest goes on: nothing is kept of what was given back.
    machine.write("vda", 0, 64 * MIB, 0x44);
    let later = used(&mount);
    assert!(later <= after, "{later} after {after}");
    let direct = open_direct(&mount.disk("vda"));
    let read = |offset| direct.read_at(&mut aligned()[..4096], offset).map_err(|error| Errno::from_io_error(&error));
    assert_eq!(read(0), Err(Some(Errno::IO)), "given back");
    assert!(mount.status()["last_error"]["message"].as_str().expect("a message").contains("read_once"));
    assert_eq!(read(SIZE - 4096), Ok(4096), "lately read");
    assert_eq!(mount.state(), "held", "only that read failed");
    drop(direct);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

/// Memory for reads past the page cache, which the kernel copies from ours, so that it needs no alignment.
fn aligned() -> Vec<u8> {
    vec![0; 8192]
}

on!(it_is_refused_where_it_is_not_safe: old = Old);
fn it_is_refused_where_it_is_not_safe(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).start();
    let point = MountPoint::new();
    let line = mount::mount(&machine.source(), &point.mnt(), "read_once").refused(32);
    assert!(line.contains("read_once") && line.contains("fleece"), "{line}");
}

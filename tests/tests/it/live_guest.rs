//! A copy of a running Linux is what its disks would be if its plug had been pulled at the first open.

use std::fs;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use serde_json::json;

on!(a_copy_is_the_disk_at_the_first_open: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_copy_is_the_disk_at_the_first_open(flavor: Flavor) {
    let guest = Guest::boot(flavor);
    let nothing = Leftovers::of(guest.machine());
    let mount = Mount::of(guest.machine());
    // Time passes between the mount and the first open, which is what counts.
    guest.wait_past(guest.counter() + 10);

    let before = guest.counter();
    let open = fs::File::open(mount.disk("vda")).expect("the first open");
    let after = guest.counter();
    guest.wait_past(after + 10);
    let mut found = Vec::new();
    for id in ["vda", "vdb"] {
        let copy = mount.beside(id);
        ok(tool("cp").arg(mount.disk(id)).arg(&copy));
        oracle::clean_ext4(&copy);
        let counter = oracle::counter_in(&copy);
        // The number after the last one on the console may be on the disk already.
        let possible = before..=after + 1;
        assert!(possible.contains(&counter), "{id} has {counter}, not one of {possible:?}");
        found.push(counter);
    }
    // Each number is on vda before it is on vdb.
    assert!(found[0] == found[1] || found[0] == found[1] + 1, "one instant for both disks: {found:?}");
    drop(open);

    assert_eq!(guest.machine().qmp().must("query-status", json!({}))["status"], "running");
    mount.command(&["release"]).success();
    assert_eq!(Leftovers::of(guest.machine()), nothing);
    let last = guest.counter();
    // wait_past looks for I/O errors on the console as well.
    guest.wait_past(last + 10);

    let again = mount.beside("again");
    ok(tool("cp").arg(mount.disk("vda")).arg(&again));
    oracle::clean_ext4(&again);
    assert!(oracle::counter_in(&again) >= last, "a new point in time is a new one");
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(guest.machine()), nothing);
    guest.wait_past(guest.counter());
}

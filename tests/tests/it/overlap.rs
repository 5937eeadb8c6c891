//! Beginning and letting go of a point in time is a matter of QEMU's time: commands that may overlap do, and their number
//! grows with the disks and no faster.

use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::relay::Relay;
use serde_json::json;

/// Commands a disk: two that add the scratch file and one each that opens the image in it, sets its mark, opens the frozen
/// view, exports it; and the undoing of each, where the job is cancelled and dismissed. What is asked for as long as
/// something ends depends on how long it takes, not on the disks.
const FOR_EACH_DISK: usize = 16;

/// Commands under way at once: those of a group (`point::overlap::AT_ONCE`), and the two questions and the look at a
/// migration that may be beside them.
const AT_ONCE: usize = 8 + 3;

on!(commands_overlap_and_grow_with_the_disks: new = New, old = Old);
fn commands_overlap_and_grow_with_the_disks(flavor: Flavor) {
    let [few, many] = [2, 16].map(|disks| commands(flavor, disks));
    let most = few + FOR_EACH_DISK * (16 - 2);
    assert!(many <= most, "{few} commands for 2 disks and {many} for 16; {most} were enough");
}

/// How many commands a point in time of so many disks takes, from its beginning to its release.
#[track_caller]
fn commands(flavor: Flavor, disks: usize) -> usize {
    let build = (0..disks).fold(Machine::build(flavor), |build, n| build.disk(Disk::qcow2(&format!("vd{n}"), MIB)));
    let machine = build.start();
    let relay = Relay::before(&machine.dir().join("pull.qmp"));
    let mount = Mount::source(&relay.source(), "");
    let nothing = Leftovers::of(&machine);
    relay.count();
    mount.command(&["begin"]).success();
    mount.command(&["release"]).success();
    let (all, at_once) = relay.traffic();
    assert!(at_once >= disks.min(8), "of {disks} disks, {at_once} commands were under way at once");
    assert!(at_once <= AT_ONCE, "{at_once} commands were under way at once");
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(mount.unmount().success());
    all
}

on!(a_failure_in_the_middle_of_a_group_leaves_nothing: new = New, old = Old);
fn a_failure_in_the_middle_of_a_group_leaves_nothing(flavor: Flavor) {
    let build = (0..10).fold(Machine::build(flavor), |build, n| build.disk(Disk::qcow2(&format!("vd{n}"), MIB)));
    let machine = build.start();
    let mount = Mount::of(&machine);
    let nothing = Leftovers::of(&machine);
    // The name that the image of the sixth disk would get.
    let taken = json!({"node-name": format!("{}-1-5s", mount.id())});
    machine.qmp().must("blockdev-add", json!({"driver": "null-co", "node-name": taken["node-name"]}));
    let failed = mount.command(&["begin"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("vd5"), "{failed}");
    // With a name of ours it is taken for ours, and goes as well.
    machine.qmp().execute("blockdev-del", taken).ok();
    nothing.come_back(&machine, Duration::from_secs(10));
    mount.command(&["begin"]).success();
    mount.command(&["release"]).success();
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(mount.unmount().success());
}

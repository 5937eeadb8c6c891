//! Others who ask QEMU at the same time, as libvirt and what collects figures do.

use std::thread;

use pullfs_tests::builder::Builder;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use serde_json::json;

/// Points in time; QEMU 7.2 ended after fewer when it formatted the scratch images itself.
const POINTS: usize = 30;

on!(a_machine_that_is_asked_for_its_nodes_all_the_time_lives: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_machine_that_is_asked_for_its_nodes_all_the_time_lives(flavor: Flavor) {
    let disks = ["vda", "vdb", "vdc", "vdd"].map(|id| Disk::qcow2(id, MIB));
    let machine = disks.into_iter().fold(Machine::build(flavor), Builder::disk).start();
    let mount = Mount::of(&machine);
    let asked = thread::scope(|scope| {
        let points = scope.spawn(|| {
            for _ in 0..POINTS {
                mount.command(&["begin"]).success();
                mount.command(&["release"]).success();
            }
        });
        let mut asked = 0;
        while !points.is_finished() {
            machine.qmp().must("query-named-block-nodes", json!({"flat": true}));
            asked += 1;
        }
        points.join().expect("points in time");
        asked
    });
    assert!(asked > POINTS, "it was asked {asked} times only");
    assert!(mount.unmount().success());
}

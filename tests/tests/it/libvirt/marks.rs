//! How far scratch images may grow until libvirt says so.

use std::collections::BTreeMap;
use std::fs::File;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::wait_until;
use serde_json::json;

use super::{LIMIT, nothing_is_left};

/// What the guest overwrites at once, in bytes.
const GRANULE: u64 = 64 << 10;

/// Of each scratch image, by its path: the mark in bytes, or 0.
fn marks(machine: &Machine) -> BTreeMap<String, u64> {
    let nodes = machine.qmp().must("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").iter();
    let images = nodes.filter(|node| node["drv"] == "file" && node["file"].to_string().contains(".libvirt/"));
    let mark = |node: &serde_json::Value| node["write_threshold"].as_u64().expect("a mark");
    images.map(|node| (node["file"].as_str().expect("a path").to_owned(), mark(node))).collect()
}

// A third of what is left is each disk's. When one took its own, the rest is shared anew, which looking at the space from
// time to time would not do before half of it is gone.
on!(an_image_that_passes_its_mark_gets_another_one: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn an_image_that_passes_its_mark_gets_another_one(flavor: Flavor) {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 8 * MIB)]))
        .disk(Disk::qcow2("vdb", MIB))
        .disk(Disk::raw("vdc", MIB))
        .start();
    let mount = Mount::with(&machine, "scratch_limit=16M");
    let open = File::open(mount.disk("vda")).expect("a disk");
    let mut first = BTreeMap::new();
    wait_until("a mark on each scratch image", LIMIT, || {
        first = marks(&machine);
        first.len() == 3 && first.values().all(|mark| *mark > 0)
    });
    let mut next = 11 * MIB / 2;
    machine.write("vda", 0, next, 0x41);
    wait_until("another mark on one of them", LIMIT, || {
        // A mark that was set in the middle of that write is passed by the next one.
        if next < 6 * MIB {
            machine.write("vda", next, GRANULE, 0x42);
            next += GRANULE;
        }
        let now = marks(&machine);
        first.iter().filter(|(image, mark)| now[*image] > **mark + MIB).count() == 1
    });
    assert_eq!(mount.state(), "held", "there is room");
    drop(open);
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

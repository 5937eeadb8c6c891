//! The life of checkpoints: mkdir makes one at an instant of all disks, rmdir deletes it, and what it cannot tell it says.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, run, wait_until};
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::json;

const CLUSTER: u64 = 65536;

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 3 * MIB)]))
        .disk(Disk::with_checkpoints(flavor, "vdb", 4 * MIB + 512).filled(&[(0, MIB)]))
        .start()
}

fn errno(done: io::Result<()>) -> Option<Errno> {
    done.err().and_then(|error| Errno::from_io_error(&error))
}

fn mkdir(mount: &Mount, name: &str) -> Option<Errno> {
    errno(fs::create_dir(mount.path("checkpoints").join(name)))
}

fn rmdir(mount: &Mount, name: &str) -> Option<Errno> {
    errno(fs::remove_dir(mount.path("checkpoints").join(name)))
}

fn dirty(mount: &Mount, checkpoint: &str, id: &str) -> Vec<oracle::Extent> {
    let map = fs::read_to_string(mount.path(&format!("checkpoints/{checkpoint}/{id}/dirty.map"))).expect("a map");
    oracle::read_map(&map, |_| true)
}

on!(a_checkpoint_is_an_instant_of_all_disks: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_is_an_instant_of_all_disks(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), None);
    assert_eq!(mount.status()["point"]["checkpoint"], "monday");
    let monday = ["vda", "vdb"].map(|id| machine.copy(id, &format!("{id}.monday")));
    for id in ["vda", "vdb"] {
        machine.write(id, MIB, CLUSTER, 0x31);
    }
    for (id, copy) in ["vda", "vdb"].iter().zip(&monday) {
        oracle::same(&mount.disk(id), copy);
        assert_eq!(dirty(&mount, "monday", id), [], "nothing changed since the same instant");
    }
    // What changes is told live, if a second late.
    wait_until("the live size", Duration::from_secs(10), || {
        mount.status_of_checkpoint("monday")["dirty_bytes"] == json!(2 * CLUSTER)
    });
    let listed = mount.status_of_checkpoint("monday");
    assert_eq!(listed["foreign"], false, "{listed}");
    assert!(listed["created"].as_str().is_some_and(|time| time.ends_with('Z')), "{listed}");
    assert_eq!(listed["disks"]["vda"]["persistent"], true);
    assert_eq!(listed["disks"]["vdb"]["persistent"], machine.format("vdb") == "qcow2", "raw images keep no bitmaps");

    // Tuesday: what changed from Monday to Tuesday, and nothing of what comes after.
    mount.checkpoint("create", "tuesday").success();
    let tuesday = ["vda", "vdb"].map(|id| machine.copy(id, &format!("{id}.tuesday")));
    for id in ["vda", "vdb"] {
        machine.write(id, 2 * MIB, CLUSTER, 0x32);
    }
    for (id, copy) in ["vda", "vdb"].iter().zip(&tuesday) {
        oracle::same(&mount.disk(id), copy);
        assert_eq!(dirty(&mount, "monday", id), [(MIB, CLUSTER)]);
        assert_eq!(dirty(&mount, "tuesday", id), []);
    }
    // Wednesday without a checkpoint: incremental since Tuesday, differential since Monday, at once.
    mount.command(&["begin"]).success();
    if flavor.libvirt().is_some() {
        // One at a time there; what was begun on purpose is not exchanged for another one.
        assert_eq!(mount.status()["point"]["base"], "tuesday");
        let other = fs::read(mount.path("checkpoints/monday/vda/dirty.map"));
        assert_eq!(errno(other.map(drop)), Some(Errno::BUSY));
        assert!(mount.status()["last_error"]["message"].as_str().is_some_and(|why| why.contains("since=monday")));
        mount.command(&["release"]).success();
    }
    for (checkpoint, changes) in
        [("tuesday", vec![(2 * MIB, CLUSTER)]), ("monday", vec![(MIB, CLUSTER), (2 * MIB, CLUSTER)])]
    {
        for id in ["vda", "vdb"] {
            assert_eq!(dirty(&mount, checkpoint, id), changes, "{checkpoint} on {id}");
        }
    }
    if flavor.libvirt().is_some() {
        // That point in time has what changed since Monday, and of Tuesday no more than that it is among it.
        let map = fs::read_to_string(mount.path("checkpoints/tuesday/vda/dirty.map")).expect("a map");
        assert_eq!(oracle::read_map(&map, |_| true), [(MIB, CLUSTER), (2 * MIB, CLUSTER)]);
        assert!(map.contains("# note: all that changed since the older checkpoint monday"), "{map}");
        mount.command(&["release"]).success();
    }
    assert_eq!(rmdir(&mount, "monday"), None);
    assert_eq!(dirty(&mount, "tuesday", "vda"), [(2 * MIB, CLUSTER)], "the others stay what they are");
    mount.checkpoint("delete", "tuesday").success();
    assert_eq!(ok(tool("ls").arg(mount.path("checkpoints"))), "");
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing, "not even a note");
}

on!(names_and_busy_files_are_refused: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn names_and_busy_files_are_refused(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), None);
    let nothing = Leftovers::of(&machine);
    let open = File::open(mount.path("checkpoints/monday/vda/delta.raw")).expect("a delta");
    for (name, refusal) in [
        ("monday", Errno::EXIST),
        (".hidden", Errno::INVAL),
        ("pullfs-x", Errno::INVAL),
        ("a\nb", Errno::INVAL),
        ("tuesday", Errno::BUSY),
        // libvirt has fewer names.
        ("a: b", if flavor.libvirt().is_some() { Errno::INVAL } else { Errno::BUSY }),
    ] {
        assert_eq!(mkdir(&mount, name), Some(refusal), "{name:?}");
    }
    let long = mkdir(&mount, &"x".repeat(256));
    assert!(matches!(long, Some(Errno::INVAL | Errno::NAMETOOLONG)), "{long:?}");
    assert_eq!(rmdir(&mount, "monday"), Some(Errno::BUSY));
    assert_eq!(rmdir(&mount, "never"), Some(Errno::NOENT));
    for place in ["current/new", "checkpoints/monday/new", "new"] {
        assert!(fs::create_dir(mount.path(place)).is_err(), "{place}");
    }
    assert!(fs::remove_dir(mount.path("current/vda")).is_err(), "a disk stays");
    assert_eq!(Leftovers::of(&machine), nothing, "what was refused did nothing");
    mount.checkpoint("create", "monday").refused(2);
    mount.checkpoint("delete", "never").refused(3);
    drop(open);
    // Files cannot be removed, so this breaks no chain.
    let removed = run(tool("rm").arg("-rf").arg(mount.path("checkpoints/monday")));
    assert_ne!(removed.code, Some(0), "{removed}");
    assert_eq!(mount.status_of_checkpoint("monday")["name"], "monday");
    assert!(mount.unmount().success());
}

on!(a_name_is_new_again_though_somebody_is_still_in_the_old_directory: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_name_is_new_again_though_somebody_is_still_in_the_old_directory(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    for _ in 0..2 {
        assert_eq!(mkdir(&mount, "again"), None);
        // As the shell of somebody who has gone there.
        let inside = File::open(mount.path("checkpoints/again")).expect("the checkpoint's directory");
        assert_eq!(rmdir(&mount, "again"), None);
        assert_eq!(mkdir(&mount, "again"), None);
        assert_eq!(dirty(&mount, "again", "vda"), []);
        drop(inside);
        assert_eq!(rmdir(&mount, "again"), None);
    }
    assert!(mount.unmount().success());
}

on!(a_checkpoint_whose_point_in_time_fails_is_not_made: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_whose_point_in_time_fails_is_not_made(flavor: Flavor) {
    let machine = machine(flavor);
    // Noticed only after the instant.
    let socket = machine.dir().join("theirs.nbd");
    machine.qmp().must("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let before = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), Some(Errno::BUSY));
    assert_eq!(Leftovers::of(&machine), before, "no bitmap either");
    machine.qmp().must("nbd-server-stop", json!({}));
    assert_eq!(mkdir(&mount, "monday"), None);
    assert!(mount.unmount().success());
}

on!(what_others_made_is_left_alone: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_others_made_is_left_alone(flavor: Flavor) {
    let machine = machine(flavor);
    machine.add_bitmap("vda", "theirs", CLUSTER);
    let mount = Mount::of(&machine);
    assert_eq!(mount.status_of_checkpoint("theirs")["foreign"], true);
    assert_eq!(rmdir(&mount, "theirs"), Some(Errno::PERM));
    assert_eq!(mkdir(&mount, "theirs"), Some(Errno::EXIST));
    assert!(mount.unmount().success());
    let mount = Mount::with(&machine, "foreign=rw");
    assert_eq!(rmdir(&mount, "theirs"), None);
    assert_eq!(ok(tool("ls").arg(mount.path("checkpoints"))), "");
    assert!(mount.unmount().success());
}

on!(the_new_end_of_a_disk_counts_as_changed: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_new_end_of_a_disk_counts_as_changed(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), None);
    mount.command(&["release"]).success();
    machine.write("vda", MIB, CLUSTER, 0x31);
    machine.resize("vda", 12 * MIB);
    machine.write("vda", 11 * MIB, CLUSTER, 0x32);
    let after = machine.copy("vda", "after");
    assert_eq!(fs::metadata(mount.disk("vda")).expect("a disk").len(), 12 * MIB);
    assert_eq!(dirty(&mount, "monday", "vda"), [(MIB, CLUSTER), (8 * MIB, 4 * MIB)]);
    let map = fs::read_to_string(mount.path("checkpoints/monday/vda/dirty.map")).expect("a map");
    assert!(map.lines().any(|line| line.starts_with("# note: the disk grew")), "{map}");
    assert_eq!(oracle::read_map(&map, |kind| kind == 1), [(MIB, CLUSTER), (11 * MIB, CLUSTER)], "the rest is zeroes");
    oracle::same(&mount.disk("vda"), &after);
    assert!(mount.unmount().success());
}

on!(granularities_and_odd_sizes: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn granularities_and_odd_sizes(flavor: Flavor) {
    for granularity in [512, 4096, 1 << 31] {
        let machine = machine(flavor);
        machine.add_bitmap("vdb", "fine", granularity);
        machine.write("vdb", MIB, 512, 0x41);
        machine.write("vdb", 4 * MIB, 512, 0x42);
        let mount = Mount::of(&machine);
        let size = 4 * MIB + 512;
        let expected = match granularity {
            512 => vec![(MIB, 512), (4 * MIB, 512)],
            4096 => vec![(MIB, 4096), (4 * MIB, 512)],
            _ => vec![(0, size)],
        };
        assert_eq!(dirty(&mount, "fine", "vdb"), expected, "granularity {granularity}");
        assert!(mount.unmount().success());
    }
}

on!(a_bitmap_that_a_crash_broke_is_an_error_and_can_be_deleted: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_bitmap_that_a_crash_broke_is_an_error_and_can_be_deleted(flavor: Flavor) {
    let mut machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 3 * MIB)])).start();
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), None);
    assert!(mount.unmount().success());
    // Stored by a clean end, in use when the next one is killed.
    machine.quit();
    machine.restart();
    machine.kill();
    machine.restart();
    let mount = Mount::of(&machine);
    let listed = mount.status_of_checkpoint("monday");
    assert_eq!(
        (&listed["disks"]["vda"]["inconsistent"], &listed["foreign"]),
        (&json!(true), &json!(false)),
        "{listed}"
    );
    assert!(listed["disks"]["vda"]["unusable"].as_str().is_some_and(|why| why.contains("full backup")), "{listed}");
    let read = fs::read(mount.path("checkpoints/monday/vda/dirty.map"));
    assert_eq!(errno(read.map(drop)), Some(Errno::IO));
    assert!(mount.status()["last_error"]["message"].as_str().is_some_and(|why| why.contains("full backup")));
    assert!(fs::read(mount.disk("vda")).is_ok(), "a full backup can be taken");
    assert_eq!(rmdir(&mount, "monday"), None);
    assert_eq!(mkdir(&mount, "monday"), None, "and a new checkpoint of the same name made");
    assert!(mount.unmount().success());
}

on!(a_checkpoint_survives_a_clean_restart: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_survives_a_clean_restart(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    assert_eq!(mkdir(&mount, "monday"), None);
    let created = mount.status_of_checkpoint("monday")["created"].clone();
    assert!(mount.unmount().success());
    machine.write("vda", MIB, CLUSTER, 0x51);
    machine.quit();
    machine.restart();
    let mount = Mount::of(&machine);
    assert_eq!(mount.status_of_checkpoint("monday")["created"], created, "it is kept with the image");
    assert_eq!(dirty(&mount, "monday", "vda"), [(MIB, CLUSTER)]);
    if machine.format("vdb") == "raw" {
        let whole = fs::metadata(machine.image("vdb")).expect("an image").len();
        assert_eq!(dirty(&mount, "monday", "vdb"), [(0, whole)], "a raw image kept nothing, so all of it changed");
    } else {
        assert_eq!(dirty(&mount, "monday", "vdb"), []);
    }
    assert!(mount.unmount().success());
}

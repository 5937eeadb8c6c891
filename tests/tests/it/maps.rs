//! A dirty map is the bitmap's, whoever reads it, and a delta holds what changed and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle::{self, Extent, Map};
use pullfs_tests::process::ok;
use pullfs_tests::snapshot;
use pullfs_tests::tools::tool;
use serde_json::{Value, json};

const KIB: u64 = 1024;
const DISKS: [&str; 2] = ["vda", "vdb"];
/// Checkpoints and their granularity, oldest first.
const CHECKPOINTS: [(&str, u64); 2] = [("monday", 64 * KIB), ("tuesday", 4 * KIB)];

/// Data before any checkpoint, changes since each of them, and changes that are no data.
fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 16 * MIB + 512).filled(&[(0, 4 * MIB), (9 * MIB, MIB)]))
        .disk(Disk::with_checkpoints(flavor, "vdb", 11 * MIB + 1536).filled(&[(MIB, 2 * MIB)]))
        .start();
    for id in DISKS {
        for (name, granularity) in CHECKPOINTS {
            machine.add_bitmap(id, name, granularity);
            let shift = granularity / KIB;
            machine.write(id, MIB + shift * 1024, 512, 0x21);
            machine.write(id, 5 * MIB + shift * 8192 - 512, 1024, 0x22);
            machine.discard(id, 3 * MIB + shift * 4096, 128 * KIB);
            machine.write_zeroes(id, 9 * MIB + shift * 4096, 64 * KIB);
        }
        // The last cluster, which is not a whole one.
        machine.write(id, if id == "vda" { 16 * MIB } else { 11 * MIB }, 512, 0x23);
    }
    machine
}

fn changes(machine: &Machine, id: &str, (name, granularity): (&str, u64)) -> Map {
    oracle::changes(machine, id, &[&machine.node(id)], name, granularity)
}

fn read(mount: &Mount, checkpoint: &str, id: &str, file: &str) -> String {
    let path = mount.path(&format!("checkpoints/{checkpoint}/{id}/{file}"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.1).sum()
}

/// The lines and the JSON items of nbdinfo that tell of changes, which pullfs must repeat to the letter.
fn only_dirty(map: &Map) -> (Vec<String>, Vec<Value>) {
    let lines = map.text.lines().filter(|line| line.ends_with("dirty")).map(str::to_owned).collect();
    let all: Vec<Value> = serde_json::from_str(&map.json).expect("nbdinfo's JSON");
    (lines, all.into_iter().filter(|item| item["type"] == 1).collect())
}

on!(a_dirty_map_is_that_of_the_bitmap: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_dirty_map_is_that_of_the_bitmap(flavor: Flavor) {
    let machine = machine(flavor);
    if flavor.libvirt().is_none() {
        maps_are_those_of_bitmaps(&machine, &CHECKPOINTS);
        return;
    }
    // A backup of libvirt's tells exactly what changed since one checkpoint.
    for checkpoint in CHECKPOINTS {
        maps_are_those_of_bitmaps(&machine, &[checkpoint]);
    }
}

/// Compares the maps of these checkpoints, in one point in time; the disks change.
#[track_caller]
fn maps_are_those_of_bitmaps(machine: &Machine, checkpoints: &[(&str, u64)]) {
    let of = |id| -> Vec<(String, Map)> {
        let map = |&checkpoint: &(&str, u64)| (checkpoint.0.to_owned(), changes(machine, id, checkpoint));
        checkpoints.iter().map(map).collect()
    };
    let expected = DISKS.map(|id| (id, of(id)));
    let holes: BTreeMap<&str, Vec<Extent>> = DISKS.map(|id| (id, oracle::allocation(machine, id).zero())).into();
    let mount = Mount::of(machine);
    let status = mount.status_of_machine();
    // The first open; then more changes, which are none of this point in time.
    let first = mount.path(&format!("checkpoints/{}/vda/dirty.map", checkpoints[0].0));
    let open = fs::File::open(first).expect("the first open");
    for id in DISKS {
        machine.write(id, 8 * MIB, 64 * KIB, 0x31);
        machine.discard(id, 0, MIB);
    }
    for (id, maps) in &expected {
        for (checkpoint, map) in maps {
            let (lines, items) = only_dirty(map);
            assert!(!lines.is_empty(), "the test has changed something");
            let text = read(&mount, checkpoint, id, "dirty.map");
            let (header, body): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('#'));
            assert!(!header.is_empty() && text.starts_with('#'), "{text}");
            // Where nothing became zeroes, to the letter; the rest is cut in two kinds.
            assert_eq!(oracle::read_map(&text, |_| true), map.dirty(), "{checkpoint}/{id}/dirty.map");
            assert!(
                body.iter().any(|line| lines.iter().any(|other| other == line)),
                "{checkpoint}/{id}: {body:?} repeats none of {lines:?}"
            );
            let json = read(&mount, checkpoint, id, "dirty.json");
            assert_eq!(oracle::read_json_map(&json, |_| true), map.dirty());
            let ours: Vec<Value> = serde_json::from_str(&json).expect("JSON");
            assert!(ours.iter().any(|item| items.contains(item)), "{checkpoint}/{id}/dirty.json: {json}");
            let zeroes = oracle::read_map(&text, |kind| kind == 3);
            assert_eq!(oracle::read_json_map(&json, |kind| kind == 3), zeroes);
            assert_eq!(zeroes, common(&map.dirty(), &holes[id]), "{checkpoint}/{id}: changed, and reads as zeroes");
            let told = &status["checkpoints"].as_array().expect("checkpoints");
            let told = told.iter().find(|told| told["name"] == **checkpoint).expect("the checkpoint");
            // QEMU counts whole grains, also where the disk ends within one.
            let granularity = told["disks"][*id]["granularity"].as_u64().expect("granularity");
            let dirty = told["disks"][*id]["dirty_bytes"].as_u64().expect("dirty_bytes");
            assert!(dirty.abs_diff(total(&map.dirty())) < granularity, "{told}");
            assert_eq!(told["disks"][*id]["persistent"], machine.format(id) == "qcow2");
        }
    }
    drop(open);
    assert!(mount.unmount().success());
}

/// What lies in both of two sorted lists, neighbours merged.
fn common(one: &[Extent], other: &[Extent]) -> Vec<Extent> {
    let mut both: Vec<Extent> = Vec::new();
    for &(start, length) in one {
        for &(begin, more) in other {
            let (low, high) = (start.max(begin), (start + length).min(begin + more));
            match both.last_mut() {
                _ if low >= high => {}
                Some(last) if last.0 + last.1 == low => last.1 += high - low,
                _ => both.push((low, high - low)),
            }
        }
    }
    both
}

on!(a_delta_is_what_changed_and_nothing_else: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_delta_is_what_changed_and_nothing_else(flavor: Flavor) {
    let machine = machine(flavor);
    let dirty = DISKS.map(|id| changes(&machine, id, CHECKPOINTS[0]).dirty());
    let before = DISKS.map(|id| fs::read(machine.copy(id, &format!("{id}.before"))).expect("a copy"));
    let mount = Mount::of(&machine);
    let open = fs::File::open(mount.path("checkpoints/monday/vda/delta.raw")).expect("the first open");
    for id in DISKS {
        machine.write(id, 8 * MIB, 64 * KIB, 0x31);
        machine.discard(id, MIB, 4 * MIB);
        machine.write(id, 9 * MIB, 700 * KIB, 0x32);
    }
    for ((id, dirty), before) in DISKS.iter().zip(&dirty).zip(&before) {
        let delta = mount.path(&format!("checkpoints/monday/{id}/delta.raw"));
        let holes = oracle::read_map(&read(&mount, "monday", id, "dirty.map"), |kind| kind == 3);
        assert!(!holes.is_empty(), "the test has changed something to zeroes");
        let data = oracle::read_map(&read(&mount, "monday", id, "dirty.map"), |kind| kind == 1);
        assert_eq!(oracle::seek_walk(&delta), data, "{id}: data is what changed and is not zeroes");
        let (out, expected) = (mount.beside("out"), mount.beside("expected"));
        ok(tool("cp").arg("--sparse=auto").arg(&delta).arg(&out));
        let file = fs::File::create(&expected).expect("a file");
        file.set_len(u64::try_from(before.len()).expect("a size")).expect("a sparse file");
        for &(offset, length) in dirty {
            let range = usize::try_from(offset).expect("an offset")..usize::try_from(offset + length).expect("an end");
            file.write_all_at(&before[range], offset).expect("writing");
        }
        oracle::same(&out, &expected);
        // cp leaves out blocks of zeroes; a file system may need blocks of its own to find the extents by.
        let (took, changed) = (oracle::allocated(&out), total(&data));
        let allowed = not_zero(&expected)..=changed + 64 * KIB;
        assert!(allowed.contains(&took), "{id}: the copy took {took} bytes, {changed} changed, not {allowed:?}");
        assert_eq!(oracle::allocated(&delta), changed.next_multiple_of(512), "{id}: st_blocks");
    }
    drop(open);
    assert!(mount.unmount().success());
}

/// How many bytes of a file are in blocks that are not all zeroes.
fn not_zero(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("a file");
    let blocks = bytes.chunks(4096).filter(|block| block.iter().any(|&byte| byte != 0)).count();
    u64::try_from(blocks).expect("a number of blocks") * 4096
}

on!(bitmaps_stay_what_they_were: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn bitmaps_stay_what_they_were(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    let map = read(&mount, "tuesday", "vda", "dirty.map");
    assert!(mount.unmount().success());
    machine.quit();
    // Stored in the image when the machine quits, and read by another program.
    let stored = oracle::stored_bitmap(machine.image("vda"), "tuesday");
    assert_eq!(oracle::read_map(&map, |_| true), stored.dirty());
}

on!(a_map_covers_the_whole_backing_chain: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_map_covers_the_whole_backing_chain(flavor: Flavor) {
    let mut machine = Machine::build(flavor).disk(Disk::qcow2("vda", 16 * MIB).filled(&[(0, 8 * MIB)])).start();
    machine.add_bitmap("vda", "monday", 65536);
    machine.write("vda", MIB, 64 * KIB, 0x41);
    machine.write("vda", 10 * MIB, 192 * KIB, 0x41);
    // An external snapshot, with a bitmap of the same name on the new overlay.
    let base = machine.node("vda");
    snapshot::external(&mut machine, &["vda"], "overlay", 65536);
    machine.write("vda", MIB + 64 * KIB, 64 * KIB, 0x42);
    machine.write("vda", 5 * MIB, 512, 0x42);
    let before = machine.copy("vda", "before");
    let changed = oracle::changes(&machine, "vda", &[&machine.node("vda"), &base], "monday", 65536);
    assert_eq!(changed.dirty(), [(MIB, 128 * KIB), (5 * MIB, 64 * KIB), (10 * MIB, 192 * KIB)]);

    let mount = Mount::of(&machine);
    let listed = ok(tool("ls").arg(mount.path("current")));
    assert_eq!(listed.trim(), "vda", "the backing image is not a disk");
    ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
    machine.write("vda", 2 * MIB, 64 * KIB, 0x43);
    ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
    let map = read(&mount, "monday", "vda", "dirty.map");
    assert_eq!(oracle::read_map(&map, |_| true), changed.dirty());
    assert!(mount.unmount().success());
}

on!(a_checkpoint_of_one_disk_is_on_that_disk: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_of_one_disk_is_on_that_disk(flavor: Flavor) {
    let machine =
        Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).disk(Disk::with_checkpoints(flavor, "vdb", MIB)).start();
    // libvirt allows no spaces.
    let name = if flavor.libvirt().is_some() { "noon" } else { "since noon" };
    machine.add_bitmap("vdb", name, 65536);
    let mount = Mount::of(&machine);
    assert_eq!(ok(tool("ls").arg(mount.path("checkpoints").join(name))).trim(), "vda\nvdb");
    // The other one never had it, so there is no telling what did not change.
    let map = read(&mount, name, "vda", "dirty.map");
    assert_eq!(oracle::read_map(&map, |_| true), [(0, MIB)]);
    assert!(map.lines().any(|line| line.starts_with("# note: ")), "{map}");
    // Nothing changed on it: a map without lines, a delta without data.
    let map = read(&mount, name, "vdb", "dirty.map");
    assert!(map.lines().all(|line| line.starts_with('#')), "{map}");
    assert_eq!(serde_json::from_str::<Value>(&read(&mount, name, "vdb", "dirty.json")).ok(), Some(json!([])));
    assert!(oracle::seek_walk(&mount.path("checkpoints").join(name).join("vdb/delta.raw")).is_empty());
    assert!(mount.unmount().success());
}

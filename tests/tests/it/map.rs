//! `pullfs map` counts what nbdinfo counts, and says so in one line when it cannot.

use std::fs;
use std::path::Path;
use std::process::Command;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle::{self, Extent};
use pullfs_tests::process::{Finished, run};
use pullfs_tests::tools::pullfs;
use serde_json::Value;

const SYSTEM: i32 = 2;
const NOT_FOUND: i32 = 3;

#[track_caller]
fn map(file: &Path, options: &[&str]) -> Finished {
    run(Command::new(pullfs()).arg("map").arg(file).args(options))
}

#[track_caller]
fn json(file: &Path) -> Value {
    serde_json::from_str(&map(file, &["--json"]).success()).expect("JSON")
}

/// Panics unless the totals are those of `extents`.
#[track_caller]
fn counts(told: &Value, extents: &[Extent]) {
    let bytes: u64 = extents.iter().map(|extent| extent.1).sum();
    assert_eq!(told["bytes"], bytes, "{told}");
    assert_eq!(told["extents"], extents.len(), "{told}");
    let largest = extents.iter().map(|extent| extent.1).max();
    assert_eq!(told["largest"]["length"].as_u64(), largest, "{told}");
    let cells = told["cells"].as_array().expect("cells");
    let sum = |key: &str| cells.iter().map(|cell| cell[key].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((sum("bytes"), Some(sum("length"))), (bytes, told["size"].as_u64()), "{told}");
}

on!(a_map_is_counted_as_nbdinfo_counts: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_map_is_counted_as_nbdinfo_counts(flavor: Flavor) {
    let machine =
        Machine::build(flavor).disk(Disk::qcow2("vda", 16 * MIB + 512).filled(&[(0, MIB), (9 * MIB, MIB)])).start();
    machine.add_bitmap("vda", "monday", 65536);
    machine.write("vda", 3 * MIB, 512, 0x21);
    machine.write("vda", 16 * MIB, 512, 0x22);
    machine.discard("vda", 9 * MIB, 128 << 10);
    let dirty = oracle::changes(&machine, "vda", &[&machine.node("vda")], "monday", 65536);
    let data = oracle::allocation(&machine, "vda");
    let mount = Mount::of(&machine);
    let dirty_map = mount.path("checkpoints/monday/vda/dirty.map");
    let told = json(&dirty_map);
    counts(&told, &dirty.dirty());
    assert_eq!(told["size"], 16 * MIB + 512);
    assert_eq!(told["header"]["disk"], "vda");
    let mut listed = json(&mount.path("checkpoints/monday/vda/dirty.json"));
    counts(&listed, &dirty.dirty());
    listed["size"] = told["size"].clone();
    assert_eq!(listed["size_known"], false);
    let allocated = json(&mount.path("current/vda/allocated.map"));
    counts(&allocated, &data.data());
    assert_eq!(allocated["kind"], "data");

    // Copied elsewhere, and what nbdinfo itself prints.
    let text = mount.beside("nbdinfo");
    for (map, extents) in [(&dirty, dirty.dirty()), (&data, data.data())] {
        for form in [&map.text, &map.json] {
            fs::write(&text, form).expect("a file");
            counts(&json(&text), &extents);
        }
    }
    fs::copy(&dirty_map, &text).expect("a copy");
    assert_eq!(json(&text), told);

    let svg = mount.beside("picture.svg");
    let said = map(&text, &["--svg", &svg.display().to_string()]).success();
    assert!(said.contains("monday") && said.contains("16.0 MiB") && said.contains("extents        3"), "{said}");
    let bar = said.lines().find(|line| line.starts_with('▕')).expect("a bar");
    assert!(bar.chars().count() == 80 && bar.contains('▁'), "{bar}");
    let drawn = fs::read_to_string(&svg).expect("the picture");
    assert!(drawn.starts_with("<svg ") && drawn.contains("changed since monday"), "{drawn}");
    assert!(mount.unmount().success());
}

#[test]
fn what_is_no_map_is_refused_by_its_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("map");
    assert!(map(&file, &[]).refused(NOT_FOUND).contains("map"));
    for (text, words) in [
        ("# virtual size: 10\n0 5 1 dirty\n4 5 1 dirty\n", "line 3"),
        ("[{\"offset\": 1}]", "line 1"),
        ("hello\n", "line 1: `hello` is no extent"),
    ] {
        fs::write(&file, text).expect("a file");
        let said = map(&file, &["--json"]).refused(SYSTEM);
        assert!(said.contains(words), "{said}");
    }
    fs::write(&file, vec![0; 1 << 20]).expect("a file");
    map(&file, &[]).refused(SYSTEM);
}

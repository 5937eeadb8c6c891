//! The files of a Linux that runs and writes are those of the instant, whenever that is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::differences;
use super::image::Mounted;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::machine::MIB;
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use serde_json::Value;

/// The guest's disks, each of which is one ext4.
const DISKS: [&str; 2] = ["vda", "vdb"];
const SIZE: u64 = 96 * MIB;

fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().parse().unwrap_or_else(|e| panic!("{}: {text:?}: {e}", path.display()))
}

/// Panics unless the files of the days up to `before` are there, and of those after `after` there is none.
#[track_caller]
fn check_days(files: &Path, before: u64, after: u64) {
    let names = fs::read_dir(files.join("days")).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("a name").file_name().into_string().expect("text");
    let days: Vec<u64> = names.map(|entry| name(entry).parse().expect("a number")).collect();
    assert!(days.iter().all(|day| *day <= after), "nothing of after {after}: {days:?}");
    for day in 1..=before {
        assert!(days.contains(&day), "{day} of {before} is not there: {days:?}");
        assert_eq!(number(&files.join(format!("days/{day}"))), day);
    }
}

on!(what_was_synced_is_there_and_nothing_of_later: new = New, old = Old);
fn what_was_synced_is_there_and_nothing_of_later(flavor: Flavor) {
    let guest = Guest::daily(flavor);
    let mount = Mount::of(guest.machine());
    let files = |id: &str| mount.path(&format!("current/{id}/partitions/0/files"));
    for round in 0..3 {
        let before = guest.counter();
        mount.command(&["begin"]).success();
        // The number after the last one on the console may be on the disk already.
        let after = guest.counter() + 1;
        guest.wait_past(after + 3);
        let counters = DISKS.map(|id| {
            check_days(&files(id), before, after);
            let counter = number(&files(id).join("counter"));
            assert!((before..=after).contains(&counter), "{id}: {counter} is none of {before} to {after}");
            counter
        });
        assert!(counters[0] == counters[1] || counters[0] == counters[1] + 1, "one instant: {counters:?}");
        // All of the tree, whose journal has to be replayed, is what the kernel makes of the same blocks.
        let copy = mount.beside(&format!("copy{round}"));
        ok(tool("cp").arg(mount.disk("vda")).arg(&copy));
        let kernel = Mounted::part(&copy, "ext4", "loop", (0, SIZE));
        assert_eq!(differences(&files("vda"), &kernel.0), "", "round {round}");
        assert_eq!(differences(&kernel.0, &files("vda")), "", "round {round}, the other way round");
        mount.command(&["release"]).success();
    }
    guest.wait_past(guest.counter() + 1);
    assert!(mount.unmount().success());
}

on!(a_quiesced_guests_files_are_clean: new = New);
fn a_quiesced_guests_files_are_clean(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let mount = Mount::with(guest.machine(), &format!("agent={}", guest.agent().display()));
    let before = guest.counter();
    mount.command(&["begin", "--quiesce"]).success();
    let after = guest.counter() + 1;
    guest.wait_past(after + 3);
    for id in DISKS {
        let partitions = mount.path(&format!("current/{id}/partitions"));
        let counter = number(&partitions.join("0/files/counter"));
        assert!((before..=after).contains(&counter), "{id}: {counter} is none of {before} to {after}");
        assert!(!partitions.join("0/UNCLEAN.txt").exists(), "{id} was frozen");
        let table = fs::read_to_string(partitions.join("table.json")).expect("table.json");
        let table: Value = serde_json::from_str(&table).expect("JSON");
        let content = &table["partitions"][0]["content"];
        assert_eq!(content["kind"], "ext4", "{table}");
        assert!(content["unclean"].is_null() && content["problem"].is_null(), "{table}");
        // It is so on the disk, and not by a replay of ours.
        let copy = mount.beside(id);
        ok(tool("cp").arg(mount.disk(id)).arg(&copy));
        oracle::quiesced_ext4(&copy);
    }
    assert!(mount.unmount().success());
}

on!(what_a_guest_wrote_is_listed_and_nothing_of_before: new = New, old = Old);
fn what_a_guest_wrote_is_listed_and_nothing_of_before(flavor: Flavor) {
    // No two files share a granule that is a block of mkfs's.
    listed(&Guest::daily(flavor), 1024);
}

on!(what_a_guest_wrote_to_xfs_is_listed_and_nothing_of_before: new = New);
fn what_a_guest_wrote_to_xfs_is_listed_and_nothing_of_before(flavor: Flavor) {
    listed(&Guest::daily_on_xfs(flavor), 4096);
}

/// `granule` is that of the checkpoint's bitmap, in bytes.
fn listed(guest: &Guest, granule: u64) {
    guest.wait_past(3);
    let before = guest.counter();
    for id in DISKS {
        guest.machine().add_bitmap(id, "monday", granule);
    }
    let after = guest.counter() + 1;
    guest.wait_past(after + 3);
    let mount = Mount::of(guest.machine());
    let synced = guest.counter();
    mount.command(&["begin"]).success();
    let latest = guest.counter() + 1;
    guest.wait_past(latest + 3);
    for id in DISKS {
        let path = mount.path(&format!("checkpoints/monday/{id}/changed-files.txt"));
        let list = fs::read_to_string(path).expect("a list");
        let days = list.lines().filter_map(|line| line.strip_prefix("0/files/days/")?.parse().ok());
        let days: BTreeSet<u64> = days.collect();
        assert!(days.iter().all(|day| (before + 1..=latest).contains(day)), "{before} to {latest}: {list}");
        assert!((after + 1..=synced).all(|day| days.contains(&day)), "{after} to {synced}: {list}");
        assert!(list.contains("\n0/files/counter\n") && !list.contains("\n# not read: "), "{list}");
        for day in days.iter().take(10) {
            assert_eq!(number(&mount.path(&format!("current/{id}/partitions/0/files/days/{day}"))), *day);
        }
    }
    assert!(mount.unmount().success());
}

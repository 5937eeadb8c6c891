//! The synthesised qcow2 images before readers that others wrote: `qemu-img`, and the crate `imago`.
//!
//! A history of a disk in memory: a full copy and two incremental ones, each materialised with [`image::read`] as a
//! program would read it out of a mount, each checked, and the whole chain compared with the disk.

mod disk;
mod readers;

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use pullfs_fs::block::cache::Cache;
use pullfs_fs::block::extents::Extents;
use pullfs_fs::block::spread::Store;
use pullfs_fs::image::qcow2::{Backing, ClusterSize, Qcow2};
use pullfs_fs::image::{self, Image, Segment};
use serde_json::{Value, json};

use self::disk::{Change, Disk};

/// Bytes of one read: no multiple of anything.
const READ: u64 = 1_000_003;

/// Writes the file that a copy of `image` would be.
fn copy(image: &Qcow2, disk: &Disk, path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cached = runtime.block_on(async { Store::Disk(Cache::new(4 << 20).disk(Arc::new(disk.clone()), None)) });
    let mut file = File::create(path).unwrap();
    let mut at = 0;
    while at < image.size() {
        let bytes = runtime.block_on(image::read(image, &cached, at..at + READ)).unwrap();
        file.write_all(&bytes).unwrap();
        at += READ;
    }
    assert_eq!(file.metadata().unwrap().len(), image.size());
}

/// How a history is stored.
#[derive(Debug)]
struct Plan {
    size: u64,
    /// Bytes that a bit of the dirty bitmap stands for.
    granularity: u64,
    cluster_sizes: [ClusterSize; 3],
    raw_base: bool,
    /// What the guest does before each of the three copies.
    steps: [Vec<Change>; 3],
    /// How much the disk grows before the second and the third.
    growth: [u64; 2],
}

fn plan() -> impl Strategy<Value = Plan> {
    let size = prop_oneof![1_u64..5000, 1_u64..8 << 20, (1_u64..64).prop_map(|count| count << 16)];
    let growth = prop_oneof![3 => Just(0_u64), 1 => 1_u64..1 << 20];
    let steps = proptest::array::uniform3(proptest::collection::vec(disk::change(), 0..12));
    let cluster_size = (9_u32..22).prop_map(|bits| ClusterSize::new(1 << bits).unwrap());
    let granularity = (9_u32..19).prop_map(|bits| 1_u64 << bits);
    (size, granularity, proptest::array::uniform3(cluster_size), any::<bool>(), steps, [growth.clone(), growth])
        .prop_map(|(size, granularity, cluster_sizes, raw_base, steps, growth)| Plan {
            size,
            granularity,
            cluster_sizes,
            raw_base,
            steps,
            growth,
        })
}

/// Makes `disk0.raw` … `disk2.raw`, a base and two deltas in `dir`; the names of the chain and the disk's sizes.
fn materialise(plan: &Plan, dir: &Path) -> ([&'static str; 3], [u64; 3]) {
    let base = if plan.raw_base { "disk0.raw" } else { "full.qcow2" };
    let chain = [base, "monday.qcow2", "tuesday.qcow2"];
    let mut disk = Disk::new(plan.size);
    let mut sizes = [0; 3];
    for (number, changes) in plan.steps.iter().enumerate() {
        let from = disk.size();
        if let Some(grown) = number.checked_sub(1).map(|index| plan.growth[index]) {
            disk.grow(grown);
        }
        let cluster_size = plan.cluster_sizes[number];
        let changed = changes.iter().filter_map(|change| disk.apply(change)).collect::<Vec<_>>();
        let image = if number == 0 {
            Qcow2::new(disk.size(), cluster_size, &disk.allocated(plan.granularity), &Extents::default(), None)
        } else {
            let (data, zero) = disk.dirty(plan.granularity, &changed, from);
            let format = if number == 1 && plan.raw_base { "raw" } else { "qcow2" };
            let backing = Backing { file: chain[number - 1].into(), format };
            Qcow2::new(disk.size(), cluster_size, &data, &zero, Some(&backing))
        };
        let name = if number == 0 { "full.qcow2" } else { chain[number] };
        copy(&image.unwrap(), &disk, &dir.join(name));
        disk.save(&dir.join(format!("disk{number}.raw")));
        sizes[number] = disk.size();
    }
    (chain, sizes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_is_the_disk(plan in plan()) {
        let dir = tempfile::tempdir().unwrap();
        let (chain, sizes) = materialise(&plan, dir.path());
        readers::check(&dir.path().join("full.qcow2"));
        readers::same(&dir.path().join("full.qcow2"), &dir.path().join("disk0.raw"));
        for number in [1, 2] {
            let (path, raw) = (dir.path().join(chain[number]), dir.path().join(format!("disk{number}.raw")));
            readers::check(&path);
            readers::same(&path, &raw);
            let disk = std::fs::read(&raw).unwrap();
            prop_assert!(readers::imago(&path) == disk::rounded(disk), "imago reads another disk");

            let info = readers::info(&path);
            prop_assert_eq!(&info["virtual-size"], sizes[number].next_multiple_of(512));
            prop_assert_eq!(&info["cluster-size"], plan.cluster_sizes[number].bytes());
            prop_assert_eq!(&info["backing-filename"], chain[number - 1]);
            let format = if chain[number - 1].ends_with("raw") { "raw" } else { "qcow2" };
            prop_assert_eq!(&info["backing-filename-format"], format);
            let specific = &info["format-specific"]["data"];
            prop_assert_eq!(&specific["compat"], "1.1");
            prop_assert_eq!(&specific["refcount-bits"], 16);
            prop_assert_eq!(&specific["corrupt"], false);
        }
    }
}

#[test]
fn a_chain_converts_to_the_later_full_copy() {
    let cluster_sizes = [65_536, 4096, 2 << 20].map(|bytes| ClusterSize::new(bytes).unwrap());
    let change = |zero, start, length| Change { zero, start, length };
    let steps = [
        vec![change(false, 0, 3 << 20), change(false, 5 << 20, 1 << 20)],
        vec![change(true, 70_000, 300_000), change(false, 4 << 20, 10)],
        vec![change(true, 5 << 20, 1 << 20), change(false, 100_000, 5000)],
    ];
    let plan =
        Plan { size: (6 << 20) + 700, granularity: 65_536, cluster_sizes, raw_base: false, steps, growth: [0, 4096] };
    let dir = tempfile::tempdir().unwrap();
    materialise(&plan, dir.path());
    let (tuesday, restored) = (dir.path().join("tuesday.qcow2"), dir.path().join("restored.raw"));
    readers::qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&tuesday, &restored]);
    let disk = std::fs::read(dir.path().join("disk2.raw")).unwrap();
    assert!(std::fs::read(&restored).unwrap() == disk::rounded(disk), "the restored disk");
}

#[test]
fn a_disk_of_no_bytes_is_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.qcow2");
    let none = Extents::default();
    copy(&Qcow2::new(0, ClusterSize::default(), &none, &none, None).unwrap(), &Disk::new(0), &path);
    readers::check(&path);
    assert_eq!(readers::info(&path)["virtual-size"], 0);
}

/// Writes everything but the disk's content, where holes are left.
fn copy_metadata(image: &Qcow2, path: &Path) {
    let mut file = File::create(path).unwrap();
    for segment in image.map(0..image.size()) {
        match segment {
            Segment::Bytes(bytes) => file.write_all(&bytes).unwrap(),
            Segment::Zero(length) | Segment::Disk { length, .. } => {
                file.seek(SeekFrom::Current(i64::try_from(length).unwrap())).unwrap();
            }
        }
    }
    file.set_len(image.size()).unwrap();
}

#[test]
fn qemu_finds_the_clusters_of_64_tib() {
    const SIZE: u64 = 64 << 40;
    let data = disk::list([0..1, (32 << 40) - 1..(32 << 40) + (3 << 30), SIZE - (1 << 20)..SIZE]);
    let zero = disk::list(std::iter::once(1 << 40..(1 << 40) + (40 << 30)));
    let image = Qcow2::new(SIZE, ClusterSize::default(), &data, &zero, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.qcow2");
    copy_metadata(&image, &path);
    readers::check(&path);

    let first = image.size() - (65_536 + (65_536 + (3 << 30)) + (1 << 20));
    let (second, third) = (first + 65_536, image.size() - (1 << 20));
    let extent = |start: u64, length: u64, offset: u64| json!([start, length, offset]);
    let expected = [
        extent(0, 65_536, first),
        extent((32 << 40) - 65_536, 65_536 + (3 << 30), second),
        extent(SIZE - (1 << 20), 1 << 20, third),
    ];
    let map = readers::qemu_img(&["map", "--output=json", "-f", "qcow2"], &[&path]);
    let map: Vec<Value> = serde_json::from_slice(&map).unwrap();
    let held = map.iter().filter(|extent| extent["offset"].is_u64());
    let held: Vec<Value> = held.map(|extent| json!([extent["start"], extent["length"], extent["offset"]])).collect();
    assert_eq!(held, expected);
    let zeroes = map.iter().find(|extent| extent["start"] == 1_u64 << 40).unwrap();
    assert_eq!((&zeroes["length"], &zeroes["present"]), (&json!(40_u64 << 30), &json!(true)), "explicit zeroes");
}

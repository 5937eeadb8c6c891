//! Partition tables that are damaged: what is wrong is said, and the rest can be read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::errno;
use super::image::{self, DISK, SIZE, START};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::Value;
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory")
}

#[track_caller]
fn table(mount: &Mount) -> Value {
    let text = fs::read_to_string(mount.path("current/vda/partitions/table.json")).expect("table.json");
    serde_json::from_str(&text).expect("JSON")
}

/// Panics unless one of the table's problems has these words.
#[track_caller]
fn has_problem(table: &Value, words: &str) {
    let problems = table["problems"].as_array().expect("problems");
    let has = |problem: &Value| problem.as_str().expect("a sentence").contains(words);
    assert!(problems.iter().any(has), "none of {words:?} in {problems:?}");
}

/// A FAT of 4 MiB at a place of an image, with a file that says where it is.
fn fat(image: &Path, number: u32, start: u64) {
    let part = image.with_extension("part");
    File::create(&part).expect("an image").set_len(4 * MIB).expect("its size");
    ok(tool("mkfs.vfat").arg(&part));
    let file = image.with_extension("txt");
    fs::write(&file, format!("partition {number}\n")).expect("a file");
    ok(tool("mcopy").arg("-i").arg(&part).arg(&file).arg("::/which.txt"));
    let bytes = fs::read(&part).expect("a part");
    let image = File::options().write(true).open(image).expect("the image");
    image.write_all_at(&bytes, start).expect("a partition");
}

on!(a_gpt_is_read_from_its_backup: new = New);
fn a_gpt_is_read_from_its_backup(flavor: Flavor) {
    let dir = directory();
    let image = dir.path().join("vda.raw");
    image::make(&image);
    let mut dd = tool("dd");
    dd.args(["if=/dev/urandom", "bs=512", "seek=1", "count=1", "conv=notrunc", "status=none"]);
    ok(dd.arg(format!("of={}", image.display())));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", DISK).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let table = table(&mount);
    assert_eq!(table["scheme"], "gpt", "{table}");
    has_problem(&table, "the primary GUID partition table was not used");
    let first = &table["partitions"][0];
    assert_eq!((first["offset"].as_u64(), first["size"].as_u64()), (Some(START), Some(SIZE)));
    assert_eq!(table["partitions"].as_array().map(Vec::len), Some(3));
    let hosts = mount.path("current/vda/partitions/1/files/etc/hosts");
    assert_eq!(fs::read_to_string(hosts).expect("a file"), "127.0.0.1 localhost\n");
    assert!(mount.unmount().success());
}

/// An extended partition with two logical ones, in sectors; a second primary one follows.
const MBR: &str = "
start=2048, size=8192, type=6
start=16384, size=40960, type=5
start=65536, size=8192, type=6
start=18432, size=8192, type=6
start=32768, size=8192, type=6
";

/// Where sfdisk puts the record of the second logical partition.
fn second_record(image: &File) -> u64 {
    let mut start = [0; 4];
    image.read_exact_at(&mut start, 16384 * 512 + 446 + 16 + 8).expect("the first record");
    (16384 + u64::from(u32::from_le_bytes(start))) * 512
}

on!(an_mbr_that_goes_in_circles_is_read_as_far_as_it_can_be: new = New);
fn an_mbr_that_goes_in_circles_is_read_as_far_as_it_can_be(flavor: Flavor) {
    let dir = directory();
    let path = dir.path().join("vda.raw");
    let image = File::options().read(true).write(true).create_new(true).open(&path).expect("an image");
    image.set_len(DISK).expect("its size");
    let script = dir.path().join("script");
    fs::write(&script, format!("label: dos\n{MBR}")).expect("a script");
    ok(tool("sh").args(["-euc", "sfdisk -q \"$1\" <\"$2\"", "sh"]).args([&path, &script]));
    // The third partition is told to begin past the end of the disk, and the second logical one to be followed by the first.
    image.write_all_at(&[0, 0, 16, 0], 446 + 2 * 16 + 8).expect("the third partition");
    let mut link = [0; 16];
    link[4] = 5;
    link[12..].copy_from_slice(&8192_u32.to_le_bytes());
    image.write_all_at(&link, second_record(&image) + 446 + 16).expect("the second record's link");
    for (number, sector) in [(1, 2048), (5, 18432), (6, 32768)] {
        fat(&path, number, sector * 512);
    }
    let machine = Machine::build(flavor).disk(Disk::raw("vda", DISK).from_image(&path)).start();
    let mount = Mount::of(&machine);
    let table = table(&mount);
    assert_eq!(table["scheme"], "mbr", "{table}");
    has_problem(&table, "the chain of logical partitions comes back to sector 16384");
    let partitions = table["partitions"].as_array().expect("partitions");
    let numbers: Vec<_> = partitions.iter().map(|partition| partition["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, [1, 2, 3, 5, 6], "{table}");
    let problem = partitions[2]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("past the end of the disk"), "{table}");
    let partitions = mount.path("current/vda/partitions");
    for path in ["3", "3.raw", "2.raw", "7"] {
        assert_eq!(errno(partitions.join(path).metadata()), Some(Errno::NOENT), "{path}");
    }
    for number in [1, 5, 6] {
        let file = partitions.join(format!("{number}/files/which.txt"));
        assert_eq!(fs::read_to_string(file).expect("a file"), format!("partition {number}\n"));
        assert_eq!(partitions.join(format!("{number}.raw")).metadata().expect("a partition").len(), 4 * MIB);
    }
    assert!(mount.unmount().success());
}

on!(a_file_system_in_use_says_so: new = New, old = Old);
fn a_file_system_in_use_says_so(flavor: Flavor) {
    let dir = directory();
    let [used, clean] = ["vda", "vdb"].map(|name| dir.path().join(name));
    for image in [&used, &clean] {
        File::create(image).expect("an image").set_len(4 * MIB).expect("its size");
        fat(image, 0, 0);
    }
    // Linux's mark of being mounted (fs/fat/inode.c, `fat_set_state`).
    File::options().write(true).open(&used).expect("the image").write_all_at(&[1], 37).expect("a mark");
    let machine = Machine::build(flavor).disk(Disk::raw("vda", 4 * MIB).from_image(&used));
    let machine = machine.disk(Disk::raw("vdb", 4 * MIB).from_image(&clean)).start();
    let mount = Mount::of(&machine);
    for (disk, unclean) in [("vda", true), ("vdb", false)] {
        let partition = mount.path(&format!("current/{disk}/partitions/0"));
        assert_eq!(fs::read_to_string(partition.join("files/which.txt")).expect("a file"), "partition 0\n");
        let listed = fs::read_dir(&partition).expect("a partition").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(listed.collect::<Vec<_>>().contains(&"UNCLEAN.txt".into()), unclean, "{disk}");
        let said = fs::read_to_string(partition.join("UNCLEAN.txt"));
        assert_eq!(said.is_ok_and(|said| said.contains("FAT has no journal")), unclean, "{disk}");
    }
    assert!(table(&mount).to_string().contains("FAT has no journal"), "{}", table(&mount));
    assert!(mount.unmount().success());
}

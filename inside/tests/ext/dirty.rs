//! File systems that were cut off while they were written to, against what the kernel makes of a copy of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use images::run;
use inside::{FileSystem, Kind, Place};

use crate::compare::compare;
use crate::fill::{EXT4, Takes, fill, pattern};
use crate::image::{Image, Mount, debugfs};

/// What a journal's commit blocks begin with.
const COMMIT: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];

/// Each copy is a file of its own, which is mounted once.
static COPIES: AtomicU32 = AtomicU32::new(0);

/// What is there after a sync, and more that was only in part made to last: nothing of it goes to the disk by itself for a while.
fn write_and_cut(image: &Image, options: &str) -> Image {
    let mount = image.mount(&format!("loop,commit=300,{options}"));
    fill(&mount.0, Takes { names: 300, value: 900, longest: 2 << 40, ..EXT4 });
    sync(&mount.0);
    for number in 0..40 {
        work(&mount.0, number);
    }
    // With data=journal, these bytes are nowhere else.
    let journaled = File::create(mount.0.join("in the journal")).unwrap();
    let mut bytes = pattern(90_000);
    bytes[8192..8196].copy_from_slice(&COMMIT[..4]);
    journaled.write_all_at(&bytes, 12_345).unwrap();
    journaled.sync_all().unwrap();
    fs::write(mount.0.join("never synced"), pattern(10_000)).unwrap();
    image.copy("cut")
}

/// Names and blocks that come and go, and what is written over.
fn work(root: &Path, number: usize) {
    let directory = root.join(format!("work {}", number % 5));
    fs::create_dir_all(&directory).unwrap();
    for file in 0..10 {
        fs::write(directory.join(format!("{number} {file}")), pattern(number * 500 + file)).unwrap();
        let _ = fs::remove_file(directory.join(format!("{} {file}", number.wrapping_sub(7))));
    }
    let _ = fs::remove_dir_all(root.join(format!("work {}", (number + 3) % 5)));
    let _ = fs::rename(root.join("moving"), directory.join("moved"));
    // A block of data that looks like one of the journal.
    let mut block = pattern(20_000);
    block[4096..4104].copy_from_slice(&COMMIT);
    block[..4].copy_from_slice(&COMMIT[..4]);
    fs::write(root.join("moving"), block).unwrap();
    let file = File::options().create(true).truncate(false).write(true).open(root.join("comb of work")).unwrap();
    for tooth in 0..50 {
        file.write_all_at(&[7; 10], (u64::try_from(number).unwrap() * 50 + tooth) * 9000).unwrap();
    }
    if number.is_multiple_of(4) {
        file.set_len(u64::try_from(number).unwrap() * 1000).unwrap();
        file.sync_all().unwrap();
        sync(&directory);
    }
}

fn sync(directory: &Path) {
    rustix::fs::syncfs(File::open(directory).unwrap()).unwrap();
}

/// What is read of the image is what the kernel mounts.
fn same(cut: &Image) {
    assert!(needs_recovery(cut), "nothing to replay");
    let ours = cut.open().unwrap();
    assert_eq!(ours.summary().unclean, None);
    let theirs = cut.copy(&format!("theirs {}", COPIES.fetch_add(1, Ordering::Relaxed)));
    // Times are in whole seconds: nothing of before the mount must count as of after it.
    thread::sleep(Duration::from_millis(1100));
    let mounted = SystemTime::now();
    // Not read-only: mount(8) would make the loop device so as well, and the kernel could not replay.
    let mount = theirs.mount("loop,noatime");
    compare(&ours, cut, &mount.0, mounted);
}

fn needs_recovery(image: &Image) -> bool {
    image.read(1024 + 0x60, 1)[0] & 4 != 0
}

fn cut_and_compare(mkfs: &str, arguments: &[&str], options: &str) {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), mkfs, arguments, 128);
    same(&write_and_cut(&image, options));
}

#[test]
fn ext4_that_was_cut_off() {
    cut_and_compare("mkfs.ext4", &["-b", "4096"], "defaults");
}

#[test]
fn ext4_of_1_kib_blocks_without_checksums_that_was_cut_off() {
    cut_and_compare("mkfs.ext4", &["-b", "1024", "-O", "^metadata_csum,^64bit"], "journal_checksum");
    cut_and_compare("mkfs.ext4", &["-b", "1024", "-O", "^metadata_csum,^64bit"], "journal_async_commit,data=writeback");
}

#[test]
fn ext4_with_data_in_its_journal_that_was_cut_off() {
    cut_and_compare("mkfs.ext4", &["-b", "4096", "-J", "size=16"], "data=journal");
}

#[test]
fn ext3_that_was_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext3", &["-b", "4096", "-J", "size=4"], 128);
    let mount = image.mount("loop,commit=300");
    for number in 0..60 {
        work(&mount.0, number);
    }
    sync(&mount.0);
    same(&image.copy("cut"));
}

/// Journals as debugfs writes them: with the checksums of old kernels too, and blocks of both widths that are revoked again.
#[test]
fn journals_that_kernels_write_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    for (number, (version, features)) in
        [(2, "64bit"), (2, "^64bit,metadata_csum"), (3, "64bit"), (3, "^64bit,metadata_csum")].into_iter().enumerate()
    {
        let path = directory.path().join(number.to_string());
        fs::create_dir(&path).unwrap();
        let image = Image::make(&path, "mkfs.ext4", &["-b", "4096", "-O", features], 64);
        let mount = image.mount("loop");
        fs::write(mount.0.join("file"), pattern(80_000)).unwrap();
        drop(mount);
        let ours = image.open().unwrap();
        let file = ours.lookup(ours.root(), b"file").unwrap().unwrap();
        let Place::Disk(at) = ours.extents(file, 0, 1).unwrap()[0].place else { panic!("it is on the disk") };
        let first = at / 4096;
        let mut bytes = pattern(5 * 4096);
        bytes[4096..4100].copy_from_slice(&COMMIT[..4]);
        fs::write(&data, bytes).unwrap();
        let name = data.to_str().unwrap();
        let blocks = |from: u64| (0..5).map(|block| (first + from + block).to_string()).collect::<Vec<_>>().join(",");
        debugfs(
            &image,
            &format!(
                "journal_open -c -v {version}\njournal_write -b {} {name}\njournal_write -r {}\njournal_write -b {} {name}\n\
                 journal_close\n",
                blocks(0),
                blocks(3),
                blocks(6),
            ),
        );
        assert!(image.open().unwrap().extents(file, 0, 9).unwrap().len() > 2, "some of it is in the journal");
        same(&image);
    }
}

/// As if the last transaction had not been brought to its end; and as if its end were damaged.
#[test]
fn the_last_transaction_counts_if_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext4", &["-b", "4096"], 128);
    let cut = write_and_cut(&image, "defaults");
    let bytes = cut.bytes();
    let commits = bytes
        .chunks(4096)
        .enumerate()
        .filter(|(_, block)| block.starts_with(&COMMIT) && block[12..40] != pattern(40)[12..]);
    let sequence = |block: &[u8]| u32::from_be_bytes(block[8..12].try_into().unwrap());
    let last =
        commits.filter(|(_, block)| block[64..].iter().all(|byte| *byte == 0)).max_by_key(|(_, block)| sequence(block));
    let (number, block) = last.unwrap();
    let offset = u64::try_from(number).unwrap() * 4096;

    cut.write(offset, &[0; 4096]);
    same(&cut);

    let mut wrong = block.to_vec();
    wrong[16] ^= 1;
    cut.write(offset, &wrong);
    assert_eq!(cut.open().unwrap_err().kind(), Kind::Unclean, "the kernel does not mount it either");

    // Only its first sector was written, and what was there before follows.
    let mut torn = block.to_vec();
    torn[600..700].fill(3);
    cut.write(offset, &torn);
    same(&cut);
}

/// Writers go on while the image is copied at one instant, again and again.
#[test]
fn every_instant_of_a_file_system_that_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let host = directory.path().join("host");
    File::create(&host).unwrap().set_len(2 << 30).unwrap();
    run("mkfs.xfs", &["-q", host.to_str().unwrap()]);
    let point = directory.path().join("under");
    fs::create_dir(&point).unwrap();
    run("mount", &["-o", "loop", host.to_str().unwrap(), point.to_str().unwrap()]);
    let _under = Mount(point.clone());
    let image = Image::make(&point, "mkfs.ext4", &["-b", "4096"], 128);
    let mount = image.mount("loop,commit=1");
    let stop = AtomicBool::new(false);
    let mut cuts = Vec::new();
    thread::scope(|scope| {
        for writer in 0..3 {
            let (stop, root) = (&stop, mount.0.join(format!("writer {writer}")));
            scope.spawn(move || {
                fs::create_dir(&root).unwrap();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    work(&root, number % 60);
                }
            });
        }
        for cut in 0..6 {
            thread::sleep(Duration::from_millis(300));
            let path: PathBuf = point.join(format!("cut {cut}"));
            // One call that clones the file, between two writes.
            run("cp", &["--reflink=always", image.1.to_str().unwrap(), path.to_str().unwrap()]);
            cuts.push(Image::at(path));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for cut in &cuts {
        same(cut);
    }
}

#[test]
fn a_file_system_that_grew_before_it_was_cut_off_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext4", &["-b", "1024", "-O", "^metadata_csum"], 32);
    let mut superblock = image.read(1024, 1024);
    superblock[0x60] |= 4;
    superblock[5] -= 1;
    let block = directory.path().join("superblock");
    fs::write(&block, superblock).unwrap();
    debugfs(&image, &format!("journal_open\njournal_write -b 1 {}\njournal_close\n", block.to_str().unwrap()));
    let error = image.open().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("resized")), (Kind::Unclean, true), "{error}");
}

#[test]
fn a_journal_that_is_elsewhere_or_has_fast_commits_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext4", &["-b", "4096", "-O", "fast_commit,^metadata_csum"], 128);
    let mount = image.mount("loop,commit=300");
    fs::write(mount.0.join("first"), "1").unwrap();
    sync(&mount.0);
    same(&image.copy("whole"));
    let file = File::create(mount.0.join("second")).unwrap();
    file.write_all_at(b"2", 0).unwrap();
    file.sync_all().unwrap();
    let error = image.copy("fast").open().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("fast commits")), (Kind::Unclean, true), "{error}");
    drop((file, mount));
    image.open().unwrap();

    let elsewhere = image.copy("elsewhere");
    elsewhere.write(1024 + 0x60, &[elsewhere.read(1024 + 0x60, 1)[0] | 4]);
    elsewhere.write(1024 + 0xe0, &[0, 0, 0, 0, 0, 8, 0, 0]);
    let error = elsewhere.open().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("another device")), (Kind::Unclean, true), "{error}");
}

#[test]
fn ext2_that_was_cut_off_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext2", &[], 16);
    assert_eq!(image.open().unwrap().summary().unclean, None);
    let mount = image.mount("loop");
    sync(&mount.0);
    let unclean = image.copy("cut").open().unwrap().summary().unclean.unwrap();
    assert!(unclean.contains("no journal"), "{unclean}");
}

//! Images that somebody damaged, or made to do harm: errors, and soon.

use std::cell::Cell;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use inside::ext::open;
use inside::{Disk, Error, FileKind, FileSystem, Id, Kind};

use crate::compare::{extents, list};
use crate::fill::{EXT4, Takes, fill, pattern};
use crate::image::{Image, debugfs};

/// Looks at all that there is, a few levels deep; how many files it was.
fn look(ours: &dyn FileSystem, directory: Id, depth: u32) -> Result<usize, Error> {
    let mut files = 0;
    for (name, id, _) in list(ours, directory)? {
        files += 1;
        ours.lookup(directory, &name)?;
        let attributes = ours.attributes(id)?;
        ours.xattrs(id)?;
        match attributes.kind {
            FileKind::Directory if depth > 0 => {
                ours.parent(id)?;
                files += look(ours, id, depth - 1)?;
            }
            FileKind::Symlink => drop(ours.link_target(id)?),
            FileKind::File => drop(ours.extents(id, 0, 64)?),
            _ => {}
        }
    }
    Ok(files)
}

fn small(directory: &Path, mkfs: &str, arguments: &[&str]) -> Image {
    let image = Image::make(directory, mkfs, &[&["-b", "1024"], arguments].concat(), 8);
    let mount = image.mount("loop");
    let comb = fs::File::create(mount.0.join("comb")).unwrap();
    for tooth in 0..200 {
        std::os::unix::fs::FileExt::write_all_at(&comb, &[1], tooth * 2048).unwrap();
    }
    fs::create_dir_all(mount.0.join("a/b")).unwrap();
    for number in 0..200 {
        fs::write(mount.0.join(format!("a/name {number} {}", "-".repeat(60))), "").unwrap();
    }
    fs::write(mount.0.join("file"), pattern(5000)).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), mount.0.join("link")).unwrap();
    let large = pattern(700);
    rustix::fs::lsetxattr(mount.0.join("file"), "user.large", &large, rustix::fs::XattrFlags::empty()).unwrap();
    drop((comb, mount));
    image
}

fn find(ours: &dyn FileSystem, path: &str) -> Id {
    path.split('/').fold(ours.root(), |directory, name| ours.lookup(directory, name.as_bytes()).unwrap().unwrap())
}

/// The blocks of the image that are like that.
fn blocks_with(bytes: &[u8], is: impl Fn(&[u8]) -> bool) -> Vec<usize> {
    let found: Vec<_> = bytes.chunks(1024).enumerate().filter(|(_, block)| is(block)).map(|(at, _)| at).collect();
    assert!(!found.is_empty());
    found
}

#[test]
fn wrong_checksums_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(directory.path(), "mkfs.ext4", &["-O", "^has_journal"]);
    let bytes = image.bytes();
    let is_tree = |block: &[u8]| block.starts_with(&[0x0a, 0xf3]);
    let is_root = |block: &[u8]| block.get(4..9) == Some(&[12, 0, 1, 2, b'.']) && block[24..30] == [0, 0, 0, 0, 1, 8];
    let is_leaf = |block: &[u8]| block[8..].starts_with(b"name ");
    let is_values = |block: &[u8]| block.starts_with(&[0, 0, 2, 0xea]) && block[32] == 5;
    let places = [
        ("superblock", vec![1], 0x78),
        ("group descriptor", vec![2], 0xc),
        ("extents", blocks_with(&bytes, is_tree), 20),
        ("directory", blocks_with(&bytes, is_root), 45),
        ("directory", blocks_with(&bytes, is_leaf), 9),
        ("attributes", blocks_with(&bytes, is_values), 33),
    ];
    for (what, blocks, within) in places {
        let mut damaged = bytes.clone();
        for block in blocks {
            damaged[block * 1024 + within] ^= 1;
        }
        let error = open(&damaged).and_then(|ours| look(&ours, ours.root(), 3)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{what}");
        assert!(error.to_string().contains("checksum") && error.to_string().contains(what), "{what}: {error}");
    }
    let ours = open(&bytes).unwrap();
    let file = find(&ours, "file");
    let path = directory.path().join("image");
    debugfs(&image, "set_inode_field file mtime 1\nset_inode_field file checksum 0x1234\n");
    let damaged = fs::read(path).unwrap();
    let error = open(&damaged).unwrap().attributes(file).unwrap_err();
    assert!(error.to_string().contains("checksum of inode"), "{error}");
}

#[test]
fn trees_that_lead_to_themselves_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(directory.path(), "mkfs.ext4", &["-O", "^metadata_csum,^has_journal"]);
    let bytes = image.bytes();
    let leaves = blocks_with(&bytes, |block| block.starts_with(&[0x0a, 0xf3]));
    let ours = open(&bytes).unwrap();
    let comb = find(&ours, "comb");
    assert!(extents(&ours, comb, 200 * 2048 - 2047, 9).is_ok());
    // The nodes below the root: of another depth, with more entries than there can be, empty, with entries out of order, with
    // blocks past the end.
    let wrong: [(usize, &[u8]); 5] =
        [(6, &[1]), (2, &[0xff; 4]), (2, &[0; 2]), (12 + 24, &[0; 4]), (12 + 8, &[0xff; 4])];
    for (within, bad) in wrong {
        let mut damaged = bytes.clone();
        for leaf in &leaves {
            damaged[leaf * 1024 + within..][..bad.len()].copy_from_slice(bad);
        }
        let ours = open(&damaged).unwrap();
        let error = extents(&ours, comb, 200 * 2048 - 2047, 64).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{within}: {error}");
    }
}

#[test]
fn huge_numbers_take_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(directory.path(), "mkfs.ext2", &["-O", "^dir_index"]);
    // Every pointer leads to a block of pointers to itself.
    let tree = {
        let bytes = image.bytes();
        let last = bytes.chunks(1024).rposition(|block| block.iter().all(|byte| *byte == 0)).unwrap();
        u32::try_from(last).unwrap()
    };
    image.write(u64::from(tree) * 1024, &tree.to_le_bytes().repeat(256));
    debugfs(&image, &format!("set_inode_field file block[14] {tree}\nset_inode_field file size 0x3ffffffff\n"));
    debugfs(&image, &format!("set_inode_field a block[14] {tree}\nset_inode_field a size 0x3fffffff\n"));
    debugfs(&image, "set_inode_field comb size 0x7fffffffffffffff\n");
    let started = Instant::now();
    let ours = image.open().unwrap();
    for from in [0, 70_000_000, 16_000_000_000] {
        let found = ours.extents(find(&ours, "file"), from, 1024).unwrap();
        assert!(!found.is_empty() && found.len() <= 1024);
    }
    assert!(ours.extents(find(&ours, "comb"), 1 << 50, 1024).is_err(), "further than pointers reach");
    assert!(list(&ours, find(&ours, "a")).is_err(), "a directory larger than its file system");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn what_is_not_read_here_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(directory.path(), "mkfs.ext4", &["-O", "encrypt,^metadata_csum"]);
    debugfs(
        &image,
        "set_inode_field a flags 0x81800\nset_inode_field file flags 0x80800\nset_inode_field link flags 0x80800\n",
    );
    let ours = image.open().unwrap();
    let refused = |result: Result<(), Error>| assert_eq!(result.unwrap_err().kind(), Kind::Unsupported);
    refused(ours.extents(find(&ours, "file"), 0, 1).map(drop));
    refused(ours.link_target(find(&ours, "link")).map(drop));
    refused(ours.list(find(&ours, "a"), 0, &mut |_| ControlFlow::Continue(())));
    refused(ours.lookup(find(&ours, "a"), b"b").map(drop));
    ours.attributes(find(&ours, "a")).unwrap();

    for (bits, name) in [(0x1_u32, "compression"), (0x1000, "dirdata"), (0x4000_0000, "0x40000000")] {
        let mut bytes = image.bytes();
        let incompatible = u32::from_le_bytes(bytes[1024 + 0x60..][..4].try_into().unwrap()) | bits;
        bytes[1024 + 0x60..][..4].copy_from_slice(&incompatible.to_le_bytes());
        let error = open(&bytes).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains(name)), (Kind::Unsupported, true), "{error}");
    }
    let journal = Image::make(directory.path(), "mkfs.ext4", &["-O", "journal_dev"], 8);
    assert_eq!(journal.open().unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn what_is_no_file_system_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(directory.path(), "mkfs.ext4", &[]);
    let bytes = image.bytes();
    for length in [0, 1023, 1500, 2048, 4096, bytes.len() / 2, bytes.len() - 1] {
        assert_eq!(open(bytes[..length].to_vec()).unwrap_err().kind(), Kind::Corrupt, "{length}");
    }
    let ours = open(&bytes).unwrap();
    let file = find(&ours, "file");
    for id in [0, 1, 3, 8, 10, 1999, u64::from(u32::MAX), u64::MAX] {
        assert!(matches!(ours.attributes(Id(id)).unwrap_err().kind(), Kind::NotFound | Kind::Corrupt), "{id}");
    }
    let kinds = [
        ours.lookup(file, b"x").unwrap_err(),
        ours.list(file, 0, &mut |_| ControlFlow::Continue(())).unwrap_err(),
        ours.parent(file).unwrap_err(),
        ours.link_target(file).unwrap_err(),
        ours.extents(ours.root(), 0, 1).unwrap_err(),
    ];
    assert!(kinds.iter().all(|error| error.kind() == Kind::WrongKind), "{kinds:?}");
    ours.list(ours.root(), u64::MAX, &mut |_| panic!("nothing is there")).unwrap();
    assert_eq!(ours.extents(file, u64::MAX, 9).unwrap(), []);
    assert_eq!(ours.extents(file, 0, 0).unwrap(), []);
}

/// Bytes of metadata that are changed by chance, with and without checksums; `mkfs` and the kernel place it by chance too. Blocks
/// with nothing after their first byte are those of the comb.
#[test]
fn no_damage_is_followed_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let kinds: [&[&str]; 3] = [
        &["-O", "^metadata_csum,inline_data"],
        &["-O", "^metadata_csum,^extents,^64bit,^has_journal"],
        &["-J", "size=1"],
    ];
    for features in kinds {
        let image = small(directory.path(), "mkfs.ext4", features);
        let mut bytes = image.bytes();
        let full = blocks_with(&bytes, |block| block.iter().skip(1).any(|byte| *byte != 0));
        let mut random = pattern(2000).into_iter();
        let mut next = || usize::from(random.next().unwrap()) << 8 | usize::from(random.next().unwrap());
        let (mut errors, mut files) = (0, 0);
        for _ in 0..200 {
            let at = full[next() % full.len()] * 1024 + next() % 1024;
            let old = bytes[at..(at + 4).min(bytes.len())].to_vec();
            let new = [next().to_le_bytes()[0], 0xff, 0, 0x7f];
            bytes[at..at + old.len()].copy_from_slice(&new[..old.len()]);
            let started = Instant::now();
            match open(&bytes).and_then(|ours| look(&ours, ours.root(), 4)) {
                Ok(found) => files += found,
                Err(_) => errors += 1,
            }
            assert!(started.elapsed() < Duration::from_secs(5), "byte {at}: {:?}", started.elapsed());
            bytes[at..at + old.len()].copy_from_slice(&old);
        }
        assert!(errors > 5 && files > 1000, "{features:?}: {errors} errors, {files} files");
    }
}

/// Counts what is read.
struct Counting<'a>(&'a Image, Cell<u64>);

impl Disk for Counting<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.1.set(self.1.get() + 1);
        self.0.read_at(offset, buffer)
    }
}

#[test]
fn a_name_among_many_takes_few_reads() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext4", &["-b", "1024", "-N", "20000"], 64);
    let mount = image.mount("loop");
    fill(&mount.0, Takes { names: 10_000, longest: 1 << 40, value: 900, ..EXT4 });
    drop(mount);
    let disk = Counting(&image, Cell::new(0));
    let ours = open(&disk).unwrap();
    let many = find(&ours, "many");
    for number in (1..10_000).step_by(501).filter(|number| number % 7 != 0) {
        let name = format!("name {number} of many, some longer than others {}", "-".repeat(number % 50));
        let before = disk.1.get();
        assert!(ours.lookup(many, name.as_bytes()).unwrap().is_some());
        assert!(ours.lookup(many, format!("no {name}").as_bytes()).unwrap().is_none());
        assert!(disk.1.get() - before <= 8, "{} reads", disk.1.get() - before);
    }
}

//! FAT, made by mkfs.vfat and filled by mtools.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use images::compare::{contents, extents, names, same_tree};
use images::damage::{Random, error, look_at_all};
use images::{Image, ok};
use inside::{FileKind, FileSystem, Id, Kind, Time, fat};

/// Width of the table's entries, size in MiB, sectors of a cluster.
const KINDS: [(&str, u64, &str); 4] = [("12", 15, "8"), ("16", 30, "1"), ("32", 64, "1"), ("32", 300, "8")];

fn made(directory: &Path, (width, size, cluster): (&str, u64, &str)) -> PathBuf {
    let image = Image::blank(&directory.join("image"), size << 20);
    image.run("mkfs.vfat", &["-F", width, "-s", cluster, "-n", "A LABEL"]);
    image.path
}

/// A command of mtools on an image.
fn mtools(command: &str, image: &Path, arguments: &[&dyn AsRef<OsStr>]) {
    let mut command = Command::new(command);
    ok(command.env("TZ", "UTC").env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(image).args(arguments));
}

fn path_of(fs: &dyn FileSystem, path: &str) -> Id {
    path.split('/').fold(fs.root(), |directory, name| {
        fs.lookup(directory, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {name} of {path}"))
    })
}

fn source(root: &Path) {
    let mut random = Random(1);
    fs::create_dir_all(root.join("a/b/c/d/e f")).unwrap();
    fs::write(root.join("a/b/c/d/e f/deep"), b"deep").unwrap();
    fs::create_dir(root.join("an empty directory")).unwrap();
    fs::write(root.join("EMPTY"), b"").unwrap();
    for size in [1, 511, 512, 513, 4096, 5000, 300_000] {
        fs::write(root.join(format!("of {size}")), random.bytes(size)).unwrap();
    }
    for name in ["ümläut", "日本語", "UPPER.TXT", "lower.txt", "Mixed.Txt", "two.dots.txt", "+,;=[]", "LOWER.ext", "ß"]
    {
        fs::write(root.join(name), name).unwrap();
    }
    fs::write(root.join("n".repeat(250)), "as long as can be").unwrap();
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..300 {
        fs::write(many.join(format!("a file of some length, number {number}")), number.to_string()).unwrap();
    }
    for (path, seconds) in
        [("UPPER.TXT", "1980-01-01 00:00:02"), ("lower.txt", "2107-12-31 23:59:58"), ("ß", "2024-02-29 12:00:00")]
    {
        ok(Command::new("touch").arg("-d").arg(format!("{seconds} UTC")).arg(root.join(path)));
    }
}

#[test]
fn a_tree_is_what_mtools_wrote() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), kind);
        let root = directory.path().join("source");
        fs::create_dir(&root).unwrap();
        source(&root);
        let paths: Vec<PathBuf> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"-s", &"-m", &"-Q"];
        arguments.extend(paths.iter().map(|path| path as &dyn AsRef<OsStr>));
        arguments.push(&"::/");
        mtools("mcopy", &image, &arguments);
        mtools("mattrib", &image, &[&"+r", &"::/of 513"]);
        ok(Command::new("fsck.vfat").arg("-n").arg(&image));
        let disk = Image::open(&image);
        let fs = fat::open(Image::open(&image)).unwrap();
        assert_eq!((fs.summary().kind, fs.summary().unclean), ("vfat", None));
        let count = same_tree(&fs, &disk, fs.root(), &root, &|_, ours, path, theirs| {
            let name = path.display();
            let mode = if path.ends_with("of 513") { 0o555 } else { 0o755 };
            assert_eq!((ours.uid, ours.gid, ours.links, ours.mode), (0, 0, 1, mode), "{name}");
            if ours.kind == FileKind::File {
                let seconds = theirs.mtime() / 2 * 2;
                assert_eq!(ours.modified, Time { seconds, nanoseconds: 0 }, "{name}");
            }
        });
        println!("{count} files on {kind:?}");
    }
}

/// The largest that is in time to be made: its entries are written here, and `fsck.vfat` says that they are right.
#[test]
fn a_directory_of_40000_files_is_listed_and_searched() {
    const FILES: usize = 40_000;
    let directory = tempfile::tempdir().unwrap();
    let image = made(directory.path(), KINDS[1]);
    let mut bytes = fs::read(&image).unwrap();
    let number = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (reserved, entries, table_sectors) = (number(14), number(17), number(22));
    let (table, root) = (reserved * 512, (reserved + 2 * table_sectors) * 512);
    let data = root + entries * 32;
    let slot = |name: &str, kind: u8, cluster: u8| {
        let mut slot = [0; 32];
        slot[..11].copy_from_slice(name.as_bytes());
        (slot[11], slot[26]) = (kind, cluster);
        slot
    };
    let mut slots = vec![slot(".          ", 0x10, 2), slot("..         ", 0x10, 0)];
    slots.extend((0..FILES).map(|number| slot(&format!("{number:08}TXT"), 0x20, 0)));
    let clusters = (slots.len() * 32).div_ceil(512);
    bytes[data..data + slots.len() * 32].copy_from_slice(&slots.concat());
    // After the label.
    bytes[root + 32..root + 64].copy_from_slice(&slot("MANY       ", 0x10, 2));
    for copy in [table, table + table_sectors * 512] {
        for cluster in 2..2 + clusters {
            let next = if cluster == 1 + clusters { 0xFFFF } else { u16::try_from(cluster + 1).unwrap() };
            bytes[copy + cluster * 2..copy + cluster * 2 + 2].copy_from_slice(&next.to_le_bytes());
        }
    }
    fs::write(&image, &bytes).unwrap();
    ok(Command::new("fsck.vfat").arg("-n").arg(&image));
    let fs = fat::open(&bytes).unwrap();
    let many = path_of(&fs, "MANY");
    let started = Instant::now();
    let names = names(&fs, many);
    assert_eq!(names.len(), FILES);
    for (name, (id, _)) in &names {
        assert_eq!(fs.lookup(many, name).unwrap(), Some(*id));
        assert_eq!(fs.attributes(*id).unwrap().size, 0);
    }
    println!("{FILES} files in {:?}", started.elapsed());
    assert_eq!(fs.lookup(many, b"00000001.txt").unwrap(), None, "of another case");
    assert_eq!(fs.parent(many).unwrap(), fs.root());
}

/// A file in many pieces, which is what was deleted before it: every second of many files.
#[test]
fn a_fragmented_file_is_read_in_few_pieces_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let image = made(directory.path(), ("16", 30, "1"));
    let pieces = directory.path().join("pieces");
    fs::create_dir(&pieces).unwrap();
    for number in 0..1200 {
        fs::write(pieces.join(format!("{}{number}", if number % 2 == 0 { "even" } else { "odd" })), [0; 10_000])
            .unwrap();
    }
    let big = directory.path().join("big");
    fs::write(&big, Random(5).bytes(9_000_000)).unwrap();
    mtools("mcopy", &image, &[&"-s", &"-Q", &pieces, &"::/"]);
    mtools("mdel", &image, &[&"::/pieces/even*"]);
    mtools("mcopy", &image, &[&big, &"::/"]);
    ok(Command::new("fsck.vfat").arg("-n").arg(&image));
    let disk = Image::open(&image);
    let fs = fat::open(&disk).unwrap();
    let file = path_of(&fs, "big");
    assert!(contents(&fs, &disk, file, 9_000_000) == fs::read(&big).unwrap());
    let all = extents(&fs, file, 9_000_000);
    assert!((200..2000).contains(&all.len()), "{} pieces", all.len());
    // In any order.
    let mut random = Random(9);
    for _ in 0..200 {
        let from = random.below(9_000_000);
        let found = fs.extents(file, from, 1).unwrap().remove(0);
        let within = all.iter().find(|extent| extent.offset <= from && from < extent.offset + extent.length).unwrap();
        assert_eq!((found.offset, found.length), (from, within.offset + within.length - from));
    }
}

/// A small file system with entries of 16 bits, and one file in eight clusters.
fn small(directory: &Path) -> Vec<u8> {
    let image = made(directory, ("16", 3, "1"));
    let root = directory.join("source");
    fs::create_dir_all(root.join("directory/below")).unwrap();
    fs::write(root.join("plain"), Random(3).bytes(4000)).unwrap();
    fs::write(root.join("other"), b"other").unwrap();
    for number in 0..60 {
        fs::write(root.join(format!("directory/the long name of number {number}")), number.to_string()).unwrap();
    }
    for name in ["plain", "other", "directory"] {
        mtools("mcopy", &image, &[&"-s", &"-Q", &root.join(name), &"::/"]);
    }
    fs::read(image).unwrap()
}

/// Where the first table's entry of a cluster is.
fn entry(bytes: &[u8], cluster: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[14], bytes[15]])) * 512 + cluster * 2
}

fn first_cluster(bytes: &[u8], id: Id) -> usize {
    let at = usize::try_from(id.0).unwrap();
    usize::from(u16::from_le_bytes([bytes[at + 26], bytes[at + 27]]))
}

#[test]
fn damage_is_an_error_where_it_is_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let good = small(directory.path());
    let fs = fat::open(&good).unwrap();
    let (plain, other, many) = (path_of(&fs, "plain"), path_of(&fs, "other"), path_of(&fs, "directory"));
    let (file, listed) = (first_cluster(&good, plain), first_cluster(&good, many));
    assert_eq!(contents(&fs, &good, plain, 4000), Random(3).bytes(4000));
    let damaged = |changes: &[(usize, &[u8])]| {
        let mut bytes = good.clone();
        for (at, with) in changes {
            bytes[*at..at + with.len()].copy_from_slice(with);
        }
        let fs = fat::open(bytes.clone()).unwrap();
        assert_eq!(contents(&fs, &bytes, other, 5), b"other", "another file");
        look_at_all(&fs);
        fs
    };
    let to = |cluster: usize| u16::try_from(cluster).unwrap().to_le_bytes();
    let size = usize::try_from(plain.0).unwrap() + 28;
    let looped = damaged(&[(entry(&good, file + 5), &to(file + 2)), (size, &u32::MAX.to_le_bytes())]);
    assert_eq!(error((0..1000).try_for_each(|at| looped.extents(plain, at * 512, 100).map(|_| ()))), Kind::Corrupt);
    let itself = damaged(&[(entry(&good, file), &to(file))]);
    assert_eq!(error(itself.extents(plain, 0, 100)), Kind::Corrupt);
    for wrong in [0, 1, 0xFFF7, 0xFFEF, 0xFFFF] {
        let fs = damaged(&[(entry(&good, file + 3), &to(wrong))]);
        assert_eq!(error(fs.extents(plain, 0, 100)), Kind::Corrupt, "{wrong:#x}");
        let early = fs.extents(plain, 0, 1);
        assert!(early.is_err() || early.unwrap()[0].length <= 2048);
    }
    let no_cluster = damaged(&[(usize::try_from(plain.0).unwrap() + 26, &[0, 0])]);
    assert_eq!(error(no_cluster.extents(plain, 0, 1)), Kind::Corrupt);
    let endless = damaged(&[(entry(&good, listed), &to(listed))]);
    assert_eq!(error(endless.lookup(many, b"x")), Kind::Corrupt);
    // Two directories are one, so that each of them lies in itself.
    let below = usize::try_from(path_of(&fs, "directory/below").0).unwrap();
    damaged(&[(below + 26, &to(listed))]);
    let slash = damaged(&[(usize::try_from(path_of(&fs, "directory/below").0).unwrap(), b"A/B        ")]);
    assert!(slash.lookup(many, b"A/B").unwrap_err().to_string().contains("which none can have"));
    for made_up in [1, 31, 32, 64, u64::MAX, plain.0 + 1, 1 << 40] {
        assert_eq!(error(fs.attributes(Id(made_up))), Kind::NotFound);
    }
    assert_eq!(error(fs.lookup(plain, b"x")), Kind::WrongKind);
    assert_eq!(error(fs.link_target(plain)), Kind::WrongKind);
    assert_eq!(error(fs.extents(many, 0, 1)), Kind::WrongKind);
    let short = good[..usize::try_from(plain.0).unwrap() + 512].to_vec();
    assert_eq!(error(fat::open(&short).unwrap().extents(plain, 0, 10)), Kind::Corrupt, "past the end of the disk");
    for (at, with) in [(11, [0, 0]), (13, [3, 1]), (14, [0, 0]), (21, [0x12, 0]), (22, [0xFF, 0xFF])] {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&with);
        assert_eq!(error(fat::open(&bytes)), Kind::Corrupt, "byte {at}");
    }
}

#[test]
fn a_file_system_in_use_says_so() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, linux, windows) in [(KINDS[0], 37, None), (KINDS[1], 37, Some(3)), (KINDS[2], 65, Some(7))] {
        let good = fs::read(made(directory.path(), kind)).unwrap();
        assert_eq!(fat::open(&good).unwrap().summary().unclean, None);
        let table = entry(&good, 0);
        let bit = if windows == Some(7) { 0x08 } else { 0x80 };
        for (at, bit) in [Some((linux, 1)), windows.map(|at| (table + at, bit))].into_iter().flatten() {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            assert!(fat::open(&bytes).unwrap().summary().unclean.unwrap().contains("FAT has no journal"), "{at}");
        }
    }
}

#[test]
fn random_damage_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let good = small(directory.path());
    let used: Vec<usize> =
        (0..good.len()).step_by(16).filter(|&at| good[at..at + 16].iter().any(|&byte| byte != 0)).collect();
    let mut random = Random(11);
    let (mut opened, mut errors, mut slowest) = (0, 0, Duration::ZERO);
    let mut bytes = good.clone();
    for _ in 0..500 {
        let mut changed = Vec::new();
        for _ in 0..=random.below(30) {
            let at = used[usize::try_from(random.below(used.len() as u64)).unwrap()]
                + usize::try_from(random.below(16)).unwrap();
            changed.push(at);
            bytes[at] = random.bytes(1)[0];
        }
        let started = Instant::now();
        if let Ok(fs) = fat::open(&bytes) {
            opened += 1;
            errors += look_at_all(&fs);
        }
        slowest = slowest.max(started.elapsed());
        for at in changed {
            bytes[at] = good[at];
        }
    }
    println!("{opened} of 500 opened, {errors} errors, the slowest took {slowest:?}");
    assert!(opened > 100 && errors > 50 && slowest < Duration::from_secs(5));
}

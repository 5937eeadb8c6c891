//! NTFS, made by mkntfs, filled by ntfs-3g, and compared with what ntfs-3g shows.

mod damage;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use images::compare::{contents, extents, names, same_tree};
use images::damage::{Random, error};
use images::{Driver, Image, ok};
use inside::ntfs;
use inside::{FileSystem, Id, Kind, Place};

fn made(directory: &Path, size: u64, cluster_size: u32) -> PathBuf {
    let image = Image::blank(&directory.join("image"), size);
    image.run("mkntfs", &["-F", "-q", "-Q", "-c", &cluster_size.to_string()]);
    image.path
}

fn mounted(image: &Path, options: &str) -> Driver {
    let options = format!("no_detach,{options}");
    Driver::start(Command::new("ntfs-3g").arg("-o").arg(options).arg(image), &image.with_file_name("mnt"))
}

/// Of the file itself, if it is a link.
fn set_xattr(name: &str, value: &str, path: &Path) {
    ok(Command::new("setfattr").args(["-h", "-n", name, "-v", value]).arg(path));
}

fn path_of(fs: &dyn FileSystem, path: &str) -> Id {
    path.split('/').fold(fs.root(), |directory, name| {
        fs.lookup(directory, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {name} of {path}"))
    })
}

/// Two files whose blocks are written in a random order, in turn, so that both are in many pieces; every seventh block of the
/// second is never written.
fn scatter(first: &Path, second: &Path, blocks: u64) {
    let mut random = Random(7);
    let files = [first, second].map(|path| File::create(path).unwrap());
    let mut order: Vec<u64> = (0..blocks).collect();
    for index in 1..blocks {
        order.swap(usize::try_from(index).unwrap(), usize::try_from(random.below(index + 1)).unwrap());
    }
    for block in order {
        files[0].write_all_at(&random.bytes(4096), block * 4096).unwrap();
        if block % 7 != 2 {
            files[1].write_all_at(&random.bytes(4096), block * 4096).unwrap();
        }
    }
}

fn fill(root: &Path) {
    let mut random = Random(1);
    fs::create_dir_all(root.join("a/b/c/d/e")).unwrap();
    fs::write(root.join("a/b/c/d/e/deep"), b"deep").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    for size in [1, 100, 700, 4096, 5000, 300_000] {
        fs::write(root.join(format!("of {size}")), random.bytes(size)).unwrap();
    }
    for name in ["ümläut", "日本語", "😀 emoji 🎉", "UPPER", "lower", "trailing.", " space ", "a\\b:c*d?e", "ſ"]
    {
        fs::write(root.join(name), name).unwrap();
    }
    fs::write(root.join("😀".repeat(127)), "as long as can be").unwrap();
    fs::write(root.join("case"), "1").unwrap();
    fs::write(root.join("CASE"), "2").unwrap();
    fs::write(root.join("Case"), "3").unwrap();
    fs::write(root.join("linked"), "linked").unwrap();
    for number in 0..30 {
        fs::hard_link(root.join("linked"), root.join(format!("a/{}{number}", "long name of a link ".repeat(8))))
            .unwrap();
    }
    // Names that DOS alone sees, each with a link of its own in the record.
    for (name, short) in [("has a short name.txt", "HASASH~1.TXT"), ("a directory with one", "ADIREC~1")] {
        if name.ends_with("txt") {
            fs::write(root.join(name), name).unwrap();
        } else {
            fs::create_dir(root.join(name)).unwrap();
        }
        set_xattr("system.ntfs_dos_name", short, &root.join(name));
    }
    symlink("a/b/../b/c", root.join("to a directory")).unwrap();
    symlink("/no/such/ümläut", root.join("to nowhere")).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    for at in [0, 5 << 20, (1 << 40) + 5] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(b"here").unwrap();
    }
    sparse.set_len(2 << 40).unwrap();
    scatter(&root.join("scattered"), &root.join("with holes"), 3000);
    set_xattr("user.comment", "a stream", &root.join("linked"));
    set_xattr("user.Zone.Identifier", &"x".repeat(5000), &root.join("a/b"));
    ok(Command::new("touch").args(["-d", "1975-01-02 03:04:05.123456700 UTC"]).arg(root.join("UPPER")));
    ok(Command::new("touch").args(["-d", "2100-12-31 23:59:59.9 UTC"]).arg(root.join("lower")));
}

fn compare(image: &Path) -> usize {
    let mount = mounted(image, "ro");
    let disk = Image::open(image);
    let fs = ntfs::open(Image::open(image)).unwrap();
    assert_eq!(fs.summary().unclean, None);
    same_tree(&fs, &disk, fs.root(), &mount.at, &|id, ours, path, shown| {
        let name = path.display();
        assert_eq!(
            (ours.modified.seconds, i64::from(ours.modified.nanoseconds)),
            (shown.mtime(), shown.mtime_nsec()),
            "{name}"
        );
        assert_eq!(
            (ours.accessed.seconds, i64::from(ours.accessed.nanoseconds)),
            (shown.atime(), shown.atime_nsec()),
            "{name}"
        );
        assert_eq!(
            (ours.changed.seconds, i64::from(ours.changed.nanoseconds)),
            (shown.ctime(), shown.ctime_nsec()),
            "{name}"
        );
        assert_eq!(
            (ours.uid, ours.gid, u32::from(ours.mode)),
            (shown.uid(), shown.gid(), shown.mode() & 0o7777),
            "{name}"
        );
        // ntfs-3g counts a name that it does not show.
        let hidden = u64::from(path.ends_with("has a short name.txt"));
        assert_eq!(u64::from(ours.links) + hidden, shown.nlink(), "{name}");
        if !shown.is_symlink() {
            let mut names: Vec<String> =
                fs.xattrs(id).unwrap().iter().map(|it| String::from_utf8_lossy(&it.name).into()).collect();
            names.sort();
            let theirs = ok(Command::new("getfattr").args(["--absolute-names", "-h"]).arg(path));
            let mut theirs: Vec<&str> = theirs.lines().filter(|line| line.starts_with("user.")).collect();
            theirs.sort_unstable();
            assert_eq!(names, theirs, "{name}");
        }
    })
}

#[test]
fn a_tree_is_what_ntfs_3g_shows() {
    for cluster_size in [512, 4096, 65536] {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), 96 << 20, cluster_size);
        {
            let mount = mounted(&image, "rw");
            fill(&mount.at);
        }
        let started = Instant::now();
        let count = compare(&image);
        println!("{count} files in clusters of {cluster_size}, compared in {:?}", started.elapsed());
        let fs = ntfs::open(Image::open(&image)).unwrap();
        let pieces = extents(&fs, path_of(&fs, "scattered"), 3000 * 4096).len();
        assert!(cluster_size > 512 || pieces > 1000, "{pieces} pieces");
        let sparse = extents(&fs, path_of(&fs, "sparse"), 2 << 40);
        let there: u64 = sparse.iter().filter(|extent| extent.place != Place::Hole).map(|extent| extent.length).sum();
        assert!((12..1 << 20).contains(&there), "{there}");
        let xattrs = fs.xattrs(path_of(&fs, "linked")).unwrap();
        assert_eq!((&xattrs[0].name[..], &xattrs[0].value[..]), (&b"user.comment"[..], &b"a stream"[..]));
        assert_eq!(fs.xattrs(path_of(&fs, "a/b")).unwrap()[0].value, b"x".repeat(5000));
    }
}

#[test]
fn a_directory_of_12000_files_is_listed_and_searched() {
    let directory = tempfile::tempdir().unwrap();
    let image = made(directory.path(), 96 << 20, 4096);
    {
        let mount = mounted(&image, "rw");
        let many = mount.at.join("many");
        fs::create_dir(&many).unwrap();
        for number in 0..13_000 {
            fs::write(many.join(format!("a file of some length, number {number}")), number.to_string()).unwrap();
        }
        for number in 5000..6000 {
            fs::remove_file(many.join(format!("a file of some length, number {number}"))).unwrap();
        }
    }
    let disk = Image::open(&image);
    let fs = ntfs::open(&disk).unwrap();
    let many = path_of(&fs, "many");
    let started = Instant::now();
    let names = names(&fs, many);
    println!("listed in {:?}", started.elapsed());
    assert_eq!(names.len(), 12_000);
    let started = Instant::now();
    for (name, (id, _)) in &names {
        assert_eq!(fs.lookup(many, name).unwrap(), Some(*id));
        if id.0 % 5 != 0 {
            continue;
        }
        let size = fs.attributes(*id).unwrap().size;
        let contents = contents(&fs, &disk, *id, size);
        assert!(name.ends_with(&[b" ", contents.as_slice()].concat()), "{}", name.escape_ascii());
    }
    println!("read in {:?}", started.elapsed());
    for none in [
        &b"a file of some length, number 5500"[..],
        b"A file of some length, number 1",
        b"",
        b"\xff",
        b"zz",
        &[b'x'; 2000],
    ] {
        assert_eq!(fs.lookup(many, none).unwrap(), None);
    }
}

/// The file records themselves are in so many pieces that their list of attributes is needed to find them.
#[test]
fn file_records_in_hundreds_of_pieces_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let image = made(directory.path(), 16 << 20, 512);
    {
        let mount = mounted(&image, "rw");
        // Nothing is free, and then every other block is.
        let files = ["one", "two"].map(|name| File::create(mount.at.join(name)).unwrap());
        let mut block = 0;
        while files.iter().all(|mut file| file.write_all(&[1; 4096]).is_ok()) {
            block += 1;
        }
        assert!(block > 1000, "{block}");
        drop(files);
        fs::remove_file(mount.at.join("one")).unwrap();
        // Until all is full again, or nearly.
        let more = |number: &u32| fs::write(mount.at.join(format!("n{number}")), number.to_string()).is_ok();
        println!("{:?} files", (0..7000).find(|number| !more(number)));
    }
    let records = ok(Command::new("ntfsinfo").args(["-f", "-i", "0"]).arg(&image));
    assert!(records.contains("$ATTRIBUTE_LIST"), "{records}");
    let mount = mounted(&image, "ro");
    let disk = Image::open(&image);
    let fs = ntfs::open(&disk).unwrap();
    let count = same_tree(&fs, &disk, fs.root(), &mount.at, &|_, _, _, _| {});
    assert!(count > 3000, "{count}");
}

/// An image, and where the record of a file is in it.
fn record_of(bytes: &[u8], id: Id) -> usize {
    let number = u32::try_from(id.0 & 0xFFFF_FFFF).unwrap().to_le_bytes();
    let mut records = (0..bytes.len()).step_by(1024).filter(|&at| bytes[at..].starts_with(b"FILE"));
    records.find(|at| bytes[at + 44..at + 48] == number).unwrap()
}

/// Where an attribute of that kind is in the image.
fn attribute_of(bytes: &[u8], id: Id, kind: u8) -> usize {
    let record = record_of(bytes, id);
    let number = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let mut at = record + number(record + 20);
    while bytes[at] != kind {
        assert_ne!(bytes[at], 0xFF, "no attribute {kind}");
        at += number(at + 4);
    }
    at
}

/// The files that the tests below damage.
fn small(directory: &Path) -> Vec<u8> {
    let image = made(directory, 8 << 20, 4096);
    {
        let mount = mounted(&image, "rw,compression");
        let root = &mount.at;
        fs::write(root.join("plain"), Random(3).bytes(50_000)).unwrap();
        fs::write(root.join("other"), b"other").unwrap();
        fs::create_dir_all(root.join("directory/below")).unwrap();
        for number in 0..200 {
            fs::write(root.join(format!("directory/number {number}")), number.to_string()).unwrap();
        }
        fs::create_dir(root.join("compressed")).unwrap();
        // The attribute "compressed", in the order of the network.
        set_xattr("system.ntfs_attrib_be", "0x00000800", &root.join("compressed"));
        fs::write(root.join("compressed/file"), vec![b'x'; 100_000]).unwrap();
    }
    fs::read(&image).unwrap()
}

#[test]
fn what_was_allocated_and_never_written_is_a_hole() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = small(directory.path());
    let plain = path_of(&ntfs::open(&bytes).unwrap(), "plain");
    let data = attribute_of(&bytes, plain, 0x80);
    bytes[data + 56..data + 64].copy_from_slice(&10_000_u64.to_le_bytes());
    let fs = ntfs::open(&bytes).unwrap();
    let ours = contents(&fs, &bytes, plain, 50_000);
    assert_eq!(ours[..10_000], Random(3).bytes(10_000));
    assert!(ours[10_000..].iter().all(|&byte| byte == 0), "what another file left there");
    fs::write(directory.path().join("image"), &bytes).unwrap();
    compare_only(&directory.path().join("image"), "plain", &ours);
}

fn compare_only(image: &Path, name: &str, ours: &[u8]) {
    let mount = mounted(image, "ro");
    assert!(fs::read(mount.at.join(name)).unwrap() == ours, "{name} is not what ntfs-3g reads");
}

#[test]
fn what_is_not_on_the_disk_as_it_reads_is_refused_and_the_rest_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = small(directory.path());
    let fs = ntfs::open(&bytes).unwrap();
    let compressed = path_of(&fs, "compressed/file");
    assert_eq!(fs.attributes(compressed).unwrap().size, 100_000);
    assert_eq!(error(fs.extents(compressed, 0, 10)), Kind::Unsupported);
    let plain = path_of(&fs, "plain");
    let data = attribute_of(&bytes, plain, 0x80);
    bytes[data + 12..data + 14].copy_from_slice(&0x4000_u16.to_le_bytes());
    let fs = ntfs::open(&bytes).unwrap();
    assert_eq!(error(fs.extents(plain, 0, 10)), Kind::Unsupported, "encrypted");
    assert_eq!(contents(&fs, &bytes, path_of(&fs, "other"), 5), b"other");
}

#[test]
fn what_was_under_way_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = small(directory.path());
    assert_eq!(ntfs::open(&bytes).unwrap().summary().unclean, None);
    let image = directory.path().join("image");
    // It marks the file system for Windows to check it.
    ok(Command::new("ntfsfix").arg(&image));
    let unclean = ntfs::open(Image::open(&image)).unwrap().summary().unclean.unwrap();
    assert!(
        unclean.contains("mark of being in use") && unclean.contains("$LogFile is") | unclean.contains("($LogFile)"),
        "{unclean}"
    );
    {
        let mount = mounted(&image, "rw");
        fs::write(mount.at.join("hiberfil.sys"), b"HIBR and more").unwrap();
    }
    let unclean = ntfs::open(Image::open(&image)).unwrap().summary().unclean.unwrap();
    assert!(unclean.starts_with("Windows is hibernated"), "{unclean}");
}

#[test]
fn reparse_points_are_links_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let image = made(directory.path(), 8 << 20, 4096);
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let point = |tag: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap();
        let bytes = [&tag.to_le_bytes(), &length.to_le_bytes(), data].concat();
        bytes.iter().fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
    };
    // Two names, where they are, and for a symbolic link whether it is relative.
    let link = |used: &str, shown: &str, flags: &[u8]| {
        let (used, shown) = (wide(used), wide(shown));
        let place = |at: usize, length: usize| [at, length].map(|it| u16::try_from(it).unwrap().to_le_bytes()).concat();
        [place(0, used.len()), place(used.len(), shown.len()), flags.to_vec(), used, shown].concat()
    };
    {
        let mount = mounted(&image, "rw");
        let set = |name: &str, value: String| {
            set_xattr("system.ntfs_reparse_data", &value, &mount.at.join(name));
        };
        for name in ["relative", "wof", "cloud", "away", "wsl"] {
            fs::write(mount.at.join(name), vec![b'z'; if name == "wsl" || name == "relative" { 0 } else { 9000 }])
                .unwrap();
        }
        fs::create_dir(mount.at.join("junction")).unwrap();
        set_xattr("system.ntfs_attrib_be", "0x00001000", &mount.at.join("away"));
        set("relative", point(0xA000_000C, &link(r"..\a\b", "", &[1, 0, 0, 0])));
        set("junction", point(0xA000_0003, &link(r"\??\C:\Users\ö", "", &[])));
        set("wsl", point(0xA000_001D, b"\x02\0\0\0/etc/hosts"));
        set("wof", point(0x8000_0017, &[1; 16]));
        set("cloud", point(0x9000_301A, &[1; 16]));
        set("away", point(0x9000_301A, &[1; 16]));
    }
    let disk = Image::open(&image);
    let fs = ntfs::open(&disk).unwrap();
    for (name, target) in [("relative", "../a/b"), ("junction", "C:/Users/ö"), ("wsl", "/etc/hosts")] {
        let id = path_of(&fs, name);
        assert_eq!(fs.link_target(id).unwrap(), target.as_bytes());
        assert_eq!(fs.attributes(id).unwrap().kind, inside::FileKind::Symlink);
        assert_eq!(fs.attributes(id).unwrap().size, target.len() as u64);
    }
    assert_eq!(contents(&fs, &disk, path_of(&fs, "cloud"), 9000), [b'z'; 9000]);
    for name in ["wof", "away"] {
        assert_eq!(error(fs.extents(path_of(&fs, name), 0, 10)), Kind::Unsupported, "{name}");
    }
}

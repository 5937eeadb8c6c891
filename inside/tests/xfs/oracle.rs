//! The reader of a boot loader, which was written by others, as a witness of its own.

use images::xfs::{SIZE, Store};
use images::{Image, run};
use inside::{Disk, FileKind, FileSystem, Id, Place};
use lamxfs::{BlockRead, EntryKind, Path, Xfs};

use super::{fill, tree};

/// An image, to be read by others.
struct Blocks<'a>(&'a Image);

impl BlockRead for Blocks<'_> {
    type Error = std::io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

/// Compares names, kinds, sizes, targets and contents; how many files.
fn compare(image: &Image) -> usize {
    let system = inside::xfs::open(image).unwrap();
    let mut other = Xfs::open(Blocks(image), image.size()).unwrap();
    let mut directories = vec![(b"/".to_vec(), system.root())];
    let mut count = 0;
    while let Some((path, directory)) = directories.pop() {
        let entries = other.read_dir(Path::new(&path)).unwrap();
        let mut entries: Vec<_> =
            entries.into_iter().filter(|entry| entry.name != b"." && entry.name != b"..").collect();
        let mut names = Vec::new();
        system
            .list(directory, 0, &mut |entry| {
                names.push((entry.name.to_vec(), entry.id));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        names.sort();
        entries.sort_by(|one, two| one.name.cmp(&two.name));
        let theirs: Vec<_> = entries.iter().map(|entry| (entry.name.clone(), Id(entry.inode_number))).collect();
        assert_eq!(names, theirs);
        count += names.len();
        for entry in entries {
            let path = [&path[..], b"/", &entry.name].concat();
            let id = Id(entry.inode_number);
            let attributes = system.attributes(id).unwrap();
            match entry.kind {
                EntryKind::Directory => directories.push((path, id)),
                EntryKind::Symlink => {
                    assert_eq!(system.link_target(id).unwrap(), other.read_link(Path::new(&path)).unwrap());
                }
                EntryKind::Regular if attributes.size < 64 << 20 => {
                    assert!(content(&system, image, id) == other.read_file(Path::new(&path)).unwrap(), "{path:?}");
                }
                _ => assert_ne!(attributes.kind, FileKind::Directory),
            }
        }
    }
    count
}

fn content(system: &dyn FileSystem, image: &Image, id: Id) -> Vec<u8> {
    let size = system.attributes(id).unwrap().size;
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    for extent in tree::extents(system, id, size).unwrap() {
        if let Place::Disk(at) = extent.place {
            let (from, length) = (usize::try_from(extent.offset).unwrap(), usize::try_from(extent.length).unwrap());
            image.read_at(at, &mut bytes[from..from + length]).unwrap();
        }
    }
    bytes
}

#[test]
fn what_a_boot_loader_reads() {
    let store = Store::new();
    let image = store.made("one", SIZE, &[]);
    let mount = image.mount("rw");
    fill::directories(&mount.0, &[20, 600]);
    fill::names(&mount.0);
    fill::kinds(&mount.0);
    fill::data(&mount.0, 4096, 500);
    drop(mount);
    assert!(compare(&image) > 700);
}

/// This kernel need not know version 4, so mkfs.xfs fills it.
#[test]
fn version_4() {
    let store = Store::new();
    let files = tempfile::tempdir().unwrap();
    let path = files.path().to_str().unwrap();
    for (name, length) in [("short", 10), ("long", 50_000)] {
        std::fs::write(files.path().join(name), fill::noise(length)).unwrap();
    }
    let link = "t".repeat(900);
    let many: Vec<_> = (0..700).map(|number| format!("file{number} ---644 5 {number} {path}/short\n")).collect();
    let many = many.concat();
    let prototype = format!(
        "boot\n0 0\nd--755 0 0\nlong ---600 70000 3 {path}/long\nlink l--777 0 0 {link}\nnull c--666 0 0 1 3\n\
         many d--755 0 0\n{many}$\nempty d--1777 1 2\n$\n$\n"
    );
    std::fs::write(files.path().join("prototype"), prototype).unwrap();
    for (name, arguments) in [
        ("plain", &["-m", "crc=0"][..]),
        ("no-types", &["-m", "crc=0", "-n", "ftype=0", "-b", "size=1024"]),
        ("inodes", &["-m", "crc=0", "-i", "size=256", "-n", "size=16384"]),
    ] {
        let image = store.made(name, SIZE, &[arguments, &["-p", &format!("{path}/prototype")]].concat());
        assert_eq!(compare(&image), 705, "{name}");
        let system = inside::xfs::open(&image).unwrap();
        let lookup = |name: &[u8]| system.lookup(system.root(), name).unwrap().unwrap();
        let long = system.attributes(lookup(b"long")).unwrap();
        assert_eq!((long.mode, long.uid, long.gid, long.links, long.size), (0o600, 70000, 3, 1, 50_000), "{name}");
        let null = system.attributes(lookup(b"null")).unwrap();
        assert_eq!((null.kind, null.device), (FileKind::CharDevice, (1, 3)), "{name}");
        assert_eq!(system.parent(lookup(b"many")).unwrap(), system.root());
    }
    // Attributes are set by xfs_db, which writes them as the kernel does.
    let image = store.made("attributes", SIZE, &["-m", "crc=0", "-p", &format!("{path}/prototype")]);
    let root = inside::xfs::open(&image).unwrap().root().0;
    let inode = format!("inode {root}");
    for number in 1..=60 {
        let set = format!("attr_set -u -v {} name{number}", number * 40);
        run("xfs_db", &["-x", "-c", &inode, "-c", &set, image.path.to_str().unwrap()]);
    }
    let system = inside::xfs::open(&image).unwrap();
    let xattrs = system.xattrs(system.root()).unwrap();
    assert_eq!(xattrs.len(), 60);
    assert!(xattrs.iter().all(|xattr| xattr.name.starts_with(b"user.name") && xattr.value.len().is_multiple_of(40)));
}

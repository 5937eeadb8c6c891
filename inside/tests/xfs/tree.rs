//! All that can be seen of a file system, by our reader and by the kernel.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::ops::{ControlFlow, Range};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use inside::{Disk, Extent, FileKind, FileSystem, Id, Place};

/// What is compared of one file.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    inode: u64,
    kind: String,
    numbers: [u64; 8],
    times: [(i64, i64); 3],
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Vec<Range<u64>>,
    hash: u64,
}

pub(crate) type Tree = BTreeMap<PathBuf, Facts>;

/// Fails with the differences, a few of them.
pub(crate) fn assert_same(ours: &Tree, kernels: &Tree) {
    let all = ours.keys().chain(kernels.keys());
    let mut different: Vec<_> = all.filter(|path| ours.get(*path) != kernels.get(*path)).collect();
    different.dedup();
    let facts = |tree: &Tree, path: &PathBuf| format!("{:?}", tree.get(path)).chars().take(1000).collect::<String>();
    let show = |path: &&PathBuf| {
        format!("{}\n  ours:   {}\n  kernel: {}", path.display(), facts(ours, path), facts(kernels, path))
    };
    let shown: Vec<_> = different.iter().take(3).map(show).collect();
    assert!(different.is_empty(), "{} files differ\n{}", different.len(), shown.join("\n"));
}

/// As our reader sees it; it lists `step` names at once.
pub(crate) fn ours<D: Disk>(system: &dyn FileSystem, disk: &D, step: usize) -> inside::Result<Tree> {
    let mut tree = Tree::new();
    let root = system.root();
    assert_eq!(system.parent(root)?, root);
    tree.insert(PathBuf::new(), facts(system, disk, root)?);
    let mut directories = vec![(PathBuf::new(), root)];
    while let Some((path, directory)) = directories.pop() {
        for (name, id, kind) in names(system, directory, step)? {
            assert_eq!(system.lookup(directory, &name)?, Some(id), "{name:?}");
            let path = path.join(OsStr::from_bytes(&name));
            let attributes = system.attributes(id)?;
            assert!(kind.is_none_or(|kind| kind == attributes.kind), "{}", path.display());
            if attributes.kind == FileKind::Directory {
                assert_eq!(system.parent(id)?, directory, "{}", path.display());
                directories.push((path.clone(), id));
            }
            let before = tree.insert(path, facts(system, disk, id)?);
            assert!(before.is_none(), "{name:?} is told twice");
        }
        assert_eq!(system.lookup(directory, b"no such name")?, None);
    }
    Ok(tree)
}

type Name = (Vec<u8>, Id, Option<FileKind>);

fn names(system: &dyn FileSystem, directory: Id, step: usize) -> inside::Result<Vec<Name>> {
    let (mut names, mut from) = (Vec::new(), 0);
    loop {
        let before = names.len();
        system.list(directory, from, &mut |entry| {
            assert!(entry.next > from, "{} after {from}", entry.next);
            names.push((entry.name.to_vec(), entry.id, entry.kind));
            from = entry.next;
            if names.len() == before + step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if names.len() == before {
            return Ok(names);
        }
    }
}

fn facts<D: Disk>(system: &dyn FileSystem, disk: &D, id: Id) -> inside::Result<Facts> {
    let it = system.attributes(id)?;
    let time = |time: inside::Time| (time.seconds, i64::from(time.nanoseconds));
    let mut facts = Facts {
        inode: id.0,
        kind: format!("{:?}", it.kind),
        numbers: [
            it.mode.into(),
            it.uid.into(),
            it.gid.into(),
            it.links.into(),
            it.size,
            it.allocated,
            it.device.0.into(),
            it.device.1.into(),
        ],
        times: [time(it.accessed), time(it.modified), time(it.changed)],
        xattrs: system.xattrs(id)?.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
        ..Facts::default()
    };
    match it.kind {
        FileKind::Symlink => facts.target = system.link_target(id)?,
        FileKind::File => {
            let mut hasher = DefaultHasher::new();
            for extent in extents(system, id, it.size)? {
                let Place::Disk(at) = extent.place else { continue };
                add_range(&mut facts.data, extent.offset..extent.offset + extent.length);
                hash(&mut hasher, extent.length, |offset, buffer| disk.read_at(at + offset, buffer).unwrap());
            }
            facts.hash = hasher.finish();
        }
        _ => (),
    }
    Ok(facts)
}

/// All pieces of a file, a few at once; they leave nothing out.
pub(crate) fn extents(system: &dyn FileSystem, id: Id, size: u64) -> inside::Result<Vec<Extent>> {
    let mut all: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < size {
        let more = system.extents(id, at, 37)?;
        assert!((1..=37).contains(&more.len()), "{} pieces", more.len());
        for extent in more {
            assert!(extent.offset == at && extent.length > 0, "{extent:?} after {at}");
            at += extent.length;
            all.push(extent);
        }
    }
    assert_eq!(at, size);
    assert!(system.extents(id, size, 1)?.is_empty());
    Ok(all)
}

fn add_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

fn hash(hasher: &mut DefaultHasher, length: u64, mut read: impl FnMut(u64, &mut [u8])) {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    while at < length {
        let part = &mut buffer[..usize::try_from(length - at).unwrap_or(usize::MAX).min(1 << 16)];
        read(at, part);
        // Byte by byte, as it were: pieces of any lengths give one sum.
        part.chunks(512).for_each(|chunk| hasher.write(chunk));
        at += part.len() as u64;
    }
}

/// As the kernel shows it below a mount point.
pub(crate) fn kernels(mount: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![PathBuf::new()];
    tree.insert(PathBuf::new(), kernel_facts(mount));
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(mount.join(&directory)).unwrap() {
            let path = directory.join(entry.unwrap().file_name());
            let facts = kernel_facts(&mount.join(&path));
            if facts.kind == "Directory" {
                directories.push(path.clone());
            }
            tree.insert(path, facts);
        }
    }
    tree
}

fn kernel_facts(path: &Path) -> Facts {
    let stat = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = stat.file_type();
    let kinds = [
        (kind.is_file(), FileKind::File),
        (kind.is_dir(), FileKind::Directory),
        (kind.is_symlink(), FileKind::Symlink),
        (kind.is_char_device(), FileKind::CharDevice),
        (kind.is_block_device(), FileKind::BlockDevice),
        (kind.is_fifo(), FileKind::Fifo),
        (kind.is_socket(), FileKind::Socket),
    ];
    let kind = kinds.iter().find(|(is, _)| *is).expect("a kind").1;
    let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    let mut facts = Facts {
        inode: stat.ino(),
        kind: format!("{kind:?}"),
        numbers: [
            (stat.mode() & 0o7777).into(),
            stat.uid().into(),
            stat.gid().into(),
            stat.nlink(),
            stat.size(),
            stat.blocks() * 512,
            major.into(),
            minor.into(),
        ],
        times: [
            (stat.atime(), stat.atime_nsec()),
            (stat.mtime(), stat.mtime_nsec()),
            (stat.ctime(), stat.ctime_nsec()),
        ],
        xattrs: kernel_xattrs(path),
        ..Facts::default()
    };
    match kind {
        FileKind::Symlink => facts.target = std::fs::read_link(path).unwrap().into_os_string().into_vec(),
        FileKind::File => {
            let file = File::open(path).unwrap();
            let mut at = 0;
            // All of them before anything is read: what was never written counts as data once it is in the page cache.
            while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
                at = seek(&file, SeekFrom::Hole(start)).unwrap();
                add_range(&mut facts.data, start..at);
            }
            let mut hasher = DefaultHasher::new();
            for range in &facts.data {
                let read = |offset, buffer: &mut [u8]| file.read_exact_at(buffer, range.start + offset).unwrap();
                hash(&mut hasher, range.end - range.start, read);
            }
            facts.hash = hasher.finish();
        }
        _ => (),
    }
    facts
}

fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut value = vec![0; 65536];
    names
        // What access control lists are kept as; we tell them as the lists that they are.
        .filter(|name| !name.starts_with(b"trusted.SGI_ACL_"))
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

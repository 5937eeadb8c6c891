//! A file system as it is read here, against the kernel's mount of the same blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use inside::{Attributes, Disk, Extent, FileKind, FileSystem, Id, Place, Time};
use rustix::fs::{SeekFrom, lgetxattr, llistxattr, major, minor, seek};

/// What was compared.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) xattrs: usize,
}

struct Comparison<'a> {
    ours: &'a dyn FileSystem,
    disk: &'a dyn Disk,
    counts: Counts,
    /// Files of several names are read once.
    read: BTreeSet<Id>,
    mounted: Time,
}

/// Panics at the first difference. What the kernel has changed since it was `mounted`, bringing the shortening of files to its
/// end, has its times since then.
pub(crate) fn compare(ours: &dyn FileSystem, disk: &dyn Disk, mount: &Path, mounted: SystemTime) -> Counts {
    let mounted = mounted.duration_since(UNIX_EPOCH).unwrap();
    let mounted = Time { seconds: mounted.as_secs().cast_signed(), nanoseconds: 0 };
    let mut comparison = Comparison { ours, disk, counts: Counts::default(), read: BTreeSet::new(), mounted };
    assert_eq!(ours.parent(ours.root()).unwrap(), ours.root());
    comparison.file(ours.root(), mount);
    comparison.counts
}

/// A name in a directory, and what it is of.
pub(crate) type Listed = (Vec<u8>, Id, Option<FileKind>);

/// All names of a directory, a few at a time.
pub(crate) fn list(ours: &dyn FileSystem, directory: Id) -> inside::Result<Vec<Listed>> {
    let (mut found, mut from) = (Vec::new(), 0);
    loop {
        let before = found.len();
        ours.list(directory, from, &mut |entry| {
            assert!(entry.next > from, "names go on");
            from = entry.next;
            found.push((entry.name.to_vec(), entry.id, entry.kind));
            if found.len() - before < 100 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// All pieces of a file, `limit` at a time, which leave nothing out.
pub(crate) fn extents(ours: &dyn FileSystem, file: Id, size: u64, limit: usize) -> inside::Result<Vec<Extent>> {
    let (mut all, mut at) = (Vec::<Extent>::new(), 0);
    loop {
        let found = ours.extents(file, at, limit)?;
        assert!(found.len() <= limit);
        for extent in &found {
            assert_eq!(extent.offset, at, "pieces follow each other");
            assert!(extent.length > 0);
            at += extent.length;
        }
        if found.is_empty() {
            assert_eq!(at, size, "pieces end with the file");
            return Ok(all);
        }
        all.extend(found);
    }
}

impl Comparison<'_> {
    fn file(&mut self, id: Id, path: &Path) {
        self.counts.files += 1;
        let metadata = fs::symlink_metadata(path).unwrap();
        let ours = self.ours.attributes(id).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut theirs = attributes(&metadata);
        if theirs.changed >= self.mounted && theirs.kind == FileKind::File {
            theirs = Attributes { modified: ours.modified, changed: ours.changed, allocated: ours.allocated, ..theirs };
        }
        assert_eq!(ours, theirs, "{}", path.display());
        assert_eq!(id.0, metadata.ino(), "{}", path.display());
        self.xattrs(id, path);
        match ours.kind {
            FileKind::Directory => self.directory(id, path),
            FileKind::Symlink => {
                let target = fs::read_link(path).unwrap().into_os_string().into_vec();
                assert_eq!(self.ours.link_target(id).unwrap(), target, "{}", path.display());
            }
            FileKind::File if self.read.insert(id) => self.data(id, path, ours.size),
            _ => {}
        }
    }

    fn directory(&mut self, id: Id, path: &Path) {
        let mut theirs: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
        let found = list(self.ours, id).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut names: Vec<_> = found.iter().map(|(name, ..)| name.clone()).collect();
        theirs.sort();
        names.sort();
        assert_eq!(names, theirs, "{}", path.display());
        for (name, file, kind) in found {
            assert_eq!(self.ours.lookup(id, &name).unwrap(), Some(file), "{}: {name:?}", path.display());
            let path = path.join(OsStr::from_bytes(&name));
            let attributes = self.ours.attributes(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(kind.is_none_or(|kind| kind == attributes.kind), "{}", path.display());
            if attributes.kind == FileKind::Directory {
                assert_eq!(self.ours.parent(file).unwrap(), id, "{}", path.display());
            }
            self.file(file, &path);
        }
        for absent in ["", ".", "..", "absent", &"y".repeat(255), "name 1 of many"] {
            assert_eq!(self.ours.lookup(id, absent.as_bytes()).unwrap(), None, "{}: {absent}", path.display());
        }
    }

    fn xattrs(&mut self, id: Id, path: &Path) {
        let mut names = vec![0; 65536];
        let length = llistxattr(path, &mut names[..]).unwrap();
        let theirs: BTreeMap<Vec<u8>, Vec<u8>> = names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0; 65536];
                let length = lgetxattr(path, name, &mut value[..]).unwrap();
                (name.to_vec(), value[..length].to_vec())
            })
            .collect();
        let ours = self.ours.xattrs(id).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.counts.xattrs += ours.len();
        let ours: BTreeMap<_, _> = ours.into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
        assert_eq!(ours, theirs, "{}", path.display());
    }

    fn data(&mut self, id: Id, path: &Path, size: u64) {
        let file = File::open(path).unwrap();
        // Before it is read: what is in the kernel's memory counts as data.
        let map = data_map(&file, size);
        let extents = extents(self.ours, id, size, 7).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut ours: Vec<(u64, u64)> = Vec::new();
        for extent in &extents {
            let end = extent.offset + extent.length;
            let length = usize::try_from(extent.length).unwrap();
            let bytes = match &extent.place {
                Place::Hole if length > 1 << 20 => continue,
                Place::Hole => vec![0; length],
                Place::Inline(bytes) => bytes.clone(),
                Place::Disk(at) => {
                    let mut bytes = vec![0; length];
                    self.disk.read_at(*at, &mut bytes).unwrap();
                    bytes
                }
            };
            let mut theirs = vec![0; length];
            file.read_exact_at(&mut theirs, extent.offset).unwrap();
            assert!(bytes == theirs, "{}: bytes from {} to {end}", path.display(), extent.offset);
            self.counts.bytes += extent.length;
            if extent.place != Place::Hole {
                match ours.last_mut() {
                    Some(last) if last.1 == extent.offset => last.1 = end,
                    _ => ours.push((extent.offset, end)),
                }
            }
        }
        assert_eq!(ours, map, "{}", path.display());
    }
}

/// Where the kernel says there is data.
fn data_map(file: &File, size: u64) -> Vec<(u64, u64)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let Ok(start) = seek(file, SeekFrom::Data(at)) else { break };
        let end = seek(file, SeekFrom::Hole(start)).unwrap();
        found.push((start, end));
        at = end;
    }
    found
}

fn attributes(metadata: &fs::Metadata) -> Attributes {
    let time = |seconds, nanoseconds: i64| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
    let (kind, device) = match metadata.mode() >> 12 {
        0x1 => (FileKind::Fifo, false),
        0x2 => (FileKind::CharDevice, true),
        0x4 => (FileKind::Directory, false),
        0x6 => (FileKind::BlockDevice, true),
        0x8 => (FileKind::File, false),
        0xa => (FileKind::Symlink, false),
        _ => (FileKind::Socket, false),
    };
    Attributes {
        kind,
        mode: u16::try_from(metadata.mode() & 0o7777).unwrap(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: u32::try_from(metadata.nlink()).unwrap(),
        size: metadata.size(),
        allocated: metadata.blocks() * 512,
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
        device: if device { (major(metadata.rdev()), minor(metadata.rdev())) } else { (0, 0) },
    }
}

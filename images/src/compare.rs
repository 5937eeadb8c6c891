//! What a reader tells, against what a driver shows of the same image.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use inside::{Attributes, Disk, Extent, FileKind, FileSystem, Id, Place};

/// The names in a directory, asked for in many pieces.
pub fn names(fs: &dyn FileSystem, directory: Id) -> BTreeMap<Vec<u8>, (Id, Option<FileKind>)> {
    let mut names = BTreeMap::new();
    let mut from = 0;
    loop {
        let mut count = 0;
        fs.list(directory, from, &mut |entry| {
            assert!(entry.next > from && entry.next < 1 << 63, "{} after {from}", entry.next);
            from = entry.next;
            count += 1;
            let twice = names.insert(entry.name.to_vec(), (entry.id, entry.kind));
            assert!(twice.is_none(), "{} twice", String::from_utf8_lossy(entry.name));
            if count == 37 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        if count == 0 {
            return names;
        }
    }
}

/// Where a file's data is, asked for in pieces, and checked to be as it must.
pub fn extents(fs: &dyn FileSystem, file: Id, size: u64) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    let mut from = 0;
    while from < size {
        let some = fs.extents(file, from, 5).unwrap();
        assert!(!some.is_empty() && some.len() <= 5, "{} pieces at {from} of {size}", some.len());
        for extent in some {
            assert_eq!((extent.offset, extent.length > 0), (from, true));
            from += extent.length;
            all.push(extent);
        }
    }
    assert_eq!(from, size);
    assert!(fs.extents(file, size, 5).unwrap().is_empty());
    all
}

/// Bytes of a file, from a disk.
pub fn contents(fs: &dyn FileSystem, disk: &dyn Disk, file: Id, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    for extent in extents(fs, file, size) {
        let start = usize::try_from(extent.offset).unwrap();
        let place = &mut bytes[start..start + usize::try_from(extent.length).unwrap()];
        match extent.place {
            Place::Hole => {}
            Place::Inline(here) => place.copy_from_slice(&here),
            Place::Disk(offset) => disk.read_at(offset, place).unwrap(),
        }
    }
    bytes
}

/// Bytes of a piece of a file that are compared at once.
const PIECE: u64 = 1 << 20;

/// Most of a hole that is read from the driver.
const MAX_HOLE: u64 = 16 << 20;

/// Compares a file's bytes, of large holes the first ones.
fn same_bytes(fs: &dyn FileSystem, disk: &dyn Disk, file: Id, size: u64, path: &Path) {
    let shown = File::open(path).unwrap();
    for extent in extents(fs, file, size) {
        let hole = extent.place == Place::Hole;
        let length = if hole { extent.length.min(MAX_HOLE) } else { extent.length };
        let mut done = 0;
        while done < length {
            let count = usize::try_from(PIECE.min(length - done)).unwrap();
            let (mut ours, mut theirs) = (vec![0; count], vec![0; count]);
            match &extent.place {
                Place::Hole => {}
                Place::Inline(bytes) => ours.copy_from_slice(&bytes[..count]),
                Place::Disk(offset) => disk.read_at(offset + done, &mut ours).unwrap(),
            }
            shown.read_exact_at(&mut theirs, extent.offset + done).unwrap();
            assert!(ours == theirs, "{} differs near {}: {:?}", path.display(), extent.offset + done, extent.place);
            done += count as u64;
        }
    }
}

/// What a driver's file is.
fn kind(metadata: &fs::Metadata) -> FileKind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_char_device() => FileKind::CharDevice,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () => FileKind::File,
    }
}

/// Compares a directory with what a driver shows; `more` compares what the file system has beyond names, kinds, sizes, bytes and
/// targets. Gives the number of files.
pub fn same_tree(
    fs: &dyn FileSystem,
    disk: &dyn Disk,
    directory: Id,
    path: &Path,
    more: &dyn Fn(Id, &Attributes, &Path, &fs::Metadata),
) -> usize {
    let ours = names(fs, directory);
    let mut theirs: Vec<Vec<u8>> = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        theirs.push(entry.unwrap().file_name().as_bytes().to_vec());
    }
    theirs.sort();
    let text =
        |names: Vec<&Vec<u8>>| -> Vec<String> { names.iter().map(|name| name.escape_ascii().to_string()).collect() };
    let missing = text(theirs.iter().filter(|name| !ours.contains_key(*name)).collect());
    let extra = text(ours.keys().filter(|name| !theirs.contains(name)).take(100).collect());
    assert!(missing.is_empty() && extra.is_empty(), "{}: missing {missing:?}, too many {extra:?}", path.display());
    let mut count = 0;
    for (name, (id, told)) in ours {
        let path = path.join(OsStr::from_bytes(&name));
        let shown = fs::symlink_metadata(&path).unwrap();
        let attributes = fs.attributes(id).unwrap();
        assert_eq!(fs.lookup(directory, &name).unwrap(), Some(id), "{}", path.display());
        assert_eq!(attributes.kind, kind(&shown), "{}", path.display());
        assert!(told.is_none_or(|told| told == attributes.kind), "{}: {told:?}", path.display());
        match attributes.kind {
            FileKind::Directory => {
                assert_eq!(fs.parent(id).unwrap(), directory, "{}", path.display());
                count += same_tree(fs, disk, id, &path, more);
            }
            FileKind::File => {
                assert_eq!(attributes.size, shown.len(), "{}", path.display());
                same_bytes(fs, disk, id, attributes.size, &path);
            }
            FileKind::Symlink => {
                let target = fs::read_link(&path).unwrap();
                assert_eq!(fs.link_target(id).unwrap(), target.as_os_str().as_bytes(), "{}", path.display());
                assert_eq!(attributes.size, target.as_os_str().len() as u64);
            }
            _ => {}
        }
        more(id, &attributes, &path, &shown);
        count += 1;
    }
    count
}

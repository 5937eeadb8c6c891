//! Compares what a reader tells with what a driver shows of the same image.

#![allow(dead_code, reason = "each test target uses its part of it")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inside::{Attributes, Disk, Error, Extent, FileKind, FileSystem, Id, Kind, Place};

/// An image.
pub(crate) struct Image(File);

impl Image {
    pub(crate) fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }
}

impl Disk for Image {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// Runs a command that has to succeed; its output.
pub(crate) fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

/// An image of that many bytes, all zeroes.
pub(crate) fn blank(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// A mount by a FUSE driver, whose process ends with it.
pub(crate) struct Mount {
    driver: Child,
    pub(crate) at: PathBuf,
}

impl Mount {
    /// Starts a driver that stays in the foreground.
    pub(crate) fn new(driver: &mut Command, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let outside = fs::metadata(at).unwrap().dev();
        let driver = driver.arg(at).stdin(Stdio::null()).spawn().unwrap();
        let mut mount = Self { driver, at: at.to_owned() };
        let until = Instant::now() + Duration::from_secs(30);
        while fs::metadata(at).unwrap().dev() == outside {
            assert!(
                mount.driver.try_wait().unwrap().is_none() && Instant::now() < until,
                "{} is not mounted",
                at.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.at).status().is_ok_and(|status| status.success());
        if !done {
            let _ = self.driver.kill();
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
        let _ = self.driver.wait();
    }
}

/// The names in a directory, asked for in many pieces.
pub(crate) fn names(fs: &dyn FileSystem, directory: Id) -> BTreeMap<Vec<u8>, (Id, Option<FileKind>)> {
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
pub(crate) fn extents(fs: &dyn FileSystem, file: Id, size: u64) -> Vec<Extent> {
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
pub(crate) fn contents(fs: &dyn FileSystem, disk: &dyn Disk, file: Id, size: u64) -> Vec<u8> {
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
pub(crate) fn same_bytes(fs: &dyn FileSystem, disk: &dyn Disk, file: Id, size: u64, path: &Path) {
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
pub(crate) fn kind(metadata: &fs::Metadata) -> FileKind {
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
pub(crate) fn same_tree(
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

/// Looks at everything, within bounds, whatever it is; errors end what they are in. Gives how many calls failed.
pub(crate) fn look_at_all(fs: &dyn FileSystem) -> usize {
    let mut errors = 0;
    let mut left = 2000;
    let mut directories = vec![(fs.root(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        let mut found = Vec::new();
        errors += usize::from(
            fs.list(directory, 0, &mut |entry| {
                found.push((entry.name.to_vec(), entry.id));
                if found.len() < 500 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .is_err(),
        );
        errors += usize::from(fs.parent(directory).is_err());
        for (name, id) in found {
            left -= 1;
            if left < 0 {
                return errors;
            }
            errors += usize::from(fs.lookup(directory, &name).is_err());
            errors += usize::from(fs.xattrs(id).is_err());
            match fs.attributes(id) {
                Err(_) => errors += 1,
                Ok(Attributes { kind: FileKind::Directory, .. }) if depth < 8 => directories.push((id, depth + 1)),
                Ok(Attributes { kind: FileKind::File, size, .. }) => {
                    for from in [0, size / 2, size.saturating_sub(1)] {
                        errors += usize::from(fs.extents(id, from, 100).is_err());
                    }
                }
                Ok(_) => {}
            }
        }
    }
    errors
}

/// The kind of an error that has to be one.
pub(crate) fn error<T>(result: Result<T, Error>) -> Kind {
    match result {
        Ok(_) => panic!("this must not succeed"),
        Err(error) => {
            println!("{error}");
            error.kind()
        }
    }
}

/// Numbers that look random, the same ones each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256).to_le_bytes()[0]).collect()
    }
}

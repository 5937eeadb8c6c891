//! NTFS.
//!
//! ```text
//! boot ─▶ record: a file's attributes ─▶ runs: where a value's clusters are ─▶ volume: records and values, wherever they are
//!                                                                                └▶ file, index, reparse ─▶ Ntfs
//! ```
//! It is shown as ntfs-3g shows it with its default options: owner 0, mode 0777 (0555 a file that is read-only), names that DOS
//! alone sees and NTFS's own files ($MFT, …) hidden, streams as extended attributes. Names are compared byte for byte all the
//! same.
//!
//! An [`Id`] is a file's reference: its record's number, and in the upper 16 bits how often that was another file's before.
//! The log is not replayed; what was under way is told ([`Summary::unclean`]), and a record that was written in part is an error.

mod boot;
mod file;
mod index;
mod record;
mod reparse;
mod runs;
mod unclean;
mod upcase;
mod volume;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use boot::Geometry;
use file::{File, Stream, Value, flag};
use index::Index;
use record::kind;
use reparse::Special;
use upcase::UpCase;
use volume::Volume;

use crate::{
    Attributes, Disk, Entry, Error, Extent, FileKind, FileSystem, Id, Kind, Place, Result, Summary, Xattr, utf16,
};

/// How many files are kept, and of how many bytes one may be.
const KEPT: usize = 64;
const MAX_KEPT: usize = 64 << 10;

/// Most clusters that are counted to tell how many are free, in bytes of the bitmap: 32 GiB of a usual file system.
const MAX_COUNTED: u64 = 1 << 20;

/// Largest stream that is an extended attribute, all of them together, and the longest name of one, in bytes.
const MAX_XATTR: u64 = 64 << 10;
const MAX_XATTRS: u64 = 1 << 20;
const MAX_XATTR_NAME: usize = 255;

const ROOT_RECORD: u64 = 5;
const BITMAP_RECORD: u64 = 6;

/// Opens a file system.
///
/// # Errors
/// If it is none, or what every file needs is not right.
pub fn open<D: Disk>(disk: D) -> Result<Ntfs<D>> {
    let geometry = Geometry::read(&disk)?;
    let volume = Volume::open(disk, geometry)?;
    let root = Id(volume.reference(ROOT_RECORD)?);
    let upcase = UpCase::read(&volume)?;
    let free = free_clusters(&volume).unwrap_or(0);
    let mut ntfs = Ntfs { volume, upcase, root, free, unclean: None, files: Mutex::default() };
    let hibernated = ntfs.lookup(root, b"hiberfil.sys");
    ntfs.unclean = unclean::sentence(&ntfs.volume, hibernated);
    Ok(ntfs)
}

/// How many clusters are free; none are told of a large file system, where counting takes long.
fn free_clusters<D: Disk>(volume: &Volume<D>) -> Result<u64> {
    let file = File::read(volume, volume.reference(BITMAP_RECORD)?)?;
    let clusters = volume.geometry().clusters;
    let Some(bitmap) = file.stream(kind::DATA) else { return Ok(0) };
    let size = bitmap.size().min(clusters.div_ceil(8));
    if size > MAX_COUNTED {
        return Ok(0);
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    volume.read(bitmap, 0, &mut bytes)?;
    let used: u64 = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
    Ok(clusters.saturating_sub(used))
}

/// An NTFS that is open.
#[derive(Debug)]
pub struct Ntfs<D> {
    volume: Volume<D>,
    upcase: UpCase,
    root: Id,
    free: u64,
    unclean: Option<String>,
    /// The files that were looked at last, the latest first.
    files: Mutex<VecDeque<(Id, Arc<File>)>>,
}

impl<D: Disk> Ntfs<D> {
    fn file(&self, id: Id) -> Result<Arc<File>> {
        let mut kept = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(at, _)| *at == id).and_then(|index| kept.remove(index));
        let file = match found {
            Some((_, found)) => found,
            None => Arc::new(File::read(&self.volume, id.0)?),
        };
        if file.weight() <= MAX_KEPT {
            kept.truncate(KEPT - 1);
            kept.push_front((id, Arc::clone(&file)));
        }
        Ok(file)
    }

    fn special(&self, file: &File) -> Result<Option<Special>> {
        reparse::special(&self.volume, file)
    }

    /// The pieces of a value in clusters; see [`FileSystem::extents`].
    fn pieces(&self, stream: &Stream, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let Value::Elsewhere { size, initialized, pieces: told, .. } = &stream.value else { return Ok(Vec::new()) };
        let cluster_size = self.volume.geometry().cluster_size;
        let mut pieces: Vec<Extent> = Vec::new();
        let mut offset = from;
        while offset < *size {
            let (end, place) = if offset >= *initialized {
                (*size, Place::Hole)
            } else {
                let run = self.volume.run_at(told, offset / cluster_size)?;
                let end = ((run.start + run.length) * cluster_size).min(*initialized);
                let within = offset - run.start * cluster_size;
                (end, run.place.map_or(Place::Hole, |place| Place::Disk(place * cluster_size + within)))
            };
            let length = end - offset;
            let full = pieces.len() >= limit;
            match pieces.last_mut() {
                Some(last) if follows(last, &place) => last.length += length,
                _ if full => break,
                _ => pieces.push(Extent { offset, length, place }),
            }
            offset = end;
        }
        Ok(pieces)
    }
}

/// Whether what comes next is one with the piece before it.
fn follows(last: &Extent, place: &Place) -> bool {
    match (&last.place, place) {
        (Place::Hole, Place::Hole) => true,
        (Place::Disk(start), Place::Disk(next)) => start + last.length == *next,
        _ => false,
    }
}

impl<D: Disk> FileSystem for Ntfs<D> {
    fn summary(&self) -> Summary {
        let geometry = self.volume.geometry();
        Summary {
            kind: "ntfs",
            block_size: u32::try_from(geometry.cluster_size).unwrap_or(u32::MAX),
            blocks: geometry.clusters,
            free_blocks: self.free,
            files: None,
            unclean: self.unclean.clone(),
        }
    }

    fn root(&self) -> Id {
        self.root
    }

    fn attributes(&self, id: Id) -> Result<Attributes> {
        let file = self.file(id)?;
        let special = self.special(&file)?;
        let value = file.stream(if file.directory { kind::INDEX_ALLOCATION } else { kind::DATA });
        let mut size = value.map_or(0, Stream::size);
        let mut device = (0, 0);
        let kind = match special {
            Some(Special::Symlink(target)) => {
                size = target.len() as u64;
                FileKind::Symlink
            }
            Some(Special::Device(kind, number)) => {
                (size, device) = (0, number);
                kind
            }
            _ if file.directory => FileKind::Directory,
            _ => FileKind::File,
        };
        let read_only = kind == FileKind::File && file.flags & flag::READ_ONLY != 0;
        Ok(Attributes {
            kind,
            mode: if read_only { 0o555 } else { 0o777 },
            uid: 0,
            gid: 0,
            links: if file.directory { 1 } else { file.names.max(1) },
            size,
            allocated: value.map_or(0, Stream::occupied),
            accessed: file.accessed,
            modified: file.modified,
            changed: file.changed,
            device,
        })
    }

    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        let file = self.file(directory)?;
        let index = Index::new(&self.volume, &file)?;
        utf16::from_bytes(name).map_or(Ok(None), |units| index.find(&self.upcase, &units))
    }

    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        let file = self.file(directory)?;
        Index::new(&self.volume, &file)?.list(from, each)
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        let file = self.file(directory)?;
        if !file.directory {
            return Err(Error::new(Kind::WrongKind, "not a directory"));
        }
        file.parent.map(Id).ok_or_else(|| Error::corrupt("a directory has no name"))
    }

    fn link_target(&self, id: Id) -> Result<Vec<u8>> {
        match self.special(&*self.file(id)?)? {
            Some(Special::Symlink(target)) => Ok(target),
            _ => Err(Error::new(Kind::WrongKind, "not a symbolic link")),
        }
    }

    fn xattrs(&self, id: Id) -> Result<Vec<Xattr>> {
        let file = self.file(id)?;
        let mut left = MAX_XATTRS;
        let mut xattrs = Vec::new();
        for stream in &file.streams {
            let size = stream.size();
            if stream.kind != kind::DATA || stream.name.is_empty() || size > MAX_XATTR || stream.plain().is_err() {
                continue;
            }
            let mut name = b"user.".to_vec();
            name.extend(utf16::to_bytes(&utf16::units(&stream.name)));
            let both = size + name.len() as u64;
            if name.len() > MAX_XATTR_NAME || name.contains(&0) || both > left {
                continue;
            }
            let mut value = vec![0; usize::try_from(size).unwrap_or_default()];
            self.volume.read(stream, 0, &mut value)?;
            left -= both;
            xattrs.push(Xattr { name, value });
        }
        Ok(xattrs)
    }

    fn extents(&self, id: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let file = self.file(id)?;
        let special = self.special(&file)?;
        if file.directory || matches!(special, Some(Special::Symlink(_) | Special::Device(..))) {
            return Err(Error::new(Kind::WrongKind, "not a regular file"));
        }
        let Some(data) = file.stream(kind::DATA).filter(|data| from < data.size() && limit > 0) else {
            return Ok(Vec::new());
        };
        if let Some(Special::Elsewhere(tag)) = special {
            return Err(reparse::elsewhere(tag));
        }
        data.plain()?;
        let Value::Resident(bytes) = &data.value else { return self.pieces(data, from, limit) };
        let rest = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
        Ok(vec![Extent { offset: from, length: rest.len() as u64, place: Place::Inline(rest.to_vec()) }])
    }
}

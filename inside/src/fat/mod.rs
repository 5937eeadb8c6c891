//! FAT with entries of 12, 16 and 32 bits, and long names.
//!
//! ```text
//! boot: where things are ─▶ chain: clusters that follow each other ─▶ directory: names ─▶ Fat
//! ```
//! It is shown as Linux's vfat shows it with its default options: owner 0, mode 0755 (0555 what is read-only), times in UTC,
//! short names in the case that their bits tell, no label. Names are compared byte for byte all the same.
//!
//! An [`Id`] is where the entry in the parent directory is on the disk, in bytes; 0 is the root. FAT has no checksums: what is
//! checked is that chains lead somewhere, end, and are as long as the file.

mod boot;
mod chain;
mod directory;
mod name;
mod time;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use boot::{Geometry, Root, Width};
use chain::{Table, Walk};
use directory::{Directory, Raw};

use crate::numbers::{le16, le32};
use crate::{
    Attributes, Disk, Entry, Error, Extent, FileKind, FileSystem, Id, Kind, Place, Result, Summary, Time, Xattr,
};

/// How many directories, at most about 10 MiB each, and how many places in files are kept.
const KEPT: usize = 4;

/// Most clusters that are looked at for one piece of a file: some ten milliseconds.
const MAX_STEPS: u32 = 1 << 18;

const ROOT: Id = Id(0);

/// Opens a file system.
///
/// # Errors
/// If it is none.
pub fn open<D: Disk>(disk: D) -> Result<Fat<D>> {
    let geometry = Geometry::read(&disk)?;
    let table = Table::new(disk, geometry);
    let dirty = table.geometry().dirty || marked_dirty(&table)?;
    let free = free_clusters(&table)?;
    Ok(Fat { table, dirty, free, directories: Mutex::default(), walks: Mutex::default() })
}

/// Windows's mark of a file system in use: a bit that is gone from the second entry of the table.
fn marked_dirty<D: Disk>(table: &Table<D>) -> Result<bool> {
    let clean = match table.geometry().width {
        Width::Twelve => return Ok(false),
        Width::Sixteen => 1 << 15,
        Width::ThirtyTwo => 1 << 27,
    };
    Ok(table.entry(1)? & clean == 0)
}

/// How many clusters are free: counted, or with entries of 32 bits what was noted.
fn free_clusters<D: Disk>(table: &Table<D>) -> Result<u32> {
    let clusters = table.geometry().clusters;
    if table.geometry().width == Width::ThirtyTwo {
        let Some(offset) = table.geometry().hint else { return Ok(0) };
        let mut sector = [0; 512];
        table.disk().read_at(offset, &mut sector)?;
        let noted = le32(&sector, 488)?;
        return Ok(if sector.starts_with(b"RRaA") && noted <= clusters { noted } else { 0 });
    }
    let mut free = 0;
    for cluster in 2..clusters + 2 {
        free += u32::from(table.entry(cluster)? == 0);
    }
    Ok(free)
}

/// A FAT file system that is open.
#[derive(Debug)]
pub struct Fat<D> {
    table: Table<D>,
    dirty: bool,
    free: u32,
    /// What was read last, the latest first.
    directories: Mutex<VecDeque<(Root, Arc<Directory>)>>,
    /// Where reading of a file got to, the latest first: its first cluster, and the place.
    walks: Mutex<VecDeque<(u32, Walk)>>,
}

impl<D: Disk> Fat<D> {
    /// The entry of a file that is not the root.
    fn raw(&self, file: Id) -> Result<Raw> {
        let geometry = self.table.geometry();
        let gone = || Error::new(Kind::NotFound, format!("no file's entry is at byte {}", file.0));
        let start = if let Root::Fixed(offset, _) = geometry.root { offset } else { geometry.data };
        if !file.0.is_multiple_of(32) || file.0 < start || file.0 >= self.table.disk().size() {
            return Err(gone());
        }
        let mut slot = [0; 32];
        self.table.disk().read_at(file.0, &mut slot)?;
        Raw::new(&slot).ok_or_else(gone)
    }

    /// Where a directory is.
    fn place(&self, directory: Id) -> Result<Root> {
        if directory == ROOT {
            return Ok(self.table.geometry().root);
        }
        let raw = self.raw(directory)?;
        if !raw.is_directory() {
            return Err(Error::new(Kind::WrongKind, "not a directory"));
        }
        match raw.first(&self.table)? {
            0 => Err(Error::corrupt("a directory has no cluster")),
            first => Ok(Root::Chain(first)),
        }
    }

    fn directory_at(&self, place: Root) -> Result<Arc<Directory>> {
        let mut kept = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(at, _)| *at == place).and_then(|index| kept.remove(index));
        let directory = match found {
            Some((_, found)) => found,
            None => Arc::new(Directory::read(&self.table, place)?),
        };
        kept.truncate(KEPT - 1);
        kept.push_front((place, Arc::clone(&directory)));
        Ok(directory)
    }

    fn directory(&self, directory: Id) -> Result<Arc<Directory>> {
        self.directory_at(self.place(directory)?)
    }

    /// The cluster at a place of the chain that begins at `first`.
    fn walk_to(&self, first: u32, index: u64) -> Result<Walk> {
        let kept = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = kept.iter().filter(|(start, walk)| *start == first && u64::from(walk.index) <= index);
        let nearest = nearest.max_by_key(|(_, walk)| walk.index).map(|(_, walk)| walk.clone());
        drop(kept);
        let mut walk = nearest.map_or_else(|| Walk::new(self.table.geometry(), first), Ok)?;
        while u64::from(walk.index) < index {
            self.step(&mut walk)?;
        }
        Ok(walk)
    }

    fn step(&self, walk: &mut Walk) -> Result<()> {
        if walk.step(&self.table)? {
            Ok(())
        } else {
            Err(Error::corrupt("a file's chain of clusters ends before the file"))
        }
    }

    fn keep(&self, first: u32, walk: Walk) {
        let mut kept = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(start, _)| *start != first);
        kept.truncate(KEPT - 1);
        kept.push_front((first, walk));
    }

    /// The piece of a file that begins at `offset` and lies in the cluster of `walk`, which is left at the last cluster of it.
    fn piece(&self, walk: &mut Walk, offset: u64, size: u64) -> Result<Extent> {
        let cluster_size = u64::from(self.table.geometry().cluster_size);
        let start = self.table.geometry().offset(walk.cluster)? + offset % cluster_size;
        let mut end = (offset / cluster_size + 1) * cluster_size;
        for _ in 0..MAX_STEPS {
            if end >= size {
                break;
            }
            let mut next = walk.clone();
            self.step(&mut next)?;
            if next.cluster != walk.cluster + 1 {
                break;
            }
            *walk = next;
            end += cluster_size;
        }
        let length = end.min(size) - offset;
        if start + length > self.table.disk().size() {
            return Err(Error::corrupt("a file lies past the end of the disk"));
        }
        Ok(Extent { offset, length, place: Place::Disk(start) })
    }
}

impl<D: Disk> FileSystem for Fat<D> {
    fn summary(&self) -> Summary {
        let geometry = self.table.geometry();
        Summary {
            kind: "vfat",
            block_size: geometry.cluster_size,
            blocks: u64::from(geometry.clusters),
            free_blocks: u64::from(self.free),
            files: None,
            unclean: self.dirty.then(|| UNCLEAN.to_owned()),
        }
    }

    fn root(&self) -> Id {
        ROOT
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        let raw = if file == ROOT { None } else { Some(self.raw(file)?) };
        let directory = raw.is_none_or(|raw| raw.is_directory());
        let size = match raw {
            Some(raw) if !directory => raw.size()?,
            _ => directory::size(&self.table, self.place(file)?)?,
        };
        let read_only = raw.is_some_and(|raw| raw.is_read_only() && !directory);
        let (mut accessed, mut modified) = (Time::default(), Time::default());
        if let Some(Raw(bytes)) = raw {
            modified = time::unix(le16(&bytes, 24)?, le16(&bytes, 22)?);
            accessed = time::unix(le16(&bytes, 18)?, 0);
        }
        let cluster_size = u64::from(self.table.geometry().cluster_size);
        Ok(Attributes {
            kind: if directory { FileKind::Directory } else { FileKind::File },
            mode: if read_only { 0o555 } else { 0o755 },
            uid: 0,
            gid: 0,
            links: 1,
            size,
            allocated: size.div_ceil(cluster_size) * cluster_size,
            accessed,
            modified,
            // Linux as well has no other: the format knows when a file was made, not when it was changed.
            changed: modified,
            device: (0, 0),
        })
    }

    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        Ok(self.directory(directory)?.find(name).map(|found| Id(found.offset)))
    }

    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        let directory = self.directory(directory)?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for (index, named) in directory.entries.iter().enumerate().skip(from) {
            let kind = if named.raw.is_directory() { FileKind::Directory } else { FileKind::File };
            let next = index as u64 + 1;
            if each(Entry { name: &named.name, id: Id(named.offset), kind: Some(kind), next }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        if directory == ROOT {
            return Ok(ROOT);
        }
        let torn = || Error::corrupt("a directory does not say what it is in, or is not there");
        let parent = self.directory(directory)?.parent.ok_or_else(torn)?;
        if parent == 0 || self.table.geometry().root == Root::Chain(parent) {
            return Ok(ROOT);
        }
        let above = match self.directory_at(Root::Chain(parent))?.parent.ok_or_else(torn)? {
            0 => self.table.geometry().root,
            above => Root::Chain(above),
        };
        for named in &self.directory_at(above)?.entries {
            if named.raw.is_directory() && named.raw.first(&self.table)? == parent {
                return Ok(Id(named.offset));
            }
        }
        Err(torn())
    }

    fn link_target(&self, _file: Id) -> Result<Vec<u8>> {
        Err(Error::new(Kind::WrongKind, "not a symbolic link: FAT has none"))
    }

    fn xattrs(&self, _file: Id) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }

    fn extents(&self, file: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let raw = match file {
            ROOT => None,
            _ => Some(self.raw(file)?).filter(|raw| !raw.is_directory()),
        };
        let raw = raw.ok_or_else(|| Error::new(Kind::WrongKind, "not a regular file"))?;
        let size = raw.size()?;
        let mut pieces = Vec::new();
        if from >= size || limit == 0 {
            return Ok(pieces);
        }
        let first = raw.first(&self.table)?;
        let cluster_size = u64::from(self.table.geometry().cluster_size);
        let mut walk = self.walk_to(first, from / cluster_size)?;
        let mut offset = from;
        loop {
            let piece = self.piece(&mut walk, offset, size)?;
            offset += piece.length;
            pieces.push(piece);
            if offset >= size || pieces.len() >= limit {
                break;
            }
            self.step(&mut walk)?;
        }
        self.keep(first, walk);
        Ok(pieces)
    }
}

const UNCLEAN: &str = "It was mounted and its mark of being in use is set. FAT has no journal: files and directories that \
                       were being written may be cut short, missing or mixed up.";

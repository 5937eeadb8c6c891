//! XFS, versions 4 and 5.
//!
//! ```text
//! Superblock ─▶ log::replay ─▶ Overlay (blocks as the log has them) ─▶ Volume ─▶ inodes ─▶ extents, directories, xattrs
//! ```
//! Written from *XFS Algorithms & Data Structures* and compared with what the kernel mounts. An [`Id`] is an inode's number. The
//! log of version 5 is replayed in memory, so what is seen is what a kernel shows after it mounted a copy. Blocks of version 5 are
//! verified by their checksums, addresses, owners and UUIDs. Work is bounded: walks over extents only go forward, trees have
//! levels that only go down, and lists of blocks that point to the next one have a greatest length.

mod checksum;
mod directory;
mod extents;
mod hashes;
mod inode;
mod log;
mod overlay;
mod superblock;
mod symlink;
mod unfinished;
mod volume;
mod xattrs;

use std::ops::ControlFlow;

use crate::numbers::{be32, index};
use crate::{Attributes, Disk, Entry, Error, Extent, FileKind, FileSystem, Id, Kind, Result, Summary, Xattr};

use log::Replayed;
use overlay::{Overlay, Sectors};
use superblock::{MAX_SECTOR, Superblock};
use unfinished::Unfinished;
use volume::Volume;

/// Most allocation groups whose counters are added up after a replay; with more, those of the superblock are told.
const MAX_COUNTED: u32 = 1024;

/// An XFS that is open.
#[derive(Debug)]
pub struct Xfs<D> {
    volume: Volume<D>,
    summary: Summary,
}

/// Opens an XFS, and replays its log in memory.
///
/// # Errors
/// [`Kind::Unsupported`] for what is not read: unknown features, a log on another disk; [`Kind::Unclean`] if the log cannot be
/// replayed to its end; [`Kind::Corrupt`].
pub fn open<D: Disk>(disk: D) -> Result<Xfs<D>> {
    open_as(disk, true)
}

/// Opens one whose checksums need not be right: a fuzzer would hardly ever get past them.
///
/// # Errors
/// As [`open`].
#[cfg(any(test, feature = "testing"))]
pub fn open_unchecked<D: Disk>(disk: D) -> Result<Xfs<D>> {
    open_as(disk, false)
}

fn open_as<D: Disk>(disk: D, checked: bool) -> Result<Xfs<D>> {
    let size = disk.size();
    let mut superblock = read_superblock(&Overlay::new(&disk, Sectors::new()), size, checked)?;
    let replayed = log::replay(&disk, &superblock, checked)?;
    let is_replayed = replayed.is_some();
    let Replayed { sectors, changes } = replayed.unwrap_or_default();
    let blocks = Overlay::new(disk, sectors);
    if is_replayed {
        // It may have grown. The checksum in a superblock of the log is the one of before.
        superblock = read_superblock(&blocks, size, false)?;
    }
    let mut volume = Volume { blocks, superblock, unfinished: Unfinished::new(), checked };
    volume.lay_over(&changes)?;
    let summary = summary(&volume, is_replayed)?;
    Ok(Xfs { volume, summary })
}

fn read_superblock<D: Disk>(blocks: &Overlay<D>, size: u64, checked: bool) -> Result<Superblock> {
    let mut sectors = vec![0; index(size).min(MAX_SECTOR)];
    blocks.read(0, &mut sectors)?;
    let superblock = Superblock::parse(&sectors, checked)?;
    if superblock.size() > size {
        return Err(Error::corrupt(format!("XFS: it has {} bytes, and its disk {size}", superblock.size())));
    }
    Ok(superblock)
}

fn summary<D: Disk>(volume: &Volume<D>, replayed: bool) -> Result<Summary> {
    let superblock = &volume.superblock;
    let mut free_blocks = superblock.free_blocks;
    let mut inodes = (superblock.inodes_allocated, superblock.inodes_free);
    if replayed && superblock.groups <= MAX_COUNTED {
        // As the kernel does: those of the superblock are only right after an unmount.
        (free_blocks, inodes) = (0, (0, 0));
        for group in 0..u64::from(superblock.groups) {
            let start = group * u64::from(superblock.group_blocks) * u64::from(superblock.block_size);
            let mut header = vec![0; 64];
            volume.read(start + u64::from(superblock.sector_size), &mut header)?;
            // Free blocks, those of the list of free ones, and those of the trees of free ones.
            for at in [52, 48, 60] {
                free_blocks += u64::from(be32(&header, at)?);
            }
            volume.read(start + 2 * u64::from(superblock.sector_size), &mut header)?;
            inodes.0 += u64::from(be32(&header, 16)?);
            inodes.1 += u64::from(be32(&header, 28)?);
        }
    }
    let per_block = superblock.inodes_per_block_log;
    let possible = inodes.0.saturating_add(free_blocks.saturating_mul(1 << per_block));
    let most = match u64::from(superblock.max_inode_percent) {
        0 => possible,
        percent => (superblock.blocks / 100).saturating_mul(percent).saturating_mul(1 << per_block).min(possible),
    };
    let in_use = inodes.0.saturating_sub(inodes.1);
    Ok(Summary {
        kind: "xfs",
        block_size: superblock.block_size,
        blocks: superblock.blocks,
        free_blocks: free_blocks.min(superblock.blocks),
        files: Some((most, most.saturating_sub(in_use))),
        unclean: None,
    })
}

impl<D: Disk> FileSystem for Xfs<D> {
    fn summary(&self) -> Summary {
        self.summary.clone()
    }

    fn root(&self) -> Id {
        Id(self.volume.superblock.root)
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        Ok(self.volume.inode(file.0)?.attributes)
    }

    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        let directory = self.volume.directory(directory.0)?;
        if name == b"." || name == b".." {
            return Ok(None);
        }
        Ok(self.volume.find(&directory, name)?.map(Id))
    }

    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        self.volume.entries(&self.volume.directory(directory.0)?, from, each)
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        let directory = self.volume.directory(directory.0)?;
        let parent = self.volume.find(&directory, b"..")?;
        parent.map(Id).ok_or_else(|| directory.corrupt("it has no parent"))
    }

    fn link_target(&self, file: Id) -> Result<Vec<u8>> {
        self.volume.target(file.0)
    }

    fn xattrs(&self, file: Id) -> Result<Vec<Xattr>> {
        self.volume.extended_attributes(&self.volume.inode(file.0)?)
    }

    fn extents(&self, file: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let inode = self.volume.inode(file.0)?;
        if inode.attributes.kind != FileKind::File {
            return Err(Error::new(Kind::WrongKind, format!("XFS: inode {} is no regular file", file.0)));
        }
        if inode.realtime {
            return Err(Error::unsupported(format!("XFS: inode {}: its data is on a realtime device", file.0)));
        }
        self.volume.pieces(&inode, from, limit)
    }
}

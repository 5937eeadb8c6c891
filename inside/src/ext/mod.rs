//! ext2, ext3 and ext4.
//!
//! ```text
//! Superblock ─▶ journal (replayed: which block is where in it) ─▶ Blocks ─┬▶ groups ─▶ inode ─┬▶ mapping (extent, indirect) ─▶ data
//!                                                                        │                  └▶ directory (htree, hash)
//!                                                                        └▶ xattr (acl)
//! ```
//! Written from the kernel's documentation of the format. What is told is what a kernel would mount: where the journal has to be
//! replayed, every block is looked for in it first ([`blocks::Blocks`]); its bytes stay where they are on the disk. Checksums are
//! checked wherever the file system has them. Files that nobody has a name for any more, which a kernel would delete at that
//! mount, are found by nobody; one that was just being made shorter has its new size, and the times and the `allocated` that it
//! had, where a kernel gives it those of the mount.

mod acl;
mod blocks;
mod checksum;
mod data;
mod directory;
mod extent;
mod features;
mod groups;
mod hash;
mod htree;
mod indirect;
mod inode;
mod journal;
mod mapping;
mod superblock;
mod xattr;

use std::ops::ControlFlow;

use self::blocks::Blocks;
use self::features::{compatible, incompatible};
use self::superblock::{LENGTH, OFFSET, ROOT, Superblock};
use crate::numbers::{in_memory, slice};
use crate::{Attributes, Disk, Entry, Error, Extent, FileKind, FileSystem, Id, Result, Summary, Xattr};

/// A file system whose superblock is known.
struct Volume<D> {
    blocks: Blocks<D>,
    superblock: Superblock,
}

/// ext2, ext3 or ext4 that is open.
pub struct Ext<D> {
    volume: Volume<D>,
    summary: Summary,
}

impl<D> std::fmt::Debug for Ext<D> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Ext").field(&self.summary).finish()
    }
}

/// Opens the file system that begins where `disk` does. If its journal was not brought to an end, that is read as a whole.
///
/// # Errors
/// [`crate::Kind::Corrupt`] if it is none or cannot be right; [`crate::Kind::Unsupported`] for a feature that is not known here;
/// [`crate::Kind::Unclean`] if what is in its journal cannot be brought to an end.
pub fn open<D: Disk>(disk: D) -> Result<Ext<D>> {
    let mut bytes = [0; LENGTH];
    disk.read_at(OFFSET, &mut bytes)?;
    let superblock = Superblock::parse(&bytes)?;
    if superblock.blocks * u64::from(superblock.block_size) > disk.size() {
        return Err(Error::corrupt("the ext4 file system is larger than its disk"));
    }
    let blocks = Blocks::new(disk, superblock.block_size, superblock.blocks);
    let mut volume = Volume { blocks, superblock };
    let mut unclean = Vec::new();
    let features = volume.superblock.features;
    if !features.has_compatible(compatible::HAS_JOURNAL) {
        if !volume.superblock.unmounted {
            unclean.push("it was in use and has no journal, so what was being written may be there in part.");
        }
    } else if features.has(incompatible::RECOVER) {
        let log = journal::replay(&volume)?;
        if log.failed {
            unclean.push("its journal had noted an error.");
        }
        volume.blocks.replay(log.replayed);
        volume.superblock = volume.replayed_superblock()?;
    }
    if volume.superblock.wrong {
        unclean.push("its kernel had found errors in it, and it was not checked since.");
    }
    let (free_blocks, free_files) = groups::free(&volume.blocks, &volume.superblock)?;
    if volume.inode(ROOT.into())?.kind != FileKind::Directory {
        return Err(Error::corrupt("the root of the ext4 file system is no directory"));
    }
    let summary = Summary {
        kind: features.kind(),
        block_size: volume.superblock.block_size,
        blocks: volume.superblock.blocks,
        free_blocks,
        files: Some((volume.superblock.inodes.into(), free_files)),
        unclean: (!unclean.is_empty()).then(|| unclean.join(" ")),
    };
    Ok(Ext { volume, summary })
}

impl<D: Disk> Volume<D> {
    fn block_size(&self) -> usize {
        in_memory(self.superblock.block_size.into()).unwrap_or(usize::MAX)
    }

    /// The superblock as the journal has it.
    fn replayed_superblock(&self) -> Result<Superblock> {
        let size = u64::from(self.superblock.block_size);
        let block = self.blocks.read(OFFSET / size)?;
        let superblock = Superblock::parse(slice(&block, in_memory(OFFSET % size)?, LENGTH)?)?;
        let old = &self.superblock;
        if (superblock.block_size, superblock.blocks) != (old.block_size, old.blocks) {
            return Err(Error::new(
                crate::Kind::Unclean,
                "the ext4 file system was being resized when it was cut off; try again later",
            ));
        }
        Ok(superblock)
    }
}

impl<D: Disk> FileSystem for Ext<D> {
    fn summary(&self) -> Summary {
        self.summary.clone()
    }

    fn root(&self) -> Id {
        Id(ROOT.into())
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        self.volume.inode(file.0)?.attributes(&self.volume.superblock)
    }

    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        let directory = self.volume.directory(directory.0)?;
        if name == b"." || name == b".." {
            return Ok(None);
        }
        Ok(self.volume.lookup(&directory, name)?.map(|inode| Id(inode.into())))
    }

    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        self.volume.list(&self.volume.directory(directory.0)?, from, each)
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        Ok(Id(self.volume.parent(&self.volume.directory(directory.0)?)?.into()))
    }

    fn link_target(&self, file: Id) -> Result<Vec<u8>> {
        self.volume.link_target(&self.volume.inode(file.0)?)
    }

    fn xattrs(&self, file: Id) -> Result<Vec<Xattr>> {
        self.volume.xattrs(&self.volume.inode(file.0)?)
    }

    fn extents(&self, file: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        self.volume.extents(&self.volume.inode(file.0)?, from, limit)
    }
}

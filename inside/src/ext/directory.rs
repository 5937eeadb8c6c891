//! Directories: blocks of names, one after the other, and perhaps a tree of hashes ([`super::htree`]) among them.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::features::incompatible;
use super::inode::{Inode, flags};
use super::superblock::ROOT;
use super::{Volume, data, htree};
use crate::checksum::crc32c;
use crate::numbers::{byte, le16, le32, length, slice};
use crate::{Disk, Entry, Error, FileKind, Id, Kind, Result};

/// Of a name, before it.
const ENTRY: usize = 8;

/// What a block of names ends with if there are checksums.
const TAIL: usize = 12;

/// What checked blocks are marked with, above the seed of their inode's checksums.
const MARK: u64 = 3 << 32;

/// In the inode, the parent is before the names.
const INLINE_NAMES: usize = 4;

/// Most blocks without a name that are read for one.
const BARREN: u32 = 1 << 18;

/// A name, or the place of one.
pub(super) struct Name<'a> {
    /// Where it is in the block.
    pub(super) at: usize,
    /// Where the next one is.
    pub(super) next: usize,
    /// 0: no name is here.
    pub(super) inode: u32,
    kind: u8,
    pub(super) name: &'a [u8],
}

impl<D: Disk> Volume<D> {
    /// Refuses what is no directory whose names can be read.
    pub(super) fn directory(&self, number: u64) -> Result<Inode> {
        let inode = self.inode(number)?;
        if inode.kind != FileKind::Directory {
            return Err(Error::new(Kind::WrongKind, format!("inode {number} is no directory")));
        }
        if !inode.has(flags::INLINE_DATA) && inode.size / u64::from(self.superblock.block_size) > self.superblock.blocks
        {
            return Err(Error::corrupt(format!("directory {number} is larger than the file system")));
        }
        Ok(inode)
    }

    pub(super) fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<u32>> {
        data::refuse_encrypted(directory)?;
        if let htree::Answer::Known(found) = self.lookup_by_hash(directory, name)? {
            return Ok(found);
        }
        let mut found = None;
        self.names(directory, 0, &mut |_, this| {
            if this.name == name {
                found = Some(this.inode);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    pub(super) fn list(
        &self,
        directory: &Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        data::refuse_encrypted(directory)?;
        let told = self.superblock.features.has(incompatible::FILETYPE);
        self.names(directory, from, &mut |start, this| {
            each(Entry {
                name: this.name,
                id: Id(this.inode.into()),
                kind: if told { FileKind::numbered(this.kind & 7) } else { None },
                next: start + length(this.next),
            })
        })
    }

    pub(super) fn parent(&self, directory: &Inode) -> Result<u32> {
        if directory.number == ROOT {
            return Ok(ROOT);
        }
        let wrong = || Error::corrupt(format!("directory {} has no parent", directory.number));
        let parent = if directory.has(flags::INLINE_DATA) {
            le32(directory.map()?, 0)?
        } else {
            let block = self.names_of(directory, 0)?.ok_or_else(wrong)?;
            let dot = self.name_at(directory, &block, 0, block.len())?;
            let dots = self.name_at(directory, &block, dot.next, block.len())?;
            if dots.name == b".." { dots.inode } else { 0 }
        };
        if parent == 0 || parent > self.superblock.inodes { Err(wrong()) } else { Ok(parent) }
    }

    /// All names from `from` on but `.` and `..`, with where their block begins.
    fn names(
        &self,
        directory: &Inode,
        from: u64,
        each: &mut dyn FnMut(u64, &Name<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let from = from.min(i64::MAX.cast_unsigned());
        if directory.has(flags::INLINE_DATA) {
            let bytes = data::inline(directory)?;
            let map = directory.map()?.len();
            for range in [INLINE_NAMES..map, map..bytes.len()] {
                if self.names_in(directory, &bytes, range, (0, from), each)?.is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let block_size = u64::from(self.superblock.block_size);
        let (mut block, blocks) = (from / block_size, directory.size / block_size);
        let mut barren = 0;
        while block < blocks {
            let Some(bytes) = self.names_of(directory, block)? else {
                // Kernels leave no holes in directories, and pass over them.
                block += self.run(directory, block)?.length;
                continue;
            };
            let start = block * block_size;
            let mut some = false;
            let range = 0..self.end_of_names(directory, block, &bytes)?;
            let flow = self.names_in(directory, &bytes, range, (start, from), &mut |start, name| {
                some = true;
                each(start, name)
            })?;
            if flow.is_break() {
                break;
            }
            barren = if some { 0 } else { barren + 1 };
            if barren > BARREN {
                return Err(Error::new(
                    Kind::TooLarge,
                    format!("directory {} has too many blocks without a name", directory.number),
                ));
            }
            block += 1;
        }
        Ok(())
    }

    /// The names in a part of a block that begins at `start` of the directory, from `from` on.
    fn names_in(
        &self,
        directory: &Inode,
        bytes: &[u8],
        range: std::ops::Range<usize>,
        (start, from): (u64, u64),
        each: &mut dyn FnMut(u64, &Name<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut at = range.start;
        while at < range.end {
            let name = self.name_at(directory, bytes, at, range.end)?;
            at = name.next;
            let shown = name.inode != 0 && name.name != b"." && name.name != b"..";
            if shown && start + length(name.at) >= from && each(start, &name).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The name at `at`, which ends at `end` at the latest.
    pub(super) fn name_at<'a>(&self, directory: &Inode, bytes: &'a [u8], at: usize, end: usize) -> Result<Name<'a>> {
        let wrong = || Error::corrupt(format!("a name in directory {} cannot be right", directory.number));
        let inode = le32(bytes, at)?;
        let reach = match (self.superblock.block_size, usize::from(le16(bytes, at + 4)?)) {
            (65536, 0 | 65535) => 65536,
            (_, reach) => reach,
        };
        let name = slice(bytes, at + ENTRY, byte(bytes, at + 6)?.into())?;
        let next = at.checked_add(reach).filter(|next| *next <= end).ok_or_else(wrong)?;
        if reach % 4 != 0 || reach < TAIL || ENTRY + name.len() > reach || inode > self.superblock.inodes {
            return Err(wrong());
        }
        if inode != 0 && (name.is_empty() || name.contains(&b'/') || name.contains(&0)) {
            return Err(wrong());
        }
        Ok(Name { at, next, inode, kind: byte(bytes, at + 7)?, name })
    }

    /// Where names end in a block; at once if it has hashes instead.
    pub(super) fn end_of_names(&self, directory: &Inode, block: u64, bytes: &[u8]) -> Result<usize> {
        let first = self.name_at(directory, bytes, 0, bytes.len())?;
        match directory.has(flags::INDEX) {
            true if block > 0 && first.inode == 0 && first.next == bytes.len() => Ok(0),
            true if block == 0 => Ok(bytes.len()),
            _ if self.superblock.has_checksums() => Ok(bytes.len() - TAIL),
            _ => Ok(bytes.len()),
        }
    }

    /// A block of a directory, whose checksum is right; none for a hole.
    pub(super) fn names_of(&self, directory: &Inode, block: u64) -> Result<Option<Arc<[u8]>>> {
        let Some(at) = self.run(directory, block)?.at else { return Ok(None) };
        if !self.superblock.has_checksums() {
            return self.blocks.read(at).map(Some);
        }
        let check = |bytes: &[u8]| {
            let indexed = directory.has(flags::INDEX);
            let right = match htree::countlimit(bytes).filter(|_| indexed && (block == 0 || is_node(bytes))) {
                Some(start) => htree::is_right(directory.seed, bytes, start)?,
                None => is_right(directory.seed, bytes)?,
            };
            let number = directory.number;
            let wrong = || Error::corrupt(format!("the checksum of block {block} of directory {number} is wrong"));
            if right { Ok(()) } else { Err(wrong()) }
        };
        self.blocks.checked(at, MARK | u64::from(directory.seed), check).map(Some)
    }
}

/// A block of hashes looks like one without names.
fn is_node(bytes: &[u8]) -> bool {
    let reach = le16(bytes, 4).map_or(0, usize::from);
    le32(bytes, 0).is_ok_and(|inode| inode == 0)
        && (reach == bytes.len() || bytes.len() == 65536 && matches!(reach, 0 | 65535))
}

/// The checksum is in the last 12 bytes, which look like no name.
fn is_right(seed: u32, bytes: &[u8]) -> Result<bool> {
    let names = bytes.len().saturating_sub(TAIL);
    let tail = slice(bytes, names, TAIL)?;
    let looks_right = le32(tail, 0)? == 0 && le32(tail, 4)? == 0xde00_000c;
    Ok(looks_right && le32(tail, 8)? == crc32c(seed, slice(bytes, 0, names)?))
}

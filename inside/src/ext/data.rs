//! Where the data of files and symbolic links is.

use super::Volume;
use super::inode::{Inode, flags};
use super::xattr;
use crate::numbers::{in_memory, length};
use crate::{Disk, Error, Extent, FileKind, Kind, Place, Result};

/// Most pieces of a file that are looked at for one answer, beyond those that it has.
const SPARE: usize = 4096;

/// Longest target of a symbolic link, in bytes.
const TARGET: u64 = 4096;

/// A target that is shorter is in the inode.
const FAST: u64 = 60;

impl<D: Disk> Volume<D> {
    pub(super) fn extents(&self, inode: &Inode, from: u64, limit: usize) -> Result<Vec<Extent>> {
        if inode.kind != FileKind::File {
            return Err(Error::new(Kind::WrongKind, format!("inode {} is no regular file", inode.number)));
        }
        refuse_encrypted(inode)?;
        let mut pieces = Pieces { found: Vec::new(), limit };
        if inode.has(flags::INLINE_DATA) {
            let data = inline(inode)?;
            pieces.inline(inode.size, from, &data)?;
            return Ok(pieces.found);
        }
        let block_size = u64::from(self.superblock.block_size);
        let mut offset = from;
        for _ in 0..limit.saturating_add(SPARE) {
            if offset >= inode.size {
                break;
            }
            let (block, within) = (offset / block_size, offset % block_size);
            let run = self.run(inode, block)?;
            let (blocks, place) = match run.at {
                Some(at) => self.settle(at, run.length, within)?,
                None => (run.length, Place::Hole),
            };
            let end = block.saturating_add(blocks).saturating_mul(block_size).min(inode.size);
            if !pieces.push(offset, end, place) {
                break;
            }
            offset = end;
        }
        Ok(pieces.found)
    }

    /// How many of `blocks` on the disk from `at` on are in one place, and where: the journal may have some. The first one counts
    /// from the byte `within` on.
    fn settle(&self, at: u64, blocks: u64, within: u64) -> Result<(u64, Place)> {
        let block_size = u64::from(self.superblock.block_size);
        let on_disk = |block: u64| Place::Disk(block * block_size + within);
        match self.blocks.replayed(at, at + blocks) {
            None => Ok((blocks, on_disk(at))),
            Some((next, _)) if next > at => Ok((next - at, on_disk(at))),
            Some((_, copy)) if !copy.escaped => Ok((1, on_disk(copy.at))),
            Some(_) => {
                let bytes = self.blocks.read(at)?;
                Ok((1, Place::Inline(bytes.iter().skip(in_memory(within)?).copied().collect())))
            }
        }
    }

    pub(super) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != FileKind::Symlink {
            return Err(Error::new(Kind::WrongKind, format!("inode {} is no symbolic link", inode.number)));
        }
        refuse_encrypted(inode)?;
        let wrong = || Error::corrupt(format!("the target of symbolic link {} cannot be right", inode.number));
        if inode.size == 0 || inode.size > TARGET {
            return Err(wrong());
        }
        let size = in_memory(inode.size)?;
        let target = if inode.has(flags::INLINE_DATA) {
            let mut data = inline(inode)?;
            data.truncate(size);
            data
        } else if inode.size < FAST && !self.is_slow(inode)? {
            inode.map()?.get(..size).unwrap_or_default().to_vec()
        } else {
            self.content(inode, size)?
        };
        if target.len() != size || target.contains(&0) { Err(wrong()) } else { Ok(target) }
    }

    /// A short target may be in a block if an old kernel wrote it; it has that block besides the one with attributes.
    fn is_slow(&self, inode: &Inode) -> Result<bool> {
        let attributes = if inode.xattr_block == 0 { 0 } else { self.superblock.block_size * self.superblock.cluster };
        let allocated = inode.attributes(&self.superblock)?.allocated;
        Ok(!self.superblock.features.has(super::features::incompatible::EA_INODE) && allocated > attributes.into())
    }
}

/// What is in the inode of a file or a directory: 60 bytes, and an attribute.
pub(super) fn inline(inode: &Inode) -> Result<Vec<u8>> {
    let mut data = inode.map()?.to_vec();
    data.extend(xattr::inline_data(inode)?);
    Ok(data)
}

pub(super) fn refuse_encrypted(inode: &Inode) -> Result<()> {
    if inode.has(flags::ENCRYPTED) {
        let number = inode.number;
        return Err(Error::unsupported(match inode.kind {
            FileKind::Directory => format!("the names in directory {number} are encrypted"),
            _ => format!("the data of inode {number} is encrypted"),
        }));
    }
    Ok(())
}

struct Pieces {
    found: Vec<Extent>,
    limit: usize,
}

impl Pieces {
    /// Adds what is from `offset` to `end`, unless there are enough.
    fn push(&mut self, offset: u64, end: u64, place: Place) -> bool {
        let length = end - offset;
        if let Some(last) = self.found.last_mut() {
            let one = match (&last.place, &place) {
                (Place::Hole, Place::Hole) => true,
                (Place::Disk(before), Place::Disk(at)) => before.checked_add(last.length) == Some(*at),
                _ => false,
            };
            if one {
                last.length += length;
                return true;
            }
        }
        if self.found.len() >= self.limit {
            return false;
        }
        let mut place = place;
        if let Place::Inline(bytes) = &mut place {
            bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        }
        self.found.push(Extent { offset, length, place });
        true
    }

    /// A file that is in its inode, and zeroes after it where it was made longer.
    fn inline(&mut self, size: u64, from: u64, data: &[u8]) -> Result<()> {
        let end = size.min(length(data.len()));
        if from < end {
            let bytes = data.get(in_memory(from)?..in_memory(end)?).unwrap_or_default();
            self.push(from, end, Place::Inline(bytes.to_vec()));
        }
        if from.max(end) < size {
            self.push(from.max(end), size, Place::Hole);
        }
        Ok(())
    }
}

//! The tree of hashes of a large directory: in which block a name is.

use super::Volume;
use super::features::{compatible, incompatible};
use super::hash::{Method, hash};
use super::inode::{Inode, flags};
use crate::checksum::crc32c;
use crate::numbers::{byte, le16, le32, slice};
use crate::{Disk, Result};

/// Of a hash and its block.
const ENTRY: usize = 8;

/// Where they begin in a block, after what looks like a name, and in the first one, after `.`, `..` and what the tree is.
const IN_NODE: usize = 8;
const IN_ROOT: usize = 32;

/// Most blocks that names of one hash are looked for in.
const MOST: u32 = 1024;

/// What the tree says.
pub(super) enum Answer {
    /// The inode of that name, or that there is none.
    Known(Option<u32>),
    /// Nothing: there is no tree, or none that can be read.
    Unknown,
}

/// A block of the tree on the way to a name.
struct Level {
    block: u64,
    /// The entry that was followed.
    entry: usize,
}

impl<D: Disk> Volume<D> {
    pub(super) fn lookup_by_hash(&self, directory: &Inode, name: &[u8]) -> Result<Answer> {
        let indexed = directory.has(flags::INDEX) && !directory.has(flags::INLINE_DATA | flags::CASEFOLD);
        if !indexed || !self.superblock.features.has_compatible(compatible::DIR_INDEX) {
            return Ok(Answer::Unknown);
        }
        let Some(root) = self.names_of(directory, 0)? else { return Ok(Answer::Unknown) };
        let (version, levels) = (byte(&root, 28)?, byte(&root, 30)?);
        let deepest = if self.superblock.features.has(incompatible::LARGEDIR) { 3 } else { 2 };
        let method = match version % 3 {
            0 => Method::Legacy,
            1 => Method::HalfMd4,
            _ => Method::Tea,
        };
        let unsigned = if version >= 3 { Some(true) } else { self.superblock.unsigned_hash };
        let plain = unsigned.is_some() || name.is_ascii();
        if version > 5 || levels >= deepest || !plain || countlimit(&root) != Some(IN_ROOT) {
            return Ok(Answer::Unknown);
        }
        let wanted = hash(method, unsigned.unwrap_or(false), self.superblock.hash_seed, name);
        let mut path = Vec::new();
        let mut block = 0;
        for _ in 0..=levels {
            let Some(entries) = self.entries(directory, block)? else { return Ok(Answer::Unknown) };
            // The first entry has no hash: it is for all before the second one.
            let entry = entries.partition_point(|(hash, _)| *hash <= wanted).max(1) - 1;
            path.push(Level { block, entry });
            block = entries[entry].1;
        }
        for _ in 0..MOST {
            match self.find_in(directory, block, name)? {
                Answer::Known(None) => {}
                other => return Ok(other),
            }
            // Names of one hash may go on in the next block, whose own hash says so.
            let Some((next, at)) = self.next(directory, &mut path)? else { return Ok(Answer::Known(None)) };
            if next & !1 != wanted {
                return Ok(Answer::Known(None));
            }
            block = at;
        }
        Ok(Answer::Unknown)
    }

    /// The hash and the block that follow on the way; none at the end.
    fn next(&self, directory: &Inode, path: &mut [Level]) -> Result<Option<(u32, u64)>> {
        for depth in (0..path.len()).rev() {
            let level = &mut path[depth];
            let Some(entries) = self.entries(directory, level.block)? else { return Ok(None) };
            let Some((hash, mut block)) = entries.get(level.entry + 1).copied() else { continue };
            level.entry += 1;
            for level in path.iter_mut().skip(depth + 1) {
                let Some(entries) = self.entries(directory, block)? else { return Ok(None) };
                *level = Level { block, entry: 0 };
                block = entries[0].1;
            }
            return Ok(Some((hash, block)));
        }
        Ok(None)
    }

    /// The entries of a block of the tree, in order, the first with hash 0; none if they cannot be right.
    fn entries(&self, directory: &Inode, block: u64) -> Result<Option<Vec<(u32, u64)>>> {
        let blocks = directory.size / u64::from(self.superblock.block_size);
        if block >= blocks {
            return Ok(None);
        }
        let Some(bytes) = self.names_of(directory, block)? else { return Ok(None) };
        let start = if block == 0 { IN_ROOT } else { IN_NODE };
        if countlimit(&bytes) != Some(start) {
            return Ok(None);
        }
        let count = usize::from(le16(&bytes, start + 2)?);
        let mut entries = Vec::with_capacity(count);
        for at in (0..count).map(|index| start + index * ENTRY) {
            let hash = if entries.is_empty() { 0 } else { le32(&bytes, at)? };
            entries.push((hash, u64::from(le32(&bytes, at + 4)? & 0x0fff_ffff)));
        }
        let right = entries.is_sorted_by_key(|(hash, _)| *hash) && !entries.is_empty();
        Ok(right.then_some(entries))
    }

    /// The name in a block of names.
    fn find_in(&self, directory: &Inode, block: u64, name: &[u8]) -> Result<Answer> {
        if block == 0 || block >= directory.size / u64::from(self.superblock.block_size) {
            return Ok(Answer::Unknown);
        }
        let Some(bytes) = self.names_of(directory, block)? else { return Ok(Answer::Unknown) };
        let (mut at, end) = (0, self.end_of_names(directory, block, &bytes)?);
        while at < end {
            let this = self.name_at(directory, &bytes, at, end)?;
            if this.inode != 0 && this.name == name {
                return Ok(Answer::Known(Some(this.inode)));
            }
            at = this.next;
        }
        Ok(Answer::Known(None))
    }
}

/// Where a block has its hashes, if it can be one of the tree. There it has how many fit, and how many are there.
pub(super) fn countlimit(bytes: &[u8]) -> Option<usize> {
    let start = match le16(bytes, 4).ok()? {
        12 if le32(bytes, 24).ok()? == 0 && byte(bytes, 29).ok()? == 8 => IN_ROOT,
        reach if usize::from(reach) == bytes.len() || bytes.len() == 65536 && matches!(reach, 0 | 65535) => IN_NODE,
        _ => return None,
    };
    let (limit, count) = (usize::from(le16(bytes, start).ok()?), usize::from(le16(bytes, start + 2).ok()?));
    (count >= 1 && count <= limit && start + limit * ENTRY <= bytes.len()).then_some(start)
}

/// The checksum is after the last entry that fits, and of what is there.
pub(super) fn is_right(seed: u32, bytes: &[u8], start: usize) -> Result<bool> {
    let (limit, count) = (usize::from(le16(bytes, start)?), usize::from(le16(bytes, start + 2)?));
    let tail = slice(bytes, start + limit * ENTRY, ENTRY)?;
    let sum = crc32c(crc32c(seed, slice(bytes, 0, start + count * ENTRY)?), slice(tail, 0, 4)?);
    Ok(le32(tail, 4)? == crc32c(sum, &[0; 4]))
}

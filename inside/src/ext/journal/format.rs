//! What blocks of the journal are. Its numbers are big-endian.

use super::{Error, Kind, Result, be16, be32, be64};
use crate::checksum::crc32c;
use crate::ext::blocks::JOURNAL_MAGIC;
use crate::numbers::slice;

/// Of a block's magic, kind and transaction.
pub(super) const HEADER: usize = 12;

/// Of the superblock.
const LENGTH: usize = 1024;

/// Features of the superblock.
mod features {
    pub(super) const SUMS_OF_TRANSACTIONS: u32 = 0x1;
    pub(super) const REVOKE: u32 = 0x1;
    pub(super) const WIDE: u32 = 0x2;
    pub(super) const ASYNC_COMMIT: u32 = 0x4;
    pub(super) const SUMS_2: u32 = 0x8;
    pub(super) const SUMS_3: u32 = 0x10;
    pub(super) const SUMS: u32 = SUMS_2 | SUMS_3;
    pub(super) const FAST_COMMIT: u32 = 0x20;
}

/// Blocks for fast commits where the superblock does not say.
const FAST_BLOCKS: u32 = 256;

/// Fewest blocks that must be left for others.
const FEWEST: u32 = 1024;

/// Checksums of blocks of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    None,
    /// Of a transaction, in its commit block.
    Transactions,
    /// Of each block; 16 bits of that of a copy.
    Short,
    /// Of each block.
    Long,
}

impl Sums {
    pub(super) fn are_of_blocks(self) -> bool {
        matches!(self, Self::Short | Self::Long)
    }
}

/// What the superblock of the journal says.
pub(super) struct Head {
    /// Of the journal, in blocks.
    pub(super) length: u32,
    /// The first block of the log, and the one after its last.
    pub(super) first: u32,
    pub(super) end: u32,
    /// Where to begin; 0 if there is nothing.
    pub(super) start: u32,
    /// The transaction there.
    pub(super) sequence: u32,
    pub(super) failed: bool,
    pub(super) wide: bool,
    pub(super) sums: Sums,
    pub(super) async_commit: bool,
    /// The first block for fast commits.
    pub(super) fast_commits: Option<u32>,
    pub(super) seed: u32,
}

impl Head {
    /// `blocks` is what its file has.
    pub(super) fn parse(block: &[u8], block_size: u32, blocks: u64) -> Result<Self> {
        let wrong = || Error::corrupt("the superblock of the journal cannot be right");
        let bytes = slice(block, 0, LENGTH)?;
        let version = be32(bytes, 4)?;
        if slice(bytes, 0, 4)? != JOURNAL_MAGIC || !matches!(version, 3 | 4) {
            return Err(wrong());
        }
        let feature = |at| if version == 4 { be32(bytes, at) } else { Ok(0) };
        let (compatible, incompatible) = (feature(0x24)?, feature(0x28)?);
        let known = features::REVOKE | features::WIDE | features::ASYNC_COMMIT | features::SUMS | features::FAST_COMMIT;
        if incompatible & !known != 0 || feature(0x2c)? != 0 {
            return Err(Error::new(Kind::Unsupported, "the journal has a feature that is not known here"));
        }
        let sums = match (compatible & features::SUMS_OF_TRANSACTIONS, incompatible & features::SUMS) {
            (0, 0) => Sums::None,
            (0, features::SUMS_2) => Sums::Short,
            (0, features::SUMS_3) => Sums::Long,
            (_, 0) => Sums::Transactions,
            _ => return Err(wrong()),
        };
        if sums.are_of_blocks() {
            let before = crc32c(!0, slice(bytes, 0, 0xfc)?);
            let sum = crc32c(crc32c(before, &[0; 4]), slice(bytes, 0x100, LENGTH - 0x100)?);
            if slice(bytes, 0x50, 1)? != [4] || sum != be32(bytes, 0xfc)? {
                return Err(Error::corrupt("the checksum of the journal's superblock is wrong"));
            }
        }
        let (length, first, start) = (be32(bytes, 0x10)?, be32(bytes, 0x14)?, be32(bytes, 0x1c)?);
        let mut head = Self {
            length,
            first,
            end: length,
            start,
            sequence: be32(bytes, 0x18)?,
            failed: be32(bytes, 0x20)? != 0,
            wide: incompatible & features::WIDE != 0,
            sums,
            async_commit: incompatible & features::ASYNC_COMMIT != 0,
            fast_commits: None,
            seed: crc32c(!0, slice(bytes, 0x30, 16)?),
        };
        if incompatible & features::FAST_COMMIT != 0 {
            let told = be32(bytes, 0x54)?;
            let fast = if told == 0 { FAST_BLOCKS } else { told };
            head.end = length.checked_sub(fast).filter(|end| *end >= FEWEST).unwrap_or(length);
            head.fast_commits = Some(head.end.saturating_add(1)).filter(|first| *first < length);
        }
        let right = be32(bytes, 0xc)? == block_size && u64::from(length) <= blocks;
        if !right || first == 0 || first >= head.end || (start != 0 && (start < first || start >= head.end)) {
            return Err(wrong());
        }
        Ok(head)
    }

    fn tag_length(&self) -> usize {
        match (self.sums, self.wide) {
            (Sums::Long, _) => 16,
            (Sums::Short, true) => 14,
            (Sums::Short, false) => 10,
            (Sums::None | Sums::Transactions, true) => 12,
            (Sums::None | Sums::Transactions, false) => 8,
        }
    }
}

/// What a block of the journal is that is no copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Says which blocks those after it are copies of.
    Descriptor,
    Commit,
    Revoke,
}

/// What a block is, if it is of that transaction.
pub(super) fn kind(block: &[u8], transaction: u32) -> Result<Option<BlockKind>> {
    if slice(block, 0, 4)? != JOURNAL_MAGIC || be32(block, 8)? != transaction {
        return Ok(None);
    }
    Ok(match be32(block, 4)? {
        1 => Some(BlockKind::Descriptor),
        2 => Some(BlockKind::Commit),
        5 => Some(BlockKind::Revoke),
        _ => None,
    })
}

/// What a copy is of.
pub(super) struct Tag {
    pub(super) block: u64,
    pub(super) escaped: bool,
    pub(super) sum: u32,
}

/// The tags of a descriptor block.
pub(super) fn tags(head: &Head, block: &[u8]) -> Result<Vec<Tag>> {
    const ESCAPED: u16 = 1;
    const SAME_UUID: u16 = 2;
    const LAST: u16 = 8;
    let length = head.tag_length();
    let end = block.len() - if head.sums.are_of_blocks() { 4 } else { 0 };
    let (mut tags, mut at) = (Vec::new(), HEADER);
    while at + length <= end {
        let flags = be16(block, at + 6)?;
        let high = if head.wide { be32(block, at + 8)? } else { 0 };
        let sum = match head.sums {
            Sums::None | Sums::Transactions => 0,
            Sums::Short => be16(block, at + 4)?.into(),
            Sums::Long => be32(block, at + 12)?,
        };
        let number = u64::from(be32(block, at)?) | u64::from(high) << 32;
        tags.push(Tag { block: number, escaped: flags & ESCAPED != 0, sum });
        at += length + if flags & SAME_UUID == 0 { 16 } else { 0 };
        if flags & LAST != 0 {
            break;
        }
    }
    Ok(tags)
}

/// The numbers in a block of revoked ones.
pub(super) fn revoked(head: &Head, block: &[u8], mut each: impl FnMut(u64)) -> Result<()> {
    let used = usize::try_from(be32(block, HEADER)?).unwrap_or(usize::MAX);
    if used > block.len() {
        return Err(Error::corrupt("a block of the journal is too long"));
    }
    let length = if head.wide { 8 } else { 4 };
    let mut at = HEADER + 4;
    while at + length <= used {
        each(if head.wide { be64(block, at)? } else { be32(block, at)?.into() });
        at += length;
    }
    Ok(())
}

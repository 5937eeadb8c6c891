//! Checksums of the journal: of its own blocks, of copies, and in old ones of whole transactions.

use super::format::{Head, Sums, Tag};
use super::{Result, be32, be64, damaged};
use crate::checksum::crc32c;
use crate::numbers::slice;

/// Of a commit block, what is not zeroes.
const COMMIT: usize = 64;

/// Where a commit block has its checksum.
const SUM: usize = 16;

/// How to check the blocks of a journal.
pub(super) struct Checks {
    sums: Sums,
    seed: u32,
}

/// What has been found on the way through the journal.
pub(super) struct Found {
    /// A block had a wrong checksum: a damaged one, or one of an older journal in the same place.
    pub(super) doubtful: bool,
    /// Checksum of the transaction so far.
    pub(super) sum: u32,
    /// Of the last commit.
    time: u64,
    /// The first transaction that is not whole although more comes.
    pub(super) end: Option<u32>,
}

impl Default for Found {
    fn default() -> Self {
        Self { doubtful: false, sum: !0, time: 0, end: None }
    }
}

impl Checks {
    pub(super) fn new(head: &Head) -> Self {
        Self { sums: head.sums, seed: head.seed }
    }

    pub(super) fn has_sums(&self) -> bool {
        self.sums.are_of_blocks()
    }

    /// A descriptor block or one of revoked numbers, with its checksum in the last 4 bytes.
    pub(super) fn is_right(&self, block: &[u8]) -> Result<bool> {
        if !self.has_sums() {
            return Ok(true);
        }
        let end = block.len() - 4;
        Ok(crc32c(crc32c(self.seed, slice(block, 0, end)?), &[0; 4]) == be32(block, end)?)
    }

    pub(super) fn is_copy_right(&self, tag: &Tag, transaction: u32, copy: &[u8]) -> bool {
        let sum = crc32c(crc32c(self.seed, &transaction.to_be_bytes()), copy);
        tag.sum == if self.sums == Sums::Short { sum & 0xffff } else { sum }
    }

    /// A commit block: whether to go on after it.
    pub(super) fn commit(&self, head: &Head, block: &[u8], transaction: u32, found: &mut Found) -> Result<bool> {
        let time = be64(block, 48)?;
        if found.doubtful {
            // An older journal's blocks are older.
            return if time >= found.time { Err(damaged(transaction)) } else { Ok(false) };
        }
        let mut right = !self.has_sums() || self.is_commit_right(block)?;
        if self.sums == Sums::Transactions {
            if found.end.is_some() {
                return Err(damaged(transaction));
            }
            right = (slice(block, 12, 2)? == [1, 4] && be32(block, SUM)? == found.sum)
                || (slice(block, 12, 2)? == [0, 0] && be32(block, SUM)? == 0);
            found.sum = !0;
        }
        if !right {
            if time < found.time {
                return Ok(false);
            }
            if !head.async_commit {
                return Err(damaged(transaction));
            }
            found.end = found.end.or(Some(transaction));
        }
        found.time = time;
        Ok(true)
    }

    /// Of all of the block, or, where only its first sector had been written, of that and zeroes.
    fn is_commit_right(&self, block: &[u8]) -> Result<bool> {
        let told = be32(block, SUM)?;
        let start = crc32c(crc32c(self.seed, slice(block, 0, SUM)?), &[0; 4]);
        let head = crc32c(start, slice(block, SUM + 4, COMMIT - SUM - 4)?);
        let rest = block.get(COMMIT..).unwrap_or_default();
        Ok(crc32c(head, rest) == told || crc32c(head, &vec![0; rest.len()]) == told)
    }
}

//! The journal (jbd2), replayed as a kernel does it when it mounts: not written anywhere, but known by which of its blocks
//! are copies of which.
//!
//! ```text
//! scan: up to which transaction is it whole ─▶ revoked: which copies are of no use ─▶ copies: block ─▶ where it is now
//! ```
//! As for the kernel, a transaction without its commit block ends the journal, and one with a commit block but a wrong checksum
//! makes it unusable.

mod checks;
mod format;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::checks::{Checks, Found};
use self::format::{BlockKind, Head, Sums, Tag};
use super::Volume;
use super::blocks::{Blocks, Copy, Replayed};
use super::checksum::crc32_be;
use super::mapping::Run;
use crate::numbers::{be16, be32, be64, le16, le32};
use crate::{Disk, Error, FileKind, Kind, Result};

/// Most pieces that the journal is in.
const PIECES: usize = 1 << 16;

/// Most blocks that are in it, and most that are revoked: some 100 MiB of memory.
const MOST: usize = 1 << 21;

/// What a journal's replay comes to.
pub(super) struct Log {
    pub(super) replayed: Replayed,
    /// It has noted an error of the file system.
    pub(super) failed: bool,
}

/// What the journal has to say about the blocks of the file system.
pub(super) fn replay<D: Disk>(volume: &Volume<D>) -> Result<Log> {
    let journal = Journal::open(volume)?;
    let mut log = Log { replayed: Replayed::new(), failed: journal.head.failed };
    if journal.head.start != 0 {
        let end = journal.scan()?;
        journal.refuse_fast_commits(end)?;
        let revoked = journal.revoked(end)?;
        log.replayed = journal.copies(end, &revoked)?;
    }
    Ok(log)
}

struct Journal<'a, D> {
    blocks: &'a Blocks<D>,
    /// Of the file system.
    count: u64,
    head: Head,
    checks: Checks,
    /// Where the journal is on the disk, by its own first blocks.
    runs: BTreeMap<u64, Run>,
}

/// What to go on with after a block of the journal.
enum Step {
    /// Blocks to pass over.
    Pass(u32),
    /// A transaction is at its end.
    Next,
}

impl<'a, D: Disk> Journal<'a, D> {
    fn open(volume: &'a Volume<D>) -> Result<Self> {
        let superblock = &volume.superblock;
        if superblock.journal_inode == 0 {
            let text = match superblock.journal_device {
                0 => "the ext4 file system was in use, and has no journal where it says it has one",
                _ => "the ext4 file system was in use, and its journal is on another device",
            };
            return Err(unclean(text));
        }
        let inode = volume.special_inode(superblock.journal_inode)?;
        if inode.kind != FileKind::File {
            return Err(Error::corrupt("the journal of the ext4 file system is no regular file"));
        }
        let blocks = inode.size / u64::from(superblock.block_size);
        let (mut runs, mut block) = (BTreeMap::new(), 0);
        while block < blocks {
            let run = volume.run(&inode, block)?;
            if run.at.is_none() || runs.len() >= PIECES {
                return Err(Error::corrupt("the journal of the ext4 file system has holes, or is in too many pieces"));
            }
            runs.insert(block, run);
            block += run.length;
        }
        let first = runs.get(&0).and_then(|run| run.at).ok_or_else(|| Error::corrupt("the journal is empty"))?;
        let head = Head::parse(&volume.blocks.read(first)?, superblock.block_size, blocks)?;
        let checks = Checks::new(&head);
        Ok(Self { blocks: &volume.blocks, count: superblock.blocks, head, checks, runs })
    }

    /// Where a block of the journal is on the disk.
    fn place(&self, block: u32) -> Result<u64> {
        let block = u64::from(block);
        let run = self.runs.range(..=block).next_back().and_then(|(first, run)| {
            let within = block - first;
            run.at.filter(|_| within < run.length).map(|at| at + within)
        });
        run.ok_or_else(|| Error::corrupt("the journal is shorter than it says"))
    }

    fn read(&self, block: u32) -> Result<Arc<[u8]>> {
        self.blocks.read(self.place(block)?)
    }

    /// The block `count` blocks after, round the end of the journal.
    fn after(&self, block: u32, count: u32) -> u32 {
        let after = u64::from(block) + u64::from(count);
        let (first, end) = (u64::from(self.head.first), u64::from(self.head.end));
        let after = if after >= end { first + (after - end) % (end - first) } else { after };
        u32::try_from(after).unwrap_or(self.head.first)
    }

    /// Walks from the first block on, through the blocks that are no copies. `each` gets a block, where the one after it is, the
    /// transaction, and says how to go on; nothing at the end.
    fn walk(&self, mut each: impl FnMut(BlockKind, &[u8], u32, u32) -> Result<Option<Step>>) -> Result<u32> {
        let (mut at, mut transaction) = (self.head.start, self.head.sequence);
        // What comes around again is no journal.
        for _ in 0..=self.head.length {
            let block = self.read(at)?;
            let Some(kind) = format::kind(&block, transaction)? else { return Ok(transaction) };
            at = self.after(at, 1);
            match each(kind, &block, at, transaction)? {
                Some(Step::Pass(count)) => at = self.after(at, count),
                Some(Step::Next) => transaction = transaction.wrapping_add(1),
                None => return Ok(transaction),
            }
        }
        Err(Error::corrupt("the journal of the ext4 file system has no end"))
    }

    /// The first transaction that is not whole.
    fn scan(&self) -> Result<u32> {
        let mut found = Found::default();
        let end = self.walk(|kind, block, at, transaction| match kind {
            BlockKind::Descriptor => {
                let tags = format::tags(&self.head, block)?;
                if !self.checks.is_right(block)? {
                    found.doubtful = true;
                } else if self.head.sums == Sums::Transactions && !found.doubtful && found.end.is_none() {
                    found.sum = crc32_be(found.sum, block);
                    for index in 0..tags.len() {
                        let index = u32::try_from(index).unwrap_or(u32::MAX);
                        found.sum = crc32_be(found.sum, &self.read(self.after(at, index))?);
                    }
                }
                Ok(Some(Step::Pass(u32::try_from(tags.len()).unwrap_or(u32::MAX))))
            }
            BlockKind::Revoke => {
                found.doubtful |= !self.checks.is_right(block)?;
                Ok(Some(Step::Pass(0)))
            }
            BlockKind::Commit => {
                Ok(self.checks.commit(&self.head, block, transaction, &mut found)?.then_some(Step::Next))
            }
        })?;
        Ok(found.end.unwrap_or(end))
    }

    /// Which blocks must not be replayed from which transactions: all up to this one.
    fn revoked(&self, end: u32) -> Result<BTreeMap<u64, u32>> {
        let mut revoked = BTreeMap::new();
        self.walk(|kind, block, _, transaction| {
            if transaction == end {
                return Ok(None);
            }
            Ok(Some(match kind {
                BlockKind::Descriptor => {
                    Step::Pass(u32::try_from(format::tags(&self.head, block)?.len()).unwrap_or(u32::MAX))
                }
                BlockKind::Commit => Step::Next,
                BlockKind::Revoke => {
                    format::revoked(&self.head, block, |number| {
                        // Transactions are walked through in order, so the last one stays.
                        revoked.insert(number, transaction);
                    })?;
                    if revoked.len() > MOST {
                        return Err(Error::new(Kind::TooLarge, "the journal revokes more blocks than are taken here"));
                    }
                    Step::Pass(0)
                }
            }))
        })?;
        Ok(revoked)
    }

    /// Where the newest copy of each block is.
    fn copies(&self, end: u32, revoked: &BTreeMap<u64, u32>) -> Result<Replayed> {
        let mut copies = Replayed::new();
        self.walk(|kind, block, at, transaction| {
            if transaction == end {
                return Ok(None);
            }
            if kind != BlockKind::Descriptor {
                return Ok(Some(if kind == BlockKind::Commit { Step::Next } else { Step::Pass(0) }));
            }
            if !self.checks.is_right(block)? {
                return Err(damaged(transaction));
            }
            let tags = format::tags(&self.head, block)?;
            let count = u32::try_from(tags.len()).unwrap_or(u32::MAX);
            for (index, tag) in (0..).zip(&tags) {
                let place = self.after(at, index);
                // Before or in the transaction that revoked it.
                let void = revoked.get(&tag.block).is_some_and(|by| by.wrapping_sub(transaction) < 1 << 31);
                if !void {
                    self.copy(tag, place, transaction, &mut copies)?;
                }
            }
            Ok(Some(Step::Pass(count)))
        })?;
        Ok(copies)
    }

    fn copy(&self, tag: &Tag, place: u32, transaction: u32, copies: &mut Replayed) -> Result<()> {
        if tag.block >= self.count {
            return Err(damaged(transaction));
        }
        if self.checks.has_sums() && !self.checks.is_copy_right(tag, transaction, &self.read(place)?) {
            return Err(damaged(transaction));
        }
        copies.insert(tag.block, Copy { at: self.place(place)?, escaped: tag.escaped });
        if copies.len() > MOST {
            return Err(Error::new(Kind::TooLarge, "the journal has more blocks than are taken here"));
        }
        Ok(())
    }

    /// Fast commits tell of changes of names and extents, not of blocks. They are not replayed, and without them this would be
    /// an older state.
    fn refuse_fast_commits(&self, end: u32) -> Result<()> {
        const HEAD: u16 = 9;
        let Some(first) = self.head.fast_commits else { return Ok(()) };
        let block = self.read(first)?;
        if le16(&block, 0)? == HEAD && le32(&block, 8)? == end {
            return Err(unclean("the journal ends with fast commits, which are not replayed here"));
        }
        Ok(())
    }
}

fn unclean(text: &str) -> Error {
    Error::new(Kind::Unclean, text)
}

/// A transaction that was brought to its end, and is not as it was.
fn damaged(transaction: u32) -> Error {
    unclean(&format!("transaction {transaction} of the journal is damaged"))
}

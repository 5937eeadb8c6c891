//! Blocks of the file system as they are once its journal is replayed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::numbers::in_memory;
use crate::{Disk, Error, Result};

/// Most blocks that are kept.
const KEPT: usize = 64;

/// What a journal's blocks begin with; a copy of a block that begins so has zeroes there.
pub(super) const JOURNAL_MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// Where the journal has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) at: u64,
    /// Its first four bytes are [`JOURNAL_MAGIC`], and not what is there.
    pub(super) escaped: bool,
}

/// What the journal has for which blocks.
pub(super) type Replayed = BTreeMap<u64, Copy>;

struct Kept {
    block: u64,
    bytes: Arc<[u8]>,
    /// As what it was found right.
    mark: Option<u64>,
}

/// The blocks, some of them in memory.
pub(super) struct Blocks<D> {
    disk: D,
    /// Of one, in bytes.
    size: u32,
    count: u64,
    replayed: Replayed,
    /// The last one used is the last.
    kept: RefCell<Vec<Kept>>,
}

impl<D: Disk> Blocks<D> {
    pub(super) fn new(disk: D, size: u32, count: u64) -> Self {
        Self { disk, size, count, replayed: Replayed::new(), kept: RefCell::default() }
    }

    /// From now on, with what the journal has.
    pub(super) fn replay(&mut self, replayed: Replayed) {
        self.replayed = replayed;
        self.kept.get_mut().clear();
    }

    /// The first block at or after `block`, before `end`, that is in the journal.
    pub(super) fn replayed(&self, block: u64, end: u64) -> Option<(u64, Copy)> {
        self.replayed.range(block..end.max(block)).next().map(|(block, copy)| (*block, *copy))
    }

    /// A block.
    pub(super) fn read(&self, block: u64) -> Result<Arc<[u8]>> {
        self.find(block, None, |_| Ok(()))
    }

    /// A block that `check` has found right, now or when `mark` was told before.
    pub(super) fn checked(&self, block: u64, mark: u64, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<Arc<[u8]>> {
        self.find(block, Some(mark), check)
    }

    fn find(&self, block: u64, mark: Option<u64>, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<Arc<[u8]>> {
        let mut kept = self.kept.borrow_mut();
        let mut found = match kept.iter().position(|kept| kept.block == block) {
            Some(at) => kept.remove(at),
            None => Kept { block, bytes: self.load(block)?, mark: None },
        };
        let result = if mark.is_none() || found.mark == mark { Ok(()) } else { check(&found.bytes) };
        if result.is_ok() && mark.is_some() {
            found.mark = mark;
        }
        let bytes = Arc::clone(&found.bytes);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push(found);
        result.map(|()| bytes)
    }

    fn load(&self, block: u64) -> Result<Arc<[u8]>> {
        let copy = self.replayed.get(&block).copied().unwrap_or(Copy { at: block, escaped: false });
        if block >= self.count || copy.at >= self.count {
            return Err(Error::corrupt(format!("block {block} is past the end of the file system")));
        }
        let mut bytes = vec![0; in_memory(self.size.into())?];
        self.disk.read_at(copy.at.saturating_mul(self.size.into()), &mut bytes)?;
        if let (true, Some(start)) = (copy.escaped, bytes.first_chunk_mut()) {
            *start = JOURNAL_MAGIC;
        }
        Ok(bytes.into())
    }
}

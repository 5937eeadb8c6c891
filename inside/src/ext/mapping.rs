//! Where blocks of a file are.

use std::sync::Arc;

use super::Volume;
use super::inode::{Inode, flags};
use super::{extent, indirect};
use crate::{Disk, Error, Result};

/// Blocks of a file that are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// How many, at least 1.
    pub(super) length: u64,
    /// The first one on the disk; none if they read as zeroes.
    pub(super) at: Option<u64>,
}

impl<D: Disk> Volume<D> {
    /// What is from that block of the file on.
    pub(super) fn run(&self, inode: &Inode, block: u64) -> Result<Run> {
        let extents = inode.has(flags::EXTENTS);
        let run = if extents { extent::run(self, inode, block)? } else { indirect::run(self, inode, block)? };
        if let Some(at) = run.at.filter(|at| !self.superblock.holds(*at, run.length)) {
            let number = inode.number;
            return Err(Error::corrupt(format!("block {at} of inode {number} is outside of the file system")));
        }
        Ok(run)
    }

    /// A block of a file; none if it reads as zeroes.
    pub(super) fn block_of(&self, inode: &Inode, block: u64) -> Result<Option<Arc<[u8]>>> {
        self.run(inode, block)?.at.map(|at| self.blocks.read(at)).transpose()
    }

    /// The first `size` bytes of a file, which are bounded by who asks.
    pub(super) fn content(&self, inode: &Inode, size: usize) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(size);
        for block in 0.. {
            let missing = size - content.len();
            if missing == 0 {
                break;
            }
            match self.block_of(inode, block)? {
                Some(bytes) => content.extend(bytes.iter().take(missing)),
                None => content.resize(content.len() + missing.min(self.block_size()), 0),
            }
        }
        Ok(content)
    }
}

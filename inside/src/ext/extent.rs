//! The tree of extents of a file.

use std::ops::Range;
use std::sync::Arc;

use super::Volume;
use super::inode::Inode;
use super::mapping::Run;
use crate::checksum::crc32c;
use crate::numbers::{le16, le32};
use crate::{Disk, Error, Result};

/// Of a node's header, and of each entry.
const SIZE: usize = 12;

/// The deepest tree that 2³² blocks can need.
const DEEPEST: u16 = 5;

/// Files have no more blocks than this.
const BLOCKS: u64 = 1 << 32;

/// Extents that are longer were never written, and are by this much shorter.
const LONGEST: u16 = 32768;

/// What checked blocks are marked with, above the seed of their inode's checksums.
const MARK: u64 = 1 << 32;

/// A node, and which blocks of the file it tells of.
struct Node {
    bytes: Arc<[u8]>,
    entries: usize,
    depth: u16,
    range: Range<u64>,
}

/// What is from that block of the file on.
pub(super) fn run<D: Disk>(volume: &Volume<D>, inode: &Inode, block: u64) -> Result<Run> {
    let root = inode.map()?.into();
    let mut node = Node::parse(root, 0..BLOCKS).filter(|node| node.depth <= DEEPEST && block < BLOCKS);
    loop {
        let this = node.ok_or_else(|| wrong(inode))?;
        let before = this.entries_up_to(block);
        let Some(last) = before.checked_sub(1) else {
            // Nothing is told before the first entry, and the next node begins after the last one.
            let next = if this.entries > 0 { this.first(0) } else { Some(this.range.end) };
            let end = next.filter(|end| *end > block && *end <= this.range.end).ok_or_else(|| wrong(inode))?;
            return Ok(Run { length: end - block, at: None });
        };
        let start = this.first(last).filter(|start| this.range.contains(start));
        let next = if before < this.entries { this.first(before) } else { Some(this.range.end) };
        let range = start.zip(next).filter(|(start, next)| start < next && *next <= this.range.end);
        let (start, next) = range.ok_or_else(|| wrong(inode))?;
        if this.depth == 0 {
            return this.extent(last, block, start..next).ok_or_else(|| wrong(inode));
        }
        let at = this.child(last).ok_or_else(|| wrong(inode))?;
        let child = Node::parse(read(volume, inode, at)?, start..next);
        node = child.filter(|child| child.depth + 1 == this.depth && child.entries > 0);
    }
}

impl Node {
    fn parse(bytes: Arc<[u8]>, range: Range<u64>) -> Option<Self> {
        let magic = le16(&bytes, 0).ok()?;
        let (entries, most) = (le16(&bytes, 2).ok()?, le16(&bytes, 4).ok()?);
        let depth = le16(&bytes, 6).ok()?;
        let fits = (usize::from(most) + 1) * SIZE <= bytes.len();
        let right = magic == 0xf30a && entries <= most && fits;
        right.then_some(Self { bytes, entries: entries.into(), depth, range })
    }

    /// The first block of the file that an entry is about.
    fn first(&self, entry: usize) -> Option<u64> {
        le32(&self.bytes, SIZE + entry * SIZE).ok().map(u64::from)
    }

    /// How many entries begin at or before that block, if they are in order.
    fn entries_up_to(&self, block: u64) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.first(middle) {
                Some(first) if first <= block => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// The node below an entry.
    fn child(&self, entry: usize) -> Option<u64> {
        let at = SIZE + entry * SIZE;
        let low = u64::from(le32(&self.bytes, at + 4).ok()?);
        Some(low | u64::from(le16(&self.bytes, at + 8).ok()?) << 32)
    }

    /// What an entry of a leaf says of the blocks from `block` on; `range` goes to the next entry.
    fn extent(&self, entry: usize, block: u64, range: Range<u64>) -> Option<Run> {
        let at = SIZE + entry * SIZE;
        let told = le16(&self.bytes, at + 4).ok()?;
        let (length, written) = if told > LONGEST { (told - LONGEST, false) } else { (told, true) };
        let end = range.start + u64::from(length);
        if length == 0 || end > range.end {
            return None;
        }
        if block >= end {
            return Some(Run { length: range.end - block, at: None });
        }
        let high = u64::from(le16(&self.bytes, at + 6).ok()?);
        let start = u64::from(le32(&self.bytes, at + 8).ok()?) | high << 32;
        Some(Run { length: end - block, at: written.then_some(start + (block - range.start)) })
    }
}

fn read<D: Disk>(volume: &Volume<D>, inode: &Inode, at: u64) -> Result<Arc<[u8]>> {
    if !volume.superblock.holds(at, 1) {
        return Err(wrong(inode));
    }
    if !volume.superblock.has_checksums() {
        return volume.blocks.read(at);
    }
    volume.blocks.checked(at, MARK | u64::from(inode.seed), |bytes| {
        let end = (usize::from(le16(bytes, 4)?) + 1) * SIZE;
        let summed = bytes.get(..end).ok_or_else(|| wrong(inode))?;
        if le32(bytes, end)? != crc32c(inode.seed, summed) {
            let inode = inode.number;
            return Err(Error::corrupt(format!("the checksum of block {at}, extents of inode {inode}, is wrong")));
        }
        Ok(())
    })
}

fn wrong(inode: &Inode) -> Error {
    Error::corrupt(format!("the tree of extents of inode {} cannot be right", inode.number))
}

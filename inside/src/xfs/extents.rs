//! Which blocks a fork has: a list in the inode, or a tree.

use std::ops::ControlFlow;

use crate::{Disk, Error, Extent, Place, Result};

use super::inode::{Fork, Format, Inode};
use super::superblock::Superblock;
use super::volume::{Seal, Volume};
use crate::numbers::{be16, be64, index, slice};

/// More levels than a tree of the smallest blocks has for the largest file.
const MAX_LEVELS: u16 = 12;

const RECORD: usize = 16;

/// A piece of a fork, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Where it begins in the fork.
    pub(super) offset: u64,
    pub(super) count: u64,
    /// Where it is in the file system.
    pub(super) block: u64,
    /// Allocated and never written: reads as zeroes.
    pub(super) unwritten: bool,
}

impl Mapping {
    fn parse(record: &[u8]) -> Result<Self> {
        let (high, low) = (be64(record, 0)?, be64(record, 8)?);
        Ok(Self {
            offset: (high & !(1 << 63)) >> 9,
            count: low & 0x1f_ffff,
            block: (high & 0x1ff) << 43 | low >> 21,
            unwritten: high >> 63 == 1,
        })
    }

    pub(super) fn end(&self) -> u64 {
        // 54 bits and 21 bits.
        self.offset + self.count
    }
}

type Each<'a> = &'a mut dyn FnMut(Mapping) -> Result<ControlFlow<()>>;

/// A walk over the mappings of a fork in their order.
struct Walk<'a> {
    owner: u64,
    from: u64,
    /// Where the last one ended: nothing is seen twice, however the blocks point at each other.
    end: u64,
    each: Each<'a>,
}

impl Walk<'_> {
    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!("XFS: inode {}: its extents: {what}", self.owner))
    }

    fn records(&mut self, records: &[u8]) -> Result<ControlFlow<()>> {
        for record in records.chunks_exact(RECORD) {
            let mapping = Mapping::parse(record)?;
            if mapping.count == 0 || mapping.offset < self.end {
                return Err(self.corrupt("they are out of order"));
            }
            self.end = mapping.end();
            if mapping.end() > self.from && (self.each)(mapping)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl<D: Disk> Volume<D> {
    /// The mappings of a fork that end after block `from`, in their order, until `each` breaks.
    pub(super) fn mappings(&self, fork: &Fork<'_>, from: u64, each: Each<'_>) -> Result<()> {
        let mut walk = Walk { owner: fork.owner, from, end: 0, each };
        match fork.format {
            Format::Extents => {
                let length = index(fork.extents).saturating_mul(RECORD);
                let _ = walk.records(slice(fork.bytes, 0, length)?)?;
            }
            Format::Tree => {
                let level = be16(fork.bytes, 0)?;
                if level == 0 || level > MAX_LEVELS {
                    return Err(walk.corrupt("their tree is too high"));
                }
                let fits = fork.bytes.len().saturating_sub(4) / 16;
                let _ = self.node(&mut walk, fork.bytes, 4, fits, be16(fork.bytes, 2)?, level)?;
            }
            Format::Local | Format::Device => return Err(walk.corrupt("there are none")),
        }
        Ok(())
    }

    /// The children of a node whose keys begin at `at`, those that matter.
    fn node(
        &self,
        walk: &mut Walk<'_>,
        node: &[u8],
        at: usize,
        fits: usize,
        count: u16,
        level: u16,
    ) -> Result<ControlFlow<()>> {
        let count = usize::from(count);
        if count == 0 || count > fits {
            return Err(walk.corrupt("a node of their tree has too many"));
        }
        let keys = slice(node, at, count * 8)?;
        let pointers = slice(node, at + fits * 8, count * 8)?;
        // The first child may hold what lies before the second one's key.
        let later = keys.chunks_exact(8).skip(1);
        let first = later.take_while(|key| be64(key, 0).is_ok_and(|key| key <= walk.from)).count();
        for pointer in pointers.chunks_exact(8).skip(first) {
            if self.child(walk, be64(pointer, 0)?, level - 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn child(&self, walk: &mut Walk<'_>, block: u64, level: u16) -> Result<ControlFlow<()>> {
        let offset = self.superblock.place(block, 1)?;
        let mut bytes = vec![0; index(self.superblock.block_size)];
        let changed = self.read(offset, &mut bytes)?;
        let (magic, header) = if self.superblock.v5 { (b"BMA3", 72) } else { (b"BMAP", 24) };
        let count = be16(&bytes, 6)?;
        if !bytes.starts_with(magic) || be16(&bytes, 4)? != level || count == 0 {
            return Err(walk.corrupt("a block of their tree is none"));
        }
        self.verify(&bytes, offset, Seal::EXTENTS, walk.owner, changed)?;
        if level == 0 {
            walk.records(slice(&bytes, header, usize::from(count) * RECORD)?)
        } else {
            let fits = (bytes.len() - header) / 16;
            self.node(walk, &bytes, header, fits, count, level)
        }
    }

    /// Where `count` blocks of a fork are on the disk, which must all be there, each with how many follow it there.
    pub(super) fn runs(&self, fork: &Fork<'_>, from: u64, count: u64) -> Result<Vec<(u64, u64)>> {
        let mut runs = Vec::new();
        let mut at = from;
        let end = from.saturating_add(count);
        self.mappings(fork, from, &mut |mapping| {
            if mapping.offset > at || mapping.unwritten {
                return Ok(ControlFlow::Break(()));
            }
            let blocks = mapping.end().min(end) - at;
            runs.push((self.superblock.place(mapping.block + (at - mapping.offset), blocks)?, blocks));
            at += blocks;
            Ok(if at == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if at < end {
            return Err(Error::corrupt(format!("XFS: inode {}: its block {at} is not there", fork.owner)));
        }
        Ok(runs)
    }

    /// Where the data of a regular file is: [`crate::FileSystem::extents`].
    pub(super) fn pieces(&self, inode: &Inode, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let size = inode.attributes.size;
        let mut pieces = Pieces { at: from, size, limit, found: Vec::new() };
        if from >= size || limit == 0 {
            return Ok(pieces.found);
        }
        // A hole is told before it is known to its end rather than to look at all of a file's unwritten extents for it.
        let mut looked_at = limit.saturating_add(1024);
        let block_size = u64::from(self.superblock.block_size);
        let mut whole = true;
        self.data_mappings(inode, from / block_size, &mut |mapping| {
            pieces.mapping(&self.superblock, mapping)?;
            looked_at -= 1;
            whole = !pieces.full() && looked_at > 0;
            Ok(if whole { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if whole {
            pieces.push(size, Place::Hole);
        }
        pieces.found.truncate(limit);
        Ok(pieces.found)
    }
}

struct Pieces {
    /// Up to where it is known, in bytes.
    at: u64,
    size: u64,
    limit: usize,
    found: Vec<Extent>,
}

impl Pieces {
    fn mapping(&mut self, superblock: &Superblock, mapping: Mapping) -> Result<()> {
        let block_size = u64::from(superblock.block_size);
        // 54 bits of at most 16 more can be too many; a file ends before that.
        let bytes = |blocks: u64| blocks.saturating_mul(block_size).min(self.size);
        let (start, end) = (bytes(mapping.offset), bytes(mapping.end()));
        self.push(start, Place::Hole);
        if mapping.unwritten {
            self.push(end, Place::Hole);
        } else if end > self.at {
            let place = superblock.place(mapping.block, mapping.count)?;
            let within = self.at - mapping.offset * block_size;
            self.push(end, Place::Disk(place + within));
        }
        Ok(())
    }

    /// Up to `end` it is there; neighbours become one.
    fn push(&mut self, end: u64, place: Place) {
        if end <= self.at {
            return;
        }
        let (offset, length) = (self.at, end - self.at);
        self.at = end;
        match self.found.last_mut() {
            Some(last) if continues(last, &place) => last.length += length,
            _ => self.found.push(Extent { offset, length, place }),
        }
    }

    /// The last piece may still grow.
    fn full(&self) -> bool {
        self.at >= self.size || self.found.len() > self.limit
    }
}

fn continues(last: &Extent, place: &Place) -> bool {
    match (&last.place, place) {
        (Place::Hole, Place::Hole) => true,
        (Place::Disk(before), Place::Disk(after)) => before.checked_add(last.length) == Some(*after),
        _ => false,
    }
}

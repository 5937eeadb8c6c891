//! Names by their hashes: what a large directory is searched by.

use std::ops::ControlFlow;

use crate::{Disk, Error, Kind, Result};

use super::directory::{HASHES, Names};
use super::inode::Inode;
use super::volume::{Seal, Volume};
use crate::numbers::{be16, be32, index, length, slice};

/// A leaf has a hash and a place for each name.
const ENTRY: usize = 8;

/// More levels than a tree of hashes has.
const MAX_LEVELS: u16 = 5;

/// Most names of one hash that are looked at. Whoever makes up more wants to keep us busy.
const MAX_ALIKE: usize = 65536;
/// What one more leaf counts as, of those.
const LEAF_COSTS: usize = 64;

const NODE_V4: u16 = 0xfebe;
const NODE_V5: u16 = 0x3ebe;

/// The hash of a name.
pub(super) fn hash(name: &[u8]) -> u32 {
    let (words, rest) = name.as_chunks::<4>();
    let sum = |bytes: &[u8]| bytes.iter().fold(0, |sum: u32, byte| (sum << 7) ^ u32::from(*byte));
    let hash = words.iter().fold(0_u32, |hash, word| sum(word) ^ hash.rotate_left(28));
    match rest.len() {
        0 => hash,
        1 => sum(rest) ^ hash.rotate_left(7),
        2 => sum(rest) ^ hash.rotate_left(14),
        _ => sum(rest) ^ hash.rotate_left(21),
    }
}

/// The first entry of a sorted list whose hash is not below `wanted`.
fn first(entries: &[u8], wanted: u32) -> usize {
    let entries = entries.as_chunks::<ENTRY>().0;
    entries.partition_point(|entry| u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]) < wanted)
}

/// A leaf or a node.
pub(super) struct Block {
    bytes: Vec<u8>,
    header: usize,
    count: usize,
    /// How far it is from the leaves; 0 for one.
    pub(super) level: u16,
    /// The next one of its level, in blocks of the fork; 0 for none.
    pub(super) next: u32,
}

impl Block {
    /// What is there, with a node's magic number and those of leaves; not verified.
    pub(super) fn parse(bytes: Vec<u8>, v5: bool, leaves: &[u16]) -> Result<Self> {
        let magic = be16(&bytes, 8)?;
        let at = if v5 { 56 } else { 12 };
        let node = magic == if v5 { NODE_V5 } else { NODE_V4 };
        if !node && !leaves.contains(&magic) {
            return Err(Error::corrupt("XFS: a block of hashes is none"));
        }
        let level = if node { be16(&bytes, at + 2)? } else { 0 };
        if node && !(1..=MAX_LEVELS).contains(&level) {
            return Err(Error::corrupt("XFS: a tree of hashes is too high"));
        }
        let (count, next) = (usize::from(be16(&bytes, at)?), be32(&bytes, 0)?);
        Ok(Self { header: if v5 { 64 } else { 16 }, count, level, next, bytes })
    }

    pub(super) fn entries(&self) -> Result<&[u8]> {
        slice(&self.bytes, self.header, self.count * ENTRY)
    }

    /// Of a leaf of attributes, whose entries have another header.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The child that has the first entry of that hash, in blocks of the fork.
    pub(super) fn child(&self, wanted: u32) -> Result<u32> {
        let entries = self.entries()?;
        // Each entry of a node has the last hash of its child.
        let at = first(entries, wanted).min(self.count.saturating_sub(1));
        be32(entries, at * ENTRY + 4)
    }
}

impl<D: Disk> Volume<D> {
    /// The inode of a name in a directory that has hashes.
    pub(super) fn find_hash(&self, directory: &Inode, name: &[u8]) -> Result<Option<u64>> {
        let wanted = hash(name);
        let mut search = Search { wanted, name, looked_at: 0, names: None };
        // With one block of names, their hashes are in it or, once there were more, in leaves.
        if directory.attributes.size == length(self.superblock.directory_block_size()) {
            let block = self.names(directory, 0)?;
            if let Some(hashes) = block.hashes().map(<[u8]>::to_vec) {
                search.names = Some((0, block));
                return Ok(self.search(directory, &mut search, &hashes)?.break_value().flatten());
            }
        }
        let mut leaf = self.leaf(directory, wanted)?;
        loop {
            if let ControlFlow::Break(found) = self.search(directory, &mut search, leaf.entries()?)? {
                return Ok(found);
            }
            if leaf.next == 0 {
                return Ok(None);
            }
            search.look_at(directory, LEAF_COSTS)?;
            leaf = self.hash_block(directory, leaf.next)?;
            if leaf.level != 0 {
                return Err(directory.corrupt("a node among its leaves"));
            }
        }
    }

    fn leaf(&self, directory: &Inode, wanted: u32) -> Result<Block> {
        let first = HASHES / u64::from(self.superblock.block_size);
        let mut block = self.hash_block(directory, first)?;
        while block.level != 0 {
            let child = self.hash_block(directory, block.child(wanted)?)?;
            if child.level >= block.level {
                return Err(directory.corrupt("its tree of hashes has a loop"));
            }
            block = child;
        }
        Ok(block)
    }

    fn hash_block(&self, directory: &Inode, number: impl Into<u64>) -> Result<Block> {
        let log = self.superblock.directory_block_log;
        let (bytes, offset, changed) = self.directory_block(directory, number.into() >> log)?;
        self.verify(&bytes, offset, Seal::TREE, directory.number, changed)?;
        let leaves = if self.superblock.v5 { [0x3df1, 0x3dff] } else { [0xd2f1, 0xd2ff] };
        Block::parse(bytes, self.superblock.v5, &leaves)
    }

    /// Looks at the names of that hash in a leaf. They may go on in the next one.
    fn search(&self, directory: &Inode, search: &mut Search<'_>, entries: &[u8]) -> Result<ControlFlow<Option<u64>>> {
        let size = self.superblock.directory_block_size();
        for entry in entries.chunks_exact(ENTRY).skip(first(entries, search.wanted)) {
            if be32(entry, 0)? != search.wanted {
                return Ok(ControlFlow::Break(None));
            }
            let place = index(be32(entry, 4)?).saturating_mul(8);
            if place == 0 {
                // The name was removed.
                continue;
            }
            search.look_at(directory, 1)?;
            let block = place / size;
            let names = match search.names.take() {
                Some((at, names)) if at == block => names,
                _ => self.names(directory, length(block))?,
            };
            let found = names.named(place % size)?;
            let inode = (found.name == search.name).then_some(found.inode);
            search.names = Some((block, names));
            if inode.is_some() {
                return Ok(ControlFlow::Break(inode));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

struct Search<'a> {
    wanted: u32,
    name: &'a [u8],
    looked_at: usize,
    /// The block of names that was looked at last, and its number.
    names: Option<(usize, Names)>,
}

impl Search<'_> {
    fn look_at(&mut self, directory: &Inode, more: usize) -> Result<()> {
        self.looked_at += more;
        if self.looked_at > MAX_ALIKE {
            return Err(Error::new(Kind::TooLarge, format!("XFS: inode {}: too many names alike", directory.number)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_format() {
        // Those that every directory has for its two dots, as mkfs.xfs writes them.
        assert_eq!(hash(b"."), 0x2e);
        assert_eq!(hash(b".."), 0x172e);
        assert_eq!(hash(b"abcd"), (0x61 << 21) ^ (0x62 << 14) ^ (0x63 << 7) ^ 0x64);
    }

    #[test]
    fn the_first_of_equal_hashes() {
        let entries: Vec<u8> = [1_u32, 0, 5, 0, 5, 0, 7, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(first(&entries, 0), 0);
        assert_eq!(first(&entries, 5), 1);
        assert_eq!(first(&entries, 6), 3);
        assert_eq!(first(&entries, 8), 4);
    }
}

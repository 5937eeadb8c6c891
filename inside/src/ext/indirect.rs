//! Pointers to blocks, and to blocks of pointers: how ext2 and ext3 say where a file is.

use std::sync::Arc;

use super::Volume;
use super::inode::Inode;
use super::mapping::Run;
use crate::numbers::{in_memory, le32};
use crate::{Disk, Error, Result};

/// Pointers in the inode to blocks of data.
const DIRECT: u64 = 12;

/// What is from that block of the file on.
pub(super) fn run<D: Disk>(volume: &Volume<D>, inode: &Inode, block: u64) -> Result<Run> {
    let per_block = u64::from(volume.superblock.block_size) / 4;
    let map: Arc<[u8]> = inode.map()?.into();
    if block < DIRECT {
        return together(&map, block, DIRECT);
    }
    // Pointer 12 leads to one block of pointers, 13 to pointers to such, 14 to pointers to those.
    let mut within = block - DIRECT;
    for level in 1..=3 {
        let blocks = per_block.pow(level);
        if within < blocks {
            return below(volume, inode, &map, u64::from(11 + level), (level, within));
        }
        within -= blocks;
    }
    Err(Error::corrupt(format!("inode {} is larger than its pointers reach", inode.number)))
}

/// Goes down `levels` blocks of pointers from pointer `index`; `within` counts from the first block below that.
fn below<D: Disk>(
    volume: &Volume<D>,
    inode: &Inode,
    map: &Arc<[u8]>,
    mut index: u64,
    (levels, mut within): (u32, u64),
) -> Result<Run> {
    let per_block = u64::from(volume.superblock.block_size) / 4;
    let mut node = Arc::clone(map);
    for level in (0..levels).rev() {
        let at = pointer(&node, index)?;
        // What one pointer of the next block is about.
        let blocks = per_block.pow(level);
        if at == 0 {
            return Ok(Run { length: blocks * per_block - within, at: None });
        }
        if !volume.superblock.holds(at, 1) {
            let number = inode.number;
            return Err(Error::corrupt(format!("pointers of inode {number} lead out of the file system")));
        }
        node = volume.blocks.read(at)?;
        index = within / blocks;
        within %= blocks;
    }
    together(&node, index, per_block)
}

/// Blocks of data from pointer `index` on that follow each other, or are holes.
fn together(node: &[u8], index: u64, end: u64) -> Result<Run> {
    let first = pointer(node, index)?;
    let mut length = 1;
    while index + length < end && pointer(node, index + length)? == if first == 0 { 0 } else { first + length } {
        length += 1;
    }
    Ok(Run { length, at: (first != 0).then_some(first) })
}

fn pointer(node: &[u8], index: u64) -> Result<u64> {
    le32(node, in_memory(index)?.saturating_mul(4)).map(u64::from)
}

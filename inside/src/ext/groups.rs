//! Group descriptors: where the inodes of each group are.

use super::blocks::Blocks;
use super::checksum::crc16;
use super::features::{incompatible, read_only};
use super::superblock::{OFFSET, Superblock};
use crate::checksum::crc32c;
use crate::numbers::{in_memory, le16, le32, slice};
use crate::{Disk, Error, Result};

/// Most groups whose descriptors are read when a file system is opened: 64 MiB of descriptors, a file system of 128 TiB.
const COUNTED: u32 = 1 << 20;

/// What is needed of a descriptor.
pub(super) struct Group {
    pub(super) inode_table: u64,
    pub(super) free_clusters: u32,
    pub(super) free_inodes: u32,
}

/// The descriptor of a group.
pub(super) fn read<D: Disk>(blocks: &Blocks<D>, superblock: &Superblock, group: u32) -> Result<Group> {
    if group >= superblock.groups {
        return Err(Error::corrupt(format!("there is no group {group} in the ext4 file system")));
    }
    let size = u32::from(superblock.descriptor_size);
    let per_block = superblock.block_size / size;
    let block = blocks.read(place(superblock, group / per_block, per_block))?;
    let bytes = slice(&block, in_memory((group % per_block * size).into())?, in_memory(size.into())?)?;
    if !is_right(superblock, group, bytes)? {
        return Err(Error::corrupt(format!("the checksum of group descriptor {group} is wrong")));
    }
    let wide = size >= 64;
    let high = |at| if wide { le32(bytes, at).map(u64::from) } else { Ok(0) };
    let high16 = |at| if wide { le16(bytes, at).map(u32::from) } else { Ok(0) };
    Ok(Group {
        inode_table: u64::from(le32(bytes, 0x8)?) | high(0x28)? << 32,
        free_clusters: u32::from(le16(bytes, 0xc)?) | high16(0x2c)? << 16,
        free_inodes: u32::from(le16(bytes, 0xe)?) | high16(0x2e)? << 16,
    })
}

/// Free blocks and inodes, by the descriptors, which a kernel believes more than the superblock. All of them are checked.
pub(super) fn free<D: Disk>(blocks: &Blocks<D>, superblock: &Superblock) -> Result<(u64, u64)> {
    if superblock.groups > COUNTED {
        return Ok((superblock.free_blocks, superblock.free_inodes.into()));
    }
    let (mut clusters, mut inodes) = (0u64, 0u64);
    for number in 0..superblock.groups {
        let group = read(blocks, superblock, number)?;
        clusters += u64::from(group.free_clusters);
        inodes += u64::from(group.free_inodes);
    }
    Ok((clusters * u64::from(superblock.cluster), inodes))
}

/// The block of descriptors of that index.
fn place(superblock: &Superblock, index: u32, per_block: u32) -> u64 {
    let meta = superblock.features.has(incompatible::META_BG) && index >= superblock.first_meta_group;
    if !meta {
        return OFFSET / u64::from(superblock.block_size) + 1 + u64::from(index);
    }
    let group = index.saturating_mul(per_block);
    let start = u64::from(superblock.first_data_block) + u64::from(group) * u64::from(superblock.blocks_per_group);
    // Block 0 is no group's where blocks are of 1 KiB and the first group begins with it, as with bigalloc.
    let boot = index == 0 && superblock.block_size == 1024 && superblock.first_data_block == 0;
    start + u64::from(superblock.has_backup(group)) + u64::from(boot)
}

fn is_right(superblock: &Superblock, group: u32, bytes: &[u8]) -> Result<bool> {
    let told = le16(bytes, 0x1e)?;
    let before = slice(bytes, 0, 0x1e)?;
    let after = bytes.get(0x20..).unwrap_or_default();
    if superblock.has_checksums() {
        let start = crc32c(crc32c(superblock.seed, &group.to_le_bytes()), before);
        let sum = crc32c(crc32c(start, &[0; 2]), after);
        return Ok(sum & 0xffff == u32::from(told));
    }
    if superblock.features.has_read_only(read_only::GDT_CSUM) {
        let start = crc16(crc16(crc16(!0, &superblock.uuid), &group.to_le_bytes()), before);
        return Ok(crc16(start, after) == told);
    }
    Ok(true)
}

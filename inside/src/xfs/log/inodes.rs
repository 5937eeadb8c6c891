//! Inodes in the log: their cores in the byte order of the machine, their forks as they are on the disk.

use crate::{Disk, Result};

use super::super::inode::{BIG_TIMES, CORE_V3, LARGE_COUNTS};
use super::super::overlay::Overlay;
use super::super::superblock::BASIC;
use super::replay::Replay;
use super::transactions::Item;
use super::unclean;
use crate::numbers::{be16, be32, be64, index, le16, le32, le64, length, slice, slice_mut};

const MAGIC: u16 = 0x494e;

// ilf_fields
const DATA: [u32; 2] = [0x2, 0x4];
const DATA_ROOT: u32 = 0x8;
const DEVICE: u32 = 0x10;
const EXTENDED: [u32; 2] = [0x40, 0x80];
const EXTENDED_ROOT: u32 = 0x100;

/// Length of the header of a block of a tree of extents.
const TREE_HEADER: usize = 72;

/// Numbers of the core: where, and their lengths. Times and the counts of extents depend on flags.
const NUMBERS: [(usize, usize); 21] = [
    (0, 2),
    (2, 2),
    (6, 2),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 2),
    (22, 2),
    (56, 8),
    (64, 8),
    (72, 4),
    (84, 4),
    (88, 2),
    (90, 2),
    (92, 4),
    (104, 8),
    (112, 8),
    (120, 8),
    (128, 4),
    (152, 8),
    // Read as one number, whatever it is.
    (96, 4),
];
const TIMES: [usize; 4] = [32, 40, 48, 144];

/// What an item of an inode is of.
struct Format {
    fields: u32,
    device: u32,
    buffer: (u64, u32),
    /// Of the inode in it, in bytes.
    offset: usize,
}

impl Format {
    /// As 64-bit machines write it, or as 32-bit ones do.
    fn parse(bytes: &[u8]) -> Result<Self> {
        let (device, rest) = if bytes.len() >= 56 { (24, 40) } else { (20, 36) };
        Ok(Self {
            fields: le32(bytes, 4)?,
            device: le32(bytes, device)?,
            buffer: (le64(bytes, rest)?, le32(bytes, rest + 8)?),
            offset: index(le32(bytes, rest + 12)?),
        })
    }
}

/// Puts an inode in its place.
pub(super) fn change<D: Disk>(replay: &Replay<'_>, blocks: &mut Overlay<D>, item: &Item, lsn: u64) -> Result<()> {
    let format = Format::parse(&item.regions[0])?;
    if replay.cancelled.has(format.buffer) {
        return Ok(());
    }
    let size = usize::from(replay.superblock.inode_size);
    let (place, buffer_size) = replay.place(format.buffer)?;
    if format.offset.checked_add(size).is_none_or(|end| end > buffer_size) || format.offset % size != 0 {
        return Err(unclean("an inode is not in its block"));
    }
    let place = place + length(format.offset);
    let mut inode = vec![0; size];
    blocks.read(place, &mut inode)?;
    if be16(&inode, 0)? != MAGIC {
        return Err(unclean("an inode's place has none"));
    }
    // Transactions that began in one record have one number, so one that is equal says nothing.
    let number = be64(&inode, 112)?;
    if number != u64::MAX && number > lsn {
        return Ok(());
    }

    let logged = item.regions.get(1).ok_or_else(|| unclean("an inode has no core"))?;
    if le16(logged, 0)? != MAGIC || logged.len() > CORE_V3 {
        return Err(unclean("an inode has no core"));
    }
    let core = core(logged)?;
    // The list of what is not linked any more is the buffer's; the checksum is not looked at in what was replayed.
    for kept in [0..96, 104..112, 120..CORE_V3] {
        inode[kept.clone()].copy_from_slice(&core[kept]);
    }
    inode[112..120].copy_from_slice(&lsn.to_be_bytes());

    let attributes = CORE_V3 + usize::from(inode[82]) * 8;
    if attributes >= size {
        return Err(unclean("an inode's attributes are past its end"));
    }
    forks(&format, &item.regions[2..], &mut inode, attributes)?;
    blocks.keep(place, &inode, 0..size)
}

/// The forks that were logged, in their places.
fn forks(format: &Format, regions: &[Vec<u8>], inode: &mut [u8], attributes: usize) -> Result<()> {
    let data_end = if attributes == CORE_V3 { inode.len() } else { attributes };
    let mut regions = regions.iter();
    let mut next = || regions.next().ok_or_else(|| unclean("an inode's item is not whole"));
    if format.fields & DEVICE != 0 {
        inode[CORE_V3..CORE_V3 + 4].copy_from_slice(&format.device.to_be_bytes());
    }
    if format.fields & (DATA[0] | DATA[1] | DATA_ROOT) != 0 {
        fork(&mut inode[CORE_V3..data_end], next()?, format.fields & DATA_ROOT != 0)?;
    }
    if format.fields & (EXTENDED[0] | EXTENDED[1] | EXTENDED_ROOT) != 0 {
        if attributes == CORE_V3 {
            return Err(unclean("an inode has attributes and no place for them"));
        }
        fork(&mut inode[attributes..], next()?, format.fields & EXTENDED_ROOT != 0)?;
    }
    Ok(())
}

/// A root is logged as a block of the tree, and lies in an inode in a shorter form.
fn fork(fork: &mut [u8], logged: &[u8], root: bool) -> Result<()> {
    let too_large = || unclean("an inode's item does not fit it");
    if !root {
        fork.get_mut(..logged.len()).ok_or_else(too_large)?.copy_from_slice(logged);
        return Ok(());
    }
    let count = usize::from(be16(logged, 6)?);
    let fits = fork.len().saturating_sub(4) / 16;
    let logged_fits = logged.len().saturating_sub(TREE_HEADER) / 16;
    if count > fits || count > logged_fits {
        return Err(too_large());
    }
    fork[..4].copy_from_slice(slice(logged, 4, 4)?);
    slice_mut(fork, 4, count * 8)?.copy_from_slice(slice(logged, TREE_HEADER, count * 8)?);
    let pointers = slice(logged, TREE_HEADER + logged_fits * 8, count * 8)?;
    slice_mut(fork, 4 + fits * 8, count * 8)?.copy_from_slice(pointers);
    Ok(())
}

/// The core as the disk has it.
fn core(logged: &[u8]) -> Result<[u8; CORE_V3]> {
    let mut core = [0; CORE_V3];
    slice_mut(&mut core, 0, logged.len())?.copy_from_slice(logged);
    let flags = le64(&core, 120)?;
    for (at, size) in NUMBERS {
        core[at..at + size].reverse();
    }
    for at in TIMES {
        if flags & BIG_TIMES != 0 {
            core[at..at + 8].reverse();
        } else {
            core[at..at + 4].reverse();
            core[at + 4..at + 8].reverse();
        }
    }
    core[76..80].reverse();
    core[80..82].reverse();
    if flags & LARGE_COUNTS != 0 {
        core[24..32].reverse();
    } else {
        core[24..32].fill(0);
    }
    Ok(core)
}

/// A chunk of new inodes, none of them in use.
pub(super) fn create<D: Disk>(replay: &Replay<'_>, blocks: &mut Overlay<D>, item: &Item) -> Result<()> {
    let format = &item.regions[0];
    let superblock = replay.superblock;
    // In the order of the disk, unlike the other items.
    let (group, block, count) = (be32(format, 4)?, be32(format, 8)?, be32(format, 12)?);
    let (size, blocks_of_it, generation) = (be32(format, 16)?, be32(format, 20)?, be32(format, 24)?);
    let first = superblock.inode_at(group, block);
    let place = superblock.inode_place(first).map_err(|_| unclean("new inodes are no blocks"))?;
    let length_of_it = u64::from(blocks_of_it) * u64::from(superblock.block_size);
    let end = place.checked_add(length_of_it);
    let fits = size == u32::from(superblock.inode_size)
        && count <= 64
        && u64::from(count) * u64::from(size) <= length_of_it
        && end.is_some_and(|end| end <= superblock.size());
    if !fits {
        return Err(unclean("new inodes are no chunk of them"));
    }
    // Any of its buffers that was freed later may have something else now.
    let cluster = cluster(replay);
    let freed = (0..length_of_it / cluster).any(|number| {
        let place = place + number * cluster;
        replay.cancelled.has((place / BASIC, u32::try_from(cluster / BASIC).unwrap_or(u32::MAX)))
    });
    if freed {
        return Ok(());
    }
    let mut inode = vec![0; index(size)];
    inode[0..2].copy_from_slice(&MAGIC.to_be_bytes());
    inode[4] = 3;
    inode[92..96].copy_from_slice(&generation.to_be_bytes());
    inode[96..100].fill(0xff);
    inode[160..CORE_V3].copy_from_slice(&superblock.meta_uuid);
    for number in 0..u64::from(count) {
        inode[152..160].copy_from_slice(&(first + number).to_be_bytes());
        blocks.keep(place + number * u64::from(size), &inode, 0..inode.len())?;
    }
    Ok(())
}

/// The size of a buffer of inodes, in bytes.
fn cluster(replay: &Replay<'_>) -> u64 {
    let superblock = replay.superblock;
    let block = u64::from(superblock.block_size);
    // Inodes of 256 bytes have 8 KiB; larger ones as many of them, if chunks are aligned so.
    let scaled = 8192 / 256 * u64::from(superblock.inode_size);
    let size = if u64::from(superblock.inode_alignment) >= scaled / block { scaled } else { 8192 };
    size.max(block) / block * block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_turned_round() {
        let mut logged = [0; CORE_V3];
        logged[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        logged[4] = 3;
        logged[56..64].copy_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
        logged[32..40].copy_from_slice(&[4, 3, 2, 1, 8, 7, 6, 5]);
        logged[24..32].fill(9);
        logged[76..80].copy_from_slice(&5_u32.to_le_bytes());
        logged[160] = 0xab;
        let disk = core(&logged).unwrap();
        assert_eq!((be16(&disk, 0).unwrap(), disk[4], disk[160]), (MAGIC, 3, 0xab));
        assert_eq!(be64(&disk, 56).unwrap(), 0x0102_0304_0506_0708);
        assert_eq!(disk[32..40], [1, 2, 3, 4, 5, 6, 7, 8], "two numbers");
        assert_eq!(disk[24..32], [0; 8], "no count is there");
        assert_eq!(be32(&disk, 76).unwrap(), 5);

        logged[120..128].copy_from_slice(&(BIG_TIMES | LARGE_COUNTS).to_le_bytes());
        let disk = core(&logged).unwrap();
        assert_eq!(disk[32..40], [5, 6, 7, 8, 1, 2, 3, 4], "one number");
        assert_eq!(disk[24..32], [9; 8]);
    }

    #[test]
    fn a_root_is_shortened() {
        let mut logged = vec![0; TREE_HEADER + 32];
        logged[4..8].copy_from_slice(&[0, 1, 0, 2]);
        logged[TREE_HEADER..TREE_HEADER + 16].fill(0x11);
        logged[TREE_HEADER + 16..].fill(0x22);
        let mut root = [0xee; 68];
        fork(&mut root, &logged, true).unwrap();
        assert_eq!(root[..4], [0, 1, 0, 2]);
        assert_eq!(root[4..20], [0x11; 16]);
        assert_eq!(root[20..36], [0xee; 16]);
        assert_eq!(root[36..52], [0x22; 16]);
        fork(&mut root[..20], &logged, true).unwrap_err();
        fork(&mut root[..20], &logged, false).unwrap_err();
    }
}

//! The superblock: what the rest is measured by.

use crate::{Error, Kind, Result};

use super::checksum;
use crate::numbers::{array, be16, be32, be64, byte, index};

/// Basic blocks: what addresses on the disk and in the log are counted in, in bytes.
pub(super) const BASIC: u64 = 512;

/// Largest sector, in bytes: the checksum of the superblock is over a sector.
pub(super) const MAX_SECTOR: usize = 32768;

/// The kernel's largest log is below that, in bytes.
const MAX_LOG: u64 = 1 << 31;

// sb_versionnum
const LOG_V2: u16 = 0x0400;
const DIRECTORY_V2: u16 = 0x2000;
const CASELESS: u16 = 0x4000;
// sb_features2, of version 4
const V4_FTYPE: u32 = 0x0200;
// sb_features_incompat
const FTYPE: u32 = 1;
const META_UUID: u32 = 1 << 2;
const NEEDS_REPAIR: u32 = 1 << 4;
/// File types, sparse inode chunks, metadata UUID, big times, large extent counts, exchange of ranges, parent pointers, metadata
/// directories: what this reader knows.
const KNOWN: u32 = FTYPE | 1 << 1 | META_UUID | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;

#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) v5: bool,
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) group_blocks: u32,
    pub(super) groups: u32,
    group_block_log: u32,
    pub(super) sector_size: u16,
    pub(super) inode_size: u16,
    pub(super) inodes_per_block_log: u32,
    pub(super) inode_alignment: u32,
    pub(super) root: u64,
    /// The directory tells what a file is.
    pub(super) ftype: bool,
    /// In blocks of the file system.
    pub(super) directory_block_log: u32,
    pub(super) uuid: [u8; 16],
    /// The one in metadata, which changing the other leaves as it is.
    pub(super) meta_uuid: [u8; 16],
    pub(super) log_start: u64,
    pub(super) log_blocks: u32,
    pub(super) log_v2: bool,
    pub(super) log_incompat: u32,
    pub(super) inodes_allocated: u64,
    pub(super) inodes_free: u64,
    pub(super) free_blocks: u64,
    pub(super) max_inode_percent: u8,
}

fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("XFS: superblock: {what}"))
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!("XFS: {what}: this is not read here"))
}

impl Superblock {
    /// From the first [`MAX_SECTOR`] bytes of the file system, or as many as there are.
    pub(super) fn parse(sectors: &[u8], checked: bool) -> Result<Self> {
        if sectors.get(..4) != Some(b"XFSB") {
            return Err(corrupt("it does not begin with XFSB"));
        }
        let version = be16(sectors, 100)?;
        let v5 = match version & 0xf {
            4 => false,
            5 => true,
            other => return Err(unsupported(&format!("version {other} of the format"))),
        };
        let sector_size = be16(sectors, 102)?;
        if !(512..=MAX_SECTOR).contains(&usize::from(sector_size)) || !sector_size.is_power_of_two() {
            return Err(corrupt("the size of a sector"));
        }
        let sector = sectors.get(..usize::from(sector_size)).ok_or_else(|| corrupt("the size of a sector"))?;
        if v5 && checked && !checksum::is_right(sector, 224) {
            return Err(corrupt("its checksum is wrong"));
        }
        refuse(sector, version, v5)?;

        let this = Self::fields(sector, version, v5)?;
        this.check(byte(sector, 122)?, byte(sector, 120)?)?;
        Ok(this)
    }

    fn fields(sector: &[u8], version: u16, v5: bool) -> Result<Self> {
        let uuid = array(sector, 32)?;
        let incompat = if v5 { be32(sector, 216)? } else { 0 };
        Ok(Self {
            v5,
            block_size: be32(sector, 4)?,
            blocks: be64(sector, 8)?,
            group_blocks: be32(sector, 84)?,
            groups: be32(sector, 88)?,
            group_block_log: byte(sector, 124)?.into(),
            sector_size: be16(sector, 102)?,
            inode_size: be16(sector, 104)?,
            inodes_per_block_log: byte(sector, 123)?.into(),
            inode_alignment: be32(sector, 180)?,
            root: be64(sector, 56)?,
            ftype: if v5 { incompat & FTYPE != 0 } else { be32(sector, 200)? & V4_FTYPE != 0 },
            directory_block_log: byte(sector, 192)?.into(),
            uuid,
            meta_uuid: if incompat & META_UUID != 0 { array(sector, 248)? } else { uuid },
            log_start: be64(sector, 48)?,
            log_blocks: be32(sector, 96)?,
            log_v2: version & LOG_V2 != 0,
            log_incompat: if v5 { be32(sector, 220)? } else { 0 },
            inodes_allocated: be64(sector, 128)?,
            inodes_free: be64(sector, 136)?,
            free_blocks: be64(sector, 144)?,
            max_inode_percent: byte(sector, 127)?,
        })
    }

    /// Whether the numbers can be calculated with.
    fn check(&self, inode_log: u8, block_log: u8) -> Result<()> {
        let group_block_log = self.group_blocks.checked_next_power_of_two().map(u32::trailing_zeros);
        let group_blocks = u64::from(self.group_blocks);
        let log_bytes = u64::from(self.log_blocks) * u64::from(self.block_size);
        let fits = [
            (
                (512..=65536).contains(&self.block_size)
                    && 1_u32.checked_shl(block_log.into()) == Some(self.block_size),
                "the size of a block",
            ),
            (
                (256..=2048).contains(&self.inode_size)
                    && 1_u16.checked_shl(inode_log.into()) == Some(self.inode_size)
                    && u32::from(self.inode_size) <= self.block_size
                    && u32::from(inode_log) + self.inodes_per_block_log == u32::from(block_log)
                    && (!self.v5 || self.inode_size >= 512),
                "the size of an inode",
            ),
            (group_blocks != 0 && group_block_log == Some(self.group_block_log), "the size of an allocation group"),
            (
                self.groups != 0
                    && self.blocks > u64::from(self.groups - 1) * group_blocks
                    && self.blocks <= u64::from(self.groups) * group_blocks,
                "the number of blocks",
            ),
            (
                self.directory_block_log < 8
                    && u64::from(self.block_size).checked_shl(self.directory_block_log) <= Some(65536),
                "the size of a block of a directory",
            ),
            (log_bytes != 0 && log_bytes < MAX_LOG, "the size of the log"),
        ];
        fits.iter().try_for_each(|(fits, what)| if *fits { Ok(()) } else { Err(corrupt(what)) })
    }

    pub(super) fn directory_block_size(&self) -> usize {
        index(self.block_size << self.directory_block_log)
    }

    /// In bytes.
    pub(super) fn size(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }

    /// Where `count` blocks lie on the disk, in bytes, of one group.
    pub(super) fn place(&self, block: u64, count: u64) -> Result<u64> {
        let group = block >> self.group_block_log;
        let within = block & ((1 << self.group_block_log) - 1);
        let first = group.checked_mul(self.group_blocks.into()).and_then(|first| first.checked_add(within));
        let end = first.and_then(|first| first.checked_add(count));
        match (first, end, within.checked_add(count)) {
            (Some(first), Some(end), Some(end_within))
                if end <= self.blocks && end_within <= u64::from(self.group_blocks) && count != 0 =>
            {
                Ok(first * u64::from(self.block_size))
            }
            _ => Err(Error::corrupt(format!("XFS: {count} blocks at {block:#x}, which is past the end"))),
        }
    }

    /// Where an inode lies on the disk, in bytes.
    pub(super) fn inode_place(&self, inode: u64) -> Result<u64> {
        let block = inode >> self.inodes_per_block_log;
        let within = inode & ((1 << self.inodes_per_block_log) - 1);
        let place = self
            .place(block, 1)
            .map_err(|_| Error::new(Kind::NotFound, format!("XFS: there is no place for an inode {inode}")))?;
        Ok(place + within * u64::from(self.inode_size))
    }

    /// The inode at the beginning of a block of a group.
    pub(super) fn inode_at(&self, group: u32, block: u32) -> u64 {
        (u64::from(group) << self.group_block_log | u64::from(block)) << self.inodes_per_block_log
    }
}

/// What a disk of ours would be misread.
fn refuse(sector: &[u8], version: u16, v5: bool) -> Result<()> {
    let incompat = if v5 { be32(sector, 216)? } else { 0 };
    if incompat & NEEDS_REPAIR != 0 {
        return Err(Error::new(Kind::Unclean, "XFS: it is marked as in need of repair: run xfs_repair in the guest"));
    }
    if incompat & !KNOWN != 0 {
        return Err(unsupported(&format!("unknown features {:#x}", incompat & !KNOWN)));
    }
    if version & CASELESS != 0 {
        return Err(unsupported("names without regard to case (mkfs.xfs -n version=ci)"));
    }
    if !v5 && version & DIRECTORY_V2 == 0 {
        return Err(unsupported("directories of version 1"));
    }
    if be64(sector, 48)? == 0 {
        return Err(unsupported("a log on a disk of its own"));
    }
    if byte(sector, 126)? != 0 {
        return Err(Error::new(Kind::Unclean, "XFS: mkfs.xfs was not finished when the disk was frozen"));
    }
    Ok(())
}

//! The superblock: what everything else is found by.

use super::features::{Features, compatible, incompatible, read_only};
use crate::checksum::crc32c;
use crate::numbers::{array, byte, le16, le32, slice};
use crate::{Error, Result};

/// Where it is, in bytes, and how long.
pub(super) const OFFSET: u64 = 1024;
pub(super) const LENGTH: usize = 1024;

/// Of the root directory.
pub(super) const ROOT: u32 = 2;

/// Numbers of a superblock that have been checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// In bytes: a power of two from 1024 to 65536.
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    /// By what it says itself, which may be old.
    pub(super) free_blocks: u64,
    pub(super) inodes: u32,
    pub(super) free_inodes: u32,
    pub(super) first_data_block: u32,
    /// At least 8.
    pub(super) blocks_per_group: u32,
    /// Blocks of a cluster, a power of two.
    pub(super) cluster: u32,
    /// At least 1.
    pub(super) inodes_per_group: u32,
    pub(super) groups: u32,
    /// In bytes: a power of two from 128 to a block.
    pub(super) inode_size: u16,
    /// The first that is no special file's.
    pub(super) first_inode: u32,
    /// In bytes: 32, or a power of two from 64 on.
    pub(super) descriptor_size: u16,
    pub(super) first_meta_group: u32,
    /// Groups with a copy of the superblock, with the feature `sparse_super2`.
    pub(super) backup_groups: [u32; 2],
    pub(super) features: Features,
    /// What checksums begin with.
    pub(super) seed: u32,
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u32; 4],
    /// How characters past 127 count in hashes of names, where it says that.
    pub(super) unsigned_hash: Option<bool>,
    pub(super) journal_inode: u32,
    pub(super) journal_device: u32,
    /// Was unmounted; found wrong by a kernel.
    pub(super) unmounted: bool,
    pub(super) wrong: bool,
    /// Of quotas and of the list of orphans: no file of anybody's.
    pub(super) hidden_inodes: [u32; 4],
}

impl Superblock {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if le16(bytes, 0x38)? != 0xef53 {
            return Err(Error::corrupt("no ext4 superblock is there"));
        }
        let features = Features {
            compatible: le32(bytes, 0x5c)?,
            incompatible: le32(bytes, 0x60)?,
            read_only: le32(bytes, 0x64)?,
        };
        features.check()?;
        if features.has_read_only(read_only::METADATA_CSUM) {
            if byte(bytes, 0x175)? != 1 {
                return Err(Error::unsupported("the ext4 superblock names an unknown kind of checksum"));
            }
            if crc32c(!0, slice(bytes, 0, 0x3fc)?) != le32(bytes, 0x3fc)? {
                return Err(Error::corrupt("the checksum of the ext4 superblock is wrong"));
            }
        }
        let uuid = array(bytes, 0x68)?;
        let seeded = features.has(incompatible::CSUM_SEED);
        let seed = if seeded { le32(bytes, 0x270)? } else { crc32c(!0, &uuid) };
        let revision = le32(bytes, 0x4c)?;
        let flags = le32(bytes, 0x160)?;
        let state = le16(bytes, 0x3a)?;
        let wide = features.has(incompatible::SIXTY_FOUR_BIT);
        let high = |at| if wide { le32(bytes, at).map(u64::from) } else { Ok(0) };
        let log_block_size = le32(bytes, 0x18)?;
        if log_block_size > 6 {
            return Err(wrong("s_log_block_size"));
        }
        let log_cluster = le32(bytes, 0x1c)?;
        let clusters = features.has_read_only(read_only::BIGALLOC);
        let cluster = if clusters { log_cluster.checked_sub(log_block_size).filter(|log| *log <= 20) } else { Some(0) };
        let mut superblock = Self {
            block_size: 1024 << log_block_size,
            blocks: u64::from(le32(bytes, 0x4)?) | high(0x150)? << 32,
            free_blocks: u64::from(le32(bytes, 0xc)?) | high(0x158)? << 32,
            inodes: le32(bytes, 0x0)?,
            free_inodes: le32(bytes, 0x10)?,
            first_data_block: le32(bytes, 0x14)?,
            blocks_per_group: le32(bytes, 0x20)?,
            cluster: 1 << cluster.ok_or_else(|| wrong("s_log_cluster_size"))?,
            inodes_per_group: le32(bytes, 0x28)?,
            groups: 0,
            inode_size: if revision == 0 { 128 } else { le16(bytes, 0x58)? },
            first_inode: if revision == 0 { 11 } else { le32(bytes, 0x54)? },
            descriptor_size: if wide { le16(bytes, 0xfe)? } else { 32 },
            first_meta_group: le32(bytes, 0x104)?,
            backup_groups: [le32(bytes, 0x24c)?, le32(bytes, 0x250)?],
            features,
            seed,
            uuid,
            hash_seed: [le32(bytes, 0xec)?, le32(bytes, 0xf0)?, le32(bytes, 0xf4)?, le32(bytes, 0xf8)?],
            unsigned_hash: if flags & 2 != 0 { Some(true) } else { (flags & 1 != 0).then_some(false) },
            journal_inode: le32(bytes, 0xe0)?,
            journal_device: le32(bytes, 0xe4)?,
            unmounted: state & 1 != 0,
            wrong: state & 2 != 0,
            hidden_inodes: [le32(bytes, 0x240)?, le32(bytes, 0x244)?, le32(bytes, 0x26c)?, le32(bytes, 0x280)?],
        };
        superblock.groups = superblock.check()?;
        Ok(superblock)
    }

    /// The number of groups, if the numbers go together.
    fn check(&self) -> Result<u32> {
        let bits = self.block_size * 8;
        if !self.inode_size.is_power_of_two() || self.inode_size < 128 || u32::from(self.inode_size) > self.block_size {
            return Err(wrong("s_inode_size"));
        }
        let wide = self.features.has(incompatible::SIXTY_FOUR_BIT);
        if wide && !(self.descriptor_size.is_power_of_two() && (64..=1024).contains(&self.descriptor_size)) {
            return Err(wrong("s_desc_size"));
        }
        if self.blocks_per_group < 8 || u64::from(self.blocks_per_group) > u64::from(bits) * u64::from(self.cluster) {
            return Err(wrong("s_blocks_per_group"));
        }
        if self.inodes_per_group == 0 || self.inodes_per_group > bits {
            return Err(wrong("s_inodes_per_group"));
        }
        let data = self.blocks.checked_sub(u64::from(self.first_data_block)).filter(|data| *data > 0);
        if data.is_none() || self.first_data_block > 1 || self.blocks.checked_mul(self.block_size.into()).is_none() {
            return Err(wrong("s_blocks_count"));
        }
        let groups = data.unwrap_or(0).div_ceil(self.blocks_per_group.into());
        if groups.checked_mul(self.inodes_per_group.into()) != Some(self.inodes.into()) {
            return Err(wrong("s_inodes_count"));
        }
        u32::try_from(groups).map_err(|_| wrong("s_blocks_per_group"))
    }

    /// Everything else has checksums.
    pub(super) fn has_checksums(&self) -> bool {
        self.features.has_read_only(read_only::METADATA_CSUM)
    }

    /// A group that begins with a copy of the superblock.
    pub(super) fn has_backup(&self, group: u32) -> bool {
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                let Some(next) = power.checked_mul(base) else { return false };
                power = next;
            }
            power == group
        };
        if self.features.has_compatible(compatible::SPARSE_SUPER2) {
            return group == 0 || self.backup_groups.contains(&group);
        }
        group <= 1
            || !self.features.has_read_only(read_only::SPARSE_SUPER)
            || group % 2 == 1 && [3, 5, 7].into_iter().any(power_of)
    }

    /// A block that a file, a directory or a table can have.
    pub(super) fn holds(&self, first: u64, count: u64) -> bool {
        first > u64::from(self.first_data_block) && first.checked_add(count).is_some_and(|end| end <= self.blocks)
    }
}

fn wrong(field: &str) -> Error {
    Error::corrupt(format!("the ext4 superblock has an impossible {field}"))
}

//! What a disk is divided into.

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table (UEFI specification 2.10, chapter 5).
    Gpt,
    /// The PC's master boot record, with logical partitions.
    Mbr,
    /// Not at all: a file system is on the whole disk, or nothing that is known here.
    Whole,
}

/// The partitions of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// How it is divided.
    pub scheme: Scheme,
    /// The sector size that the table counts in, in bytes: 512 or 4096.
    pub sector_size: u32,
    /// The disk's own GUID, or the MBR's signature in eight hexadecimal digits.
    pub id: Option<String>,
    /// What is wrong with it and was got round: a sentence each.
    pub problems: Vec<String>,
    /// The partitions, by number; at most [`Table::MAX_PARTITIONS`].
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Most partitions that a table may have.
    pub const MAX_PARTITIONS: usize = 256;
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it, from 1 on, logical partitions of an MBR from 5 on; 0 for the whole disk.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size, in bytes, all of it on the disk; see `problem`.
    pub size: u64,
    /// Its type: a GUID in lower case, or `0x83`; none for the whole disk.
    pub type_id: Option<String>,
    /// Its own GUID.
    pub id: Option<String>,
    /// Its name in the table.
    pub name: Option<String>,
    /// What is in it.
    pub content: Option<Content>,
    /// Why it cannot be read as the table says: it reaches past the end of the disk, it overlaps another. A sentence.
    pub problem: Option<String>,
}

/// What a partition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// As blkid(8) calls it: `ext4`, `xfs`, `vfat`, `ntfs`, `btrfs`, `swap`, `LVM2_member`, `linux_raid_member`, `crypto_LUKS`,
    /// `BitLocker`.
    pub kind: &'static str,
    /// Its label: bytes, without padding.
    pub label: Option<Vec<u8>>,
    /// Its UUID, as blkid(8) writes it.
    pub uuid: Option<String>,
    /// Why its files cannot be shown; none for a file system that is read here. A sentence.
    pub refused: Option<String>,
}

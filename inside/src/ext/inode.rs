//! Inodes: what a file is.

use super::Volume;
use super::features::{incompatible, read_only};
use super::groups;
use super::superblock::{ROOT, Superblock};
use crate::checksum::crc32c;
use crate::numbers::{in_memory, le16, le32, slice};
use crate::{Attributes, Disk, Error, FileKind, Kind, Result, Time};

/// Length of the inode without what later kernels put after it.
const OLD_SIZE: usize = 128;

/// Flags of an inode that matter here.
pub(super) mod flags {
    pub(in crate::ext) const ENCRYPTED: u32 = 0x800;
    pub(in crate::ext) const INDEX: u32 = 0x1000;
    pub(in crate::ext) const HUGE_FILE: u32 = 0x4_0000;
    pub(in crate::ext) const EXTENTS: u32 = 0x8_0000;
    pub(in crate::ext) const EA_INODE: u32 = 0x20_0000;
    pub(in crate::ext) const INLINE_DATA: u32 = 0x1000_0000;
    pub(in crate::ext) const CASEFOLD: u32 = 0x4000_0000;
}

/// An inode that has been checked.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) kind: FileKind,
    pub(super) flags: u32,
    pub(super) size: u64,
    pub(super) generation: u32,
    /// The block with extended attributes, or 0.
    pub(super) xattr_block: u64,
    /// What checksums of its blocks begin with.
    pub(super) seed: u32,
    /// All of it.
    bytes: Vec<u8>,
    /// How much is in use of what comes after [`OLD_SIZE`].
    extra: usize,
}

impl<D: Disk> Volume<D> {
    /// A file that somebody may have.
    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let superblock = &self.superblock;
        let own = u32::try_from(number)
            .ok()
            .filter(|own| (*own >= superblock.first_inode || *own == ROOT) && !superblock.hidden_inodes.contains(own));
        let Some(own) = own else {
            return Err(Error::new(Kind::NotFound, format!("inode {number} is no file")));
        };
        let inode = self.special_inode(own)?;
        if inode.has(flags::EA_INODE) {
            return Err(Error::corrupt(format!("inode {number} is the value of an extended attribute, and no file")));
        }
        Ok(inode)
    }

    /// Any inode that is in use.
    pub(super) fn special_inode(&self, number: u32) -> Result<Inode> {
        let superblock = &self.superblock;
        let index = number.checked_sub(1).filter(|index| *index < superblock.inodes);
        let Some(index) = index else {
            return Err(Error::new(Kind::NotFound, format!("there is no inode {number}")));
        };
        let group = groups::read(&self.blocks, superblock, index / superblock.inodes_per_group)?;
        let offset = u64::from(index % superblock.inodes_per_group) * u64::from(superblock.inode_size);
        let block_size = u64::from(superblock.block_size);
        let block = group.inode_table.checked_add(offset / block_size).filter(|block| superblock.holds(*block, 1));
        let block = block.ok_or_else(|| Error::corrupt(format!("inode {number} is outside of the file system")))?;
        let block = self.blocks.read(block)?;
        let bytes = slice(&block, in_memory(offset % block_size)?, superblock.inode_size.into())?;
        Inode::parse(superblock, number, bytes.to_vec())
    }
}

impl Inode {
    fn parse(superblock: &Superblock, number: u32, bytes: Vec<u8>) -> Result<Self> {
        let generation = le32(&bytes, 0x64)?;
        let extra = if bytes.len() > OLD_SIZE { usize::from(le16(&bytes, OLD_SIZE)?) } else { 0 };
        let seed = crc32c(crc32c(superblock.seed, &number.to_le_bytes()), &generation.to_le_bytes());
        let mode = le16(&bytes, 0x0)?;
        if le16(&bytes, 0x1a)? == 0 || mode == 0 {
            return Err(Error::new(Kind::NotFound, format!("inode {number} is not in use")));
        }
        if OLD_SIZE + extra > bytes.len() || extra % 4 != 0 {
            return Err(Error::corrupt(format!("inode {number} is longer than it can be")));
        }
        if superblock.has_checksums() && !is_right(seed, &bytes, extra)? {
            return Err(Error::corrupt(format!("the checksum of inode {number} is wrong")));
        }
        let kind = match mode >> 12 {
            0x1 => FileKind::Fifo,
            0x2 => FileKind::CharDevice,
            0x4 => FileKind::Directory,
            0x6 => FileKind::BlockDevice,
            0x8 => FileKind::File,
            0xa => FileKind::Symlink,
            0xc => FileKind::Socket,
            _ => return Err(Error::corrupt(format!("inode {number} is of no kind that there is"))),
        };
        let long = kind == FileKind::File || superblock.features.has(incompatible::LARGEDIR);
        let size_high = if long { le32(&bytes, 0x6c)? } else { 0 };
        let size = u64::from(le32(&bytes, 0x4)?) | u64::from(size_high) << 32;
        if i64::try_from(size).is_err() {
            return Err(Error::corrupt(format!("inode {number} has an impossible size")));
        }
        Ok(Self {
            number,
            kind,
            flags: le32(&bytes, 0x20)?,
            size,
            generation,
            xattr_block: u64::from(le32(&bytes, 0x68)?) | u64::from(le16(&bytes, 0x76)?) << 32,
            seed,
            extra,
            bytes,
        })
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The 60 bytes that say where its data is, or are data.
    pub(super) fn map(&self) -> Result<&[u8]> {
        slice(&self.bytes, 0x28, 60)
    }

    /// Where extended attributes can be in it.
    pub(super) fn body(&self) -> &[u8] {
        self.bytes.get(OLD_SIZE + self.extra..).filter(|_| self.extra > 0).unwrap_or_default()
    }

    /// The seconds of its last reading, its last writing; an inode that is a value has other things there.
    pub(super) fn raw_times(&self) -> Result<(u32, u32)> {
        Ok((le32(&self.bytes, 0x8)?, le32(&self.bytes, 0x10)?))
    }

    pub(super) fn attributes(&self, superblock: &Superblock) -> Result<Attributes> {
        let bytes = &self.bytes;
        let wide = |low, high| Ok::<_, Error>(u32::from(le16(bytes, low)?) | u32::from(le16(bytes, high)?) << 16);
        let device = match self.kind {
            FileKind::CharDevice | FileKind::BlockDevice => device(le32(bytes, 0x28)?, le32(bytes, 0x2c)?),
            _ => (0, 0),
        };
        Ok(Attributes {
            kind: self.kind,
            mode: le16(bytes, 0x0)? & 0o7777,
            uid: wide(0x2, 0x78)?,
            gid: wide(0x18, 0x7a)?,
            links: le16(bytes, 0x1a)?.into(),
            size: self.size,
            allocated: self.allocated(superblock)?,
            accessed: self.time(0x8, 0x8c)?,
            modified: self.time(0x10, 0x88)?,
            changed: self.time(0xc, 0x84)?,
            device,
        })
    }

    fn allocated(&self, superblock: &Superblock) -> Result<u64> {
        let low = u64::from(le32(&self.bytes, 0x1c)?);
        let huge = superblock.features.has_read_only(read_only::HUGE_FILE);
        let high = if huge { u64::from(le16(&self.bytes, 0x74)?) << 32 } else { 0 };
        let unit = if huge && self.has(flags::HUGE_FILE) { superblock.block_size.into() } else { 512 };
        // A kernel counts what is in the inode as well.
        let inline = self.has(flags::INLINE_DATA) && self.kind == FileKind::File;
        let inline = if inline { self.size.div_ceil(512).saturating_mul(512) } else { 0 };
        Ok((low | high).saturating_mul(unit).saturating_add(inline))
    }

    /// Two bits of the 32 above the seconds are their next ones, the others are nanoseconds.
    fn time(&self, low: usize, high: usize) -> Result<Time> {
        let seconds = i64::from(le32(&self.bytes, low)?.cast_signed());
        if high + 4 > OLD_SIZE + self.extra {
            return Ok(Time { seconds, nanoseconds: 0 });
        }
        let high = le32(&self.bytes, high)?;
        Ok(Time { seconds: seconds + (i64::from(high & 3) << 32), nanoseconds: (high >> 2).min(999_999_999) })
    }
}

/// Device numbers are of 8 bits each, or of 12 and 20.
fn device(old: u32, new: u32) -> (u32, u32) {
    match old {
        0 => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00),
        old => (old >> 8 & 0xff, old & 0xff),
    }
}

/// The checksum is in two halves, of which old inodes have one, and counts as zeroes itself.
fn is_right(seed: u32, bytes: &[u8], extra: usize) -> Result<bool> {
    let (low, high) = (0x7c, 0x82);
    let whole = bytes.len() > OLD_SIZE && OLD_SIZE + extra >= high + 2;
    let mut told = u32::from(le16(bytes, low)?);
    let mut zeroed = bytes.to_vec();
    let holes: &[usize] = if whole { &[low, high] } else { &[low] };
    for at in holes {
        zeroed.iter_mut().skip(*at).take(2).for_each(|byte| *byte = 0);
    }
    if whole {
        told |= u32::from(le16(bytes, high)?) << 16;
    }
    let sum = crc32c(seed, &zeroed);
    Ok(told == if whole { sum } else { sum & 0xffff })
}

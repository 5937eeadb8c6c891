//! Inodes.

use crate::{Attributes, Disk, Error, FileKind, Kind, Result, Time};

use super::checksum;
use super::volume::Volume;
use crate::numbers::{array, be16, be32, be64, byte};

/// Length of the core of version 3, in bytes; the forks follow.
pub(super) const CORE_V3: usize = 176;
/// That of versions 1 and 2.
const CORE_V2: usize = 100;

const REALTIME: u16 = 1;
pub(super) const BIG_TIMES: u64 = 1 << 3;
pub(super) const LARGE_COUNTS: u64 = 1 << 4;
const METADATA: u64 = 1 << 5;

const NANOSECONDS: u64 = 1_000_000_000;

/// How a fork has its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A device's number.
    Device,
    /// In the inode.
    Local,
    /// As a list of extents in the inode.
    Extents,
    /// As a tree of extents, whose root is in the inode.
    Tree,
}

impl Format {
    fn parse(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Device,
            1 => Self::Local,
            2 => Self::Extents,
            3 => Self::Tree,
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) attributes: Attributes,
    format: Format,
    attribute_format: Option<Format>,
    extents: u64,
    attribute_extents: u64,
    core: usize,
    /// Where the attributes' fork begins, after the core, or 0.
    fork_offset: usize,
    /// Its data is on the realtime device.
    pub(super) realtime: bool,
    bytes: Vec<u8>,
}

/// One of the two things that an inode leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fork<'a> {
    pub(super) owner: u64,
    pub(super) format: Format,
    pub(super) extents: u64,
    pub(super) bytes: &'a [u8],
}

impl Inode {
    /// What it contains.
    pub(super) fn data(&self) -> Fork<'_> {
        let end = if self.fork_offset == 0 { self.bytes.len() } else { self.core + self.fork_offset };
        let bytes = self.bytes.get(self.core..end).unwrap_or_default();
        Fork { owner: self.number, format: self.format, extents: self.extents, bytes }
    }

    /// Its extended attributes.
    pub(super) fn extended(&self) -> Option<Fork<'_>> {
        let format = self.attribute_format.filter(|_| self.fork_offset != 0)?;
        let bytes = self.bytes.get(self.core + self.fork_offset..).unwrap_or_default();
        Some(Fork { owner: self.number, format, extents: self.attribute_extents, bytes })
    }

    pub(super) fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!("XFS: inode {}: {what}", self.number))
    }
}

impl<D: Disk> Volume<D> {
    /// An inode that is in use.
    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let offset = self.superblock.inode_place(number)?;
        let mut bytes = vec![0; self.superblock.inode_size.into()];
        let changed = self.read(offset, &mut bytes)?;
        let corrupt = |what: &str| Error::corrupt(format!("XFS: inode {number}: {what}"));
        let version = byte(&bytes, 4)?;
        if be16(&bytes, 0)? != 0x494e || (version >= 3) != self.superblock.v5 || !(1..=3).contains(&version) {
            return Err(corrupt("there is none at its place"));
        }
        if version == 3 && self.checked {
            if !changed && !checksum::is_right(&bytes, 100) {
                return Err(corrupt("its checksum is wrong"));
            }
            if be64(&bytes, 152)? != number || array(&bytes, 160)? != self.superblock.meta_uuid {
                return Err(corrupt("another is at its place"));
            }
        }
        let mut inode = parse(number, version, bytes, self.superblock.block_size)?;
        if let Some(changes) = self.unfinished.get(&number) {
            let bytes = |blocks: u64| blocks.saturating_mul(self.superblock.block_size.into());
            let allocated = inode.attributes.allocated.saturating_add(bytes(changes.more));
            inode.attributes.allocated = allocated.saturating_sub(bytes(changes.less));
        }
        Ok(inode)
    }
}

fn parse(number: u64, version: u8, bytes: Vec<u8>, block_size: u32) -> Result<Inode> {
    let corrupt = |what: &str| Error::corrupt(format!("XFS: inode {number}: {what}"));
    let mode = be16(&bytes, 2)?;
    let links = if version == 1 { be16(&bytes, 6)?.into() } else { be32(&bytes, 16)? };
    let flags2 = if version == 3 { be64(&bytes, 120)? } else { 0 };
    if mode == 0 || links == 0 || flags2 & METADATA != 0 {
        return Err(Error::new(Kind::NotFound, format!("XFS: inode {number} is no file's")));
    }
    let kind = match mode >> 12 {
        0o10 => FileKind::File,
        0o4 => FileKind::Directory,
        0o12 => FileKind::Symlink,
        0o2 => FileKind::CharDevice,
        0o6 => FileKind::BlockDevice,
        0o1 => FileKind::Fifo,
        0o14 => FileKind::Socket,
        _ => return Err(corrupt("it is of no known kind")),
    };
    let core = if version == 3 { CORE_V3 } else { CORE_V2 };
    let fork_offset = usize::from(byte(&bytes, 82)?) * 8;
    if core + fork_offset >= bytes.len() {
        return Err(corrupt("its attributes are past its end"));
    }
    let format = Format::parse(byte(&bytes, 5)?).ok_or_else(|| corrupt("its content is of no known form"))?;
    let fits = match kind {
        FileKind::File => matches!(format, Format::Extents | Format::Tree),
        FileKind::Directory | FileKind::Symlink => format != Format::Device,
        _ => format == Format::Device,
    };
    let size = be64(&bytes, 56)?;
    if !fits || i64::try_from(size).is_err() {
        return Err(corrupt("its content does not fit its kind"));
    }
    let (extents, attribute_extents) = if flags2 & LARGE_COUNTS != 0 {
        (be64(&bytes, 24)?, be32(&bytes, 76)?.into())
    } else {
        (be32(&bytes, 76)?.into(), be16(&bytes, 80)?.into())
    };
    let device = match kind {
        FileKind::CharDevice | FileKind::BlockDevice => {
            let device = be32(&bytes, core)?;
            (device >> 18 & 0x3fff, device & 0x3_ffff)
        }
        _ => (0, 0),
    };
    let time = |at| time(array(&bytes, at)?, flags2 & BIG_TIMES != 0);
    Ok(Inode {
        number,
        attributes: Attributes {
            kind,
            mode: mode & 0o7777,
            uid: be32(&bytes, 8)?,
            gid: be32(&bytes, 12)?,
            links,
            size,
            allocated: be64(&bytes, 64)?.saturating_mul(block_size.into()),
            accessed: time(32)?,
            modified: time(40)?,
            changed: time(48)?,
            device,
        },
        format,
        attribute_format: Format::parse(byte(&bytes, 83)?),
        extents,
        attribute_extents,
        core,
        fork_offset,
        realtime: be16(&bytes, 90)? & REALTIME != 0 && kind == FileKind::File,
        bytes,
    })
}

fn time(bytes: [u8; 8], big: bool) -> Result<Time> {
    if big {
        // Nanoseconds since the first second that 32 bits can tell.
        let all = u64::from_be_bytes(bytes);
        let seconds = i64::try_from(all / NANOSECONDS).unwrap_or_default() + i64::from(i32::MIN);
        return Ok(Time { seconds, nanoseconds: u32::try_from(all % NANOSECONDS).unwrap_or_default() });
    }
    let seconds = i32::from_be_bytes(array(&bytes, 0)?);
    Ok(Time { seconds: seconds.into(), nanoseconds: be32(&bytes, 4)?.min(999_999_999) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_forms() {
        let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert_eq!(time([0, 0, 0, 1, 0, 0, 0, 2], false).unwrap(), at(1, 2));
        assert_eq!(time([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2], false).unwrap(), at(-1, 2));
        let epoch = (1_u64 << 31) * NANOSECONDS;
        assert_eq!(time(epoch.to_be_bytes(), true).unwrap(), at(0, 0));
        assert_eq!(time((epoch - 1).to_be_bytes(), true).unwrap(), at(-1, 999_999_999));
        assert_eq!(time([0; 8], true).unwrap(), at(i64::from(i32::MIN), 0));
    }
}

//! Extended attributes: in the inode after its fields, in a block that files may share, or each in an inode of its own.

use super::Volume;
use super::acl;
use super::inode::{Inode, flags};
use crate::checksum::crc32c;
use crate::numbers::{byte, in_memory, le16, le32, slice};
use crate::{Disk, Error, Result, Xattr};

/// What attributes begin with, in the inode and in a block.
const MAGIC: u32 = 0xea02_0000;

/// What a block of attributes has before the first one.
const HEADER: usize = 32;

/// Of an attribute, before its name.
const ENTRY: usize = 16;

/// Longest value that setxattr(2) takes.
const LONGEST: u32 = 64 << 10;

/// Longest that all of a file's attributes may be.
const ALL: usize = 1 << 20;

/// What checked blocks are marked with.
const MARK: u64 = 2 << 32;

/// Of the name of the data in an inode, `system.data`.
const SYSTEM: u8 = 7;

/// An attribute as the disk has it.
struct Raw<'a> {
    index: u8,
    name: &'a [u8],
    /// The inode that has the value, or 0.
    inode: u32,
    offset: usize,
    size: u32,
}

impl<D: Disk> Volume<D> {
    /// All that listxattr(2) tells.
    pub(super) fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        if let Some(body) = body(inode)? {
            self.collect(inode, body, 0, &mut found)?;
        }
        let block = inode.xattr_block;
        if block != 0 {
            let bytes = self.xattr_block(inode)?;
            self.collect(inode, &bytes, HEADER, &mut found)?;
        }
        Ok(found)
    }

    fn xattr_block(&self, inode: &Inode) -> Result<std::sync::Arc<[u8]>> {
        let block = inode.xattr_block;
        if !self.superblock.holds(block, 1) {
            return Err(wrong(inode));
        }
        let bytes = self.blocks.checked(block, MARK, |bytes| {
            if le32(bytes, 0)? != MAGIC || le32(bytes, 8)? != 1 {
                return Err(wrong(inode));
            }
            let start = crc32c(crc32c(self.superblock.seed, &block.to_le_bytes()), slice(bytes, 0, 16)?);
            let sum = crc32c(crc32c(start, &[0; 4]), bytes.get(20..).unwrap_or_default());
            if self.superblock.has_checksums() && le32(bytes, 16)? != sum {
                let text = format!("the checksum of block {block}, attributes of inode {}, is wrong", inode.number);
                return Err(Error::corrupt(text));
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// `area` has attributes from `start` on, and their values at offsets of its own.
    fn collect(&self, inode: &Inode, area: &[u8], start: usize, found: &mut Vec<Xattr>) -> Result<()> {
        let mut total: usize = found.iter().map(|one| one.name.len() + one.value.len()).sum();
        let mut at = start;
        while let Some((raw, next)) = entry(area, at).map_err(|_| wrong(inode))? {
            at = next;
            let Some(mut name) = prefix(raw.index).map(|prefix| prefix.as_bytes().to_vec()) else { continue };
            let list = matches!(raw.index, 2 | 3);
            if list != raw.name.is_empty() || raw.size > LONGEST {
                return Err(wrong(inode));
            }
            name.extend(raw.name);
            let value = self.value(inode, area, &raw)?;
            let Some(value) = (if list { acl::convert(&value)? } else { Some(value) }) else { continue };
            total = total.saturating_add(name.len()).saturating_add(value.len());
            if total > ALL {
                return Err(Error::new(
                    crate::Kind::TooLarge,
                    format!("extended attributes of inode {} are longer than 1 MiB together", inode.number),
                ));
            }
            found.push(Xattr { name, value });
        }
        Ok(())
    }

    fn value(&self, inode: &Inode, area: &[u8], raw: &Raw<'_>) -> Result<Vec<u8>> {
        let size = in_memory(raw.size.into())?;
        if raw.inode == 0 {
            return slice(area, raw.offset, size).map(<[u8]>::to_vec).map_err(|_| wrong(inode));
        }
        let other = self.special_inode(raw.inode)?;
        if !other.has(flags::EA_INODE) || other.size != u64::from(raw.size) || other.has(flags::INLINE_DATA) {
            return Err(wrong(inode));
        }
        let value = self.content(&other, size)?;
        let (hash, parent) = other.raw_times()?;
        // Lustre wrote the file that it is of there instead.
        let old = parent == inode.number && other.generation == inode.generation;
        if crc32c(self.superblock.seed, &value) != hash && !old {
            return Err(Error::corrupt(format!("the checksum of an attribute's value, inode {}, is wrong", raw.inode)));
        }
        Ok(value)
    }
}

/// The part of a file's data that is an attribute.
pub(super) fn inline_data(inode: &Inode) -> Result<&[u8]> {
    let Some(body) = body(inode)? else { return Ok(&[]) };
    let mut at = 0;
    while let Some((raw, next)) = entry(body, at).map_err(|_| wrong(inode))? {
        at = next;
        if raw.index == SYSTEM && raw.name == b"data" && raw.inode == 0 {
            return slice(body, raw.offset, in_memory(raw.size.into())?).map_err(|_| wrong(inode));
        }
    }
    Ok(&[])
}

/// The attributes in the inode, from the first one on.
fn body(inode: &Inode) -> Result<Option<&[u8]>> {
    let body = inode.body();
    if body.len() < 4 || le32(body, 0)? != MAGIC {
        return Ok(None);
    }
    Ok(body.get(4..))
}

/// The attribute at `at`, and where the next one is; none at the end.
fn entry(area: &[u8], at: usize) -> Result<Option<(Raw<'_>, usize)>> {
    // Attributes may end with the inode.
    if at + 4 > area.len() || le32(area, at)? == 0 {
        return Ok(None);
    }
    let name = usize::from(byte(area, at)?);
    let raw = Raw {
        index: byte(area, at + 1)?,
        offset: le16(area, at + 2)?.into(),
        inode: le32(area, at + 4)?,
        size: le32(area, at + 8)?,
        name: slice(area, at + ENTRY, name)?,
    };
    Ok(Some((raw, at + (ENTRY + name).next_multiple_of(4))))
}

/// What the name of an attribute begins with; none for those that the kernel keeps to itself.
fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        1 => "user.",
        2 => crate::acl::ACCESS,
        3 => crate::acl::DEFAULT,
        4 => "trusted.",
        6 => "security.",
        10 => "gnu.",
        _ => return None,
    })
}

fn wrong(inode: &Inode) -> Error {
    Error::corrupt(format!("the extended attributes of inode {} cannot be right", inode.number))
}

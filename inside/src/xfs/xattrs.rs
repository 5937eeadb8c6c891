//! Extended attributes: in the inode, or in leaves, with large values in blocks of their own.

use crate::acl::{ACCESS, DEFAULT, List};
use crate::{Disk, Error, Kind, Result, Xattr};

use super::hashes::Block;
use super::inode::{Fork, Format, Inode};
use super::volume::{Seal, Volume};
use crate::numbers::{be16, be32, byte, index, length, slice};

/// Of one value, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// Of all of a file's, in bytes.
const MAX_ALL: usize = 1 << 20;
/// More leaves than a file of many names has parent pointers in.
const MAX_LEAVES: usize = 16384;

const ENTRY: usize = 8;

const LOCAL: u8 = 1;
const TRUSTED: u8 = 2;
const SECURITY: u8 = 4;
/// A change that was under way.
const INCOMPLETE: u8 = 0x80;

/// The name as getxattr(2) takes it; none for what the file system keeps for itself, as its parent pointers.
fn full_name(flags: u8, name: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match (flags & !LOCAL, name) {
        (0, _) => b"user.",
        (TRUSTED, b"SGI_ACL_FILE") => return Some(ACCESS.into()),
        (TRUSTED, b"SGI_ACL_DEFAULT") => return Some(DEFAULT.into()),
        (TRUSTED, _) => b"trusted.",
        (SECURITY, _) => b"security.",
        _ => return None,
    };
    Some([prefix, name].concat())
}

/// An access control list as the kernel tells it, of one as the disk has it.
fn access_list(disk: &[u8]) -> Result<Vec<u8>> {
    let count = index(be32(disk, 0)?);
    let entries = slice(disk, 4, count.saturating_mul(12))?;
    let mut told = List::new();
    for entry in entries.chunks_exact(12) {
        let (tag, id, permissions) = (be32(entry, 0)?, be32(entry, 4)?, be16(entry, 8)?);
        let tag = u16::try_from(tag).map_err(|_| Error::corrupt("XFS: an access control list for nobody"))?;
        told.push(tag, permissions, id);
    }
    Ok(told.into_bytes())
}

struct Found {
    all: Vec<Xattr>,
    size: usize,
}

impl Found {
    fn push(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<()> {
        let value = if name.starts_with(b"system.") { access_list(&value)? } else { value };
        self.size += name.len() + value.len();
        if self.size > MAX_ALL {
            return Err(Error::new(Kind::TooLarge, "XFS: a file has more than 1 MiB of extended attributes"));
        }
        self.all.push(Xattr { name, value });
        Ok(())
    }
}

impl<D: Disk> Volume<D> {
    /// [`crate::FileSystem::xattrs`].
    pub(super) fn extended_attributes(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut found = Found { all: Vec::new(), size: 0 };
        let Some(fork) = inode.extended() else { return Ok(found.all) };
        match fork.format {
            Format::Local => short(fork.bytes, &mut found)?,
            Format::Extents if fork.extents == 0 => (),
            Format::Extents | Format::Tree => self.leaves(inode, &fork, &mut found)?,
            Format::Device => return Err(inode.corrupt("its attributes are of no known form")),
        }
        Ok(found.all)
    }

    /// All leaves, from the first on.
    fn leaves(&self, inode: &Inode, fork: &Fork<'_>, found: &mut Found) -> Result<()> {
        let mut block = self.attribute_block(fork, 0)?;
        while block.level != 0 {
            let child = self.attribute_block(fork, block.child(0)?)?;
            if child.level >= block.level {
                return Err(inode.corrupt("its tree of attributes has a loop"));
            }
            block = child;
        }
        let mut last = 0;
        for _ in 0..MAX_LEAVES {
            last = self.leaf_of_attributes(fork, block.bytes(), last, found)?;
            if block.next == 0 {
                return Ok(());
            }
            block = self.attribute_block(fork, block.next)?;
            if block.level != 0 {
                break;
            }
        }
        Err(inode.corrupt("its leaves of attributes have a loop"))
    }

    fn attribute_block(&self, fork: &Fork<'_>, number: u32) -> Result<Block> {
        let mut bytes = vec![0; index(self.superblock.block_size)];
        let offset = self.runs(fork, number.into(), 1)?.first().map_or(0, |run| run.0);
        let changed = self.read(offset, &mut bytes)?;
        self.verify(&bytes, offset, Seal::TREE, fork.owner, changed)?;
        let leaf = if self.superblock.v5 { 0x3bee } else { 0xfbee };
        Block::parse(bytes, self.superblock.v5, &[leaf])
    }

    /// `last` is the hash of the last one before, and the answer that of the last one here.
    fn leaf_of_attributes(&self, fork: &Fork<'_>, leaf: &[u8], mut last: u32, found: &mut Found) -> Result<u32> {
        let (count, header) = if self.superblock.v5 { (be16(leaf, 56)?, 80) } else { (be16(leaf, 12)?, 32) };
        let entries = slice(leaf, header, usize::from(count) * ENTRY)?;
        for entry in entries.chunks_exact(ENTRY) {
            let (hash, at, flags) = (be32(entry, 0)?, usize::from(be16(entry, 4)?), byte(entry, 6)?);
            if hash < last {
                return Err(Error::corrupt(format!("XFS: inode {}: its attributes are out of order", fork.owner)));
            }
            last = hash;
            if flags & INCOMPLETE != 0 {
                continue;
            }
            if flags & LOCAL != 0 {
                let (value_length, name_length) = (be16(leaf, at)?.into(), byte(leaf, at + 2)?.into());
                let Some(name) = full_name(flags, slice(leaf, at + 3, name_length)?) else { continue };
                found.push(name, slice(leaf, at + 3 + name_length, value_length)?.to_vec())?;
            } else {
                let (first, size) = (be32(leaf, at)?, index(be32(leaf, at + 4)?));
                let name = slice(leaf, at + 9, byte(leaf, at + 8)?.into())?;
                let Some(name) = full_name(flags, name) else { continue };
                found.push(name, self.remote_value(fork, first, size)?)?;
            }
        }
        Ok(last)
    }

    /// A value in blocks of its own, each with a header in version 5.
    fn remote_value(&self, fork: &Fork<'_>, first: u32, size: usize) -> Result<Vec<u8>> {
        if size > MAX_VALUE {
            return Err(Error::corrupt(format!("XFS: inode {}: a value of {size} bytes", fork.owner)));
        }
        let block_size = index(self.superblock.block_size);
        let header = if self.superblock.v5 { 56 } else { 0 };
        let mut value = Vec::with_capacity(size);
        let blocks = length(size.div_ceil(block_size - header));
        let mut bytes = vec![0; block_size];
        for (offset, count) in self.runs(fork, first.into(), blocks)? {
            for block in 0..count {
                let offset = offset + block * u64::from(self.superblock.block_size);
                let changed = self.read(offset, &mut bytes)?;
                let part = (size - value.len()).min(block_size - header);
                if self.superblock.v5 {
                    self.verify(&bytes, offset, Seal::REMOTE, fork.owner, changed)?;
                    let is_next = index(be32(&bytes, 4)?) == value.len() && index(be32(&bytes, 8)?) == part;
                    if !bytes.starts_with(b"XARM") || !is_next {
                        return Err(Error::corrupt(format!("XFS: inode {}: a value's block is none", fork.owner)));
                    }
                }
                value.extend_from_slice(slice(&bytes, header, part)?);
            }
        }
        Ok(value)
    }
}

/// Those in the inode.
fn short(bytes: &[u8], found: &mut Found) -> Result<()> {
    let mut at = 4;
    for _ in 0..byte(bytes, 2)? {
        let (name_length, value_length) = (usize::from(byte(bytes, at)?), usize::from(byte(bytes, at + 1)?));
        let flags = byte(bytes, at + 2)?;
        let name = slice(bytes, at + 3, name_length)?;
        let value = slice(bytes, at + 3 + name_length, value_length)?;
        at += 3 + name_length + value_length;
        if flags & INCOMPLETE == 0
            && let Some(name) = full_name(flags, name)
        {
            found.push(name, value.to_vec())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_their_space() {
        assert_eq!(full_name(0, b"a").unwrap(), b"user.a");
        assert_eq!(full_name(LOCAL | TRUSTED, b"a").unwrap(), b"trusted.a");
        assert_eq!(full_name(LOCAL | SECURITY, b"selinux").unwrap(), b"security.selinux");
        assert_eq!(full_name(TRUSTED, b"SGI_ACL_FILE").unwrap(), b"system.posix_acl_access");
        assert_eq!(full_name(LOCAL, b"SGI_ACL_FILE").unwrap(), b"user.SGI_ACL_FILE");
        assert_eq!(full_name(LOCAL | 8, b"parent"), None);
    }

    #[test]
    fn an_access_list_in_the_kernels_form() {
        let disk = [&1_u32.to_be_bytes()[..], &8_u32.to_be_bytes(), &100_u32.to_be_bytes(), &[0, 6, 0, 0]].concat();
        assert_eq!(access_list(&disk).unwrap(), [2, 0, 0, 0, 8, 0, 6, 0, 100, 0, 0, 0]);
        access_list(&u32::MAX.to_be_bytes()).unwrap_err();
    }
}

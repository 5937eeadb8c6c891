//! The file system's blocks, each verified.

use crate::{Disk, Error, Result};

use super::checksum;
use super::overlay::Overlay;
use super::superblock::{BASIC, Superblock};
use super::unfinished::Unfinished;
use crate::numbers::{array, be64};

#[derive(Debug)]
pub(super) struct Volume<D> {
    pub(super) blocks: Overlay<D>,
    pub(super) superblock: Superblock,
    pub(super) unfinished: Unfinished,
    /// Checksums are looked at; not by a fuzzer, which would get nowhere.
    pub(super) checked: bool,
}

/// Where a block of version 5 says what it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    checksum: usize,
    place: usize,
    uuid: usize,
    owner: Option<usize>,
}

impl Seal {
    /// Data of a directory.
    pub(super) const DIRECTORY: Self = Self { checksum: 4, place: 8, uuid: 24, owner: Some(40) };
    /// Leaves and nodes of directories and attributes.
    pub(super) const TREE: Self = Self { checksum: 12, place: 16, uuid: 32, owner: Some(48) };
    /// Pieces of a symbolic link, values of attributes.
    pub(super) const REMOTE: Self = Self { checksum: 12, place: 40, uuid: 16, owner: Some(32) };
    /// The tree of a file's extents; after an exchange of extents its owner may be another.
    pub(super) const EXTENTS: Self = Self { checksum: 64, place: 24, uuid: 40, owner: None };
}

impl<D: Disk> Volume<D> {
    /// Bytes at an offset of the disk; true if the log has changed any of them: then their checksum is that of before.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        Ok(self.blocks.read(offset, buffer)?)
    }

    /// Whether a block, which was read from `offset`, is one of that kind of that file.
    pub(super) fn verify(&self, block: &[u8], offset: u64, seal: Seal, owner: u64, changed: bool) -> Result<()> {
        if !self.superblock.v5 || !self.checked {
            return Ok(());
        }
        let wrong = |what| Err(Error::corrupt(format!("XFS: inode {owner}: the block at {offset} has a wrong {what}")));
        if !changed && !checksum::is_right(block, seal.checksum) {
            return wrong("checksum");
        }
        if be64(block, seal.place)?.checked_mul(BASIC) != Some(offset) {
            return wrong("address");
        }
        if array(block, seal.uuid)? != self.superblock.meta_uuid {
            return wrong("UUID");
        }
        match seal.owner {
            Some(at) if be64(block, at)? != owner => wrong("owner"),
            _ => Ok(()),
        }
    }
}

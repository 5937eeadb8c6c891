//! Directories: their data, as entries one after the other.
//!
//! A small one lies in its inode; one block has its names and their hashes; a larger one has blocks of names from 0 on and, from
//! 32 GiB on, the hashes ([`super::hashes`]). An entry's place is its byte in the blocks of names, divided by 8.

use std::ops::ControlFlow;

use crate::{Disk, Entry, Error, FileKind, Id, Kind, Result};

use super::inode::{Format, Inode};
use super::volume::{Seal, Volume};
use crate::numbers::{array, be16, be32, be64, byte, index, length, slice};

/// Where the hashes begin, in bytes of the directory.
pub(super) const HASHES: u64 = 1 << 35;

/// Inode numbers have no more bits.
const MAX_INODE: u64 = (1 << 56) - 1;

/// An entry as it is there, `.` and `..` too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    place: u64,
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    ftype: u8,
}

/// A block of names.
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Its number in the directory.
    number: u64,
    start: usize,
    /// Where entries end: the whole directory in one block has hashes after them.
    end: usize,
    ftype: bool,
}

impl Names {
    /// The hashes, if all of the directory is here.
    pub(super) fn hashes(&self) -> Option<&[u8]> {
        self.bytes.get(self.end..self.bytes.len() - 8).filter(|_| self.end < self.bytes.len())
    }

    /// The entry at a byte of the block, and how long it is; none for unused space.
    fn at(&self, at: usize) -> Result<(Option<Name<'_>>, usize)> {
        let entries = self.bytes.get(..self.end).unwrap_or_default();
        let corrupt = || Error::corrupt(format!("XFS: a directory's block {}: byte {at} is no entry", self.number));
        if be16(entries, at)? == 0xffff {
            let size = usize::from(be16(entries, at + 2)?);
            let fits = size >= 8 && size % 8 == 0 && slice(entries, at, size).is_ok();
            return if fits { Ok((None, size)) } else { Err(corrupt()) };
        }
        let inode = be64(entries, at)?;
        let name_length = usize::from(byte(entries, at + 8)?);
        let size = (8 + 1 + name_length + usize::from(self.ftype) + 2).next_multiple_of(8);
        let name = slice(entries, at + 9, name_length)?;
        if usize::from(be16(entries, at + size - 2)?) != at || !is_name(name) || inode > MAX_INODE {
            return Err(corrupt());
        }
        let ftype = if self.ftype { byte(entries, at + 9 + name_length)? } else { 0 };
        let place = (self.number * length(self.bytes.len()) + length(at)) / 8;
        Ok((Some(Name { place, name, inode, ftype }), size))
    }

    /// The entry at a place that a hash told.
    pub(super) fn named(&self, at: usize) -> Result<Name<'_>> {
        let corrupt = || Error::corrupt("XFS: a directory: a hash of what is no name");
        if at < self.start || !at.is_multiple_of(8) {
            return Err(corrupt());
        }
        self.at(at)?.0.ok_or_else(corrupt)
    }

    fn each(&self, each: &mut dyn FnMut(Name<'_>) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        let mut at = self.start;
        while at < self.end {
            let (name, size) = self.at(at)?;
            if name.is_some_and(|name| each(name).is_break()) {
                return Ok(ControlFlow::Break(()));
            }
            at += size;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Bytes that can be a file's name, or `.` or `..`.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && !name.contains(&0)
}

impl<D: Disk> Volume<D> {
    pub(super) fn directory(&self, number: u64) -> Result<Inode> {
        let inode = self.inode(number)?;
        if inode.attributes.kind == FileKind::Directory {
            Ok(inode)
        } else {
            Err(Error::new(Kind::WrongKind, format!("XFS: inode {number} is no directory")))
        }
    }

    /// [`crate::FileSystem::list`].
    pub(super) fn entries(
        &self,
        directory: &Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut tell = |name: Name<'_>| {
            if name.place < from || name.name == b"." || name.name == b".." {
                return ControlFlow::Continue(());
            }
            each(Entry {
                name: name.name,
                id: Id(name.inode),
                kind: FileKind::numbered(name.ftype),
                next: name.place + 1,
            })
        };
        if directory.data().format == Format::Local {
            return self.short(directory, &mut tell).map(drop);
        }
        let size = length(self.superblock.directory_block_size());
        let mut number = from.saturating_mul(8) / size;
        while let Some(next) = self.next_names(directory, number)? {
            if self.names(directory, next)?.each(&mut tell)?.is_break() {
                break;
            }
            number = next + 1;
        }
        Ok(())
    }

    /// The inode of a name, which may be `..`.
    pub(super) fn find(&self, directory: &Inode, name: &[u8]) -> Result<Option<u64>> {
        if directory.data().format != Format::Local {
            return self.find_hash(directory, name);
        }
        let mut found = None;
        let parent = self.short(directory, &mut |entry| {
            if entry.name == name {
                found = Some(entry.inode);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(if name == b".." { Some(parent) } else { found })
    }

    /// The entries of a directory that lies in its inode; its parent.
    fn short(&self, directory: &Inode, each: &mut dyn FnMut(Name<'_>) -> ControlFlow<()>) -> Result<u64> {
        let size = index(directory.attributes.size);
        let bytes = slice(directory.data().bytes, 0, size)?;
        let (count, long) = (byte(bytes, 0)?, byte(bytes, 1)? != 0);
        let inode = |at| -> Result<(u64, usize)> {
            Ok(if long { (be64(bytes, at)? & MAX_INODE, at + 8) } else { (be32(bytes, at)?.into(), at + 4) })
        };
        let (parent, mut at) = inode(2)?;
        let mut last = 0;
        for _ in 0..count {
            let name_length = usize::from(byte(bytes, at)?);
            // In the order of where they would be in a block.
            let place = u64::from(u16::from_be_bytes(array(bytes, at + 1)?)) / 8;
            let name = slice(bytes, at + 3, name_length)?;
            at += 3 + name_length;
            let ftype = if self.superblock.ftype { byte(bytes, at)? } else { 0 };
            let (number, end) = inode(at + usize::from(self.superblock.ftype))?;
            at = end;
            if place <= last || !is_name(name) {
                return Err(directory.corrupt("its entries are none"));
            }
            last = place;
            if each(Name { place, name, inode: number, ftype }).is_break() {
                break;
            }
        }
        Ok(parent)
    }

    /// The next block of names from `number` on.
    fn next_names(&self, directory: &Inode, number: u64) -> Result<Option<u64>> {
        let log = self.superblock.directory_block_log;
        let hashes = HASHES / u64::from(self.superblock.block_size);
        let from = number << log;
        let mut found = None;
        if from < hashes {
            self.mappings(&directory.data(), from, &mut |mapping| {
                found = (mapping.offset < hashes).then_some(mapping.offset.max(from) >> log);
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(found)
    }

    /// A block of a directory, not verified yet: its bytes, where it begins on the disk, and whether the log changed it.
    pub(super) fn directory_block(&self, directory: &Inode, number: u64) -> Result<(Vec<u8>, u64, bool)> {
        let log = self.superblock.directory_block_log;
        let mut bytes = vec![0; self.superblock.directory_block_size()];
        let (mut at, mut changed, mut first) = (0, false, None);
        for (offset, blocks) in self.runs(&directory.data(), number << log, 1 << log)? {
            let run = index(blocks * u64::from(self.superblock.block_size));
            let piece = bytes.get_mut(at..at + run).unwrap_or_default();
            changed |= self.read(offset, piece)?;
            first.get_or_insert(offset);
            at += run;
        }
        Ok((bytes, first.unwrap_or_default(), changed))
    }

    /// A block of names.
    pub(super) fn names(&self, directory: &Inode, number: u64) -> Result<Names> {
        let (bytes, offset, changed) = self.directory_block(directory, number)?;
        let (single, many, start) = if self.superblock.v5 { (b"XDB3", b"XDD3", 64) } else { (b"XD2B", b"XD2D", 16) };
        let end = if bytes.starts_with(many) {
            bytes.len()
        } else if bytes.starts_with(single) && number == 0 {
            let tail = bytes.len() - 8;
            let hashes = index(be32(&bytes, tail)?).checked_mul(8);
            hashes
                .and_then(|hashes| tail.checked_sub(hashes))
                .filter(|end| *end >= start)
                .ok_or_else(|| directory.corrupt("its block has too many hashes"))?
        } else {
            return Err(directory.corrupt(&format!("its block {number} is none")));
        };
        self.verify(&bytes, offset, Seal::DIRECTORY, directory.number, changed)?;
        Ok(Names { bytes, number, start, end, ftype: self.superblock.ftype })
    }
}

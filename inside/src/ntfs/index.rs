//! Directories: a tree of names, whose root is in the file record and whose other nodes are blocks of a value.
//!
//! A name is found by going down the tree. A listing goes over the blocks as they lie on the disk, those that the bitmap says
//! are in use: each of them once, whatever the tree looks like, and a cursor is a place.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::file::{DOS, File, Stream, Value, flag};
use super::record::{kind, restore};
use super::upcase::UpCase;
use super::volume::{Volume, record_number};
use crate::numbers::{byte, le16, le32, le64, slice};
use crate::{Disk, Entry, Error, FileKind, Id, Kind, Result, utf16};

/// Largest index that is read, in bytes: some hundred million names.
const MAX_INDEX: u64 = 64 << 30;

/// Deepest tree, and most nodes that are read for one name.
const MAX_DEPTH: u32 = 24;
const MAX_NODES: u32 = 1024;

/// Cursors below are in the root node, those from here on in the blocks.
const BLOCKS: u64 = 1 << 17;

/// The first record that is no file of NTFS itself.
const FIRST_USER: u64 = 24;

/// A directory's index.
pub(super) struct Index<'a, D> {
    volume: &'a Volume<D>,
    root: &'a [u8],
    blocks: Option<(&'a Stream, &'a Stream)>,
    block_size: u64,
}

/// An entry of a node.
#[derive(Debug)]
struct Found<'a> {
    reference: u64,
    /// A file name as in a file's record, without its name space's; empty in the last one of a node.
    key: &'a [u8],
    /// The node with the names before it.
    child: Option<u64>,
    last: bool,
    /// Where the next one begins in the node's bytes.
    end: usize,
}

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("a directory's index: {what} cannot be right"))
}

/// The entry at `at`, in a node's entries that end before `end`.
fn entry(bytes: &[u8], at: usize, end: usize) -> Result<Found<'_>> {
    let bytes = bytes.get(..end).ok_or_else(|| wrong("a node's length"))?;
    let length = usize::from(le16(bytes, at + 8)?);
    let key_length = usize::from(le16(bytes, at + 10)?);
    let flags = le16(bytes, at + 12)?;
    if length < 16 || length % 8 != 0 {
        return Err(wrong("an entry's length"));
    }
    let bytes = slice(bytes, at, length)?;
    let (last, has_child) = (flags & 2 != 0, flags & 1 != 0);
    let child = if has_child { Some(le64(bytes, (length - 8).max(16))?) } else { None };
    let key = if last { &[] } else { slice(bytes, 16, key_length)? };
    Ok(Found { reference: le64(bytes, 0)?, key, child, last, end: at + length })
}

/// Where the entries of a node begin and end, given where its header is.
fn entries(bytes: &[u8], header: usize) -> Result<(usize, usize)> {
    let place = |at| le32(bytes, at).map(|value| usize::try_from(value).unwrap_or(usize::MAX));
    let (first, length) = (place(header)?, place(header + 4)?);
    if first < 16 || first > length || length > bytes.len() - header {
        return Err(wrong("a node's length"));
    }
    Ok((header + first, header + length))
}

/// Where the header of a node is: in the root, in a block.
const ROOT_HEADER: usize = 16;
const BLOCK_HEADER: usize = 24;

impl<'a, D: Disk> Index<'a, D> {
    /// The index of a directory.
    ///
    /// # Errors
    /// [`Kind::WrongKind`] if it is none; if its index is not right.
    pub(super) fn new(volume: &'a Volume<D>, file: &'a File) -> Result<Self> {
        if !file.directory {
            return Err(Error::new(Kind::WrongKind, "not a directory"));
        }
        let Some(Stream { value: Value::Resident(root), .. }) = file.stream(kind::INDEX_ROOT) else {
            return Err(wrong("its root"));
        };
        if le32(root, 0)? != kind::FILE_NAME {
            return Err(wrong("its kind"));
        }
        let block_size = u64::from(le32(root, 8)?);
        if !block_size.is_power_of_two() || !(512..=1 << 16).contains(&block_size) {
            return Err(wrong("the size of its blocks"));
        }
        let blocks = match (file.stream(kind::INDEX_ALLOCATION), file.stream(kind::BITMAP)) {
            (Some(blocks), Some(bitmap)) => Some((blocks, bitmap)),
            (Some(_), None) => return Err(wrong("its bitmap")),
            (None, _) => None,
        };
        if blocks.is_some_and(|(blocks, _)| blocks.size() > MAX_INDEX) {
            return Err(Error::new(Kind::TooLarge, "a directory's index is too large"));
        }
        Ok(Self { volume, root, blocks, block_size })
    }

    /// The block of that number, as it is counted by where it lies.
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let (blocks, _) = self.blocks.ok_or_else(|| wrong("a node without blocks"))?;
        let offset = number.checked_mul(self.block_size).ok_or_else(|| wrong("a node's number"))?;
        let mut bytes = vec![0; usize::try_from(self.block_size).map_err(|_| wrong("the size of its blocks"))?];
        self.volume.read(blocks, offset, &mut bytes)?;
        restore(&mut bytes, *b"INDX", "a block of a directory's index")?;
        if le64(&bytes, 16)?.checked_mul(self.unit()) != Some(offset) {
            return Err(wrong("a block's own number"));
        }
        Ok(bytes)
    }

    /// In what nodes are counted, in bytes: clusters, or 512 bytes if those are larger than a block.
    fn unit(&self) -> u64 {
        let cluster_size = self.volume.geometry().cluster_size;
        if self.block_size < cluster_size { 512 } else { cluster_size }
    }

    /// Whether a block is in use, for some blocks from `first` on.
    fn in_use(&self, bitmap: &Stream, first: u64) -> Result<Vec<u8>> {
        let byte = first / 8;
        let length = bitmap.size().saturating_sub(byte).min(4096);
        let mut bits = vec![0; usize::try_from(length).unwrap_or_default()];
        self.volume.read(bitmap, byte, &mut bits)?;
        Ok(bits)
    }

    /// See [`crate::FileSystem::list`].
    pub(super) fn list(&self, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        if from < BLOCKS && list_node(self.root, ROOT_HEADER, from, 0, each)?.is_break() {
            return Ok(());
        }
        let Some((blocks, bitmap)) = self.blocks else { return Ok(()) };
        let from = from.saturating_sub(BLOCKS);
        let (mut number, mut within) = (from / self.block_size, from % self.block_size);
        let count = blocks.size() / self.block_size;
        while number < count {
            let bits = self.in_use(bitmap, number)?;
            if bits.is_empty() {
                return Err(wrong("the size of its bitmap"));
            }
            let first = number / 8 * 8;
            let end = count.min(first + bits.len() as u64 * 8);
            while number < end {
                let byte = usize::try_from((number - first) / 8).unwrap_or(usize::MAX);
                if bits.get(byte).is_some_and(|bits| bits >> (number % 8) & 1 != 0) {
                    let bytes = self.block(number)?;
                    let base = BLOCKS + number * self.block_size;
                    if list_node(&bytes, BLOCK_HEADER, within, base, each)?.is_break() {
                        return Ok(());
                    }
                }
                number += 1;
                within = 0;
            }
        }
        Ok(())
    }

    /// The file of that name, in units.
    ///
    /// # Errors
    /// If the tree is not right.
    pub(super) fn find(&self, upcase: &UpCase, name: &[u16]) -> Result<Option<Id>> {
        let mut left = MAX_NODES;
        // The nodes to look at, and how deep they are; the root is none.
        let mut nodes = vec![(None, 0)];
        while let Some((node, depth)) = nodes.pop() {
            left = left.checked_sub(1).filter(|_| depth < MAX_DEPTH).ok_or_else(|| wrong("its depth"))?;
            let block;
            let (bytes, header) = match node {
                None => (self.root, ROOT_HEADER),
                Some(node) => {
                    let offset = u64::checked_mul(node, self.unit()).ok_or_else(|| wrong("a node's number"))?;
                    block = self.block(offset / self.block_size)?;
                    (block.as_slice(), BLOCK_HEADER)
                }
            };
            let (mut at, end) = entries(bytes, header)?;
            loop {
                let found = entry(bytes, at, end)?;
                at = found.end;
                let told = if found.last { None } else { Some(file_name(found.key)?) };
                let order = told.as_ref().map_or(Ordering::Less, |told| upcase.compare(name, told.units));
                if order != Ordering::Greater {
                    nodes.extend(found.child.map(|child| (Some(child), depth + 1)));
                }
                match (order, told) {
                    (Ordering::Less, _) => break,
                    (Ordering::Equal, Some(told))
                        if told.is_shown(found.reference) && utf16::units(told.units) == name =>
                    {
                        return Ok(Some(Id(found.reference)));
                    }
                    _ => {}
                }
            }
        }
        Ok(None)
    }
}

/// A name in an index.
struct FileName<'a> {
    /// In UTF-16.
    units: &'a [u8],
    space: u8,
    /// See [`flag`].
    flags: u32,
}

fn file_name(key: &[u8]) -> Result<FileName<'_>> {
    let units = slice(key, 66, usize::from(byte(key, 64)?) * 2)?;
    Ok(FileName { units, space: byte(key, 65)?, flags: le32(key, 56)? })
}

impl FileName<'_> {
    /// Neither one that DOS alone sees nor a file of NTFS itself, among which is the root as its own entry.
    fn is_shown(&self, reference: u64) -> bool {
        self.space != DOS && record_number(reference) >= FIRST_USER
    }

    fn kind(&self) -> Option<FileKind> {
        // These may be symbolic links.
        if self.flags & (flag::REPARSE_POINT | flag::SYSTEM) != 0 {
            return None;
        }
        Some(if self.flags & flag::DIRECTORY != 0 { FileKind::Directory } else { FileKind::File })
    }
}

/// The names of a node from byte `from` of it on; cursors are those bytes and `base`.
fn list_node(
    bytes: &[u8],
    header: usize,
    from: u64,
    base: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let (mut at, end) = entries(bytes, header)?;
    loop {
        let found = entry(bytes, at, end)?;
        if found.last {
            return Ok(ControlFlow::Continue(()));
        }
        let start = at as u64;
        at = found.end;
        let file_name = file_name(found.key)?;
        if start < from || !file_name.is_shown(found.reference) {
            continue;
        }
        let name = utf16::to_bytes(&utf16::units(file_name.units));
        if !utf16::is_name(&name) {
            return Err(wrong(&format!("the name \"{}\"", utf16::quoted(&name))));
        }
        let told = Entry { name: &name, id: Id(found.reference), kind: file_name.kind(), next: base + at as u64 };
        if each(told).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

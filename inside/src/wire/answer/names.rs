//! Names in a directory, alone or with what there is to tell of the files.

use super::super::bytes::{Input, Output};
use super::super::{Invalid, MAX_NAME};
use super::{
    FILE_KINDS, LIST, attributes, extents, number_of, of_number, put_attributes, put_extent, put_xattr, xattr,
};
use crate::{Attributes, Entry, Extent, FileKind, Id, Place, Xattr};

/// Names of a listing take no more than this, in bytes; the next is for the next question.
const LISTING: usize = 512 << 10;

/// Most extended attributes of a file that are told along, and their names and values together, in bytes. So all of an answer is
/// within a frame.
const FEW: usize = 8;
const SHORT: usize = 512;

/// Most pieces of a file that are told along.
pub const PLAIN_PIECES: usize = 4;

/// Most of their bytes that are in the file's inode.
const INLINE: usize = 256;

/// A name in a directory; the same as [`Entry`], on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name: not empty, at most 1024 bytes, without `/` and NUL, neither `.` nor `..`.
    pub name: Vec<u8>,
    /// The file.
    pub id: Id,
    /// What it is, if the directory tells.
    pub kind: Option<FileKind>,
    /// Where to go on after it; at least 1, below 2⁶³.
    pub next: u64,
}

/// Names of a directory, from some place on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// The names.
    pub all: Vec<Listed>,
    /// Whether it has none after them.
    pub is_last: bool,
    /// The parent of the directory, which comes with the first names if it can be told.
    pub parent: Option<Id>,
}

/// [`super::Answer::List`] while it grows: what a directory has goes straight into the frame.
#[derive(Debug)]
pub struct Listing {
    frame: Vec<u8>,
    count: u32,
    most: usize,
}

/// Where the count of a listing is in its frame.
const COUNT: std::ops::Range<usize> = 1..5;

impl Listing {
    /// Takes at most `most` names.
    pub fn new(most: usize) -> Self {
        Self { frame: vec![LIST, 0, 0, 0, 0], count: 0, most }
    }

    /// Adds a name; false if there was no room for it.
    pub fn push(&mut self, entry: Entry<'_>) -> bool {
        if usize::try_from(self.count).is_ok_and(|count| count >= self.most) || self.frame.len() >= LISTING {
            return false;
        }
        let mut out = Output(std::mem::take(&mut self.frame));
        put_entry(&mut out, entry);
        self.frame = out.0;
        self.count += 1;
        true
    }

    /// The frame, without its length; the rest as [`Names`] has it.
    pub fn finish(mut self, is_last: bool, parent: Option<Id>) -> Vec<u8> {
        self.frame[COUNT].copy_from_slice(&self.count.to_be_bytes());
        let mut out = Output(self.frame);
        put_end(&mut out, is_last, parent);
        out.0
    }
}

fn put_entry(out: &mut Output, entry: Entry<'_>) {
    out.bytes(entry.name);
    out.u64(entry.id.0);
    out.option(entry.kind, |out, kind| out.u8(number_of(&FILE_KINDS, &kind)));
    out.u64(entry.next);
}

pub(super) fn put_listed(out: &mut Output, Listed { name, id, kind, next }: &Listed) {
    put_entry(out, Entry { name, id: *id, kind: *kind, next: *next });
}

pub(super) fn put_end(out: &mut Output, is_last: bool, parent: Option<Id>) {
    out.u8(is_last.into());
    out.option(parent, |out, parent| out.u64(parent.0));
}

pub(super) fn names(input: &mut Input<'_>, from: u64, most: usize) -> Result<Names, Invalid> {
    let mut before = from;
    let all = input.list(most, |input| entry(input, &mut before))?;
    let is_last = input.option(|_| Ok(()))?.is_some();
    let parent = input.option(|input| input.u64().map(Id))?;
    Ok(Names { all, is_last, parent })
}

/// `before` is where the one before it said to go on.
fn entry(input: &mut Input<'_>, before: &mut u64) -> Result<Listed, Invalid> {
    let name = input.bytes(MAX_NAME)?;
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Invalid("name"));
    }
    let id = Id(input.u64()?);
    let kind = input.option(|input| of_number(&FILE_KINDS, input.u8()?))?;
    let next = input.size("place")?;
    // Who goes on from where he is never ends.
    if next == 0 || next == *before {
        return Err(Invalid("place"));
    }
    *before = next;
    Ok(Listed { name: name.to_vec(), id, kind, next })
}

/// A name in a directory, and what there is to tell of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The name.
    pub listed: Listed,
    /// What stat(2) tells; none if it cannot be read.
    pub attributes: Option<Attributes>,
    /// All of its extended attributes, if they [are short](is_short); none if they have to be asked for.
    pub xattrs: Option<Vec<Xattr>>,
    /// All of the data of a regular file, if [few pieces](is_plain) are; none if it has to be asked for.
    pub extents: Option<Vec<Extent>>,
}

/// Whether this is all of a file's data, and so little that it can be told along.
pub fn is_plain(attributes: &Attributes, extents: &[Extent]) -> bool {
    let inline = |extent: &Extent| if let Place::Inline(bytes) = &extent.place { bytes.len() } else { 0 };
    let end = extents.last().map_or(0, |last| last.offset.saturating_add(last.length));
    attributes.kind == FileKind::File
        && end == attributes.size
        && extents.len() <= PLAIN_PIECES
        && extents.iter().map(inline).sum::<usize>() <= INLINE
}

/// Whether so little can be told along.
pub fn is_short(xattrs: &[Xattr]) -> bool {
    xattrs.len() <= FEW && xattrs.iter().map(|Xattr { name, value }| name.len() + value.len()).sum::<usize>() <= SHORT
}

pub(super) fn put_described(out: &mut Output, described: &Described) {
    put_listed(out, &described.listed);
    out.option(described.attributes.as_ref(), put_attributes);
    out.option(described.xattrs.as_ref(), |out, xattrs| out.list(xattrs, put_xattr));
    out.option(described.extents.as_ref(), |out, extents| out.list(extents, put_extent));
}

pub(super) fn described(input: &mut Input<'_>, from: u64, most: usize, size: u64) -> Result<Vec<Described>, Invalid> {
    let mut before = from;
    input.list(most, |input| {
        let listed = entry(input, &mut before)?;
        let attributes = input.option(attributes)?;
        let xattrs = input.option(|input| input.list(FEW, xattr))?;
        if xattrs.as_deref().is_some_and(|xattrs| !is_short(xattrs)) {
            return Err(Invalid("length"));
        }
        let data = input.option(|input| extents(input, 0, PLAIN_PIECES, size))?;
        let is_all = |data: &Vec<Extent>| attributes.as_ref().is_some_and(|attributes| is_plain(attributes, data));
        if data.as_ref().is_some_and(|data| !is_all(data)) {
            return Err(Invalid("length"));
        }
        Ok(Described { listed, attributes, xattrs, extents: data })
    })
}

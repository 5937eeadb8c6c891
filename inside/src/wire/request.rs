//! What the child is told.

use super::bytes::{Input, Output};
use super::{Invalid, MAX_ANSWERS, MAX_BLOCKS, MAX_NAME};
use crate::{Id, lvm};

/// What is asked of a reader. The first is one of the first four, and comes once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// What a disk of this size, in bytes, is divided into.
    Table {
        /// In bytes.
        size: u64,
    },
    /// Opens the file system on a disk of this size.
    Open {
        /// In bytes.
        size: u64,
    },
    /// The logical volumes of LVM2 on some disks or partitions, which come one after the other as one disk: their sizes, in bytes; at
    /// most [`lvm::MAX_DISKS`].
    Volumes(Vec<u64>),
    /// Which of some members of arrays have missed writes that another has; as with [`Request::Volumes`].
    Mirrors(Vec<u64>),
    /// [`crate::FileSystem::attributes`].
    Attributes(Id),
    /// [`crate::FileSystem::lookup`], and what stat(2) tells of the file.
    Lookup(Id, Vec<u8>),
    /// [`crate::FileSystem::list`]: a directory, where to begin, how many at most.
    List(Id, u64, usize),
    /// The same, and what there is to tell of each file.
    Describe(Id, u64, usize),
    /// [`crate::FileSystem::parent`].
    Parent(Id),
    /// [`crate::FileSystem::link_target`].
    LinkTarget(Id),
    /// [`crate::FileSystem::xattrs`].
    Xattrs(Id),
    /// [`crate::FileSystem::extents`]: a file, where to begin in bytes, how many at most.
    Extents(Id, u64, usize),
}

const TABLE: u8 = 1;
const OPEN: u8 = 2;
const ATTRIBUTES: u8 = 3;
const LOOKUP: u8 = 4;
const LIST: u8 = 5;
const PARENT: u8 = 6;
const LINK_TARGET: u8 = 7;
const XATTRS: u8 = 8;
const EXTENTS: u8 = 9;
const VOLUMES: u8 = 10;
const DESCRIBE: u8 = 11;
const MIRRORS: u8 = 12;

impl Request {
    /// The frame, without its length.
    pub fn encode(&self) -> Vec<u8> {
        let of = |tag, file: Id| {
            let mut out = Output::new(tag);
            out.u64(file.0);
            out
        };
        let part = |tag, file, from, most| {
            let mut out = of(tag, file);
            out.u64(from);
            out.count(most);
            out
        };
        let out = match self {
            Self::Table { size } => of(TABLE, Id(*size)),
            Self::Open { size } => of(OPEN, Id(*size)),
            Self::Attributes(file) => of(ATTRIBUTES, *file),
            Self::Parent(file) => of(PARENT, *file),
            Self::LinkTarget(file) => of(LINK_TARGET, *file),
            Self::Xattrs(file) => of(XATTRS, *file),
            Self::Volumes(sizes) | Self::Mirrors(sizes) => {
                let tag = if matches!(self, Self::Volumes(_)) { VOLUMES } else { MIRRORS };
                let mut out = of(tag, Id(sizes.iter().fold(0, |sum, size| sum.saturating_add(*size))));
                out.list(sizes, |out, size| out.u64(*size));
                out
            }
            Self::Lookup(directory, name) => {
                let mut out = of(LOOKUP, *directory);
                out.bytes(name);
                out
            }
            Self::List(file, from, most) => part(LIST, *file, *from, *most),
            Self::Describe(file, from, most) => part(DESCRIBE, *file, *from, *most),
            Self::Extents(file, from, most) => part(EXTENTS, *file, *from, *most),
        };
        out.0
    }

    /// The request in a frame.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(frame: &[u8]) -> Result<Self, Invalid> {
        let mut input = Input::new(frame);
        let tag = input.u8()?;
        let number = input.u64()?;
        let file = Id(number);
        let from = |input: &mut Input<'_>| {
            let (from, most) = (input.size("offset")?, usize::try_from(input.u32()?).unwrap_or(usize::MAX));
            if most <= MAX_ANSWERS { Ok((from, most)) } else { Err(Invalid("count")) }
        };
        let request = match tag {
            TABLE | OPEN | VOLUMES | MIRRORS if i64::try_from(number).is_err() => return Err(Invalid("size")),
            TABLE => Self::Table { size: number },
            OPEN => Self::Open { size: number },
            VOLUMES | MIRRORS => {
                let sizes = input.list(lvm::MAX_DISKS, Input::u64)?;
                if sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size)) != Some(number) {
                    return Err(Invalid("size"));
                }
                if tag == VOLUMES { Self::Volumes(sizes) } else { Self::Mirrors(sizes) }
            }
            ATTRIBUTES => Self::Attributes(file),
            LOOKUP => Self::Lookup(file, input.bytes(MAX_NAME)?.to_vec()),
            LIST => from(&mut input).map(|(from, most)| Self::List(file, from, most))?,
            DESCRIBE => from(&mut input).map(|(from, most)| Self::Describe(file, from, most))?,
            PARENT => Self::Parent(file),
            LINK_TARGET => Self::LinkTarget(file),
            XATTRS => Self::Xattrs(file),
            EXTENTS => from(&mut input).map(|(from, most)| Self::Extents(file, from, most))?,
            _ => return Err(Invalid("request")),
        };
        input.end().map(|()| request)
    }
}

/// What was asked for with [`super::Said::Blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given<'a> {
    /// All of it.
    Blocks(&'a [u8]),
    /// It could not be read: an errno.
    Failed(i32),
}

const BLOCKS: u8 = 16;
const FAILED: u8 = 17;

impl<'a> Given<'a> {
    /// What comes before the bytes in a frame that has them: its length and what it is.
    pub fn header(blocks: &[u8]) -> [u8; 5] {
        let length = u32::try_from(blocks.len().saturating_add(1)).unwrap_or(u32::MAX);
        let [a, b, c, d] = length.to_be_bytes();
        [a, b, c, d, BLOCKS]
    }

    /// The frame that says that they cannot be had, without its length.
    pub fn failed(errno: i32) -> Vec<u8> {
        let mut out = Output::new(FAILED);
        out.u32(errno.unsigned_abs());
        out.0
    }

    /// What is in a frame, which is to be `length` bytes.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn decode(frame: &'a [u8], length: usize) -> Result<Self, Invalid> {
        let mut input = Input::new(frame);
        match input.u8()? {
            BLOCKS => {
                let blocks = input.rest();
                if blocks.len() == length { Ok(Self::Blocks(blocks)) } else { Err(Invalid("length")) }
            }
            FAILED => {
                let errno = i32::try_from(input.u32()?).map_err(|_| Invalid("errno"))?;
                input.end().map(|()| Self::Failed(errno))
            }
            _ => Err(Invalid("answer")),
        }
    }
}

/// Whether a range of blocks may be asked for on a disk of `size` bytes.
pub(super) fn is_within(offset: u64, length: u64, size: u64) -> bool {
    (1..=MAX_BLOCKS).contains(&length) && offset.checked_add(length).is_some_and(|end| end <= size)
}

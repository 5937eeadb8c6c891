//! What the child says.

mod names;
mod table;
mod volumes;

pub use self::names::{Described, Listed, Listing, Names, PLAIN_PIECES, is_plain, is_short};
pub(crate) use self::table::is_known;
use super::bytes::{Input, Output};
use super::request::is_within;
use super::{Invalid, MAX_FRAME, Request};
use crate::lvm::Found;
use crate::table::Table;
use crate::{Attributes, Error, Extent, FileKind, Id, Kind, Place, Summary, Time, Xattr};

/// Longest sentence, in bytes.
const MAX_TEXT: usize = 1000;

/// Longest target of a symbolic link, in bytes.
const MAX_TARGET: usize = 4096;

/// Longest name and value of an extended attribute, in bytes, and how many there may be.
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;
const MAX_XATTRS: usize = 64 << 10;

/// No time is further from 1970, in seconds: 139,000 years. What NTFS can say is within it.
const MAX_SECONDS: u64 = 1 << 42;

/// What the child says while a request is under way.
#[derive(Debug)]
pub enum Said {
    /// It needs these blocks first: offset and length, in bytes.
    Blocks(u64, u64),
    /// It cannot be done.
    Failed(Error),
    /// What was asked for.
    Answered(Answer),
}

/// An answer, to the request of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Table`].
    Table(Table),
    /// To [`Request::Open`]: what it says of itself, and its root.
    Open(Summary, Id),
    /// To [`Request::Volumes`].
    Volumes(Found),
    /// To [`Request::Mirrors`]: those that have, by their places, in order.
    Mirrors(Vec<usize>),
    /// To [`Request::Attributes`].
    Attributes(Attributes),
    /// To [`Request::Lookup`].
    Lookup(Option<(Id, Attributes)>),
    /// To [`Request::List`].
    List(Names),
    /// To [`Request::Describe`].
    Describe(Vec<Described>),
    /// To [`Request::Parent`].
    Parent(Id),
    /// To [`Request::LinkTarget`].
    LinkTarget(Vec<u8>),
    /// To [`Request::Xattrs`].
    Xattrs(Vec<Xattr>),
    /// To [`Request::Extents`]. The first begins where the request does, if there is one.
    Extents(Vec<Extent>),
}

const BLOCKS: u8 = 32;
const FAILED: u8 = 33;
const TABLE: u8 = 34;
const OPEN: u8 = 35;
const ATTRIBUTES: u8 = 36;
const LOOKUP: u8 = 37;
const LIST: u8 = 38;
const PARENT: u8 = 39;
const LINK_TARGET: u8 = 40;
const XATTRS: u8 = 41;
const EXTENTS: u8 = 42;
const VOLUMES: u8 = 43;
const DESCRIBE: u8 = 44;
const MIRRORS: u8 = 45;

impl Said {
    /// The frame, without its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Blocks(offset, length) => {
                let mut out = Output::new(BLOCKS);
                out.u64(*offset);
                out.u64(*length);
                out.0
            }
            Self::Failed(error) => {
                let mut out = Output::new(FAILED);
                out.u8(number_of(&KINDS, &error.kind()));
                out.text(&error.to_string(), MAX_TEXT);
                out.0
            }
            Self::Answered(answer) => {
                let frame = answer.encode();
                if frame.len() > MAX_FRAME {
                    return Self::Failed(Error::new(Kind::TooLarge, "there is too much of it to tell")).encode();
                }
                frame
            }
        }
    }

    /// What is in a frame, when the disk is of `size` bytes and `request` is under way.
    ///
    /// # Errors
    /// When it is anything that nobody who is in his right mind says then.
    pub fn decode(frame: &[u8], request: &Request, size: u64) -> Result<Self, Invalid> {
        let mut input = Input::new(frame);
        let said = match input.u8()? {
            BLOCKS => {
                let (offset, length) = (input.u64()?, input.u64()?);
                if !is_within(offset, length, size) {
                    return Err(Invalid("range"));
                }
                Self::Blocks(offset, length)
            }
            FAILED => {
                let kind = of_number(&KINDS, input.u8()?)?;
                Self::Failed(Error::new(kind, input.text(MAX_TEXT)?))
            }
            tag => Self::Answered(Answer::decode(tag, &mut input, request, size)?),
        };
        input.end().map(|()| said)
    }
}

const KINDS: [Kind; 7] =
    [Kind::Corrupt, Kind::Unsupported, Kind::Unclean, Kind::NotFound, Kind::WrongKind, Kind::TooLarge, Kind::Disk];

const FILE_KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::CharDevice,
    FileKind::BlockDevice,
    FileKind::Fifo,
    FileKind::Socket,
];

/// Where a value stands in the list of all there are.
fn number_of<T: PartialEq>(all: &[T], value: &T) -> u8 {
    all.iter().position(|each| each == value).and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

fn of_number<T: Copy>(all: &[T], number: u8) -> Result<T, Invalid> {
    all.get(usize::from(number)).copied().ok_or(Invalid("kind"))
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Table(told) => table::encode(told, Output::new(TABLE)),
            Self::Volumes(found) => volumes::encode(found, Output::new(VOLUMES)),
            Self::Open(summary, root) => {
                let mut out = Output::new(OPEN);
                put_summary(&mut out, summary);
                out.u64(root.0);
                out.0
            }
            Self::Mirrors(outdated) => {
                let mut out = Output::new(MIRRORS);
                out.list(outdated, |out, at| out.count(*at));
                out.0
            }
            Self::Attributes(attributes) => {
                let mut out = Output::new(ATTRIBUTES);
                put_attributes(&mut out, attributes);
                out.0
            }
            Self::Lookup(found) => {
                let mut out = Output::new(LOOKUP);
                out.option(found.as_ref(), |out, (id, attributes)| {
                    out.u64(id.0);
                    put_attributes(out, attributes);
                });
                out.0
            }
            Self::List(names) => {
                let mut out = Output::new(LIST);
                out.list(&names.all, names::put_listed);
                names::put_end(&mut out, names.is_last, names.parent);
                out.0
            }
            Self::Describe(files) => {
                let mut out = Output::new(DESCRIBE);
                out.list(files, names::put_described);
                out.0
            }
            Self::Parent(id) => {
                let mut out = Output::new(PARENT);
                out.u64(id.0);
                out.0
            }
            Self::LinkTarget(target) => {
                let mut out = Output::new(LINK_TARGET);
                out.bytes(target);
                out.0
            }
            Self::Xattrs(xattrs) => {
                let mut out = Output::new(XATTRS);
                out.list(xattrs, put_xattr);
                out.0
            }
            Self::Extents(extents) => {
                let mut out = Output::new(EXTENTS);
                out.list(extents, put_extent);
                out.0
            }
        }
    }

    fn decode(tag: u8, input: &mut Input<'_>, request: &Request, size: u64) -> Result<Self, Invalid> {
        Ok(match (tag, request) {
            (TABLE, Request::Table { .. }) => Self::Table(table::decode(input, size)?),
            (VOLUMES, Request::Volumes(disks)) => Self::Volumes(volumes::decode(input, disks)?),
            (MIRRORS, Request::Mirrors(disks)) => {
                let outdated = input.list(disks.len(), |input| volumes::disk(input, disks))?;
                if !outdated.is_sorted_by(|one, other| one < other) {
                    return Err(Invalid("place"));
                }
                Self::Mirrors(outdated)
            }
            (OPEN, Request::Open { .. }) => Self::Open(summary(input)?, Id(input.u64()?)),
            (ATTRIBUTES, Request::Attributes(_)) => Self::Attributes(attributes(input)?),
            (LOOKUP, Request::Lookup(..)) => {
                Self::Lookup(input.option(|input| Ok((Id(input.u64()?), attributes(input)?)))?)
            }
            (LIST, Request::List(_, from, most)) => Self::List(names::names(input, *from, *most)?),
            (DESCRIBE, Request::Describe(_, from, most)) => {
                Self::Describe(names::described(input, *from, *most, size)?)
            }
            (PARENT, Request::Parent(_)) => Self::Parent(Id(input.u64()?)),
            (LINK_TARGET, Request::LinkTarget(_)) => match input.bytes(MAX_TARGET)? {
                target if target.is_empty() || target.contains(&0) => return Err(Invalid("target")),
                target => Self::LinkTarget(target.to_vec()),
            },
            (XATTRS, Request::Xattrs(_)) => Self::Xattrs(input.list(MAX_XATTRS, xattr)?),
            (EXTENTS, Request::Extents(_, from, most)) => Self::Extents(extents(input, *from, *most, size)?),
            _ => return Err(Invalid("answer")),
        })
    }
}

fn put_summary(out: &mut Output, summary: &Summary) {
    out.text(summary.kind, table::MAX_WORD);
    out.u32(summary.block_size);
    out.u64(summary.blocks);
    out.u64(summary.free_blocks);
    out.option(summary.files, |out, (all, free)| {
        out.u64(all);
        out.u64(free);
    });
    out.option(summary.unclean.as_deref(), |out, text| out.text(text, MAX_TEXT));
}

fn summary(input: &mut Input<'_>) -> Result<Summary, Invalid> {
    let kind = table::known(input)?;
    let block_size = input.u32()?;
    let blocks = input.u64()?;
    if block_size == 0 || i64::try_from(blocks).is_err() {
        return Err(Invalid("size"));
    }
    // How many are free is nothing but a figure, and disks have wrong ones.
    let free_blocks = input.u64()?.min(blocks);
    let files = input.option(|input| Ok((input.u64()?, input.u64()?)))?.map(|(all, free)| (all, free.min(all)));
    let unclean = input.option(|input| input.text(MAX_TEXT))?;
    Ok(Summary { kind, block_size, blocks, free_blocks, files, unclean })
}

fn put_attributes(out: &mut Output, attributes: &Attributes) {
    out.u8(number_of(&FILE_KINDS, &attributes.kind));
    out.u16(attributes.mode);
    let (major, minor) = attributes.device;
    for number in [attributes.uid, attributes.gid, attributes.links, major, minor] {
        out.u32(number);
    }
    out.u64(attributes.size);
    out.u64(attributes.allocated);
    for time in [attributes.accessed, attributes.modified, attributes.changed] {
        out.i64(time.seconds);
        out.u32(time.nanoseconds);
    }
}

fn attributes(input: &mut Input<'_>) -> Result<Attributes, Invalid> {
    let kind = of_number(&FILE_KINDS, input.u8()?)?;
    let mode = input.u16()?;
    if mode > 0o7777 {
        return Err(Invalid("mode"));
    }
    let (uid, gid, links) = (input.u32()?, input.u32()?, input.u32()?);
    let device = (input.u32()?, input.u32()?);
    let (size, allocated) = (input.size("size")?, input.size("size")?);
    let [accessed, modified, changed] = [time(input)?, time(input)?, time(input)?];
    Ok(Attributes { kind, mode, uid, gid, links, size, allocated, accessed, modified, changed, device })
}

fn time(input: &mut Input<'_>) -> Result<Time, Invalid> {
    let time = Time { seconds: input.i64()?, nanoseconds: input.u32()? };
    let sane = time.nanoseconds < 1_000_000_000 && time.seconds.unsigned_abs() <= MAX_SECONDS;
    if sane { Ok(time) } else { Err(Invalid("time")) }
}

fn put_xattr(out: &mut Output, Xattr { name, value }: &Xattr) {
    out.bytes(name);
    out.bytes(value);
}

fn xattr(input: &mut Input<'_>) -> Result<Xattr, Invalid> {
    let name = input.bytes(MAX_XATTR_NAME)?;
    if name.is_empty() || name.contains(&0) {
        return Err(Invalid("name"));
    }
    Ok(Xattr { name: name.to_vec(), value: input.bytes(MAX_XATTR_VALUE)?.to_vec() })
}

const HOLE: u8 = 0;
const DISK: u8 = 1;
const INLINE: u8 = 2;

fn put_extent(out: &mut Output, extent: &Extent) {
    out.u64(extent.offset);
    out.u64(extent.length);
    match &extent.place {
        Place::Hole => out.u8(HOLE),
        Place::Disk(offset) => {
            out.u8(DISK);
            out.u64(*offset);
        }
        Place::Inline(bytes) => {
            out.u8(INLINE);
            out.bytes(bytes);
        }
    }
}

/// In order, nothing between them, within the disk, from `from` on: what the first has before that is cut off.
fn extents(input: &mut Input<'_>, from: u64, most: usize, size: u64) -> Result<Vec<Extent>, Invalid> {
    let mut at = None;
    let mut all = input.list(most, |input| {
        let (offset, length) = (input.size("offset")?, input.size("length")?);
        let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()).ok_or(Invalid("length"))?;
        let in_order = match at.replace(end) {
            None => offset <= from && from < end,
            Some(before) => offset == before && length > 0,
        };
        if !in_order {
            return Err(Invalid("offset"));
        }
        let place = match input.u8()? {
            HOLE => Place::Hole,
            DISK => {
                let place = input.u64()?;
                if place.checked_add(length).is_none_or(|end| end > size) {
                    return Err(Invalid("place"));
                }
                Place::Disk(place)
            }
            INLINE => {
                let bytes = input.bytes(MAX_FRAME)?;
                if u64::try_from(bytes.len()).is_ok_and(|inline| inline != length) {
                    return Err(Invalid("length"));
                }
                Place::Inline(bytes.to_vec())
            }
            _ => return Err(Invalid("place")),
        };
        Ok(Extent { offset, length, place })
    })?;
    if let Some(first) = all.first_mut() {
        let cut = from.saturating_sub(first.offset);
        first.offset = from;
        first.length = first.length.saturating_sub(cut);
        match &mut first.place {
            Place::Hole => {}
            Place::Disk(offset) => *offset = offset.saturating_add(cut),
            Place::Inline(bytes) => drop(bytes.drain(..usize::try_from(cut).unwrap_or(bytes.len()).min(bytes.len()))),
        }
    }
    Ok(all)
}

//! The child's side: reads a disk whose blocks come over a stream, and answers.
//!
//! ```text
//! stream ─▶ Request ─▶ FileSystem ─▶ RemoteDisk ─▶ cache ─(miss)─▶ Said::Blocks ─▶ stream
//!        ◀─ Said                                          ◀── Given ──────────────
//! ```
//! One thread, one request at a time, one file system for the whole life of the process. It ends with the stream.

mod cache;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::rc::Rc;

use self::cache::Cache;
use crate::lvm::Found;
use crate::table::Table;
use crate::wire::{
    Answer, Described, Given, Listed, Listing, MAX_FRAME, PLAIN_PIECES, Request, Said, frame_length, is_plain, is_short,
};
use crate::{Attributes, Disk, Error, Extent, FileKind, FileSystem, Id, Kind, Part, Result};

/// How much is taken from the stream at once, in bytes: memory grows with what has come, not with what was announced.
const CHUNK: u64 = 256 << 10;

/// Names of files that are described take no more than this, in bytes; the next is for the next question.
const NAMES: usize = 512 << 10;

/// How much of extended attributes is read for nobody in particular, for one answer, in bytes.
const XATTRS: usize = 1 << 20;

/// Of larger files nobody is told where their data is before he asks, in bytes: what is more than twelve blocks of 4 KiB may be
/// elsewhere on the disk, and it says so there.
const SMALL: u64 = 48 << 10;

/// A file system that was opened.
pub type Opened = Result<Box<dyn FileSystem>>;

/// What looks at several disks together.
pub type Across<T> = fn(&[Part<&dyn Disk>]) -> Result<T>;

/// What reads disks.
#[derive(Debug, Clone, Copy)]
pub struct Parsers {
    /// Reads a partition table.
    pub table: fn(&dyn Disk) -> Result<Table>,
    /// Reads what LVM2 says of disks.
    pub volumes: Across<Found>,
    /// Tells which of some disks are mirrors that have missed writes.
    pub mirrors: Across<Vec<usize>>,
    /// Opens a file system.
    pub open: fn(Box<dyn Disk>) -> Opened,
}

/// Answers until the stream ends.
///
/// # Errors
/// When the other end breaks the protocol, or the stream does.
pub fn serve<S: Read + Write + 'static>(stream: S, parsers: Parsers) -> io::Result<()> {
    let line = Rc::new(RefCell::new(Line { stream }));
    let mut open = None;
    let mut size = 0;
    loop {
        let Some(frame) = line.borrow_mut().receive()? else { return Ok(()) };
        let request = Request::decode(&frame)?;
        match &request {
            Request::Table { size: told } | Request::Open { size: told } => size = *told,
            Request::Volumes(sizes) | Request::Mirrors(sizes) => size = total(sizes),
            _ => {}
        }
        let answer = match (&request, &open) {
            (Request::Table { size }, None) => (parsers.table)(&remote(&line, *size)).map(Answer::Table),
            (Request::Open { size }, None) => (parsers.open)(Box::new(remote(&line, *size))).map(|file_system| {
                let file_system = open.insert(file_system);
                Answer::Open(file_system.summary(), file_system.root())
            }),
            (Request::Volumes(sizes), None) => {
                (parsers.volumes)(&parts(&joined(&line, sizes), sizes)).map(Answer::Volumes)
            }
            (Request::Mirrors(sizes), None) => {
                (parsers.mirrors)(&parts(&joined(&line, sizes), sizes)).map(Answer::Mirrors)
            }
            (_, None) => return Err(out_of_turn()),
            (Request::List(directory, from, most), Some(file_system)) => {
                let said = list(file_system.as_ref(), *directory, *from, *most);
                line.borrow_mut().send(&said.unwrap_or_else(|error| Said::Failed(error).encode()))?;
                continue;
            }
            (_, Some(file_system)) => answer(file_system.as_ref(), &request)?,
        };
        line.borrow_mut().send(&encoded(&request, size, answer))?;
    }
}

/// The frame that says it. What the other end would take for nonsense, and end this process for, is a damaged file.
fn encoded(request: &Request, size: u64, answer: Result<Answer>) -> Vec<u8> {
    let frame = answer.map_or_else(Said::Failed, Said::Answered).encode();
    match Said::decode(&frame, request, size) {
        Ok(_) => frame,
        Err(nonsense) => Said::Failed(Error::corrupt(format!("what is found cannot be: {nonsense}"))).encode(),
    }
}

/// Disks of these sizes as one, at the other end.
fn joined<S>(line: &Rc<RefCell<Line<S>>>, sizes: &[u64]) -> RemoteDisk<S> {
    remote(line, total(sizes))
}

fn total(sizes: &[u64]) -> u64 {
    sizes.iter().fold(0, |sum, size| sum.saturating_add(*size))
}

/// A disk as those that come one after the other on it.
fn parts<'a>(disk: &'a dyn Disk, sizes: &[u64]) -> Vec<Part<&'a dyn Disk>> {
    let mut start = 0_u64;
    let part = |size: &u64| {
        let part = Part::new(disk, start, *size);
        start = start.saturating_add(*size);
        part
    };
    sizes.iter().map(part).collect()
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a request came out of turn")
}

fn answer(file_system: &dyn FileSystem, request: &Request) -> io::Result<Result<Answer>> {
    Ok(match request {
        Request::Attributes(file) => file_system.attributes(*file).map(Answer::Attributes),
        Request::Lookup(directory, name) => {
            let with_attributes = |file| file_system.attributes(file).map(|attributes| (file, attributes));
            let found = file_system.lookup(*directory, name);
            found.and_then(|found| found.map(with_attributes).transpose()).map(Answer::Lookup)
        }
        Request::Describe(directory, from, most) => {
            describe(file_system, *directory, *from, *most).map(Answer::Describe)
        }
        Request::Parent(directory) => file_system.parent(*directory).map(Answer::Parent),
        Request::LinkTarget(file) => file_system.link_target(*file).map(Answer::LinkTarget),
        Request::Xattrs(file) => file_system.xattrs(*file).map(Answer::Xattrs),
        Request::Extents(file, from, most) => file_system.extents(*file, *from, *most).map(Answer::Extents),
        // Only who has opened nothing is asked for these; names are listed where they are asked for.
        Request::Table { .. }
        | Request::Open { .. }
        | Request::Volumes(_)
        | Request::Mirrors(_)
        | Request::List(..) => {
            return Err(out_of_turn());
        }
    })
}

/// The frame with the names of a directory. What was told before an error counts: the error comes with the next question.
fn list(file_system: &dyn FileSystem, directory: Id, from: u64, most: usize) -> Result<Vec<u8>> {
    let mut listing = Listing::new(most);
    let (mut some, mut full) = (false, false);
    let outcome = file_system.list(directory, from, &mut |entry| {
        let taken = listing.push(entry);
        some |= taken;
        full |= !taken;
        if taken { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let is_last = match outcome {
        Err(error) if !some => return Err(error),
        outcome => outcome.is_ok() && !full,
    };
    // Whoever begins to list a directory wants `..` as well.
    let parent = (from == 0).then(|| file_system.parent(directory).ok()).flatten();
    Ok(listing.finish(is_last, parent))
}

/// The names of a directory, and what there is to tell of the files. What was told before an error counts, and the first file that
/// cannot be told of is the last: the disk may be what fails.
fn describe(file_system: &dyn FileSystem, directory: Id, from: u64, most: usize) -> Result<Vec<Described>> {
    let mut names = Vec::new();
    let mut room = NAMES;
    let outcome = file_system.list(directory, from, &mut |entry| {
        let Some(left) = room.checked_sub(entry.name.len()).filter(|_| names.len() < most) else {
            return ControlFlow::Break(());
        };
        room = left;
        names.push(Listed { name: entry.name.to_vec(), id: entry.id, kind: entry.kind, next: entry.next });
        ControlFlow::Continue(())
    });
    if names.is_empty() {
        outcome?;
    }
    let mut described = Vec::new();
    let mut left = XATTRS;
    for listed in names {
        let attributes = file_system.attributes(listed.id).ok();
        let xattrs = attributes.filter(|_| left > 0).map(|_| file_system.xattrs(listed.id)).transpose();
        let extents = attributes.map(|attributes| plain(file_system, listed.id, &attributes)).transpose();
        let is_broken = extents.as_ref().is_err_and(|error| error.kind() == Kind::Disk);
        let failed = attributes.is_none() || xattrs.is_err() || is_broken;
        let xattrs = xattrs.ok().flatten();
        let read = xattrs.iter().flatten().map(|xattr| xattr.name.len() + xattr.value.len());
        left = left.saturating_sub(read.sum());
        let xattrs = xattrs.filter(|xattrs| is_short(xattrs));
        described.push(Described { listed, attributes, xattrs, extents: extents.ok().flatten().flatten() });
        if failed {
            break;
        }
    }
    Ok(described)
}

/// All of a file's data, if it is few pieces; of a larger one nobody asks before it is opened.
fn plain(file_system: &dyn FileSystem, file: Id, attributes: &Attributes) -> Result<Option<Vec<Extent>>> {
    if attributes.kind != FileKind::File || attributes.size > SMALL {
        return Ok(None);
    }
    if attributes.size == 0 {
        return Ok(Some(Vec::new()));
    }
    let extents = file_system.extents(file, 0, PLAIN_PIECES)?;
    Ok(Some(extents).filter(|extents| is_plain(attributes, extents)))
}

/// A stream cut into frames.
struct Line<S> {
    stream: S,
}

impl<S: Read + Write> Line<S> {
    /// The next frame, without its length; none where the stream ends between two.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut header = [0; 4];
        let (first, rest) = header.split_at_mut(1);
        loop {
            match self.stream.read(first) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.read_exact(rest)?;
        let length = frame_length(header)?;
        let mut frame = Vec::new();
        while frame.len() < length {
            let left = u64::try_from(length - frame.len()).unwrap_or(CHUNK);
            if Read::by_ref(&mut self.stream).take(left.min(CHUNK)).read_to_end(&mut frame)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(frame))
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        debug_assert!(frame.len() <= MAX_FRAME);
        let length = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // One call, so that the other end does not wake up for four bytes.
        let mut whole = Vec::with_capacity(frame.len() + 4);
        whole.extend(length.to_be_bytes());
        whole.extend(frame);
        self.stream.write_all(&whole)
    }
}

/// The disk at the other end.
struct RemoteDisk<S> {
    line: Rc<RefCell<Line<S>>>,
    size: u64,
    cache: RefCell<Cache>,
}

fn remote<S>(line: &Rc<RefCell<Line<S>>>, size: u64) -> RemoteDisk<S> {
    RemoteDisk { line: Rc::clone(line), size, cache: RefCell::new(Cache::new(size)) }
}

impl<S: Read + Write> Disk for RemoteDisk<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a read past the end of the disk"));
        }
        self.cache.borrow_mut().read(offset, buffer, |offset, length| {
            let mut line = self.line.borrow_mut();
            line.send(&Said::Blocks(offset, length).encode())?;
            let frame = line.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match Given::decode(&frame, usize::try_from(length).unwrap_or(usize::MAX))? {
                Given::Blocks(blocks) => Ok(blocks.to_vec()),
                Given::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
            }
        })
    }
}

#[cfg(test)]
mod tests;

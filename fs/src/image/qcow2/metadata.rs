//! The bytes of the header and of the tables, written for just the window that is read.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Backing;
use super::cluster_size::ClusterSize;
use super::layout::Layout;
use crate::error::{Error, Kind, Result};
use crate::image::{Segment, length};

/// `QFI` and 0xfb.
const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
/// Bytes of a version 3 header without optional fields.
const HEADER: u32 = 104;
/// Refcounts are 1 << 4 bits wide.
const REFCOUNT_ORDER: u32 = 4;
/// Header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file that the format allows, in bytes.
const MAX_BACKING: usize = 1023;

/// The header with its extensions and the name of the backing file; the rest of its cluster is zeroes.
pub(super) fn header(disk: u64, size: ClusterSize, layout: &Layout, backing: Option<&Backing>) -> Result<Bytes> {
    let tail = backing.map(|backing| extensions(backing, size)).transpose()?.unwrap_or_default();
    let (name_offset, name_length) = match backing {
        Some(backing) => (u64::from(HEADER) + wide(tail.len()), narrow(wide(backing.file.len()))?),
        None => (0, 0),
    };
    let mut header = Vec::with_capacity(256);
    let four = |header: &mut Vec<u8>, value: u32| header.extend(value.to_be_bytes());
    let eight = |header: &mut Vec<u8>, value: u64| header.extend(value.to_be_bytes());
    four(&mut header, MAGIC);
    four(&mut header, VERSION);
    eight(&mut header, name_offset);
    four(&mut header, name_length);
    four(&mut header, size.bits());
    eight(&mut header, disk);
    four(&mut header, 0); // no encryption
    four(&mut header, narrow(layout.l1_entries)?);
    eight(&mut header, layout.l1.start);
    eight(&mut header, layout.refcount_table.start);
    four(&mut header, narrow(size.count(layout.refcount_table.end - layout.refcount_table.start))?);
    four(&mut header, 0); // no snapshots
    eight(&mut header, 0);
    eight(&mut header, 0); // no incompatible, compatible or auto-clear features
    eight(&mut header, 0);
    eight(&mut header, 0);
    four(&mut header, REFCOUNT_ORDER);
    four(&mut header, HEADER);
    header.extend(tail);
    header.extend(backing.map(|backing| backing.file.bytes()).into_iter().flatten());
    Ok(header.into())
}

/// The header extensions of an image over `backing`, whose name must fit behind them into the first cluster.
fn extensions(backing: &Backing, size: ClusterSize) -> Result<Vec<u8>> {
    let Backing { file, format } = backing;
    let mut tail = Vec::new();
    tail.extend(BACKING_FORMAT.to_be_bytes());
    tail.extend(narrow(wide(format.len()))?.to_be_bytes());
    tail.extend(format.bytes());
    tail.resize(tail.len().next_multiple_of(8), 0);
    tail.extend([0; 8]); // the end of the extensions
    let room = size.bytes().saturating_sub(u64::from(HEADER) + wide(tail.len()));
    let longest = MAX_BACKING.min(usize::try_from(room).unwrap_or(MAX_BACKING));
    if file.is_empty() || file.contains('\0') {
        return Err(Error::new(Kind::Invalid, format!("`{}` cannot name a backing file", file.escape_default())));
    }
    if file.len() > longest {
        let what = "the name of the backing file has";
        return Err(Error::new(
            Kind::Invalid,
            format!("{what} {} bytes, with clusters of {size} at most {longest} fit: {file}", file.len()),
        ));
    }
    Ok(tail)
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn narrow(count: u64) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::new(Kind::TooLarge, format!("{count} does not fit the qcow2 header")))
}

/// Zeroes between entries up to this many bytes are written out: a segment of their own costs about as much.
const SMALL: u64 = 64;

/// Collects the segments of a read, in file order.
#[derive(Default)]
pub(super) struct Segments {
    done: Vec<Segment>,
    bytes: BytesMut,
}

impl Segments {
    /// So many zero bytes.
    pub(super) fn zero(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        self.flush();
        match self.done.last_mut() {
            Some(Segment::Zero(before)) => *before += length(&(0..count)),
            _ => self.done.push(Segment::Zero(length(&(0..count)))),
        }
    }

    /// Bytes that are known.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A range of the disk.
    pub(super) fn disk(&mut self, range: &Range<u64>) {
        if !range.is_empty() {
            self.flush();
            self.done.push(Segment::Disk { offset: range.start, length: length(range) });
        }
    }

    fn flush(&mut self) {
        if !self.bytes.is_empty() {
            self.done.push(Segment::Bytes(self.bytes.split().freeze()));
        }
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Segment> {
        self.flush();
        self.done
    }
}

/// Writes the part of a table that lies in a window: runs of entries in order, zeroes between them.
pub(super) struct Table<'a> {
    window: Range<u64>,
    at: u64,
    out: &'a mut Segments,
}

impl<'a> Table<'a> {
    /// `window` is in bytes from the begin of the table.
    pub(super) fn new(window: Range<u64>, out: &'a mut Segments) -> Self {
        Self { at: window.start, window, out }
    }

    /// The range of entries of `width` bytes that the window touches.
    pub(super) fn entries(&self, width: u64) -> Range<u64> {
        self.window.start / width..self.window.end.div_ceil(width)
    }

    /// Writes what of the entries `run`, each `WIDTH` bytes, lies in the window.
    pub(super) fn fill<const WIDTH: usize>(&mut self, run: &Range<u64>, entry: impl Fn(u64) -> [u8; WIDTH]) {
        let width = wide(WIDTH);
        let (start, end) = (run.start.saturating_mul(width), run.end.saturating_mul(width).min(self.window.end));
        let start = start.max(self.window.start);
        if start >= end {
            return;
        }
        self.skip(start);
        self.out.bytes.reserve(length(&(start..end)));
        for index in start / width..end.div_ceil(width) {
            let place = |at: u64| length(&(index * width..at)).min(WIDTH);
            self.out.bytes(&entry(index)[place(start.max(index * width))..place(end)]);
        }
        self.at = end;
    }

    fn skip(&mut self, to: u64) {
        let gap = to - self.at;
        if gap > SMALL {
            self.out.zero(gap);
        } else {
            self.out.bytes.resize(self.out.bytes.len() + length(&(0..gap)), 0);
        }
    }

    /// What no run covered up to the end of the window is zeroes.
    pub(super) fn finish(self) {
        self.out.zero(self.window.end - self.at);
    }
}

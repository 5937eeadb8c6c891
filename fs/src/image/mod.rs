//! What a file of the tree contains, as a function of the frozen disk.
//!
//! An image answers `map(range) → segments` without any I/O; [`begin_read`] then fetches the segments that lie on the
//! disk, all at once, and fills in the rest. Seeks ask the same extents.

pub mod delta;
pub mod pieces;
pub mod qcow2;
pub mod raw;
pub mod text;
pub mod volume;

use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::block::assembly::Assembly;
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};

/// A piece of a file, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// So many zero bytes.
    Zero(usize),
    /// Bytes that are known without the disk.
    Bytes(Bytes),
    /// Bytes of the disk: offset on the disk and length.
    Disk {
        /// Disk offset, in bytes.
        offset: u64,
        /// Length, in bytes.
        length: usize,
    },
}

impl Segment {
    /// Where it is on the disk, in bytes.
    pub fn on_disk(&self) -> Option<Range<u64>> {
        match self {
            Self::Disk { offset, length } => Some(disk_range(*offset, *length)),
            Self::Zero(_) | Self::Bytes(_) => None,
        }
    }
}

/// What a seek looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

/// The content of one file.
#[async_trait]
pub trait Image: Send + Sync {
    /// Size of the file, in bytes.
    fn size(&self) -> u64;

    /// Bytes that are data rather than holes; an estimate as long as the allocation is not known.
    fn data_bytes(&self) -> u64;

    /// Whether the number of its data bytes is exact, and stays so.
    fn is_known(&self) -> bool {
        true
    }

    /// The segments of `range`, which lies within the size; their lengths add up to it.
    fn map(&self, range: Range<u64>) -> Vec<Segment>;

    /// Somebody has read something of it, who is likely to want more.
    fn was_read(&self) {}

    /// lseek(2): the next data or hole at or after `offset`.
    ///
    /// # Errors
    /// [`Kind::NoSuchData`] at or past the end, or past the last data.
    async fn seek(&self, offset: u64, what: Seek) -> Result<u64>;
}

/// The answer of `seek` where nothing is found.
pub(crate) fn no_such_data(offset: u64) -> Error {
    Error::new(Kind::NoSuchData, format!("nothing more at or after offset {offset}"))
}

/// The length of a range that a read asks for.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

/// Disk ranges that lie closer together than this are fetched in one request: the bytes between cost less than a
/// request of their own.
const GAP: usize = 16 << 10;

/// One request to the disk: where it lands in the buffer, and what inside it must read as zeroes nevertheless.
struct Run {
    at: usize,
    length: usize,
    offset: u64,
    gaps: Vec<Range<usize>>,
}

/// What has to be fetched for `segments`; `known` is told of bytes that are known without the disk, and their place.
fn runs(segments: &[Segment], mut known: impl FnMut(usize, &[u8])) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    // Bytes that are known without the disk must not be fetched over.
    let mut known_until = 0;
    for segment in segments {
        match segment {
            Segment::Zero(length) => at += length,
            Segment::Bytes(bytes) => {
                known(at, bytes);
                at += bytes.len();
                known_until = at;
            }
            Segment::Disk { offset, length } => {
                match runs.last_mut() {
                    Some(run) if run.at + run.length >= known_until && run.reaches(at, *offset) => {
                        if run.at + run.length < at {
                            run.gaps.push(run.length..at - run.at);
                        }
                        run.length = at + length - run.at;
                    }
                    _ => runs.push(Run { at, length: *length, offset: *offset, gaps: Vec::new() }),
                }
                at += length;
            }
        }
    }
    runs
}

impl Run {
    /// Whether a disk range that lands at `at` continues this run, with at most a small gap of zeroes between.
    fn reaches(&self, at: usize, offset: u64) -> bool {
        let gap = at - (self.at + self.length);
        let distance = u64::try_from(at - self.at).unwrap_or(u64::MAX);
        gap <= GAP && offset.checked_sub(self.offset) == Some(distance)
    }
}

/// Begins to read `range`, cut to the size of the image, without waiting; any thread may. `done` is told how it ends, no byte
/// of a failed read is given out. What lies on the disk is fetched all at once.
pub fn begin_read(
    image: &dyn Image,
    disk: &Store,
    range: Range<u64>,
    done: impl FnOnce(Result<Bytes>) + Send + 'static,
) {
    let end = range.end.min(image.size());
    if range.start >= end {
        return done(Ok(Bytes::new()));
    }
    let segments = image.map(range.start..end);
    // As it is nearly always.
    if let [Segment::Disk { offset, length }] = segments[..] {
        return disk.begin_read(disk_range(offset, length), done);
    }
    let mut buffer = BytesMut::zeroed(length(&(range.start..end)));
    let runs = runs(&segments, |at, bytes| buffer[at..at + bytes.len()].copy_from_slice(bytes));
    if runs.is_empty() {
        return done(Ok(buffer.freeze()));
    }
    let assembly = Assembly::new(buffer, runs.len(), done);
    for run in runs {
        let assembly = assembly.clone();
        disk.begin_read(disk_range(run.offset, run.length), move |outcome| {
            assembly.put(outcome, |buffer, bytes| {
                let place = &mut buffer[run.at..run.at + run.length];
                place.copy_from_slice(bytes);
                run.gaps.iter().for_each(|gap| place[gap.clone()].fill(0));
            });
        });
    }
}

/// What begins with [`begin_read`], for whoever can wait.
///
/// # Errors
/// Any failure of the source; no byte of a failed read is given out.
pub async fn read(image: &dyn Image, disk: &Store, range: Range<u64>) -> Result<Bytes> {
    let (tell, told) = oneshot::channel();
    begin_read(image, disk, range, move |outcome| drop(tell.send(outcome)));
    told.await.map_err(|error| Error::with_source(Kind::Io, "a read was cut off", error))?
}

/// Fetches what lies on the disk of `range`, which is likely to be read soon; how far there was room for it.
pub fn read_ahead(image: &dyn Image, disk: &Store, range: Range<u64>) -> u64 {
    let end = range.end.min(image.size());
    if range.start >= end {
        return range.end;
    }
    for run in runs(&image.map(range.start..end), |_, _| {}) {
        let wanted = disk_range(run.offset, run.length);
        let reached = disk.read_ahead(wanted.clone());
        if reached < wanted.end {
            let done = u64::try_from(run.at).unwrap_or(u64::MAX).saturating_add(reached - wanted.start);
            return range.start.saturating_add(done);
        }
    }
    range.end
}

fn disk_range(offset: u64, length: usize) -> Range<u64> {
    offset..offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_gaps_are_read_over_and_known_bytes_are_not() {
        let disk = |offset, length| Segment::Disk { offset, length };
        let bytes = Segment::Bytes(Bytes::from_static(b"known"));
        let mut buffer = [0; 40];
        let segments = [disk(100, 10), Segment::Zero(5), disk(115, 10), bytes, disk(130, 10)];
        let runs = runs(&segments, |at, bytes| buffer[at..at + bytes.len()].copy_from_slice(bytes));
        let seen: Vec<_> = runs.iter().map(|run| (run.at, run.length, run.offset, run.gaps.clone())).collect();
        let gap: Vec<Range<usize>> = std::iter::once(10..15).collect();
        assert_eq!(seen, [(0, 25, 100, gap), (30, 10, 130, Vec::new())]);
        assert_eq!(&buffer[25..30], b"known");
        let far = super::runs(&[disk(0, 4), Segment::Zero(GAP + 1), disk(5 + GAP as u64, 4)], |_, _| {});
        assert_eq!(far.len(), 2, "a large gap is not fetched");
    }
}

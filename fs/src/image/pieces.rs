//! A guest's file: pieces of the disk in the order of the file.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use inside::{Extent, Place};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Image, Seek, Segment, length, no_such_data};
use crate::error::{Error, Kind, Result};

/// Most pieces that one file may have (32 MiB): one more fragmented than this is refused, not swallowed.
pub const MAX_PIECES: usize = 1 << 20;

/// Most pieces of all open files of a mount together (128 MiB).
pub const MAX_ALL_PIECES: usize = 4 << 20;

/// Bytes that a file has in its inode or the like, and that count as one piece more.
const INLINE: usize = 32;

/// A piece that holds data.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Where it begins in the file, in bytes.
    at: u64,
    /// Its length, in bytes.
    length: u64,
    from: From,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    /// Disk offset, in bytes.
    Disk(u64),
    Inline(Bytes),
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.length
    }
}

/// Gathers the pieces of a file, of which nothing is believed.
pub struct Gathering {
    size: u64,
    /// Where the file system is on the disk, in bytes.
    volume: Range<u64>,
    /// How far the file is known.
    known: u64,
    pieces: Vec<Piece>,
    budget: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

/// The file, once all of it is known.
pub struct Pieces {
    size: u64,
    data: u64,
    /// In order; what is between them reads as zeroes.
    pieces: Vec<Piece>,
    /// Given back with the file.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Gathering {
    /// A file of this size on a file system that has this range of the disk, both in bytes; `budget` counts pieces.
    pub fn new(size: u64, volume: Range<u64>, budget: Arc<Semaphore>) -> Self {
        Self { size, volume, known: 0, pieces: Vec::new(), budget, permit: None }
    }

    /// How far the file is known, in bytes; none if that is all of it.
    pub fn missing(&self) -> Option<u64> {
        (self.known < self.size).then_some(self.known)
    }

    /// Adds the pieces that come next.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] if there are too many; [`Kind::Io`] for what cannot be right.
    pub fn add(&mut self, extents: Vec<Extent>) -> Result<()> {
        let before = self.pieces.len();
        let mut cost = 0;
        for Extent { offset, length, place } in extents {
            let end = offset.checked_add(length).filter(|end| length > 0 && offset == self.known && *end <= self.size);
            let end =
                end.ok_or_else(|| wrong(format!("a piece of {length} bytes at {offset} comes after {}", self.known)))?;
            self.known = end;
            let from = match place {
                Place::Hole => continue,
                Place::Disk(on_volume) => {
                    let start = self.volume.start.checked_add(on_volume);
                    let fits = |start: &u64| start.checked_add(length).is_some_and(|end| end <= self.volume.end);
                    From::Disk(
                        start
                            .filter(fits)
                            .ok_or_else(|| wrong(format!("{length} bytes at {on_volume} are past its end")))?,
                    )
                }
                Place::Inline(bytes) => {
                    if u64::try_from(bytes.len()) != Ok(length) {
                        return Err(wrong(format!("{} bytes are given for {length}", bytes.len())));
                    }
                    cost += bytes.len() / INLINE;
                    From::Inline(bytes.into())
                }
            };
            match (self.pieces.last_mut(), &from) {
                (Some(Piece { at, length: so_far, from: From::Disk(begin) }), From::Disk(start))
                    if *at + *so_far == offset && *begin + *so_far == *start =>
                {
                    *so_far += length;
                }
                _ => self.pieces.push(Piece { at: offset, length, from }),
            }
        }
        self.pay(self.pieces.len() - before + cost)
    }

    fn pay(&mut self, pieces: usize) -> Result<()> {
        if self.pieces.len() > MAX_PIECES {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the guest's file is in more than {MAX_PIECES} pieces: copy the partition's N.raw instead"),
            ));
        }
        let permit =
            u32::try_from(pieces).ok().and_then(|pieces| self.budget.clone().try_acquire_many_owned(pieces).ok());
        let Some(permit) = permit else {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the guest's open files are in more than {MAX_ALL_PIECES} pieces together: open fewer at once"),
            ));
        };
        match &mut self.permit {
            Some(paid) => paid.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }

    /// The file.
    ///
    /// # Errors
    /// [`Kind::Io`] if a part of it is missing.
    pub fn finish(mut self) -> Result<Pieces> {
        if let Some(known) = self.missing() {
            return Err(wrong(format!("it has {} bytes, and pieces for {known}", self.size)));
        }
        self.pieces.shrink_to_fit();
        let data = self.pieces.iter().map(|piece| piece.length).sum();
        Ok(Pieces { size: self.size, data, pieces: self.pieces, _permit: self.permit })
    }
}

fn wrong(what: String) -> Error {
    Error::new(Kind::Io, what).context("where the guest's file lies on the disk cannot be right")
}

impl Pieces {
    /// A text that is known.
    pub fn text(text: String) -> Self {
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let piece = Piece { at: 0, length: size, from: From::Inline(text.into()) };
        let pieces = if size > 0 { vec![piece] } else { Vec::new() };
        Self { size, data: size, pieces, _permit: None }
    }

    /// The pieces that end after an offset.
    fn ending_after(&self, offset: u64) -> &[Piece] {
        let first = self.pieces.partition_point(|piece| piece.end() <= offset);
        self.pieces.get(first..).unwrap_or_default()
    }
}

#[async_trait]
impl Image for Pieces {
    fn size(&self) -> u64 {
        self.size
    }

    fn data_bytes(&self) -> u64 {
        self.data
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut at = range.start;
        for piece in self.ending_after(range.start).iter().take_while(|piece| piece.at < range.end) {
            let part = piece.at.max(range.start)..piece.end().min(range.end);
            if part.start > at {
                segments.push(Segment::Zero(length(&(at..part.start))));
            }
            let skipped = part.start - piece.at;
            segments.push(match &piece.from {
                From::Disk(offset) => Segment::Disk { offset: offset + skipped, length: length(&part) },
                From::Inline(bytes) => {
                    let start = length(&(0..skipped));
                    Segment::Bytes(bytes.slice(start..start + length(&part)))
                }
            });
            at = part.end;
        }
        if at < range.end {
            segments.push(Segment::Zero(length(&(at..range.end))));
        }
        segments
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.size {
            return Err(no_such_data(offset));
        }
        let after = self.ending_after(offset);
        match what {
            Seek::Data => after.first().map(|piece| piece.at.max(offset)).ok_or_else(|| no_such_data(offset)),
            Seek::Hole => {
                let mut end = offset;
                for piece in after {
                    if piece.at > end {
                        break;
                    }
                    end = piece.end();
                }
                Ok(end)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, place: Place) -> Extent {
        Extent { offset, length, place }
    }

    fn gathering(size: u64) -> Gathering {
        Gathering::new(size, 1000..2000, Arc::new(Semaphore::new(100)))
    }

    #[tokio::test]
    async fn a_file_is_read_where_its_pieces_are() {
        let mut gathering = gathering(100);
        gathering.add(vec![extent(0, 10, Place::Disk(500)), extent(10, 20, Place::Disk(510))]).unwrap();
        assert_eq!(gathering.missing(), Some(30));
        gathering.add(vec![extent(30, 40, Place::Hole), extent(70, 5, Place::Inline(b"12345".to_vec()))]).unwrap();
        gathering.add(vec![extent(75, 5, Place::Disk(0)), extent(80, 20, Place::Hole)]).unwrap();
        let file = gathering.finish().unwrap();
        assert_eq!((file.size(), file.data_bytes(), file.pieces.len()), (100, 40, 3), "neighbours are one");
        let disk = |offset, length| Segment::Disk { offset, length };
        assert_eq!(
            file.map(5..78),
            [disk(1505, 25), Segment::Zero(40), Segment::Bytes(Bytes::from_static(b"12345")), disk(1000, 3)]
        );
        assert_eq!(file.map(72..74), [Segment::Bytes(Bytes::from_static(b"34"))]);
        assert_eq!(file.map(90..100), [Segment::Zero(10)]);
        for (offset, data, hole) in
            [(0, Some(0), 30), (30, Some(70), 30), (70, Some(70), 80), (77, Some(77), 80), (85, None, 85)]
        {
            assert_eq!(file.seek(offset, Seek::Data).await.ok(), data, "data from {offset}");
            assert_eq!(file.seek(offset, Seek::Hole).await.unwrap(), hole, "hole from {offset}");
        }
        assert_eq!(file.seek(100, Seek::Hole).await.unwrap_err().kind(), Kind::NoSuchData);
    }

    #[test]
    fn what_cannot_be_right_is_an_error() {
        for (what, extents) in [
            ("a gap", vec![extent(1, 5, Place::Hole)]),
            ("twice", vec![extent(0, 5, Place::Hole), extent(3, 5, Place::Hole)]),
            ("nothing", vec![extent(0, 0, Place::Hole)]),
            ("past the file", vec![extent(0, 101, Place::Hole)]),
            ("past the volume", vec![extent(0, 100, Place::Disk(901))]),
            ("far past the volume", vec![extent(0, 100, Place::Disk(u64::MAX - 1))]),
            ("too long", vec![extent(0, u64::MAX, Place::Hole)]),
            ("not what it says", vec![extent(0, 6, Place::Inline(vec![1; 5]))]),
        ] {
            assert_eq!(gathering(100).add(extents).unwrap_err().kind(), Kind::Io, "{what}");
        }
        let mut short = gathering(100);
        short.add(vec![extent(0, 99, Place::Hole)]).unwrap();
        assert!(short.finish().is_err());
    }

    #[test]
    fn pieces_are_counted_over_all_files_until_they_are_closed() {
        let budget = Arc::new(Semaphore::new(3));
        let scattered = |count: u64| (0..count).map(|n| extent(n, 1, Place::Disk(n * 2))).collect();
        let file = |count| {
            let mut gathering = Gathering::new(count, 0..100, budget.clone());
            gathering.add(scattered(count))?;
            gathering.finish()
        };
        let two = file(2).unwrap();
        assert_eq!(file(2).err().map(|error| error.kind()), Some(Kind::TooLarge));
        drop(two);
        assert!(file(3).is_ok());
    }
}

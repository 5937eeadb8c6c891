//! A volume that is spread over disks, as LVM2 does it: segment after segment, each on one disk or in stripes on several.
//!
//! ```text
//! a segment of three stripes:  volume │ a0 b0 c0 a1 b1 c1 │     disk a │ a0 a1 │   disk b │ b0 b1 │   disk c │ c0 c1 │
//! ```
//! What is wanted of a segment is together on each disk, so a read is one read of each disk, through the disk's own cache.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::allocation::Allocation;
use super::assembly::Assembly;
use super::cache::CachedDisk;
use crate::error::{Error, Kind, Result};

/// A part of a disk.
#[derive(Clone)]
pub struct Part {
    /// Reads the disk.
    pub disk: Arc<CachedDisk>,
    /// Where the disk holds data.
    pub allocation: Arc<Allocation>,
    /// What of the disk it is, in bytes.
    pub range: Range<u64>,
}

impl Part {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }
}

struct Stripe {
    disk: Arc<CachedDisk>,
    allocation: Arc<Allocation>,
    /// Where it begins on the disk, in bytes.
    start: u64,
}

struct Segment {
    /// Where it begins in the volume, and its length, in bytes.
    offset: u64,
    length: u64,
    /// How much is on one disk before the next one's turn, in bytes.
    chunk: u64,
    stripes: Vec<Stripe>,
}

/// The volume.
pub struct Spread {
    size: u64,
    /// In order, without gaps; see [`inside::lvm::Volume::is_sound`].
    segments: Vec<Segment>,
    /// Those of its disks, each once.
    allocations: Vec<Arc<Allocation>>,
}

impl Spread {
    /// A logical volume on physical ones, none if it is not where those are.
    pub fn of(volume: &inside::lvm::Volume, parts: &[Part]) -> Option<Self> {
        let sizes: Vec<u64> = parts.iter().map(Part::size).collect();
        let segments = volume.segments.as_ref().ok().filter(|_| volume.is_sound(&sizes))?;
        let stripe = |stripe: &inside::lvm::Stripe| {
            let part = parts.get(stripe.disk)?;
            let start = part.range.start.checked_add(stripe.offset)?;
            Some(Stripe { disk: part.disk.clone(), allocation: part.allocation.clone(), start })
        };
        let segment = |segment: &inside::lvm::Segment| {
            let stripes = segment.stripes.iter().map(stripe).collect::<Option<_>>()?;
            Some(Segment { offset: segment.offset, length: segment.length, chunk: segment.stripe_size, stripes })
        };
        Some(Self::new(volume.size, segments.iter().map(segment).collect::<Option<_>>()?))
    }

    /// Parts of disks one after the other, none if that is more than a disk can be.
    pub fn joined(parts: &[Part]) -> Option<Self> {
        let mut size = 0_u64;
        let mut segments = Vec::new();
        for part in parts.iter().filter(|part| part.size() > 0) {
            let stripe =
                Stripe { disk: part.disk.clone(), allocation: part.allocation.clone(), start: part.range.start };
            segments.push(Segment { offset: size, length: part.size(), chunk: part.size(), stripes: vec![stripe] });
            size = size.checked_add(part.size()).filter(|size| i64::try_from(*size).is_ok())?;
        }
        Some(Self::new(size, segments))
    }

    fn new(size: u64, segments: Vec<Segment>) -> Self {
        let mut allocations: Vec<_> =
            segments.iter().flat_map(|segment| &segment.stripes).map(|stripe| stripe.allocation.clone()).collect();
        allocations.sort_by_key(Arc::as_ptr);
        allocations.dedup_by(|one, other| Arc::ptr_eq(one, other));
        Self { size, segments, allocations }
    }

    /// Size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where its disks hold data.
    pub fn allocations(&self) -> &[Arc<Allocation>] {
        &self.allocations
    }

    /// What of each disk a range of the volume is, by segments in order.
    pub fn stretches(&self, range: Range<u64>) -> impl Iterator<Item = Stretch<'_>> {
        let first = self.segments.partition_point(|segment| segment.offset + segment.length <= range.start);
        let segments = self.segments.get(first..).unwrap_or_default();
        let touched = segments.iter().take_while(move |segment| segment.offset < range.end);
        touched.flat_map(move |segment| {
            let start = range.start.max(segment.offset) - segment.offset;
            let end = (range.end - segment.offset).min(segment.length);
            (0..).zip(&segment.stripes).filter_map(move |(turn, stripe)| {
                let bytes = segment.before(turn, start)..segment.before(turn, end);
                (!bytes.is_empty()).then_some(Stretch { segment, turn, stripe, bytes })
            })
        })
    }

    /// Begins to read a range, which lies within the volume, as [`CachedDisk::begin_read`] does.
    pub fn begin_read(&self, range: Range<u64>, done: impl FnOnce(Result<Bytes>) + Send + 'static) {
        let stretches: Vec<Stretch<'_>> = self.stretches(range.clone()).collect();
        match &stretches[..] {
            [] => done(Ok(Bytes::new())),
            // What is on one disk is together there.
            [one] => one.stripe.disk.begin_read(one.on_disk(), done),
            _ => {
                let buffer = BytesMut::zeroed(length(range.end - range.start));
                let assembly = Assembly::new(buffer, stretches.len(), done);
                for stretch in stretches {
                    let assembly = assembly.clone();
                    let places: Vec<_> = stretch
                        .pieces()
                        .map(|(at, bytes)| (length(at - range.start), length(bytes.end - bytes.start)))
                        .collect();
                    stretch.stripe.disk.begin_read(stretch.on_disk(), move |outcome| {
                        assembly.put(outcome, |buffer, bytes| {
                            let mut rest = bytes;
                            for (at, length) in places {
                                let (piece, left) = rest.split_at(length);
                                buffer[at..at + length].copy_from_slice(piece);
                                rest = left;
                            }
                        });
                    });
                }
            }
        }
    }

    /// Fetches a range that is likely to be read soon, as far as there is room; how far that was.
    fn read_ahead(&self, range: Range<u64>) -> u64 {
        let mut reached = range.end;
        for stretch in self.stretches(range) {
            let wanted = stretch.on_disk();
            let got = stretch.stripe.disk.read_ahead(wanted.clone());
            if got < wanted.end {
                reached = reached.min(stretch.at(stretch.bytes.start + got.saturating_sub(wanted.start)));
            }
        }
        reached
    }
}

impl Segment {
    fn count(&self) -> u64 {
        u64::try_from(self.stripes.len()).unwrap_or(u64::MAX)
    }

    /// How many bytes before an offset in it are on the stripe of that turn.
    fn before(&self, turn: u64, offset: u64) -> u64 {
        let (chunks, rest) = (offset / self.chunk, offset % self.chunk);
        let (rounds, now) = (chunks / self.count(), chunks % self.count());
        let this_round = match turn.cmp(&now) {
            std::cmp::Ordering::Less => self.chunk,
            std::cmp::Ordering::Equal => rest,
            std::cmp::Ordering::Greater => 0,
        };
        rounds * self.chunk + this_round
    }
}

/// Bytes of a segment that are together on one disk.
pub struct Stretch<'a> {
    segment: &'a Segment,
    turn: u64,
    stripe: &'a Stripe,
    /// What of the stripe it is.
    bytes: Range<u64>,
}

impl Stretch<'_> {
    /// Where the segment begins in the volume, in bytes: of those of one segment no one comes before the others.
    pub fn segment(&self) -> u64 {
        self.segment.offset
    }

    /// Where it is on its disk, in bytes.
    pub fn on_disk(&self) -> Range<u64> {
        self.stripe.start + self.bytes.start..self.stripe.start + self.bytes.end
    }

    /// Where its disk holds data.
    pub fn allocation(&self) -> &Allocation {
        &self.stripe.allocation
    }

    /// Where in the volume a byte of it is that is there on the disk.
    pub fn from_disk(&self, offset: u64) -> u64 {
        self.at(offset - self.stripe.start)
    }

    /// The same by the byte's place in the stripe.
    fn at(&self, byte: u64) -> u64 {
        let Segment { offset, chunk, .. } = self.segment;
        offset + (byte / chunk * self.segment.count() + self.turn) * chunk + byte % chunk
    }

    /// A part of it, by what that is on the disk.
    #[must_use]
    pub fn part(&self, on_disk: Range<u64>) -> Self {
        Self { bytes: on_disk.start - self.stripe.start..on_disk.end - self.stripe.start, ..*self }
    }

    /// The ranges of the volume that it is.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.pieces().map(|(at, bytes)| at..at + (bytes.end - bytes.start))
    }

    /// Each piece: where it begins in the volume, and what of the stripe it is.
    fn pieces(&self) -> impl Iterator<Item = (u64, Range<u64>)> {
        let mut next = self.bytes.start;
        std::iter::from_fn(move || {
            let start = next;
            next = ((start / self.segment.chunk + 1) * self.segment.chunk).min(self.bytes.end);
            (start < self.bytes.end).then(|| (self.at(start), start..next))
        })
    }
}

/// The length of a read.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What images are read from.
#[derive(Clone)]
pub enum Store {
    /// A disk.
    Disk(Arc<CachedDisk>),
    /// A volume over several.
    Spread(Arc<Spread>),
}

impl Store {
    /// What has no bytes.
    pub fn nothing() -> Self {
        Self::Spread(Arc::new(Spread::new(0, Vec::new())))
    }

    /// Reads a range, which lies within it; any thread may. `done` is told how it ends.
    pub fn begin_read(&self, range: Range<u64>, done: impl FnOnce(Result<Bytes>) + Send + 'static) {
        match self {
            Self::Disk(disk) => disk.begin_read(range, done),
            Self::Spread(spread) => spread.begin_read(range, done),
        }
    }

    /// The same for whoever can wait.
    ///
    /// # Errors
    /// Any failure of the source, or of the keeper.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (tell, told) = oneshot::channel();
        self.begin_read(range, move |outcome| drop(tell.send(outcome)));
        told.await.map_err(|error| Error::with_source(Kind::Io, "a read was cut off", error))?
    }

    /// Fetches a range that is likely to be read soon, as far as there is room; how far that was.
    pub fn read_ahead(&self, range: Range<u64>) -> u64 {
        match self {
            Self::Disk(disk) => disk.read_ahead(range),
            Self::Spread(spread) => spread.read_ahead(range),
        }
    }
}

//! A disk in memory whose guest writes and discards, and what QEMU would say about it.

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::BytesMut;
use proptest::prelude::*;
use pullfs_fs::block::extents::Extents;
use pullfs_fs::block::{Map, Sink, Source, Traffic};
use pullfs_fs::error::Result;

/// What the guest does to a range of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// Zeroes, or new data.
    pub(crate) zero: bool,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// Changes of all sizes, at places that are multiples of nothing or of much; some miss the disk.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let unit = prop_oneof![Just(1_u64), Just(512), Just(65_536)];
    let length = prop_oneof![1_u64..3000, 1_u64..200_000, 1_u64..3 << 20];
    (any::<bool>(), 0_u64..8 << 20, length, unit).prop_map(|(zero, start, length, unit)| Change {
        zero,
        start: start / unit * unit,
        length: length.next_multiple_of(unit),
    })
}

/// Content padded with zeroes to whole sectors, as QEMU presents it.
pub(crate) fn rounded(mut disk: Vec<u8>) -> Vec<u8> {
    disk.resize(disk.len().next_multiple_of(512), 0);
    disk
}

#[derive(Clone)]
pub(crate) struct Disk {
    bytes: Vec<u8>,
    writes: u8,
}

fn place(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

impl Disk {
    pub(crate) fn new(size: u64) -> Self {
        Self { bytes: vec![0; place(size)], writes: 0 }
    }

    pub(crate) fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap()
    }

    pub(crate) fn grow(&mut self, by: u64) {
        self.bytes.resize(self.bytes.len() + place(by), 0);
    }

    /// The range that changed, if it is on the disk.
    pub(crate) fn apply(&mut self, change: &Change) -> Option<Range<u64>> {
        let end = (change.start + change.length).min(self.size());
        let range = change.start..end;
        let bytes = self.bytes.get_mut(place(range.start)..place(end)).filter(|bytes| !bytes.is_empty())?;
        self.writes = self.writes.wrapping_add(1);
        for (byte, index) in bytes.iter_mut().zip(0_usize..) {
            let place = u8::try_from(index / 7 % 200).unwrap();
            *byte = if change.zero { 0 } else { place.wrapping_mul(self.writes) | 1 };
        }
        Some(range)
    }

    fn granules(&self, granularity: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let count = self.size().div_ceil(granularity);
        (0..count).map(move |index| index * granularity..((index + 1) * granularity).min(self.size()))
    }

    fn is_zero(&self, range: &Range<u64>) -> bool {
        self.bytes[place(range.start)..place(range.end)].iter().all(|byte| *byte == 0)
    }

    /// Granules that do not read as zeroes.
    pub(crate) fn allocated(&self, granularity: u64) -> Extents {
        list(self.granules(granularity).filter(|granule| !self.is_zero(granule)))
    }

    /// Granules that `changed` touches or that lie past `from`, the old size, and some for nothing: those with data,
    /// and those that read as zeroes.
    pub(crate) fn dirty(&self, granularity: u64, changed: &[Range<u64>], from: u64) -> (Extents, Extents) {
        let touched = |granule: &Range<u64>| changed.iter().any(|r| r.start < granule.end && granule.start < r.end);
        let dirty = |granule: &Range<u64>| {
            touched(granule) || granule.end > from || (granule.start / granularity).is_multiple_of(13)
        };
        let (zero, data) =
            self.granules(granularity).filter(dirty).partition::<Vec<_>, _>(|granule| self.is_zero(granule));
        (list(data), list(zero))
    }

    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, &self.bytes).unwrap();
    }
}

/// Ranges in order.
pub(crate) fn list(ranges: impl IntoIterator<Item = Range<u64>>) -> Extents {
    let mut extents = Extents::default();
    for range in ranges {
        extents.push(range).unwrap();
    }
    extents
}

#[async_trait]
impl Source for Disk {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        let start = place(offset);
        let length = buf.len();
        buf.copy_from_slice(&self.bytes[start..start + length]);
        Ok(buf)
    }

    async fn map(&self, map: &Map, _: Range<u64>, _: &mut Sink<'_>) -> Result<()> {
        panic!("an image asked for {map:?}")
    }

    async fn give_back(&self, _: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    async fn close(&self) {}
}

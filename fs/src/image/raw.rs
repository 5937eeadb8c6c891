//! `disk.raw` and `partitions/N.raw`: the disk, or a part of it, as it is; holes where it reads as zeroes.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Image, Seek, Segment, length, no_such_data};
use crate::block::allocation::Allocation;
use crate::error::Result;

/// A range of a disk.
pub struct Raw {
    window: Range<u64>,
    estimate: u64,
    allocation: Arc<Allocation>,
}

impl Raw {
    /// `estimate` is the number of data bytes that is told until the allocation is known.
    pub fn new(size: u64, estimate: u64, allocation: Arc<Allocation>) -> Self {
        Self::part(0..size, estimate, allocation)
    }

    /// A window of it, which lies within the disk.
    pub fn part(window: Range<u64>, estimate: u64, allocation: Arc<Allocation>) -> Self {
        Self { estimate: estimate.min(window.end - window.start), window, allocation }
    }
}

#[async_trait]
impl Image for Raw {
    fn size(&self) -> u64 {
        self.window.end - self.window.start
    }

    fn data_bytes(&self) -> u64 {
        self.allocation.bytes_within_if_known(&self.window).unwrap_or(self.estimate)
    }

    fn is_known(&self) -> bool {
        self.allocation.bytes_if_known().is_some()
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        let range = self.window.start + range.start..self.window.start + range.end;
        match self.allocation.within_if_known(range.clone()) {
            Some(extents) => on_disk(range, extents),
            None => vec![Segment::Disk { offset: range.start, length: length(&range) }],
        }
    }

    fn was_read(&self) {
        self.allocation.learn();
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.size() {
            return Err(no_such_data(offset));
        }
        let Range { start, end } = self.window;
        let found = match what {
            Seek::Data => self.allocation.next_data(start + offset).await?.filter(|found| *found < end),
            Seek::Hole => Some(self.allocation.next_hole(start + offset).await?.min(end)),
        };
        found.map(|found| found - start).ok_or_else(|| no_such_data(offset))
    }
}

/// The segments of a range of a disk of which only `extents` (sorted, inside the range) need to be read.
pub(super) fn on_disk(range: Range<u64>, extents: impl IntoIterator<Item = Range<u64>>) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = range.start;
    for extent in extents {
        if extent.start > at {
            segments.push(Segment::Zero(length(&(at..extent.start))));
        }
        segments.push(Segment::Disk { offset: extent.start, length: length(&extent) });
        at = extent.end;
    }
    if at < range.end {
        segments.push(Segment::Zero(length(&(at..range.end))));
    }
    segments
}

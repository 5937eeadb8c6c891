//! `lvm/VG/LV.raw`: a logical volume as it is; holes where its disks read as zeroes.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::raw::on_disk;
use super::{Image, Seek, Segment, no_such_data};
use crate::block::spread::{Spread, Stretch};
use crate::error::Result;

/// The volume.
pub struct Volume(Arc<Spread>);

impl Volume {
    /// All of it.
    pub fn new(spread: Arc<Spread>) -> Self {
        Self(spread)
    }
}

#[async_trait]
impl Image for Volume {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn data_bytes(&self) -> u64 {
        let known = |sum: u64, stretch: Stretch<'_>| {
            Some(sum.saturating_add(stretch.allocation().bytes_within_if_known(&stretch.on_disk())?))
        };
        self.0.stretches(0..self.size()).try_fold(0, known).unwrap_or(self.size())
    }

    fn is_known(&self) -> bool {
        self.0.allocations().iter().all(|allocation| allocation.bytes_if_known().is_some())
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        let mut data: Vec<Range<u64>> = Vec::new();
        for stretch in self.0.stretches(range.clone()) {
            match stretch.allocation().within_if_known(stretch.on_disk()) {
                Some(extents) => data
                    .extend(extents.into_iter().flat_map(|extent| stretch.part(extent).ranges().collect::<Vec<_>>())),
                None => data.extend(stretch.ranges()),
            }
        }
        data.sort_unstable_by_key(|range| range.start);
        data.dedup_by(|next, before| {
            let continues = before.end == next.start;
            if continues {
                before.end = next.end;
            }
            continues
        });
        on_disk(range, data)
    }

    fn was_read(&self) {
        self.0.allocations().iter().for_each(|allocation| allocation.learn());
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.size() {
            return Err(no_such_data(offset));
        }
        // Of what each disk of a segment has, the first is the segment's.
        let mut first: Option<(u64, u64)> = None;
        for stretch in self.0.stretches(offset..self.size()) {
            if first.is_some_and(|(segment, _)| segment != stretch.segment()) {
                break;
            }
            let Range { start, end } = stretch.on_disk();
            let found = match what {
                Seek::Data => stretch.allocation().next_data(start).await?,
                Seek::Hole => Some(stretch.allocation().next_hole(start).await?),
            };
            if let Some(found) = found.filter(|found| *found < end).map(|found| stretch.from_disk(found)) {
                let nearest = first.map_or(found, |(_, other)| other.min(found));
                first = Some((stretch.segment(), nearest));
            }
        }
        match (first, what) {
            (Some((_, found)), _) => Ok(found),
            (None, Seek::Hole) => Ok(self.size()),
            (None, Seek::Data) => Err(no_such_data(offset)),
        }
    }
}
